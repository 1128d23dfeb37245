"""Prediction types of a network (eps, v, x0), and the conversions between them.

With signal s = sqrt(abar_t) and noise rate n = sqrt(1 - abar_t): x = s x0 + n eps and v = s eps - n x0
(Salimans and Ho 2022, appendix D). Samplers use x0 only: wrap the network once, before the loop.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor

from edg.diffusion.schedule import Parameterization, Schedule

#: A batch of samples, C T H W as a rule.
Latents = Float[Tensor, "b *shape"]
#: One timestep for each of them, 0 the least noisy.
Timesteps = Int[Tensor, " b"]
#: (x_BCTHW, t_B) -> prediction of x's shape.
Denoiser = Callable[[Latents, Timesteps], Latents]
#: A number for each sample, (B, 1, 1, ...).
PerSample = Float[Tensor, "b *ones"]
#: sqrt(abar_t) or sqrt(1 - abar_t), for each sample or for all.
Rate = Float[Tensor, "*ones"] | float


def at(values_N: Float[Tensor, " timesteps"], t_B: Timesteps, like: Float[Tensor, "*shape"]) -> PerSample:
    """values[t] as (B, 1, 1, ...) that broadcasts over `like`, in its dtype; t = -1 is the last entry."""
    return values_N.to(t_B.device)[t_B].to(like).reshape(-1, *[1] * (like.ndim - 1))


def rates(schedule: Schedule, t_B: Timesteps, like: Latents) -> tuple[PerSample, PerSample]:
    """(sqrt(abar_t), sqrt(1 - abar_t)), each (B, 1, 1, ...)."""
    signal = at(schedule.sqrt_alphas_cumprod, t_B, like)
    return signal, at(schedule.sqrt_one_minus_alphas_cumprod, t_B, like)


def x0_from(
    prediction: Latents, x: Latents, signal: Rate, noise: Rate, parameterization: Parameterization
) -> Latents:
    """x0 from a prediction at x. v: s x - n v; eps: (x - n eps) / s. ValueError for an unknown kind."""
    if parameterization == "v":
        return signal * x - noise * prediction
    if parameterization == "eps":
        return (x - noise * prediction) / signal
    if parameterization == "x0":
        return prediction
    raise ValueError(f"parameterization {parameterization!r}: expected v, eps or x0")


def eps_from_x0(x0: Latents, x: Latents, signal: Rate, noise: Rate) -> Latents:
    """eps = (x - s x0) / n."""
    return (x - signal * x0) / noise


def target(
    x0: Latents, eps: Latents, signal: Rate, noise: Rate, parameterization: Parameterization
) -> Latents:
    """The training target of a prediction type for x = s x0 + n eps; v = s eps - n x0."""
    if parameterization == "v":
        return signal * eps - noise * x0
    if parameterization == "eps":
        return eps
    if parameterization == "x0":
        return x0
    raise ValueError(f"parameterization {parameterization!r}: expected v, eps or x0")


def to_x0(denoise: Denoiser, schedule: Schedule, parameterization: Parameterization) -> Denoiser:
    """A denoiser that returns x0 (before any dynamic rescale), in x's dtype whatever the network's own."""

    def denoise_x0(x: Latents, t_B: Timesteps) -> Latents:
        prediction = denoise(x, t_B).to(x.dtype)
        return x0_from(prediction, x, *rates(schedule, t_B, x), parameterization)

    return denoise_x0
