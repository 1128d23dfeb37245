"""Analytic-Init (Zhao et al. 2024): the start of sampling from M < 1000, and its estimate from data."""

from __future__ import annotations

import torch
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


class Moments:
    """Mean of every element and trace of the covariance of a stream of samples, in one pass.

    Batches are joined by the update of Chan, Golub & LeVeque 1983, in float64: mean and sum of squared
    deviations, never the difference of two large sums. The split into batches changes the rounding only.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | None = None  # of one sample's shape
        self.squares: Tensor | None = None  # sum of (x - mean)^2, of one sample's shape
        self.within = 0.0  # sum over samples of the mean over elements of the samples' own variance

    def add(self, x: Tensor, variance: Tensor | None = None) -> None:
        """A batch x (B, ...). variance, of x's shape: each sample is not a point but a distribution with mean
        x and this variance (an autoencoder's posterior); by the law of total variance its mean is added to
        the trace, which is what drawing infinitely often from every posterior would give.

        Raises ValueError for a sample of another shape than those before, or values that are not finite.
        """
        if not len(x):
            return
        x = x.detach().to("cpu", torch.float64)
        if self.mean is not None and x.shape[1:] != self.mean.shape:
            raise ValueError(f"samples of shape {tuple(x.shape[1:])} after {tuple(self.mean.shape)}")
        within = 0.0
        if variance is not None:
            if variance.shape != x.shape:
                raise ValueError(f"variance of shape {tuple(variance.shape)} for {tuple(x.shape)}")
            within = float(variance.detach().to("cpu", torch.float64).flatten(1).mean(1).sum())
        mean = x.mean(0)
        squares = ((x - mean) ** 2).sum(0)
        if not torch.isfinite(squares).all() or within - within != 0:
            raise ValueError("a sample holds NaN or Inf")
        self._join(len(x), mean, squares, within)

    def merge(self, other: Moments) -> None:
        """Add the samples of another estimate (of another rank, for example)."""
        if other.mean is not None and other.squares is not None:
            self._join(other.count, other.mean, other.squares, other.within)

    def _join(self, count: int, mean: Tensor, squares: Tensor, within: float) -> None:
        """n = a + b, d = mean_b - mean_a:  mean = mean_a + d b / n,  S = S_a + S_b + d^2 a b / n."""
        self.within += within
        if self.mean is None or self.squares is None:
            self.count, self.mean, self.squares = count, mean.clone(), squares.clone()
            return
        total, d = self.count + count, mean - self.mean
        self.mean = self.mean + d * (count / total)
        self.squares = self.squares + squares + d**2 * (self.count * count / total)
        self.count = total

    @property
    def expectation(self) -> Tensor:
        """E[x0] as (1, ...), float32. Raises ValueError before the first sample."""
        if self.mean is None:
            raise ValueError("no samples")
        return self.mean[None].float()

    @property
    def trace_cov_per_dim(self) -> float:
        """Tr Cov[x0] / d, unbiased: squared deviations over n - 1 (the published estimate divides by n, which
        is smaller by the factor (n - 1) / n). Raises ValueError below two samples."""
        if self.count < 2 or self.squares is None:
            raise ValueError(f"{self.count} samples have no covariance")
        return float(self.squares.mean()) / (self.count - 1) + self.within / self.count
