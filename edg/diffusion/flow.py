"""Flow matching (Lipman et al. 2023): a straight path from noise to sample, walked by Euler steps, and the
jump between two resolutions of a pyramidal flow (Jin et al. 2025)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor

from edg.diffusion.prediction import Denoiser

Video = Float[Tensor, "b c t h w"]


def euler(
    velocity: Denoiser, x: Video, timesteps: Sequence[float], places: Sequence[float]
) -> Iterator[Video]:
    """Walk x along its velocity, yielding after each step: x <- x + (r_{i+1} - r_i) v(x, t_i).

    timesteps: n of them, given to the network (float32). places: n + 1, the flow coordinate r.
    """
    for t, here, there in zip(timesteps, places[:-1], places[1:], strict=True):
        t_B = torch.full((len(x),), t, dtype=torch.float32, device=x.device)
        x = x + (there - here) * velocity(x, t_B)
        yield x


def half(x: Video) -> Video:
    """Each frame at half the size: the mean of every 2x2 block."""
    return reduce(x, "b c t (h p) (w q) -> b c t h w", "mean", p=2, q=2)


def double(x: Video) -> Video:
    """Each frame at twice the size: every value repeated in a 2x2 block."""
    return repeat(x, "b c t h w -> b c t (h p) (w q)", p=2, q=2)


def coarse_noise(noise: Video) -> Video:
    """White noise at a quarter of the size, made from white noise at full size: its variance is 1 again."""
    return 2 * half(2 * half(noise))


def block_noise(white: Video, gamma: float = 1 / 3) -> Video:
    """Noise with covariance (1 + gamma) I - gamma J inside every 2x2 block, from white noise.

    The symmetric square root of that covariance: sqrt(1 + gamma) (z - m) + sqrt(1 - 3 gamma) m, m the mean of
    the block. At gamma = 1/3 every block sums to 0.
    """
    mean = double(half(white))
    return (1 + gamma) ** 0.5 * (white - mean) + max(1 - 3 * gamma, 0.0) ** 0.5 * mean


def stage_jump(x: Video, alpha: float, beta: float, white: Video, gamma: float = 1 / 3) -> Video:
    """Take the end of a stage to the start of the next, at twice the size: alpha double(x) + beta n, n the
    `block_noise` that makes the sum white again where x has noise."""
    return alpha * double(x) + beta * block_noise(white, gamma)


def pyramid(x: Video, levels: int = 3) -> list[Video]:
    """x at every level, the coarsest first, x itself last."""
    found = [x]
    for _ in range(levels - 1):
        found.insert(0, half(found[0]))
    return found


def resized(table_HWD: Float[Tensor, "h w d"], height: int, width: int) -> Float[Tensor, "h2 w2 d"]:
    """A table over a grid at another size: bilinear, corners not aligned, no antialias."""
    table = rearrange(table_HWD, "h w d -> 1 d h w")
    return rearrange(F.interpolate(table, (height, width), mode="bilinear"), "1 d h w -> h w d")
