"""Noise schedule and sampler steps of CogVideoX (Yang et al. 2024): v-prediction, zero terminal SNR, and for
the large model a second-order SDE step."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from torch import Tensor

from edg.diffusion.prediction import x0_from
from edg.diffusion.schedule import linear_betas, timesteps
from edg.diffusion.schedule_spec import ScheduleSpec

Video = Float[Tensor, "b f c h w"]
PLAIN = ScheduleSpec(0.00085, 0.012, zero_terminal_snr=False, base_scale=None)


def alphas_cumprod(snr_shift: float = 1.0, spec: ScheduleSpec = PLAIN) -> Float[np.ndarray, " timesteps"]:
    """abar (N,) in float64: the SNR divided by snr_shift, then sqrt(abar) shifted and scaled to end in 0."""
    abar = np.cumprod(1 - linear_betas(spec))
    abar = abar / (snr_shift + (1 - snr_shift) * abar)
    signal = np.sqrt(abar)
    first, last = signal[0], signal[-1]
    return ((signal - last) * first / (first - last)) ** 2


def log_snr(abar: float | np.ndarray) -> Float[np.ndarray, "*shape"]:
    """ln(abar / (1 - abar)) / 2, -inf at 0 and inf at 1."""
    with np.errstate(divide="ignore"):
        return (np.log(abar) - np.log1p(-np.asarray(abar, dtype=np.float64))) / 2


def trailing(steps: int) -> list[int]:
    """Timesteps, the noisiest first; for 62 numbers of steps up to 1000 the release's list ends with -1."""
    return timesteps("uniform_trailing", steps, released=True)[::-1].tolist()


def previous(t: int, steps: int) -> int:
    """The timestep that a step leads to, below 0 for the clean sample. Not the next entry of the list."""
    return t - 1000 // steps


def abar_at(abar: Float[np.ndarray, " timesteps"], t: int) -> float:
    """abar at a timestep, 1 below 0."""
    return float(abar[t]) if t >= 0 else 1.0


def x0_of(v: Video, x: Video, abar: float) -> Video:
    """The clean sample of a v-prediction."""
    return x0_from(v, x, abar**0.5, (1 - abar) ** 0.5, "v")


def ddim_step(x: Video, x0: Video, abar: float, after: float) -> Video:
    """DDIM with eta 0 (Song et al. 2021, equation 12)."""
    keep = ((1 - after) / (1 - abar)) ** 0.5
    return keep * x + (after**0.5 - abar**0.5 * keep) * x0


def dpm_step(
    x: Video,
    x0: Video,
    abar: float,
    after: float,
    noise: Video,
    before: float | None = None,
    x0_before: Video | None = None,
) -> Video:
    """SDE-DPM-Solver++(2M) as CogVideoX has it.

    before, x0_before: abar and clean sample of the step before; None at the first step. First order there and
    where the step leads to the clean sample. Both limits at abar = 0 are finite.
    """
    here, there = float(log_snr(abar)), float(log_snr(after))
    h = there - here
    better = x0
    if x0_before is not None and before is not None and after < 1:
        back = float(log_snr(before))
        half = 0.0 if math.isinf(back) else h / (2 * (here - back))  # 1 / (2 r), r infinite after abar = 0
        better = (1 + half) * x0 - half * x0_before
    keep = ((1 - after) / (1 - abar)) ** 0.5 * math.exp(-h)
    spread = -math.expm1(-2 * h)
    return keep * x + spread * after**0.5 * better + ((1 - after) * spread) ** 0.5 * noise
