"""Noise schedule and timesteps of CogVideoX (Yang et al. 2024): zero terminal SNR, shifted for the small
model."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from edg.diffusion.schedule import ending_in_noise, linear_betas, timesteps
from edg.diffusion.schedule_spec import SCALED_LINEAR, ScheduleSpec


def alphas_cumprod(
    snr_shift: float = 1.0, spec: ScheduleSpec = SCALED_LINEAR
) -> Float[np.ndarray, " timesteps"]:
    """abar (N,) in float64: the SNR divided by snr_shift, then made to end in 0."""
    abar = np.cumprod(1 - linear_betas(spec))
    return ending_in_noise(abar / (snr_shift + (1 - snr_shift) * abar))


def trailing(steps: int) -> list[int]:
    """Timesteps, the noisiest first; for 62 numbers of steps up to 1000 the release's list ends with -1."""
    return timesteps("uniform_trailing", steps, released=True)[::-1].tolist()


def previous(t: int, steps: int) -> int:
    """The timestep that a step leads to, below 0 for the clean sample. Not the next entry of the list."""
    return t - 1000 // steps


def abar_at(abar: Float[np.ndarray, " timesteps"], t: int) -> float:
    """abar at a timestep, 1 below 0."""
    return float(abar[t]) if t >= 0 else 1.0
