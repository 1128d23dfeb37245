"""Parameters of a noise schedule, without torch: `edg info` only reads them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ScheduleSpec:
    """Parameters of a noise schedule.

    timesteps: length N.
    linear_start, linear_end: first and last beta; their square roots are interpolated linearly.
    zero_terminal_snr: shift and scale sqrt(abar) so that it ends in 0 (Lin et al. 2024, algorithm 1).
    base_scale: factor of x0 from turning_step on, where the dynamic rescale ends; None is no rescale.
    """

    linear_start: float
    linear_end: float
    zero_terminal_snr: bool
    base_scale: float | None
    timesteps: int = 1000
    turning_step: int = 400


#: Stable Diffusion's, and that of the video models made from it, before any change at its end.
SCALED_LINEAR = ScheduleSpec(0.00085, 0.012, zero_terminal_snr=False, base_scale=None)
