"""The sprites world: one coloured shape moves in a straight line over a softly shaded grey background.

Everything is drawn from numbers: a clip is decided by a `Sprite` (what, where, background) and a `Motion`
(direction and speed), so the motion of every rendered clip is known exactly. Pixel (i, j) covers [j, j+1) x
[i, i+1); x runs to the right, y runs down, so "up" is falling y. The background is grey and so without any
chroma, which is what the tracker (`tracker.py`) relies on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edg.core.errors import UsageError, nearest

SIZE = 32  # pixels, height and width
FRAMES = 8
FPS = 8  # what the clips call themselves; the network's fps condition

COLOURS = {
    "red": (0.90, 0.15, 0.15),
    "green": (0.15, 0.80, 0.15),
    "blue": (0.20, 0.25, 0.95),
    "yellow": (0.95, 0.90, 0.10),
    "purple": (0.85, 0.15, 0.85),
    "teal": (0.10, 0.85, 0.85),
}
SHAPES = ("circle", "bar", "pillar")  # bar: wide, pillar: tall; both of the circle's area
ASPECT = 2.25  # long side to short side of bar and pillar
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
PACES = ("slowly", "quickly")
SPEEDS = {  # px/frame, by split of the training clips: one range where motion is untold, else one per pace
    "base": ((0.6, 1.6),),  # mean 1.1
    "tuned": ((0.3, 0.5), (0.8, 1.0)),  # mean 0.65
    "tuned_equal": ((0.75, 0.95), (1.25, 1.45)),  # mean 1.1, the base's
    "tuned_fast": ((1.1, 1.3), (1.5, 1.7)),  # mean 1.4
}
STREAMS = {
    "base": 1,
    "tuned": 2,
    "tuned_equal": 5,
    "tuned_fast": 6,
}  # of random numbers; held_out 3, stills 4
RADIUS = (4.8, 5.5)  # of the circle of equal area, px


@dataclass(frozen=True)
class Sprite:
    """The shape on frame 0. x, y: centroid in px; radius: of the circle of equal area in px; shade: (level,
    dx, dy) of the background, a grey plane `level + dx * (x - 0.5) + dy * (y - 0.5)` over the unit square."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float
    shade: tuple[float, float, float]


@dataclass(frozen=True)
class Motion:
    """Straight motion at a constant speed (px/frame)."""

    direction: str
    speed: float

    @property
    def velocity(self) -> np.ndarray:
        """(vx, vy) in px/frame."""
        return np.asarray(DIRECTIONS[self.direction]) * self.speed


@dataclass(frozen=True)
class SpriteClip:
    """A sprite, how it moves and how many frames there are of it."""

    sprite: Sprite
    motion: Motion
    frames: int = FRAMES


@dataclass(frozen=True)
class Words:
    """The words of a caption; direction and pace are None where it has none."""

    colour: str
    shape: str
    direction: str | None = None
    pace: str | None = None


def caption(words: Words) -> str:
    """`a red circle`, or `a red circle moves left quickly` with direction and pace."""
    text = f"a {words.colour} {words.shape}"
    if words.direction is not None:
        text += f" moves {words.direction}"
    return text if words.pace is None else f"{text} {words.pace}"


def parse_caption(text: str) -> Words:
    """The inverse of `caption`. Raises UsageError on a word that this world does not know."""
    words = text.lower().strip().rstrip(".").split()
    if len(words) not in (3, 5, 6) or words[0] != "a" or (len(words) > 3 and words[3] != "moves"):
        raise UsageError(f"caption {text!r}", expected="'a COLOUR SHAPE [moves DIRECTION [PACE]]'")
    vocabulary = (COLOURS, SHAPES, DIRECTIONS, PACES)
    picked = [words[1], words[2], *words[4:]]
    for word, known in zip(picked, vocabulary, strict=False):
        if word not in known:
            raise UsageError(
                f"{word!r} in caption {text!r}", expected=", ".join(known), fix=nearest(word, known)
            )
    return Words(*picked)


def all_captions(with_motion: bool) -> list[str]:
    """Every caption: those without motion (18), or those with direction and pace (144)."""
    things = [(c, s) for c in COLOURS for s in SHAPES]
    if not with_motion:
        return [caption(Words(c, s)) for c, s in things]
    return [caption(Words(c, s, d, p)) for c, s in things for d in DIRECTIONS for p in PACES]


def words_of(clip: SpriteClip, split: str = "tuned") -> Words:
    """The words of a clip's caption in a split: no motion in "base", else the direction and the pace
    whose range of speeds is nearer."""
    s, m, ranges = clip.sprite, clip.motion, SPEEDS[split]
    if len(ranges) == 1:
        return Words(s.colour, s.shape)
    near = min(range(len(PACES)), key=lambda k: abs(sum(ranges[k]) / 2 - m.speed))
    return Words(s.colour, s.shape, m.direction, PACES[near])


def half_extents(shape: str, radius: float) -> tuple[float, float, float, float]:
    """Distances of the outline from the centroid: (left, right, up, down) in px."""
    if shape == "circle":
        return (radius,) * 4
    long, short = (radius * np.sqrt(np.pi * ratio) / 2 for ratio in (ASPECT, 1 / ASPECT))
    return (long, long, short, short) if shape == "bar" else (short, short, long, long)


def signed_distance(shape: str, radius: float, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Distance in px of the points (dx, dy), relative to the centroid, to the shape's outline; negative
    inside."""
    if shape == "circle":
        return np.hypot(dx, dy) - radius
    half_width, _, half_height, _ = half_extents(shape, radius)
    return np.maximum(np.abs(dx) - half_width, np.abs(dy) - half_height)


def coverage(
    shape: str, radius: float, x: float, y: float, size: int = SIZE, supersample: int = 4
) -> np.ndarray:
    """The share of every pixel that the shape covers, (size, size) in [0, 1], by supersampling of a soft
    edge."""
    n = size * supersample
    grid = (np.arange(n) + 0.5) / supersample
    distance = signed_distance(shape, radius, grid[None, :] - x, grid[:, None] - y)
    soft = np.clip(0.5 - distance * supersample, 0.0, 1.0)
    return soft.reshape(size, supersample, size, supersample).mean(axis=(1, 3))


def background(shade: tuple[float, float, float], size: int = SIZE) -> np.ndarray:
    """The grey plane behind the shape, (size, size) in [0, 1]."""
    unit = (np.arange(size) + 0.5) / size - 0.5
    level, dx, dy = shade
    return np.clip(level + dx * unit[None, :] + dy * unit[:, None], 0.0, 1.0)


def render(clip: SpriteClip, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """(frames (T, H, W, 3) float32 in [0, 1], coverage (T, H, W) float32 in [0, 1])."""
    s = clip.sprite
    start, velocity = np.array([s.x, s.y]), clip.motion.velocity
    alpha = np.stack([coverage(s.shape, s.radius, *(start + k * velocity), size) for k in range(clip.frames)])
    grey = background(s.shade, size)[None, :, :, None]
    frames = grey * (1 - alpha[..., None]) + np.asarray(COLOURS[s.colour]) * alpha[..., None]
    return frames.astype(np.float32), alpha.astype(np.float32)


def draw_sprite(
    rng: np.random.Generator, room: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
) -> Sprite:
    """A random sprite that keeps `room` px (left, right, up, down) free around its outline, with one px to
    spare."""
    colour, shape = rng.choice(list(COLOURS)), rng.choice(SHAPES)
    radius = float(rng.uniform(*RADIUS))
    reach = np.asarray(half_extents(shape, radius)) + np.asarray(room) + 1.0
    x = float(rng.uniform(reach[0], SIZE - reach[1]))
    y = float(rng.uniform(reach[2], SIZE - reach[3]))
    angle = rng.uniform(0, 2 * np.pi)
    slope = rng.uniform(0.0, 0.3)
    shade = (float(rng.uniform(0.2, 0.6)), float(slope * np.cos(angle)), float(slope * np.sin(angle)))
    return Sprite(str(colour), str(shape), x, y, radius, shade)


def draw_clip(
    rng: np.random.Generator, speeds: tuple[tuple[float, float], ...], frames: int = FRAMES
) -> SpriteClip:
    """A random clip whose shape stays inside the frame; the speed is uniform in one of the ranges
    (px/frame)."""
    direction = str(rng.choice(list(DIRECTIONS)))
    low, high = speeds[int(rng.integers(len(speeds)))]
    motion = Motion(direction, float(rng.uniform(low, high)))
    way = motion.velocity * (frames - 1)
    room = (max(-way[0], 0.0), max(way[0], 0.0), max(-way[1], 0.0), max(way[1], 0.0))
    return SpriteClip(draw_sprite(rng, room), motion, frames)


def clips(split: str, seed: int, count: int) -> Iterator[SpriteClip]:
    """`count` training clips of a split of SPEEDS. SpriteClip k depends only on (split, seed, k). Raises
    UsageError for a split that is none."""
    if split not in SPEEDS:
        raise UsageError(f"sprites split {split!r}", expected=", ".join(SPEEDS), fix=nearest(split, SPEEDS))
    for k in range(count):
        yield draw_clip(np.random.default_rng([seed, STREAMS[split], k]), SPEEDS[split])


def held_out(seed: int, count: int) -> list[SpriteClip]:
    """`count` clips for evaluation and prompts: directions and paces in equal shares, and the shape stands
    so far inside that every direction at the quick pace would fit, so the picture does not give the direction
    away."""
    slow, quick = (sum(range_) / 2 for range_ in SPEEDS["tuned"])
    margin = quick * (FRAMES - 1)
    chosen = []
    for k in range(count):
        rng = np.random.default_rng([seed, 3, k])
        sprite = draw_central(rng, margin)
        speed = (slow, quick)[(k // len(DIRECTIONS)) % 2]
        chosen.append(SpriteClip(sprite, Motion(list(DIRECTIONS)[k % len(DIRECTIONS)], speed)))
    return chosen


def draw_central(rng: np.random.Generator, margin: float) -> Sprite:
    """A sprite with `margin` px free on all four sides; large shapes, for which there is no such place, are
    redrawn."""
    while True:
        reach = draw_sprite(rng)
        need = np.asarray(half_extents(reach.shape, reach.radius)) + margin
        if need[0] + need[1] <= SIZE and need[2] + need[3] <= SIZE:
            x = float(rng.uniform(need[0], SIZE - need[1]))
            y = float(rng.uniform(need[2], SIZE - need[3]))
            return Sprite(reach.colour, reach.shape, x, y, reach.radius, reach.shade)
