"""DPM-Solver++(2M) (Lu et al. 2022b): the deterministic path in fewer steps, over the same plan as `ddim`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from edg.diffusion.ddim import State, Step, ddim_step
from edg.diffusion.prediction import Denoiser, Latents


def dpmpp(
    denoise_x0: Denoiser,
    x: Latents,
    plan: Sequence[Step],
    previous: State | None = None,
    reach: float = 1.0,
) -> Iterator[State]:
    """Walk a plan made with eta 0, or a part of it, from x, yielding after each step.

    Every step is DDIM's with a better x0: extrapolated from the last two predictions to the middle of the
    step (algorithm 2). The first step, and the one after alpha = 0 (lambda = -inf), is DDIM's own.

    previous: the state before plan[0], for a part of a plan: walking plan[:k], then plan[k:] with its last
    state, is bit-equal to walking it at once. Without it the walk begins anew, as it must where another
    parameter set takes over: the difference of two networks is no derivative. reach: extrapolate as if the
    step were at most that many times as long as the one before. The published solver has no such limit
    (math.inf), and overshoots in the last step of a short plan, which is several times as long. The order is
    2 either way. Raises ValueError for a step with sigma > 0.
    """
    for step in plan:
        if step.sigma > 0:
            raise ValueError(f"sigma is {step.sigma} at timestep {step.t}, expected a plan with eta 0")
        t_B = torch.full((x.shape[0],), step.t, dtype=torch.long, device=x.device)
        x0 = denoise_x0(x, t_B)
        better = x0
        if previous is not None:
            before = previous.x0 * (step.scale / previous.step.scale_prev)
            better = x0 + min(relative_length(step, previous.step), reach) / 2 * (x0 - before)
        x, _ = ddim_step(x, better, step, torch.zeros_like(x))
        previous = State(step, x, x0 * (step.scale_prev / step.scale))
        yield previous


def relative_length(step: Step, previous: Step) -> float:
    """h / h_previous in lambda; 0, for a step of first order, where one is not finite and positive."""
    h, before = length(step), length(previous)
    return h / before if 0 < h < math.inf and 0 < before < math.inf else 0.0


def length(step: Step) -> float:
    """h = lambda after the step - lambda before it, lambda = log(signal / noise) (section 4.1)."""
    return log_ratio(step.alpha_prev, step.scale_prev) - log_ratio(step.alpha, step.scale)


def log_ratio(alpha: float, scale: float) -> float:
    """lambda, -inf at abar = 0. With the dynamic rescale the signal is scale sqrt(abar): what the network
    predicts at t is scale times the clean sample, and that sample is what the steps have in common."""
    if alpha in (0, 1):
        return math.inf if alpha else -math.inf
    return math.log(scale * (alpha / (1 - alpha)) ** 0.5)
