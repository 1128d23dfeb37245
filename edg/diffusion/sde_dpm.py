"""SDE-DPM-Solver++(2M) (Lu et al. 2022b, algorithm for the diffusion SDE, midpoint form)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from edg.diffusion.ddim import Noise, SamplerStep, State
from edg.diffusion.multistep import length, relative_length
from edg.diffusion.prediction import Denoiser, Latents


def sde_dpmpp(
    denoise_x0: Denoiser,
    x: Latents,
    plan: Sequence[SamplerStep],
    noise: Noise,
    before: Sequence[State] = (),
) -> Iterator[State]:
    """Walk a plan, yielding after each step; one that leads to the clean sample (alpha_prev 1) gives x0.

    denoise_x0: see `prediction.to_x0`. noise: asked for at every step, also at the last. before: the last
    states, for a part of a plan.
    """
    last = before[-1] if before else None
    for step in plan:
        x0 = denoise_x0(x, x.new_full((len(x),), step.t).long())
        fresh = noise(step, tuple(x.shape)).to(x)
        x = sde_step(x, x0, step, fresh, last)
        last = State(step, x, x0)
        yield last


def sde_step(x: Latents, x0: Latents, step: SamplerStep, fresh: Latents, last: State | None) -> Latents:
    """One step, with lambda = ln(signal / noise), h its length over the step and w = 1 - exp(-2 h):

        x <- (b_r / b_s) exp(-h) x + a_r w (x0 + (x0 - x0_before) h / (2 h_before)) + b_r sqrt(w) fresh

    x0 alone without a step before, and where a length is not finite: at alpha 0 and towards alpha 1.
    """
    h = length(step)
    w, better = -math.expm1(-2 * h), x0
    if last is not None and (ratio := relative_length(step, last.step)):
        better = x0 + (x0 - last.x0) * (ratio / 2)
    signal, noise, noise_before = step.alpha_prev**0.5, (1 - step.alpha_prev) ** 0.5, (1 - step.alpha) ** 0.5
    return noise / noise_before * math.exp(-h) * x + signal * w * better + noise * math.sqrt(w) * fresh
