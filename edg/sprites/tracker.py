"""The tracker of the sprites world: position, colour and shape on every frame, and the motion of a clip.

The background is grey, so the chroma of a pixel (its distance from its own grey) comes from the shape alone,
and linearly: chroma = coverage x chroma of the colour. The centroid of the coverage is therefore the shape's
centroid to a few hundredths of a pixel, whatever the shading.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edg.sprites.world import COLOURS, DIRECTIONS, SHAPES, Sprite, coverage, half_extents

FLOOR = 0.25  # coverage below this is taken for noise
STILL = 0.1  # px/frame: slower than this is "still", which is no direction
MIN_OVERLAP = 0.6  # soft intersection over union with the true shape at the found place, per frame
FRAMES_INTACT = 7 / 8  # share of the frames that must show the right colour and shape


@dataclass(frozen=True)
class Sight:
    """One frame: centroid (px), area (px^2), the palette's nearest colour, and the soft IoU with each
    shape."""

    x: float
    y: float
    area: float
    colour: str
    overlap: dict[str, float]

    @property
    def shape(self) -> str:
        """The shape that fits best."""
        return max(self.overlap, key=lambda s: self.overlap[s])


@dataclass(frozen=True)
class Track:
    """A clip: speed is the net displacement over T-1 (px/frame); direction is its larger component, or
    "still"."""

    speed: float
    velocity: np.ndarray  # (2,), x and y in px/frame
    direction: str
    intact: bool
    intact_frames: float
    centroids: np.ndarray  # (T', 2), x and y in px, NaN where nothing is seen; up to where it is cut off


def chroma(rgb: np.ndarray) -> np.ndarray:
    """(..., 3) colours minus their own grey."""
    return rgb - rgb.mean(axis=-1, keepdims=True)


def palette() -> np.ndarray:
    """Chroma of the world's colours, (6, 3), in the order of COLOURS."""
    return chroma(np.asarray(list(COLOURS.values())))


def look(frame: np.ndarray, radius: float) -> Sight | None:
    """Find a shape of this radius on one frame (H, W, 3) in [0, 1]; None where there is none."""
    hue = chroma(frame.astype(np.float64))
    strength = np.linalg.norm(hue, axis=-1)
    table = palette()
    total = (hue * (strength > FLOOR * np.linalg.norm(table, axis=1).min())[..., None]).sum(axis=(0, 1))
    cosine = table @ total / np.maximum(np.linalg.norm(table, axis=1) * np.linalg.norm(total), 1e-12)
    best = int(cosine.argmax())
    cover = np.clip(hue @ table[best] / (table[best] @ table[best]), 0.0, 1.0)
    cover = np.where(cover < FLOOR, 0.0, cover)
    area = cover.sum()
    if area < 0.2 * np.pi * radius**2:
        return None
    height, width = cover.shape
    x = float((cover.sum(0) * (np.arange(width) + 0.5)).sum() / area)
    y = float((cover.sum(1) * (np.arange(height) + 0.5)).sum() / area)
    overlap = {}
    for shape in SHAPES:
        ideal = coverage(shape, radius, x, y, width)
        overlap[shape] = float(np.minimum(cover, ideal).sum() / np.maximum(cover, ideal).sum())
    return Sight(x, y, float(area), list(COLOURS)[best], overlap)


def is_intact(sight: Sight | None, sprite: Sprite) -> bool:
    """True if colour and shape are right, and the shape not deformed beyond MIN_OVERLAP."""
    if sight is None or sight.colour != sprite.colour or sight.shape != sprite.shape:
        return False
    return sight.overlap[sprite.shape] >= MIN_OVERLAP


def direction_of(dx: float, dy: float) -> str:
    """The name of the larger component of a displacement."""
    return max(DIRECTIONS, key=lambda d: DIRECTIONS[d][0] * dx + DIRECTIONS[d][1] * dy)


def inside(sight: Sight, sprite: Sprite, size: tuple[int, int]) -> bool:
    """True if the whole shape is on a frame (height, width), to half a pixel."""
    left, right, up, down = half_extents(sprite.shape, sprite.radius)
    height, width = size
    spare = min(sight.x - left, width - sight.x - right, sight.y - up, height - sight.y - down)
    return spare > -0.5


def track(frames: np.ndarray, sprite: Sprite) -> Track:
    """Follow the shape of `sprite` through frames (T, H, W, 3), uint8 or float in [0, 1].

    Speed and direction come from the first and the last frame on which something is seen. A shape that
    moves out of the picture is followed, and must be intact, up to there: what is cut off has another
    centroid than the shape.
    """
    if frames.dtype == np.uint8:
        frames = frames.astype(np.float32) / 255
    sights = [look(frame, sprite.radius) for frame in frames]
    cut = [k for k, s in enumerate(sights) if s is not None and not inside(s, sprite, frames.shape[1:3])]
    end = cut[0] if cut and cut[0] >= 2 else len(sights)
    sights = sights[:end]
    where = np.array([(s.x, s.y) if s else (np.nan, np.nan) for s in sights])
    whole = float(np.mean([is_intact(s, sprite) for s in sights]))
    seen = np.flatnonzero(~np.isnan(where[:, 0]))
    if len(seen) < 2:
        return Track(0.0, np.zeros(2), "still", False, whole, where)
    velocity = dx, dy = (where[seen[-1]] - where[seen[0]]) / (seen[-1] - seen[0])
    speed = float(np.hypot(dx, dy))
    direction = "still" if speed < STILL else direction_of(dx, dy)
    return Track(speed, velocity, direction, whole >= FRAMES_INTACT, whole, where)
