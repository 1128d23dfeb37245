"""Guided steps of DiTFlow, their learning rates, and CogVideoX's dynamic guidance scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def guided_steps(steps: int, remaining: tuple[int, int]) -> range:
    """Numbers of the guided steps. remaining: (hi, lo), guided while at most hi and more than lo steps are
    left, as the release counts them."""
    high, low = remaining
    return range(max(steps - high, 0), max(steps - low, 0))


def learning_rates(
    steps: int, remaining: tuple[int, int], ends: tuple[float, float], released: bool = False
) -> list[float]:
    """The learning rate of each guided step: from the first of `ends` towards the second.

    One more point than steps in the range. released: indexed by the step's number in the whole run, NaN
    where the release stops with an index error; they differ where guidance does not begin at the first step.
    """
    high, low = remaining
    points = np.linspace(*ends, high - low + 1)
    guided = guided_steps(steps, remaining)
    places = guided if released else range(len(guided))
    return [float(points[place]) if place < len(points) else math.nan for place in places]


def dynamic_scale(scale: float, timesteps: Sequence[int], released: bool = False) -> list[float]:
    """Guidance scale of every step: 1 + scale (1 - cos(pi p^5)) / 2 with p = k / N, so that it rises late.

    released: p = (N - t) / N with the training timestep t, whose cosine is as good as random; computed in
    the order of operations that its last digits depend on.
    """
    steps = len(timesteps)
    places = [(steps - t) / steps for t in timesteps] if released else [k / steps for k in range(steps)]
    return [1 + scale * ((1 - math.cos(math.pi * place**5.0)) / 2) for place in places]
