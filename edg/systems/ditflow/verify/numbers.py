"""Groups of DiTFlow without a network: schedules, steps, tables, plans, losses, scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edg.diffusion.ddim import SamplerStep, State, ddim_step
from edg.diffusion.noise_levels import NoiseLevels
from edg.diffusion.prediction import x0_from
from edg.diffusion.schedule_spec import ScheduleSpec
from edg.diffusion.sde_dpm import sde_step
from edg.metrics.motion_fidelity import motion_fidelity, motion_fidelity_released, similarity
from edg.systems.ditflow import cogvideox_schedule as cog
from edg.systems.ditflow import guidance_plan, motion_losses, positions
from edg.systems.ditflow.motion_losses import Grid
from edg.verify.cases import Case


def spec_of(scheduler: Mapping[str, Any]) -> ScheduleSpec:
    return ScheduleSpec(scheduler["beta_start"], scheduler["beta_end"], False, None)


def schedule(case: Case) -> dict[str, Tensor]:
    found, spec = {}, spec_of(case.config["scheduler"])
    for shift in case.config["snr_shift_scale"]:
        abar = cog.alphas_cumprod(shift, spec)
        found[f"shift{shift:g}/alphas_cumprod"] = torch.from_numpy(abar)
        levels = NoiseLevels(np.sqrt(abar), np.sqrt(1 - abar))
        found[f"shift{shift:g}/log_snr"] = torch.from_numpy(-levels.log_ratio)
    for steps in case.config["num_inference_steps"]:
        visited = cog.trailing(steps)
        found[f"trailing/N{steps}/timesteps"] = torch.tensor(visited)
        found[f"trailing/N{steps}/previous"] = torch.tensor([cog.previous(t, steps) for t in visited])
    return found


def step(case: Case) -> dict[str, Tensor]:
    """Single steps of DDIM or the SDE solver, and noising."""
    scheduler = case.config["scheduler"]
    abar, found = cog.alphas_cumprod(scheduler["snr_shift_scale"], spec_of(scheduler)), {}
    for steps, index in case.config["steps"]:
        name, visited = f"N{steps}/i{index}", cog.trailing(steps)
        t = visited[index]
        here, after = cog.abar_at(abar, t), cog.abar_at(abar, cog.previous(t, steps))
        x, v, n = (case.input(f"{part}/{name}") for part in "xvn")
        x0 = x0_from(v, x, here**0.5, (1 - here) ** 0.5, "v")
        now = SamplerStep(index, t, here, after, 0.0, 1.0, 1.0)
        if case.config["kind"] == "ddim":
            moved, _ = ddim_step(x, x0, now, torch.zeros_like(x))
        else:
            last = None
            if case.has_input(f"x0_old/{name}"):  # its length is from timestep to timestep of the list
                before = cog.abar_at(abar, visited[index - 1])
                last = SamplerStep(index - 1, visited[index - 1], before, here, 0.0, 1.0, 1.0)
                last = State(last, x, case.input(f"x0_old/{name}"))
            moved = sde_step(x, x0, now, case.input(f"noise/{name}"), last)
        found[f"{name}/timestep"], found[f"{name}/prev"], found[f"{name}/x0"] = torch.tensor(t), moved, x0
        found[f"{name}/noised"] = here**0.5 * x + (1 - here) ** 0.5 * n
    return found


def tables(case: Case) -> dict[str, Tensor]:
    found = {}
    for index, one in enumerate(case.config["rope"]):
        table = positions.rotary_table(Grid(*one["grid"]), one["head_dim"])
        found[f"rope_{index}"] = table if one["rows"] is None else table[:, one["rows"]]
    for index, one in enumerate(case.config["sincos"]):
        table = positions.additive_table(Grid(*one["grid"]), one["width"])
        found[f"sincos_{index}"] = table if one["rows"] is None else table[one["rows"]]
    return found


def guidance_scale(case: Case) -> dict[str, Tensor]:
    found = {}
    for scale in case.config["guidance_scale"]:
        for steps in case.config["num_inference_steps"]:
            for name, released in (("released", True), ("progress", False)):
                values = guidance_plan.dynamic_scale(scale, cog.trailing(steps), released)
                found[f"g{scale:g}/N{steps}/{name}"] = torch.tensor(values, dtype=torch.float64)
    return found


def plan(case: Case) -> dict[str, Tensor]:
    found = {}
    for index, one in enumerate(case.config["plans"]):
        steps, remaining = one["num_inference_steps"], tuple(one["guidance_timestep_range"])
        guided, visited = guidance_plan.guided_steps(steps, remaining), cog.trailing(steps)
        found[f"plan_{index}/guided_steps"] = torch.tensor(list(guided))
        found[f"plan_{index}/guided_timesteps"] = torch.tensor([visited[k] for k in guided])
        for name, released in (("lr_released", True), ("lr_local", False)):
            rates = guidance_plan.learning_rates(steps, remaining, tuple(one["lr"]), released)
            found[f"plan_{index}/{name}"] = torch.tensor(rates, dtype=torch.float64)
    return found


def attention_motion_flow(case: Case) -> dict[str, Tensor]:
    config = case.config
    grid, text = Grid(config["frames"], config["height"], config["width"]), config["text_tokens"]
    q, k = (case.input(name)[0, :, text:] for name in ("q", "k"))
    tau, found = config["motion_temp"], {}
    references = {
        "hard": motion_losses.hard_flow(q, k, grid),
        "soft": motion_losses.soft_flow(q, k, grid, tau),
    }
    found |= {"hard": references["hard"].long(), "soft": references["soft"]}
    with torch.enable_grad():
        leaves = [case.input(name).requires_grad_() for name in ("q_gen", "k_gen")]
        generated = motion_losses.soft_flow(*(leaf[0, :, text:] for leaf in leaves), grid, tau)
        found["soft_gen"] = generated.detach()
        for name, reference in references.items():
            for masked in (True, False):
                label = f"{name}_{'masked' if masked else 'all'}"
                loss = motion_losses.flow_loss(generated, reference, masked)
                count = (
                    motion_losses.moving(reference).sum()
                    if masked
                    else torch.tensor(reference[..., 0].numel())
                )
                found[f"mask_count/{label}"], found[f"loss/{label}"] = count, loss.detach()
                if label == "hard_masked":
                    gradients = torch.autograd.grad(loss, leaves, retain_graph=True)
                    found["grad/q_gen"], found["grad/k_gen"] = gradients
    return {name: tensor for name, tensor in found.items() if name in case.raw["outputs"]}


def feature_loss(case: Case) -> dict[str, Tensor]:
    reference = case.input("ref")
    channels = motion_losses.motion_channels(reference, case.config["prop_motion"])
    found = {"moft/channels": channels, "moft/v1_abs": motion_losses.first_direction(reference)}
    losses = {
        "moft": lambda gen: motion_losses.moft_loss(gen, reference, channels),
        "smm_released": lambda gen: motion_losses.smm_loss(gen, reference, "released"),
        "smm_upstream": lambda gen: motion_losses.smm_loss(gen, reference, with_self=True),
        "smm_upstream_without_self": lambda gen: motion_losses.smm_loss(gen, reference),
    }
    for name, loss_of in losses.items():
        with torch.enable_grad():
            generated = (case.input("gen") if case.has_input("gen") else case.input("ref")).requires_grad_()
            loss = loss_of(generated)
            (found[f"{name}/grad"],) = torch.autograd.grad(loss, [generated])
        found[f"{name}/loss"] = loss.detach()
    return {name: tensor for name, tensor in found.items() if name in case.raw["outputs"]}


def score(case: Case) -> dict[str, Tensor]:
    if case.has_input("image_embeddings"):
        images, text = (
            torch.nn.functional.normalize(case.input(n), dim=-1)
            for n in ("image_embeddings", "text_embedding")
        )
        return {"iq": (images @ text.T).mean()}
    reference = case.input("tracks_ref").numpy()
    generated = case.input("tracks_gen").numpy() if case.has_input("tracks_gen") else reference
    alike = similarity(generated, reference)
    released = similarity(generated, reference, clamp=False)
    found = {
        "similarity_released": released,
        "mf_released": motion_fidelity_released(generated, reference),
        "mf_gen_to_ref": alike.max(axis=1).mean(),
        "mf_ref_to_gen": alike.max(axis=0).mean(),
        "mf_symmetric": motion_fidelity(generated, reference),
    }
    return {name: torch.as_tensor(np.float32(value)) for name, value in found.items()}
