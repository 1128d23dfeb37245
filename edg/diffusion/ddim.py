"""DDIM (Song et al. 2021): a list of steps, and a loop that yields after each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from edg.diffusion.prediction import Denoiser, Latents, eps_from_x0
from edg.diffusion.schedule import Schedule, Spacing, timesteps


@dataclass(frozen=True)
class SamplerStep:
    """One step of a plan: from timestep t to the next less noisy one.

    index: 0 for the first executed (noisiest) step of the whole plan, also in a part of it.
    alpha, alpha_prev: abar at t and after the step. sigma: standard deviation of the fresh noise.
    scale, scale_prev: the dynamic rescale's factors of x0 (both 1 without it).
    """

    index: int
    t: int
    alpha: float
    alpha_prev: float
    sigma: float
    scale: float
    scale_prev: float


@dataclass(frozen=True)
class State:
    """After a step: the latent x it leads to, and the (rescaled) x0 that was predicted on the way."""

    step: SamplerStep
    x: Latents
    x0: Latents


Noise = Callable[[SamplerStep, Sequence[int]], Latents]  # (step, shape) -> N(0, 1) of that shape


def ddim_plan(
    schedule: Schedule,
    steps: int,
    spacing: Spacing = "uniform_trailing",
    eta: float = 1.0,
    start: int = 1000,
    released: bool = False,
) -> list[SamplerStep]:
    """The steps of a run, the first executed (noisiest) first.

    start: M, sampling begins at timestep M - 1; it changes the timesteps alone. eta: 0 is deterministic, 1
    ancestral. sigma = eta sqrt((1 - a_prev) / (1 - a) (1 - a / a_prev)) (Song et al. 2021, equation 16). The
    last step leads to abar_0, not to 1, and its x0 is not rescaled. released: timesteps as the published code
    computes them, see `timesteps`; -1 is the last entry of every table. Raises ValueError for a timestep the
    schedule does not have.
    """
    visited = timesteps(spacing, steps, start, released)
    abar = schedule.alphas_cumprod.double().cpu().numpy()
    if visited[-1] >= len(abar):
        raise ValueError(
            f"{spacing} with {steps} steps from {start} visits timestep {visited[-1]} of {len(abar)}"
        )
    alpha = abar[visited]
    alpha_prev = np.append(abar[0], alpha[:-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        sigma = eta * np.sqrt((1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev))
    scale = np.ones(len(visited))
    if schedule.scale_arr is not None:
        scale = schedule.scale_arr.double().cpu().numpy()[visited]
    scale_prev = np.append(scale[0], scale[:-1])
    columns = zip(*(a.tolist() for a in (visited, alpha, alpha_prev, sigma, scale, scale_prev)), strict=True)
    return [SamplerStep(index, *values) for index, values in enumerate(reversed(list(columns)))]


def ddim(denoise_x0: Denoiser, x: Latents, plan: Sequence[SamplerStep], noise: Noise) -> Iterator[State]:
    """Walk a plan, or a part of it, from x, yielding after each step.

    Walking plan[:k] and then plan[k:] is bit-equal to walking it at once.

    denoise_x0: (x_BCTHW, t_B) -> x0, see `to_x0`. noise is asked for at every step, also where sigma is 0.
    """
    for step in plan:
        t_B = torch.full((x.shape[0],), step.t, dtype=torch.long, device=x.device)
        x0 = denoise_x0(x, t_B)
        fresh = noise(step, tuple(x.shape)).to(x)
        x, x0 = ddim_step(x, x0, step, fresh)
        yield State(step, x, x0)


def ddim_step(x: Latents, x0: Latents, step: SamplerStep, noise: Latents) -> tuple[Latents, Latents]:
    """(next x, rescaled x0) of Song et al. 2021, equation 12:

        x <- sqrt(a_prev) x0 + sqrt(1 - a_prev - sigma^2) eps + sigma noise

    eps follows from x and the x0 before its dynamic rescale. The coefficients are computed in float64 and the
    argument of the square root, 0 for exact arithmetic at abar = 0 and eta = 1, is clamped there.
    """
    eps = x if step.alpha == 0 else eps_from_x0(x0, x, step.alpha**0.5, (1 - step.alpha) ** 0.5)
    x0 = x0 * (step.scale_prev / step.scale)
    direction = float(np.sqrt(np.maximum(1 - step.alpha_prev - step.sigma**2, 0.0)))
    return step.alpha_prev**0.5 * x0 + direction * eps + step.sigma * noise, x0
