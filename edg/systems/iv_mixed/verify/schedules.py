"""Groups `iv_curve`, `iv_grid`, `iv_match`: guidance curves, timesteps and maps, levels of two models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edg.diffusion.noise_levels import NoiseLevels, move, signal_at
from edg.diffusion.prediction import x0_from
from edg.diffusion.schedule import make_schedule, timesteps, zero_terminal_snr
from edg.diffusion.schedule_spec import ScheduleSpec
from edg.diffusion.zigzag import guidance_curve, image_model_is_used
from edg.verify.cases import Case

SPACINGS = {"linspace": "linspace", "leading": "leading", "trailing": "uniform_trailing", "dpm": "dpm"}
TURNING_STEP = 400  # where the dynamic rescale ends


def curves(case: Case) -> dict[str, Tensor]:
    """Guidance curves, and masks of the steps at which the image model and the loop are used."""
    config = case.config
    found = {name: torch.tensor(curve_of(c)) for name, c in config["curves"].items()}
    for name, c in config["zz"].items():
        found[name] = torch.tensor([int(image_model_is_used(i, c["zz"])) for i in range(c["steps"])])
    for name, c in config["intervals"].items():
        low, high = c["interval"]
        found[name] = torch.tensor([int(low <= i <= high) for i in range(c["steps"])])
    return found


def curve_of(config: Mapping[str, Any]) -> list[float]:
    return guidance_curve(config["begin"], config["end"], config["rho"], config["points"])


def levels_of(scheduler: Mapping[str, Any]) -> NoiseLevels:
    """Noise levels of a diffusers scheduler's config."""
    if scheduler["beta_schedule"] != "scaled_linear":
        raise ValueError(f"beta_schedule {scheduler['beta_schedule']!r}: expected scaled_linear")
    ends = scheduler["beta_start"], scheduler["beta_end"]
    spec = ScheduleSpec(*ends, False, None, timesteps=scheduler["num_train_timesteps"])
    return NoiseLevels.of(make_schedule(spec, "eps"))


def grid_of(name: str, steps: int) -> list[int]:
    """Timesteps of a grid of that name, descending."""
    return timesteps(SPACINGS[name], steps, released=True)[::-1].tolist()


def grids(case: Case) -> dict[str, Tensor]:
    """Timestep grids, noise levels, and DDIM maps in both directions."""
    config, levels = case.config, levels_of(case.config["scheduler"])
    found = {"alphas_cumprod": torch.from_numpy(levels.signal**2).float()}
    for steps in config["steps"]:
        for name in SPACINGS:
            found[f"{name}/N{steps}"] = torch.tensor(grid_of(name, steps))
        ratios = [levels[t].ratio for t in grid_of("dpm", steps)]
        found[f"dpm_sigmas/N{steps}"] = torch.tensor([*ratios, 0.0])
    x, eps = case.input("x"), case.input("eps")
    for index, one in enumerate(config["maps"]):
        ends = one["timestep"], one["timestep"] - 1000 // one["steps"]
        source, target = (levels[t] for t in (ends if one["kind"] == "denoise" else ends[::-1]))
        x0 = x0_from(eps, x, source.signal, source.noise, "eps")
        found[f"map{index}"] = move(x, x0, source, target)
    return {name: tensor for name, tensor in found.items() if name in case.raw["outputs"]}


def model_levels(model: Mapping[str, Any]) -> NoiseLevels:
    """Noise levels of a model, in float64: linear or scaled-linear betas, with its dynamic rescale."""
    root = 0.5 if model["betas"] == "scaled_linear" else 1.0
    betas = np.linspace(0.00085**root, 0.012**root, 1000) ** (1 / root)
    abar = np.cumprod(1 - (zero_terminal_snr(betas) if model.get("zero_snr") else betas))
    base = model.get("base_scale", 1.0)
    scale = np.append(np.linspace(1, base, TURNING_STEP), np.full(len(abar) - TURNING_STEP, base))
    return NoiseLevels(np.sqrt(abar) * scale, np.sqrt(1 - abar))


def matching(case: Case) -> dict[str, Tensor]:
    """Noise levels of each model, and timesteps of equal levels of two."""
    models = {name: model_levels(model) for name, model in case.config["models"].items()}
    listed, t = case.config["timesteps"], int(case.input("in_t"))
    found = {f"log_levels/{name}": torch.tensor(m.log_ratio[listed]).float() for name, m in models.items()}
    for pair in case.config["pairs"]:
        video, image = (models[name] for name in pair.split("/"))
        found[f"tau/{pair}"] = torch.tensor([image.t_at(video[one].ratio) for one in listed])
        found[f"largest/{pair}"] = torch.tensor(video.largest_inside(image))
        factor = signal_at(image, image.t_at(video[t].ratio)) / video[t].signal
        found[f"query/{pair}"] = case.input("x") * factor
    for name, model in case.config["models"].items():
        if model.get("prediction") == "v":
            abar = 1 - models[name].noise[t] ** 2
            found[f"eps_from_v/{name}"] = abar**0.5 * case.input("v") + (1 - abar) ** 0.5 * case.input("x")
    return found
