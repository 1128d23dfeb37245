"""Schedule of Pyramid Flow (Jin et al. 2025): three stages, each with its own part of the noise levels, of
the network's timesteps and of the way from noise to sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from edg.diffusion.flow import Video, euler, stage_jump
from edg.diffusion.prediction import Denoiser


@dataclass(frozen=True)
class PyramidStage:
    """One resolution. start, end: share of noise at its ends; original_start: where the undivided schedule
    would begin it. timesteps: (N,) of the network, falling. share: (from, to) of all timesteps. alpha, beta:
    of the jump into it, None for the first."""

    start: float
    end: float
    original_start: float
    share: tuple[float, float]
    timesteps: Float[np.ndarray, " n"]
    alpha: float | None
    beta: float | None

    def steps(self, count: int) -> tuple[list[float], list[float]]:
        """(timesteps, flow coordinates) of `count` inference steps; the last one moves by 1 / N only."""
        total = len(self.timesteps)
        timesteps = np.linspace(self.timesteps[0], self.timesteps[-1], count)
        return timesteps.tolist(), [*np.linspace(1, 1 / total, count).tolist(), 0.0]


def stages(
    ranges: Sequence[float] = (0, 1 / 3, 2 / 3, 1),
    total: int = 1000,
    shift: float = 1.0,
    gamma: float = 1 / 3,
) -> list[PyramidStage]:
    """All stages, the coarsest first. ranges: their limits as shares of the noise schedule."""
    sigma = ((total - np.arange(total)) / total).astype(np.float32)
    sigma = (shift * sigma / (1 + (shift - 1) * sigma)).astype(np.float32)
    times = (sigma * np.float32(total)).astype(np.float32)
    count, spread = len(ranges) - 1, (1 + 1 / gamma) ** 0.5
    starts, ends, originals, jumps = [], [], [], []
    for k in range(count):
        first, last = int(ranges[k] * total), int(ranges[k + 1] * total)
        original = float(sigma[max(first, 0)])
        clean = 1 - original
        whole = spread * (1 - clean) + clean
        originals.append(original)
        starts.append(original if k == 0 else 1 - clean / whole)
        ends.append(float(sigma[last]) if last < total else 0.0)
        jumps.append((None, None) if k == 0 else (1 / whole, (1 - clean) / whole / gamma**0.5))
    lengths = np.array(starts) - np.array(ends)
    limits = [0.0, *(np.cumsum(lengths) / lengths.sum()).tolist()]
    limits[-1] = 1.0
    found = []
    for k in range(count):
        top = times[int(limits[k] * total)]
        bottom = times[min(int(limits[k + 1] * total), total - 1)]
        grid = np.linspace(top, bottom, total + 1)[:-1]
        share = (limits[k], limits[k + 1])
        found.append(PyramidStage(starts[k], ends[k], originals[k], share, grid, *jumps[k]))
    return found


def denoise_unit(
    velocity: Denoiser,
    x: Video,
    plan: Sequence[PyramidStage],
    steps: Sequence[int],
    noise: Callable[[int, Video], Video],
) -> Iterator[Video]:
    """Take the coarse start of a latent frame through all stages, yielding after each.

    velocity: guided, (x, t) -> start - end. noise: (number of the jump from 0, double x) -> N(0, 1) at the
    new size.
    """
    for k, (stage, count) in enumerate(zip(plan, steps, strict=True)):
        if stage.alpha is not None and stage.beta is not None:
            x = stage_jump(x, stage.alpha, stage.beta, noise(k - 1, x))
        *_, x = euler(velocity, x, *stage.steps(count))
        yield x
