"""Several networks in one run: one after the other (the swap at timestep T), or blended. Predictions are
raw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor

from edg.diffusion.ddim import SamplerStep
from edg.diffusion.prediction import Denoiser, Latents, Timesteps


def check_boundaries(sets: int, boundaries: Sequence[float]) -> None:
    """Raise ValueError unless there is one boundary between each two sets and they decrease."""
    if len(boundaries) != sets - 1:
        raise ValueError(f"{sets} parameter sets need {sets - 1} boundaries, not {len(boundaries)}")
    if any(a <= b for a, b in zip(boundaries, boundaries[1:], strict=False)):
        raise ValueError(f"boundaries {tuple(boundaries)} do not fall")


def set_index(t: int, boundaries: Sequence[float]) -> int:
    """Index of the set in use at timestep t: the first k with t > boundaries[k], else the last."""
    return next((k for k, boundary in enumerate(boundaries) if t > boundary), len(boundaries))


def switch(denoisers: Sequence[Denoiser] | Mapping[str, Denoiser], boundaries: Sequence[float]) -> Denoiser:
    """A denoiser that is number k while t > boundaries[k] (strictly), and the last one below all
    boundaries.

    t is that of each sample of a batch; a network is called only where some sample needs it.
    """
    ordered = list(denoisers.values()) if isinstance(denoisers, Mapping) else list(denoisers)
    check_boundaries(len(ordered), boundaries)

    def switched(x: Latents, t_B: Timesteps) -> Latents:
        chosen = [set_index(t, boundaries) for t in t_B.tolist()]
        used = sorted(set(chosen))
        out = ordered[used[0]](x, t_B)
        for k in used[1:]:
            mine = torch.tensor([c == k for c in chosen], device=x.device).reshape(-1, *[1] * (x.ndim - 1))
            out = torch.where(mine, ordered[k](x, t_B), out)
        return out

    return switched


def blend(
    first: Denoiser, second: Denoiser, weight: Callable[[Timesteps], Float[Tensor, " b"]] | None = None
) -> Denoiser:
    """A denoiser that returns w(t) first + (1 - w(t)) second at every step; w(t) = t / 1000 by default.

    Guided with scale s this equals the released, unused soft switch, whose guidance weights are s t /
    1000 for the first and s (1 - t / 1000) for the second around the blended unconditional prediction.
    """
    share = weight or (lambda t_B: t_B / 1000)

    def blended(x: Latents, t_B: Timesteps) -> Latents:
        w = share(t_B).to(x).reshape(-1, *[1] * (x.ndim - 1))
        return w * first(x, t_B) + (1 - w) * second(x, t_B)

    return blended


def phases(plan: Sequence[SamplerStep], boundaries: Sequence[float]) -> list[tuple[int, list[SamplerStep]]]:
    """The steps grouped by the set in use: [(set index, its steps)], in order of execution, none empty."""
    check_boundaries(len(boundaries) + 1, boundaries)
    grouped = groupby(plan, key=lambda step: set_index(step.t, boundaries))
    return [(k, list(steps)) for k, steps in grouped]
