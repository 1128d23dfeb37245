"""Analytic-Init (Zhao et al. 2024): where to start when sampling begins at M < 1000."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from edg.diffusion.schedule import Schedule


def analytic_init(
    expectation: Float[Tensor, "*shape"],
    trace_cov_per_dim: Float[Tensor, "*#shape"] | float,
    schedule: Schedule,
    start: int,
    eps: Float[Tensor, "*shape"],
) -> Float[Tensor, "*shape"]:
    """x_T = s E[x0] + sqrt(1 - s^2 + s^2 TrCov / d) eps, with s = sqrt(abar_{M-1}).

    The isotropic Gaussian nearest to the noised data at timestep M - 1.

    expectation: E[x0], shape of the latent. trace_cov_per_dim: trace of x0's covariance over its dimension
    (scalar, or anything that broadcasts). start: M in 1..N. eps ~ N(0, 1) of the latent's shape. With zero
    terminal SNR and M = N this is eps itself. Raises ValueError for M out of range.
    """
    count = len(schedule.sqrt_alphas_cumprod)
    if not 1 <= start <= count:
        raise ValueError(f"M is {start}, expected 1..{count}")
    s = schedule.sqrt_alphas_cumprod[start - 1].to(eps)
    return s * expectation.to(eps) + (1 - s**2 + s**2 * trace_cov_per_dim) ** 0.5 * eps
