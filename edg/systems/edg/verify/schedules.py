"""Groups `schedule` and `analytic`: buffers, DDIM tables and initial noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edg.diffusion.analytic_init import analytic_init
from edg.diffusion.ddim import ddim_plan
from edg.diffusion.schedule import Schedule, linear_betas, make_schedule, timesteps
from edg.networks.latent_video.published_yaml import MODEL_DEFAULTS, schedule_spec
from edg.verify.cases import Case


def parameterization(config: Mapping[str, Any]) -> str:
    return config.get("parameterization", MODEL_DEFAULTS["parameterization"])


def schedule_of(config: Mapping[str, Any]) -> Schedule:
    return make_schedule(schedule_spec(config), parameterization(config))


def schedule(case: Case) -> dict[str, Tensor]:
    """Every listed output: a buffer by its name, a DDIM table as METHOD/S{S}/M{M}[/eta{eta}]/NAME."""
    tables = schedule_of(case.config)
    betas = linear_betas(schedule_spec(case.config))
    known = {
        **tables.buffers(),
        "lvlb_weights": tables.lvlb_weights(parameterization(case.config)),
        "betas_float64": torch.from_numpy(betas),
        "alphas_cumprod_float64": torch.from_numpy(np.cumprod(1 - betas)),
    }
    outputs = {}
    for name in case.raw["outputs"]:
        table = name.split("/")
        if len(table) > 1:
            outputs[name] = ddim_table(tables, *table)
        elif name in known:
            outputs[name] = known[name]
    return outputs


def ddim_table(tables: Schedule, spacing: str, steps: str, start: str, *rest: str) -> Tensor:
    """One table of the released sampler, ascending in t."""
    s, m = int(steps.removeprefix("S")), int(start.removeprefix("M"))
    *etas, name = rest
    if name in ("timesteps", "ddim_timesteps"):
        return torch.from_numpy(timesteps(spacing, s, m, released=True).copy())
    eta = float(etas[0].removeprefix("eta")) if etas else 0.0
    plan = ddim_plan(tables, s, spacing, eta, m, released=True)[::-1]
    columns = {
        "alphas": [step.alpha for step in plan],
        "alphas_prev": [step.alpha_prev for step in plan],
        "sigmas": [step.sigma for step in plan],
        "sqrt_one_minus_alphas": [(1 - step.alpha) ** 0.5 for step in plan],
        "scale_arr": [step.scale for step in plan],
        "scale_arr_prev": [step.scale_prev for step in plan],
    }
    return torch.tensor(columns[name.removeprefix("ddim_")], dtype=torch.float64)


def analytic(case: Case) -> dict[str, Tensor]:
    """The initial noise for every M of the case."""
    tables = schedule_of(case.config)
    expectation, trace, eps = (case.input(name) for name in ("Expectation_X0", "Tr_Cov_d", "eps"))
    outputs = {}
    for name in case.raw["outputs"]:
        kind, _, start = name.partition("/M")
        if kind == "init":
            outputs[name] = analytic_init(expectation, trace, tables, int(start), eps)
        elif kind == "sqrt_alpha":
            outputs[name] = tables.sqrt_alphas_cumprod[int(start) - 1].reshape([1] * eps.ndim)
    return outputs
