"""Group `iv_vc_ddim`: VideoCrafter2's own DDIM sampling, with the dynamic rescale of x0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from edg.diffusion.ddim import SamplerStep, ddim, ddim_plan
from edg.diffusion.guidance import guidance_weights, guided, side_by_side
from edg.diffusion.prediction import Denoiser, to_x0
from edg.diffusion.schedule import make_schedule
from edg.diffusion.schedule_spec import ScheduleSpec
from edg.systems.iv_mixed.verify.networks import on_meta, spec_of
from edg.verify import rules
from edg.verify.cases import Case


def ddim_run(case: Case) -> dict[str, Tensor]:
    model, settings = case.config["model"], case.raw["sampler"]
    base_scale = model["scale_b"] if model["use_scale"] else None
    spec = ScheduleSpec(
        model["linear_start"], model["linear_end"], False, base_scale, timesteps=model["timesteps"]
    )
    schedule = make_schedule(spec, "eps")
    plan = ddim_plan(schedule, settings["S"], "uniform", settings["eta"], released=True)
    if schedule.scale_arr is not None:  # the last step ends at the scale of timestep 0
        plan[-1] = replace(plan[-1], scale_prev=float(schedule.scale_arr[0]))
    weights = list(guidance_weights(settings["cfg_scale"]).values())
    branches = [branch(case, name) for name in ("cond", "uncond")][: len(weights)]
    denoise = to_x0(guided(side_by_side(*branches), weights), schedule, "eps")

    def noise(step: SamplerStep, shape: Sequence[int]) -> Tensor:
        return case.input(f"noise_{step.index}", shape)

    states = list(ddim(denoise, case.input("x_T"), plan, noise))
    found = {
        "x_final": states[-1].x,
        "x_steps": torch.stack([state.x for state in states]),
        "x0_steps": torch.stack([state.x0 / state.step.scale_prev for state in states]),
        "timesteps": torch.tensor([step.t for step in reversed(plan)]),
        "alphas_cumprod": schedule.alphas_cumprod,
    }
    return found if schedule.scale_arr is None else {**found, "scale_arr": schedule.scale_arr}


def branch(case: Case, condition: str) -> Denoiser:
    """The case's network, a stub or a small UNet, under one condition."""
    fps, context = case.raw["sampler"]["fps"], case.input(condition)
    if "unet_config" not in case.config:
        return lambda x, t_B: stub(x, t_B, context, fps)
    unet = on_meta(spec_of("vc_unet", case.config))
    unet = (
        rules.fill(unet, case.raw["weight_seed"], case.key_prefix, device=case.device).eval().to(case.dtype)
    )

    def denoise(x: Tensor, t_B: Tensor) -> Tensor:
        return unet(x.to(case.dtype), t_B, context.to(case.dtype), torch.full_like(t_B, fps)).float()

    return denoise


def stub(x: Tensor, t_B: Tensor, context: Tensor, fps: int) -> Tensor:
    """The analytic network that the case's `math` gives."""
    m, t = (value.float().reshape(-1, 1, 1, 1, 1) for value in (5 * context.mean((1, 2)), t_B))
    out = 0.6 * x + 0.3 * m + 0.05 * torch.sin(t / 100) + 0.2 * m * torch.tanh(x)
    return out + 0.1 * torch.sin(torch.tensor(fps / 10)) + 0.3 * x.mean(2, keepdim=True)
