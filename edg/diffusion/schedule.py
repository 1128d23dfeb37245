"""Noise schedules and timestep lists of the DynamiCrafter family.

Forward process (Ho et al. 2020, equation 4): x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, with abar_t the
product of (1 - beta) up to and including t; t = 0 is the least noisy timestep, 999 of 1000 the noisiest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from edg.diffusion.schedule_spec import ScheduleSpec

Parameterization = Literal["v", "eps", "x0"]
Spacing = Literal["uniform", "uniform_trailing", "quad", "leading", "linspace", "dpm"]


@dataclass(frozen=True)
class Schedule:
    """The persistent buffers of a published checkpoint: float32 (N,), scale_arr (turning_step + N,).

    posterior_*: mean coefficients, variance and log variance of q(x_{t-1} | x_t, x_0) (Ho et al. 2020,
    equations 6 and 7), the log clipped at 1e-20. The two sqrt_recip buffers are zeros for v-prediction.
    """

    betas: Float[Tensor, " timesteps"]
    alphas_cumprod: Float[Tensor, " timesteps"]
    alphas_cumprod_prev: Float[Tensor, " timesteps"]
    sqrt_alphas_cumprod: Float[Tensor, " timesteps"]
    sqrt_one_minus_alphas_cumprod: Float[Tensor, " timesteps"]
    log_one_minus_alphas_cumprod: Float[Tensor, " timesteps"]
    sqrt_recip_alphas_cumprod: Float[Tensor, " timesteps"]
    sqrt_recipm1_alphas_cumprod: Float[Tensor, " timesteps"]
    posterior_variance: Float[Tensor, " timesteps"]
    posterior_log_variance_clipped: Float[Tensor, " timesteps"]
    posterior_mean_coef1: Float[Tensor, " timesteps"]
    posterior_mean_coef2: Float[Tensor, " timesteps"]
    scale_arr: Float[Tensor, " rescaled"] | None = None

    def buffers(self) -> dict[str, Float[Tensor, " _"]]:
        """Published buffer name -> tensor; scale_arr only with the dynamic rescale."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    @classmethod
    def from_buffers(cls, buffers: Mapping[str, Tensor]) -> Schedule:
        """The schedule a checkpoint or module holds, other names ignored. ValueError for a missing one."""
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in buffers and name != "scale_arr"]
        if missing:
            raise ValueError(
                f"no schedule buffer {missing[0]!r} ({len(missing)} of {len(names) - 1} are missing)"
            )
        return cls(**{name: buffers[name] for name in names if name in buffers})

    def lvlb_weights(self, parameterization: Parameterization) -> Float[Tensor, " timesteps"]:
        """Weights (N,) of the variational bound's terms, not stored in checkpoints.

        eps: beta^2 / (2 posterior_variance (1 - beta) (1 - abar)) (Ho et al. 2020, equation 12); x0:
        sqrt(abar) / (2 (2 - abar)), as the published code has it; v: ones. Entry 0, where the variance is 0,
        repeats entry 1.
        """
        if parameterization == "v":
            return torch.ones_like(self.betas)
        if parameterization == "x0":
            weights = 0.5 * self.sqrt_alphas_cumprod / (2 - self.alphas_cumprod)
        elif parameterization == "eps":
            beta, abar = self.betas.double(), self.alphas_cumprod.double()
            weights = beta**2 / (2 * self.posterior_variance.double() * (1 - beta) * (1 - abar))
        else:
            raise ValueError(f"parameterization {parameterization!r}: expected v, eps or x0")
        return torch.cat([weights[1:2], weights[1:]]).float()


def linear_betas(spec: ScheduleSpec) -> Float[np.ndarray, " timesteps"]:
    """Betas (N,) in float64: linear in sqrt(beta), zero terminal SNR applied where the spec asks for it."""
    ends = spec.linear_start**0.5, spec.linear_end**0.5
    betas = np.linspace(*ends, spec.timesteps, dtype=np.float64) ** 2
    return zero_terminal_snr(betas) if spec.zero_terminal_snr else betas


def zero_terminal_snr(betas: Float[np.ndarray, " timesteps"]) -> Float[np.ndarray, " timesteps"]:
    """Betas whose sqrt(abar) starts where it did and ends in exactly 0 (Lin et al. 2024, algorithm 1).

    1 - beta is the ratio of consecutive abar, see `ending_in_noise`.
    """
    abar = ending_in_noise(np.cumprod(1 - betas))
    return 1 - np.concatenate([abar[:1], abar[1:] / abar[:-1]])


def ending_in_noise(abar: Float[np.ndarray, " timesteps"]) -> Float[np.ndarray, " timesteps"]:
    """abar that ends in exactly 0: s <- (s - s_N) s_1 / (s_1 - s_N) with s = sqrt(abar)."""
    signal = np.sqrt(abar)
    first, last = signal[0], signal[-1]
    return ((signal - last) * first / (first - last)) ** 2


def make_schedule(spec: ScheduleSpec, parameterization: Parameterization = "v") -> Schedule:
    """Compute all buffers of a schedule in float64, stored in float32."""
    betas = linear_betas(spec)
    abar = np.cumprod(1 - betas)
    previous = np.append(1.0, abar[:-1])
    variance = betas * (1 - previous) / (1 - abar)
    with np.errstate(divide="ignore"):
        recip = np.zeros_like(abar) if parameterization == "v" else 1 / abar
        recip_minus_1 = np.zeros_like(abar) if parameterization == "v" else 1 / abar - 1
        log_noise = np.log(1 - abar)
    arrays = {
        "betas": betas,
        "alphas_cumprod": abar,
        "alphas_cumprod_prev": previous,
        "sqrt_alphas_cumprod": np.sqrt(abar),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - abar),
        "log_one_minus_alphas_cumprod": log_noise,
        "sqrt_recip_alphas_cumprod": np.sqrt(recip),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(recip_minus_1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(previous) / (1 - abar),
        "posterior_mean_coef2": (1 - previous) * np.sqrt(1 - betas) / (1 - abar),
    }
    if spec.base_scale is not None:
        ramp = np.linspace(1.0, spec.base_scale, spec.turning_step)
        arrays["scale_arr"] = np.concatenate([ramp, np.full(spec.timesteps, spec.base_scale)])
    return Schedule(**{name: torch.tensor(array, dtype=torch.float32) for name, array in arrays.items()})


def timesteps(
    spacing: Spacing, steps: int, start: int = 1000, released: bool = False
) -> Int[np.ndarray, " visited"]:
    """Timesteps to visit, ascending int64; sampling goes through them from the end.

    steps: S. start: M, only timesteps below it are used (sampling begins at or below M - 1).
      uniform           0, c, 2c, ... < M, plus 1, c = M // S: may hold more than S entries
      uniform_trailing  round-half-even(M, M - c, ... > 0) - 1, c = M / S: begins at M - 1
      quad              floor(linspace(0, sqrt(0.8 M), S)^2) + 1
      leading           c j + 1 for j < S, c = M // S: uniform without entries beyond S
      linspace          round(linspace(0, M - 1, S)): both ends
      dpm               round(linspace(0, M - 1, S + 1)) without the first, as DPM-Solver's scheduler has it
    Clean lists (the default) lie in 0..M-1 without repeats. released: as the published code computes them in
    floating point: it may visit -1 (read as the last entry), M itself or a timestep twice.
    Raises ValueError for an unknown spacing and for steps or start below 1.
    """
    if steps < 1 or start < 1:
        raise ValueError(f"{steps} steps from timestep {start}: both must be at least 1")
    if spacing == "uniform":
        stride = start // steps if released else max(1, start // steps)
        if stride == 0:
            raise ValueError(f"{steps} uniform steps do not fit into {start} timesteps")
        visited = np.arange(0, start, stride) + 1
    elif spacing == "uniform_trailing":
        visited = np.flip(np.round(np.arange(start, 0, -start / steps))) - 1
        visited = visited if released else visited[visited >= 0]
    elif spacing == "quad":
        visited = np.floor(np.linspace(0, np.sqrt(start * 0.8), steps) ** 2) + 1
    elif spacing == "leading":
        visited = np.arange(steps) * max(1, start // steps) + 1
    elif spacing == "linspace":
        visited = np.round(np.linspace(0, start - 1, steps))
    elif spacing == "dpm":
        visited = np.round(np.linspace(0, start - 1, steps + 1))[1:]
    else:
        raise ValueError(f"timestep spacing {spacing!r}: expected {', '.join(get_args(Spacing))}")
    visited = visited.astype(np.int64)
    return visited if released else np.unique(np.clip(visited, 0, start - 1))
