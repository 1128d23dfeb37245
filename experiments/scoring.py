"""Scores of sampled clips of the sprites world: one clip by the tracker, many clips with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edg.metrics.table import bootstrap
from edg.sprites.tracker import track
from edg.sprites.world import DIRECTIONS, SpriteClip, render, words_of

FIGURES = ("speed", "slowly", "quickly", "direction", "intact", "along", "first_frame")
SHARES = ("direction", "intact")


@dataclass(frozen=True)
class Judgement:
    """Scores of one clip.

    speed: px/frame.
    direction: True if it is the caption's.
    intact: True if colour and shape are kept.
    along: px/frame along the caption's direction (against it: below 0), 0 for a clip that is not intact.
    first_frame: mean absolute error of frame 0 against the given image, in levels of 255.
    """

    speed: float
    direction: bool
    intact: bool
    along: float
    first_frame: float
    pace: str

    def figure(self, name: str) -> float:
        """A number of FIGURES; `slowly` and `quickly` are the speed where the caption says so, else NaN."""
        if name in ("slowly", "quickly"):
            return self.speed if self.pace == name else float("nan")
        return float(getattr(self, name))


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


def judge(video: np.ndarray, clip: SpriteClip) -> Judgement:
    """Judge a sampled video, uint8 (T, H, W, 3), against the clip whose first frame and caption it has."""
    found = track(video, clip.sprite)
    image = np.round(render(clip)[0][0] * 255)
    return Judgement(
        speed=found.speed,
        direction=found.direction == clip.motion.direction,
        intact=found.intact,
        along=float(found.velocity @ DIRECTIONS[clip.motion.direction]) if found.intact else 0.0,
        first_frame=float(np.abs(video[0].astype(np.float32) - image).mean()),
        pace=words_of(clip).pace or "",
    )


def estimate(values: Sequence[Sequence[float]], draws: int = 2000, seed: int = 0) -> Estimate:
    """Mean of values (S, N), S seeds of the same N images, NaN where an image has none, with the bootstrap's
    95 % interval over images (Efron 1979): images are drawn again with all their seeds, because two clips
    of one image are not independent."""
    table = np.asarray(values, dtype=np.float64)
    of_image = table.mean(axis=0)[~np.isnan(table).any(axis=0)]
    if not len(of_image):
        return Estimate(float("nan"), float("nan"), float("nan"))
    return Estimate(float(of_image.mean()), *bootstrap(of_image, draws, seed))


def share(values: Sequence[Sequence[float]], z: float = 1.96) -> Estimate:
    """A share of 0s and 1s with Wilson's 95 % interval (1927), no point where all agree. All clips of
    an image count as one observation: that is on the safe side."""
    table = np.asarray(values, dtype=np.float64)
    n, p = table.shape[1], float(table.mean())
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return Estimate(p, float(middle - half), float(middle + half))


def estimates(judgements: Sequence[Sequence[Judgement]]) -> dict[str, Estimate]:
    """FIGURES of judgements by seed, then image."""
    return {
        name: (share if name in SHARES else estimate)([[j.figure(name) for j in one] for one in judgements])
        for name in FIGURES
    }
