"""SDE-DPM-Solver++(2M) (Lu et al. 2022b, algorithm for the diffusion SDE, midpoint form)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from edg.diffusion.ddim import Noise, SamplerStep, State
from edg.diffusion.multistep import log_ratio
from edg.diffusion.prediction import Denoiser, Latents


def sde_dpmpp(
    denoise_x0: Denoiser,
    x: Latents,
    plan: Sequence[SamplerStep],
    noise: Noise,
    before: Sequence[State] = (),
) -> Iterator[State]:
    """Walk a plan whose last step leads to the clean sample, yielding after each step.

    With lambda = ln(signal / noise), h its length over the step and w = 1 - exp(-2 h):

        x <- (b_r / b_s) exp(-h) x + a_r w (x0 + (x0 - x0_before) h / (2 h_before)) + b_r sqrt(w) noise

    x0 alone in the first step. The last step gives x0. denoise_x0: see `prediction.to_x0`. noise: asked for
    at every step, also at the last. before: the last states, for a part of a plan.
    """
    last = before[-1] if before else None
    for step in plan:
        x0 = denoise_x0(x, x.new_full((len(x),), step.t).long())
        fresh = noise(step, tuple(x.shape)).to(x)
        x = x0 if step.alpha_prev == 1 else _step(x, x0, step, fresh, last)
        last = State(step, x, x0)
        yield last


def _step(x: Latents, x0: Latents, step: SamplerStep, fresh: Latents, last: State | None) -> Latents:
    h = log_ratio(step.alpha_prev, 1) - log_ratio(step.alpha, 1)
    w = -math.expm1(-2 * h)
    better = x0
    if last is not None:
        h_before = log_ratio(last.step.alpha_prev, 1) - log_ratio(last.step.alpha, 1)
        better = x0 + (x0 - last.x0) * h / (2 * h_before)
    signal, noise, noise_before = step.alpha_prev**0.5, (1 - step.alpha_prev) ** 0.5, (1 - step.alpha) ** 0.5
    return noise / noise_before * math.exp(-h) * x + signal * w * better + noise * math.sqrt(w) * fresh
