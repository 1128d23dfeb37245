"""Group `sampler`: whole DDIM runs over two denoisers, stubs or small UNets, as `generate` runs them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edg.diffusion.ddim import SamplerStep, ddim, ddim_plan
from edg.diffusion.guidance import guidance_weights, guided, side_by_side
from edg.diffusion.prediction import Denoiser, to_x0
from edg.diffusion.switch import blend, phases
from edg.systems.edg.verify.schedules import parameterization, schedule_of
from edg.verify import rules
from edg.verify.cases import Case

SETS = ("dyn", "con")


def sampler(case: Case) -> dict[str, Tensor]:
    """Denoise x_T with the released options; every step's noise follows the input rule."""
    settings = case.raw["sampler"]
    schedule = schedule_of(case.config)
    plan = ddim_plan(
        schedule,
        settings["S"],
        settings.get("timestep_spacing", "uniform_trailing"),
        settings["eta"],
        settings["M"],
        released=True,
    )
    parts = phases(plan, [settings["T"]])
    networks = [network(case, name) for name in SETS]

    def noise(step: SamplerStep, shape: Sequence[int]) -> Tensor:
        return case.input(f"noise_{step.index}", shape)

    x, states = case.input("x_T"), []
    for use, steps in [([0, 1], plan)] if is_blend(case) else [([k], steps) for k, steps in parts]:
        branches = [branch(case, networks, use, kind) for kind in ("cond", "uncond")]
        weights = list(guidance_weights(settings["cfg_scale"]).values())
        denoise = guided(side_by_side(*branches[: len(weights)]), weights, settings["guidance_rescale"])
        states += ddim(to_x0(denoise, schedule, parameterization(case.config)), x, steps, noise)
        x = states[-1].x
    return {
        "x_final": x,
        "x_steps": torch.stack([state.x for state in states]),
        "x0_steps": torch.stack([state.x0 for state in states]),
        "uses_dyn": torch.tensor([int(k == 0) for k, steps in parts for _ in steps]),
        "timesteps": torch.tensor([step.t for step in reversed(plan)]),
    }


def is_blend(case: Case) -> bool:
    """True for a case of the soft switch; the index says so in words only."""
    return "p_sample_ddim_multi" in case.raw.get("math", "") or case.name.startswith("samp_multi")


def branch(case: Case, networks: Sequence[Denoiser], use: Sequence[int], kind: str) -> Denoiser:
    """(x, t) -> raw prediction of the sets in `use` under their own condition (`cond` or `uncond`)."""
    raw = [conditioned(case, networks[k], SETS[k], kind) for k in use]
    return raw[0] if len(raw) == 1 else blend(*raw)


def conditioned(case: Case, denoise, name: str, kind: str) -> Denoiser:
    """Set `name` with its context and concatenated latent, computed in the case's dtype."""
    extra = {}
    if case.has_input(f"{name}.temporal_context"):
        extra["temporal_context"] = case.input(f"{name}.temporal_context").to(case.dtype)

    def predict(x: Tensor, t_B: Tensor) -> Tensor:
        context = case.input(f"{name}.{kind}.context").to(case.dtype)
        concat = case.input(f"{name}.c_concat").to(case.dtype)
        return denoise(x.to(case.dtype), concat, t_B, context, **extra)

    return predict


def network(case: Case, name: str):
    """(x, concat, t, context) -> raw prediction: a stub, or the described UNet with weights by rule."""
    if f"unet_config_{name}" not in case.raw:
        return {"dyn": stub_dyn, "con": stub_con}[name]
    from edg.networks.latent_video.published_yaml import unet_spec
    from edg.networks.latent_video.unet import UNet

    unet = UNet(unet_spec(case.raw[f"unet_config_{name}"])).eval()
    rules.fill(unet, case.raw[f"weight_seed_{name}"], case.key_prefix)
    unet = unet.to(case.device, case.dtype)
    stride = case.raw["sampler"].get("fs")
    stride_B = None if stride is None else torch.tensor(stride, device=case.device)

    def denoise(x: Tensor, concat: Tensor, t_B: Tensor, context: Tensor, temporal_context=None) -> Tensor:
        return unet(torch.cat([x, concat], 1), t_B, context, stride_B, temporal_context)

    return denoise


def _scalars(x: Tensor, t_B: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """(mean of the context over tokens and channels, t), each (B, 1, 1, 1, 1) in x's dtype."""
    shape = [-1] + [1] * (x.ndim - 1)
    return context.mean((1, 2)).to(x).reshape(shape), t_B.to(x).reshape(shape)


def stub_dyn(x: Tensor, concat: Tensor, t_B: Tensor, context: Tensor) -> Tensor:
    m, t = _scalars(x, t_B, context)
    return 0.3 * x + 0.1 * m + 0.05 * torch.sin(t / 100) + 0.2 * m * torch.tanh(x) + 0.05 * concat


def stub_con(x: Tensor, concat: Tensor, t_B: Tensor, context: Tensor) -> Tensor:
    m, t = _scalars(x, t_B, context)
    return -0.2 * x + 0.2 * m + 0.03 * torch.cos(t / 50) + 0.1 * m * x - 0.05 * concat
