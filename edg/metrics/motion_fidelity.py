"""Motion fidelity: how alike the tracks of two clips move (Yatim et al. 2024, section 5, and DiTFlow)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Tracks = Float[np.ndarray, "points t 2"]
SMALLEST = 1e-8  # px: a step shorter than this has no direction and counts as 0


def similarity(
    generated: Tracks, reference: Tracks, clamp: bool = True
) -> Float[np.ndarray, "generated reference"]:
    """Mean over time of the cosine between the steps of every two tracks, over the frames that both have.

    clamp: a point that stands still has no direction, 0; else NaN, as in the released scores.
    """
    frames = min(generated.shape[1], reference.shape[1])
    ours, theirs = (_directions(tracks[:, :frames], clamp) for tracks in (generated, reference))
    return np.einsum("nti,mti->nm", ours, theirs) / (frames - 1)


def _directions(tracks: Tracks, clamp: bool) -> Float[np.ndarray, "points steps 2"]:
    steps = np.diff(tracks.astype(np.float64), axis=1)
    length = np.linalg.norm(steps, axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return steps / (np.maximum(length, SMALLEST) if clamp else length)


def motion_fidelity(generated: Tracks, reference: Tracks) -> float:
    """Mean of the best match of every track in the other clip, both ways: 1 for equal tracks, -1 at least."""
    found = similarity(generated, reference)
    return float((found.max(axis=1).mean() + found.max(axis=0).mean()) / 2)


def motion_fidelity_released(generated: Tracks, reference: Tracks) -> float:
    """DiTFlow's score: one way only, and the track of the same point can never match."""
    found = similarity(generated, reference, clamp=False)
    size = min(found.shape)
    found[np.arange(size), np.arange(size)] -= 1
    return float(found.max(axis=1).mean()) if not np.isnan(found).any() else float("nan")
