"""The deterministic path in fewer steps, over the same plan as `ddim` and with as many network calls:
DPM-Solver++(2M) (Lu et al. 2022b), and UniPC-2 (Zhao et al. 2023), which also corrects what it predicted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from edg.diffusion.ddim import SamplerStep, State, ddim_step
from edg.diffusion.prediction import Denoiser, Latents


def dpmpp(
    denoise_x0: Denoiser,
    x: Latents,
    plan: Sequence[SamplerStep],
    before: Sequence[State] = (),
    reach: float = 1.0,
) -> Iterator[State]:
    """Walk a plan made with eta 0, or a part of it, from x (denoiser as in `ddim`), yielding after each step.

    Every step is DDIM's with a better x0: extrapolated from the last two predictions to the middle of the
    step (algorithm 2). The first step, and the one after alpha = 0 (lambda = -inf), is DDIM's own.

    before: the states before plan[0] (all, or the last two), for a part of a plan: walking plan[:k], then
    plan[k:] with its states, is bit-equal to walking it at once. Without them the walk begins anew, as it
    must where another parameter set takes over: the difference of two networks is no derivative. reach:
    extrapolate as if the step were at most that many times as long as the one before. The published solver
    has no such limit (math.inf), and overshoots in the last step of a short plan, which is several times as
    long. The order is 2 either way. Raises ValueError for a step with sigma > 0.
    """
    return walk(denoise_x0, x, plan, before, reach, corrected=False)


def unipc(
    denoise_x0: Denoiser,
    x: Latents,
    plan: Sequence[SamplerStep],
    before: Sequence[State] = (),
    reach: float = 1.0,
) -> Iterator[State]:
    """`dpmpp`, and every prediction first corrects the step that led to its x: UniPC-2 with
    B(h) = exp(h) - 1 ("bh2") in data prediction, whose predictor is DPM-Solver++(2M).

    The order is 3 (theorem 3.1) on steps of like length in lambda. The last step is not corrected, which
    would take one more network call, and neither is the last one before another parameter set: `State.x` is
    the latent before its correction.
    Arguments and errors are those of `dpmpp`.
    """
    return walk(denoise_x0, x, plan, before, reach, corrected=True)


def walk(
    denoise_x0: Denoiser,
    x: Latents,
    plan: Sequence[SamplerStep],
    before: Sequence[State],
    reach: float,
    corrected: bool,
) -> Iterator[State]:
    """Both solvers, see `dpmpp`. The last x0 is already in units of the next: scale_prev is its scale."""
    older, last = (None, None, *before)[-2:]
    for step in plan:
        if step.sigma > 0:
            raise ValueError(f"sigma is {step.sigma} at timestep {step.t}, expected a plan with eta 0")
        t_B = torch.full((x.shape[0],), step.t, dtype=torch.long, device=x.device)
        x0 = denoise_x0(x, t_B)
        better = x0
        if last is not None:
            if corrected:
                x = x + correction(x0, last, older, reach)
            better = x0 + extrapolation(step, last, reach) * (x0 - last.x0)
        x, _ = ddim_step(x, better, step, torch.zeros_like(x))
        older, last = last, State(step, x, x0 * (step.scale_prev / step.scale))
        yield last


def correction(x0: Latents, last: State, older: State | None, reach: float) -> Latents:
    """Correction of the x that `last` led to, once the prediction there is known.

    A step leads to a mean of x0 over lambda, weighted by exp(lambda). It was predicted with the line through
    two predictions, and is corrected with the parabola through them and the new one.
    """
    step, h = last.step, length(last.step)
    if not h > 0:
        return torch.zeros_like(x0)
    ratio = relative_length(step, older.step) if older is not None else 0.0
    of_new, of_old = corrector_weights(h, ratio)
    better = of_new * (x0 - last.x0)
    if older is not None:
        old = last.x0 - older.x0 * (step.scale_prev / step.scale)
        better = better + (of_old - extrapolation(step, older, reach)) * old
    return step.alpha_prev**0.5 * -math.expm1(-h) * better


def corrector_weights(h: float, ratio: float) -> tuple[float, float]:
    """Weights, in the mean of x0 over a step, of (the change over it, the change over the one before).

    h: the length of the step in lambda; ratio: that over the one before. (1/2, 0) for 0, a step of first
    order: the trapezoidal rule in signal / noise, which is finite also where lambda begins at -inf. UniC-2's
    rho otherwise, solved: first and second are the means of u and u^2, weighted by exp(h u), as u goes from 0
    to 1 through the step.
    """
    if ratio == 0:
        return 0.5, 0.0
    first = -1 / math.expm1(-h) - 1 / h
    second = -1 / math.expm1(-h) - 2 * first / h
    bent = (first - second) * ratio / (1 + ratio)
    return first - bent, ratio * bent


def extrapolation(step: SamplerStep, last: State, reach: float) -> float:
    """Weight of the last difference of two predictions in the prediction at the middle of a step."""
    return min(relative_length(step, last.step), reach) / 2


def relative_length(step: SamplerStep, previous: SamplerStep) -> float:
    """h / h_previous in lambda; 0, for a step of first order, where one is not finite and positive."""
    h, before = length(step), length(previous)
    return h / before if 0 < h < math.inf and 0 < before < math.inf else 0.0


def length(step: SamplerStep) -> float:
    """h = lambda after the step - lambda before it, lambda = log(signal / noise) (section 4.1)."""
    return log_ratio(step.alpha_prev, step.scale_prev) - log_ratio(step.alpha, step.scale)


def log_ratio(alpha: float, scale: float) -> float:
    """lambda, -inf at abar = 0. With the dynamic rescale the signal is scale sqrt(abar): what the network
    predicts at t is scale times the clean sample, and that sample is what the steps have in common."""
    if alpha in (0, 1):
        return math.inf if alpha else -math.inf
    return math.log(scale * (alpha / (1 - alpha)) ** 0.5)
