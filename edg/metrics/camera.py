"""Camera motion: a similarity fitted to the flow of every pair of frames, and VBench's rule on point tracks.

Signs are those of the picture: x to the right, y down, rotation from x to y. A still scene moves left when
the camera pans right, and up when it tilts down.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float

from edg.core.errors import require
from edg.metrics.motion import Flow

GRID = 10  # points along a side, and the 6th of each edge is its middle: VBench's
MIDDLE = GRID // 2
STATIC = 0.005  # of the shorter side: a track that ends nearer to its start stands (VBench's)
SAMPLES = 24  # places along a side that the similarity is fitted to
DRAWS, ROUNDS = 64, 10

Tracks = Float[np.ndarray, "t 10 10 2"]


# ---- one similarity for every pair -------------------------------------------------------------------------


@dataclass(frozen=True)
class GlobalMotion:
    """Motion of the larger part of the picture, mean over the pairs. x, y: px/frame at the centre; zoom:
    % per frame, positive where the picture grows; roll: degrees per frame, clockwise."""

    x: float
    y: float
    zoom: float
    roll: float


def global_motion(flow: Flow) -> GlobalMotion:
    """Mean over the pairs of `similarity`."""
    shift, growth = np.mean([similarity(pair) for pair in flow], axis=0)
    return GlobalMotion(
        float(shift.real), float(shift.imag), float(100 * growth.real), float(np.degrees(growth.imag))
    )


def similarity(flow: Float[np.ndarray, "h w 2"]) -> tuple[complex, complex]:
    """(m, c) with flow = m + c z, all complex: z the place from the picture's centre in px, m the shift in
    px/frame, c growth + i turn (radians) a frame. Least median of squares (Rousseeuw 1984) over pairs of
    places, then least squares reweighted by Tukey's biweight: motion in less than half of the picture
    does not bias it. Raises UsageError below 3 px."""
    height, width = flow.shape[:2]
    rows, columns = (
        np.unique(np.linspace(0.05 * n, 0.95 * n - 1, SAMPLES).astype(int)) for n in (height, width)
    )
    z = ((columns - (width - 1) / 2) + 1j * (rows - (height - 1) / 2)[:, None]).ravel()
    w = (flow[np.ix_(rows, columns)].astype(np.float64) @ (1, 1j)).ravel()
    require(len(z) >= 2, f"the camera of pictures of {width}x{height}", "a side of at least 3 px")
    m, c = _best_of_pairs(z, w)
    for _ in range(ROUNDS):
        residual = np.abs(w - m - c * z)
        scale = max(1.48 * float(np.median(residual)), 0.01)  # px; with less than that all agree
        weight = np.clip(1 - (residual / (4.685 * scale)) ** 2, 0, None) ** 2
        middle, mean = np.average(z, weights=weight), np.average(w, weights=weight)
        c = (weight * (z - middle).conj()) @ (w - mean) / (weight @ np.abs(z - middle) ** 2)
        m = mean - c * middle
    return complex(m), complex(c)


def _best_of_pairs(z: np.ndarray, w: np.ndarray) -> tuple[complex, complex]:
    """The similarity through two places with the smallest median residual; always the same places are
    tried."""
    rng = np.random.default_rng(0)
    one, other = np.array([rng.choice(len(z), 2, replace=False) for _ in range(DRAWS)]).T
    c = (w[one] - w[other]) / (z[one] - z[other])
    m = w[one] - c * z[one]
    best = np.median(np.abs(w - m[:, None] - c[:, None] * z), axis=1).argmin()
    return m[best], c[best]


# ---- VBench's camera motion --------------------------------------------------------------------------------


def tracks(flow: Flow) -> Tracks:
    """(T, 10, 10, 2): x and y of a grid of points in every frame, which start W/64 inside the picture and go
    where the flow takes them. VBench has them from CoTracker2; here an occluded point moves on with what
    occludes it."""
    import cv2

    _, height, width, _ = flow.shape
    margin = width / 64
    x, y = np.meshgrid(np.linspace(margin, width - margin, GRID), np.linspace(margin, height - margin, GRID))
    places = [np.stack([x, y], axis=-1).astype(np.float32)]
    for pair in flow:
        at = places[-1]
        moved = cv2.remap(pair, at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        places.append(at + moved)
    return np.stack(places)


def directions(way: np.ndarray, height: int, width: int) -> list[str]:
    """Directions of a point's displacement: left, right, up, down, two of them, or static."""
    limit = STATIC * min(height, width)
    names = [(("left", "right"), way[0]), (("up", "down"), way[1])]
    return [name[int(d > 0)] for name, d in names if abs(d) > limit] or ["static"]


NONE = "none"
SAME = {
    ("left", "left"): "pan_right",
    ("right", "right"): "pan_left",
    ("down", "down"): "tilt_up",
    ("up", "up"): "tilt_down",
    ("static", "static"): "static",
}
TOP_BOTTOM = {**SAME, ("up", "down"): "zoom_in", ("down", "up"): "zoom_out"}
LEFT_RIGHT = {**SAME, ("left", "right"): "zoom_in", ("right", "left"): "zoom_out"}


def camera_motions(tracks: Tracks, height: int, width: int) -> list[str]:
    """VBench's classes of a clip from the middles of the four edges, first to last frame, in whole pixels:
    top and bottom, left and right, joined; static only if both are. Empty: none of the classes."""
    ways = tracks[-1].astype(int) - tracks[0].astype(int)
    top, bottom, left, right = (
        directions(way, height, width)
        for way in (ways[0, MIDDLE], ways[-1, MIDDLE], ways[MIDDLE, 0], ways[MIDDLE, -1])
    )
    found = _classes(TOP_BOTTOM, top, bottom) | _classes(LEFT_RIGHT, left, right)
    for unsaid in ("static", NONE):
        found = found - {unsaid} or found
    return sorted(found - {NONE})


def _classes(rule: dict[tuple[str, str], str], one: Sequence[str], other: Sequence[str]) -> set[str]:
    return {rule[pair] for pair in product(one, other) if pair in rule} or {NONE}


def asked_motion(prompt: str) -> str | None:
    """The camera motion that a prompt asks for in VBench's words ("camera pans left", "camera static"), or
    None."""
    if re.search(r"\b(camera (is )?static|static camera)\b", prompt.lower()):
        return "static"
    found = re.search(
        r"\bcamera (pan|tilt|zoom)s? (left|right|up|down|in|out)\b", prompt.lower().replace("_", " ")
    )
    name = f"{found[1]}_{found[2]}" if found else ""
    return name if name in {*TOP_BOTTOM.values(), *LEFT_RIGHT.values()} else None
