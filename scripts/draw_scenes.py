"""Draw prompts/scenes: four pictures of 512x320, rendered with numpy from a few formulas.

    python scripts/draw_scenes.py [FOLDER]

Everything is drawn at twice the size and averaged down. Points are (y, x) grids in units of the height, so
the right edge is at x = 1.6.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH, OVER = 320, 512, 2
SCENES = {
    "01-sailing-boat": "a sailing boat glides across the sea at sunset, waves glittering",
    "02-hot-air-balloon": "a hot-air balloon rises slowly over green hills, clouds drifting",
    "03-candle": "the flame of a candle flickers in the dark",
    "04-ringed-planet": "a planet with rings turns in front of the stars",
}


def grid() -> tuple[np.ndarray, np.ndarray]:
    """(y, x) of every subpixel's centre: y in 0..1, x in 0..1.6."""
    rows, columns = HEIGHT * OVER, WIDTH * OVER
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float64)
    return (y + 0.5) / rows, (x + 0.5) / rows


def noise(seed: int, y: np.ndarray, x: np.ndarray, scale: float, octaves: int = 5) -> np.ndarray:
    """Fractal value noise in about 0..1: smooth at `scale` per unit, finer with every octave."""
    rng = np.random.default_rng(seed)
    total, weight = np.zeros_like(x), 0.0
    for octave in range(octaves):
        table, frequency, share = rng.random((64, 64)), scale * 2**octave, 0.5**octave
        total += share * _smooth(table, y * frequency, x * frequency)
        weight += share
    return total / weight


def _smooth(table: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    y0, x0 = np.floor(y).astype(int), np.floor(x).astype(int)
    fy, fx = y - y0, x - x0
    fy, fx = fy * fy * (3 - 2 * fy), fx * fx * (3 - 2 * fx)
    corner = [[table[(y0 + dy) % 64, (x0 + dx) % 64] for dx in (0, 1)] for dy in (0, 1)]
    top = corner[0][0] * (1 - fx) + corner[0][1] * fx
    bottom = corner[1][0] * (1 - fx) + corner[1][1] * fx
    return top * (1 - fy) + bottom * fy


def gradient(position: np.ndarray, stops: list[tuple[float, tuple[float, float, float]]]) -> np.ndarray:
    """Colours (0..255) along `position`, linear between stops (position, rgb)."""
    at = [stop[0] for stop in stops]
    return np.stack([np.interp(position, at, [stop[1][c] for stop in stops]) for c in range(3)], axis=-1)


def ramp(value: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below low, 1 above high, smooth between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def over(picture: np.ndarray, colour, mask: np.ndarray) -> np.ndarray:
    """`colour` (one, or one per point) laid over the picture where mask (0..1) says."""
    return picture * (1 - mask[..., None]) + np.asarray(colour, np.float64) * mask[..., None]


def inside(polygon: list[tuple[float, float]], y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """1 inside a polygon of (y, x) corners, by crossings."""
    result = np.zeros(x.shape, bool)
    for (ya, xa), (yb, xb) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        crosses = (ya > y) != (yb > y)
        with np.errstate(divide="ignore", invalid="ignore"):
            result ^= crosses & (x < (xb - xa) * (y - ya) / (yb - ya) + xa)
    return result.astype(np.float64)


# ---- scenes ------------------------------------------------------------------------------------------------


def boat() -> np.ndarray:
    y, x = grid()
    horizon, sun = 0.56, (0.47, 1.08)
    sky = gradient(
        y, [(0, (44, 52, 96)), (0.25, (120, 84, 120)), (0.45, (236, 138, 92)), (0.56, (255, 206, 132))]
    )
    clouds = ramp(noise(3, y * 3.2, x, 3.0), 0.5, 0.72) * ramp(0.52 - y, 0, 0.3)
    sky = over(sky, gradient(y, [(0.05, (88, 72, 108)), (0.45, (255, 164, 120))]), 0.7 * clouds)
    distance = np.hypot(y - sun[0], x - sun[1])
    sky += np.exp(-((distance / 0.16) ** 2))[..., None] * (90, 66, 30)
    sky = over(sky, (255, 244, 206), ramp(0.058 - distance, 0, 0.004))
    depth = np.clip((y - horizon) / (1 - horizon), 1e-3, 1)
    swell = noise(5, 6 / (depth + 0.08), x * (0.7 / (depth + 0.12)), 2.2)
    sea = gradient(depth, [(0, (214, 142, 104)), (0.25, (120, 92, 112)), (1, (28, 42, 74))]) * (
        0.72 + 0.56 * swell[..., None]
    )
    width = 0.03 + 0.2 * depth
    glitter = np.exp(-(((x - sun[1]) / width) ** 2)) * ramp(swell, 0.46, 0.62)
    sea = over(sea, (255, 216, 146), 0.95 * glitter)
    picture = np.where((y < horizon)[..., None], sky, sea)
    hills = horizon - 0.05 * noise(8, y * 0, x, 3.0) * ramp(0.62 - x, 0, 0.4)
    picture = over(picture, (92, 70, 98), ((y > hills) & (y < horizon)).astype(float))
    return _sailing_boat(picture, y, x)


def _sailing_boat(picture: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    reflection = inside(
        [(0.70, 0.40), (0.70, 0.78), (0.93, 0.60)], y, x + 0.02 * (noise(6, y * 9, x, 3) - 0.5)
    )
    picture = over(picture, (38, 34, 58), 0.5 * reflection * ramp(noise(9, y * 8, x, 3.5), 0.35, 0.6))
    main = inside([(0.13, 0.585), (0.3, 0.49), (0.6, 0.385), (0.61, 0.58)], y, x)
    front = inside([(0.2, 0.605), (0.42, 0.71), (0.61, 0.77), (0.61, 0.605)], y, x)
    cloth = gradient(x, [(0.36, (214, 190, 176)), (0.58, (255, 238, 214)), (0.78, (238, 190, 158))])
    cloth *= (0.93 + 0.07 * np.sin(y * 42 + x * 9))[..., None]
    picture = over(picture, cloth, np.maximum(main, front))
    picture = over(
        picture, (70, 46, 40), inside([(0.1, 0.588), (0.1, 0.597), (0.67, 0.602), (0.67, 0.588)], y, x)
    )
    hull = inside([(0.635, 0.36), (0.66, 0.6), (0.625, 0.84), (0.69, 0.77), (0.7, 0.74), (0.7, 0.44)], y, x)
    wood = gradient(y, [(0.63, (150, 74, 52)), (0.67, (104, 46, 40)), (0.7, (52, 26, 34))])
    picture = over(picture, wood, hull)
    foam = np.exp(-(((y - 0.702) / 0.006) ** 2)) * ramp(noise(12, y * 4, x, 14), 0.35, 0.6)
    return over(picture, (255, 226, 196), foam * (np.abs(x - 0.61) < 0.24))


def balloon() -> np.ndarray:
    y, x = grid()
    picture = gradient(y, [(0, (86, 150, 222)), (0.5, (176, 214, 244)), (0.75, (240, 240, 226))])
    clouds = ramp(noise(21, y * 2.2, x, 2.4), 0.52, 0.74) * ramp(0.62 - y, 0, 0.2)
    picture = over(picture, (255, 255, 255), 0.9 * clouds)
    ridges = [
        (0.60, 0.10, (136, 166, 176), 2.2),
        (0.69, 0.10, (104, 146, 122), 1.7),
        (0.78, 0.12, (84, 134, 74), 1.3),
    ]
    for number, (level, height, colour, scale) in enumerate(ridges):
        ridge = level - height * (noise(30 + number, y * 0, x + number, scale, 4) - 0.5) * 2
        grass = noise(40 + number, y * 3, x, 14)[..., None]
        shade = 0.82 + 0.36 * grass - 0.25 * np.clip(y - level, 0, 1)[..., None]
        picture = over(picture, np.array(colour) * shade, ramp(y - ridge, 0, 0.004))
    picture = _trees(picture, y, x)
    return _balloon(picture, y, x, (0.33, 0.98), 0.225)


def _trees(picture: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(50)
    for _ in range(46):
        base, at = rng.uniform(0.84, 0.99), rng.uniform(-0.02, 1.62)
        size = 0.02 + 0.16 * (base - 0.8) * rng.uniform(0.7, 1.3)
        rough = np.hypot((y - base + size) / size, (x - at) / (0.8 * size)) + 0.7 * (
            noise(60, y, x, 40) - 0.5
        )
        light = (1.1 - 0.5 * (y - base + 2 * size) / size)[..., None]
        picture = over(picture, np.clip(np.array((58, 106, 52)) * light, 16, 200), ramp(1 - rough, 0, 0.08))
    return picture


def _balloon(
    picture: np.ndarray, y: np.ndarray, x: np.ndarray, centre: tuple[float, float], r: float
) -> np.ndarray:
    cy, cx = centre
    v = (y - cy) / r
    narrow = np.where(v > 0, np.sqrt(np.clip(1 - (v / 1.36) ** 2, 0, 1)) * (1 - 0.34 * np.clip(v, 0, 1.3)), 1)
    half = np.where(v > 0, r * narrow, r * np.sqrt(np.clip(1 - v**2, 0, 1)))
    shape = ((v > -1) & (v < 1.22) & (np.abs(x - cx) < half)).astype(float)
    u = np.clip((x - cx) / np.maximum(half, 1e-6), -1, 1)
    slice_ = (np.arcsin(u) / np.pi + 0.5) * 12
    gore = np.floor(slice_).astype(int) % 4
    colours = np.array([(214, 52, 44), (250, 204, 66), (240, 244, 240), (38, 84, 160)], float)
    light = np.clip(0.62 + 0.5 * np.sqrt(np.clip(1 - u**2, 0, 1)) - 0.28 * (u + 0.35) - 0.16 * v, 0.3, 1.15)
    seam = 1 - 0.3 * np.exp(-(((np.abs(slice_ % 1 - 0.5) - 0.5) / 0.05) ** 2))
    picture = over(picture, np.clip(colours[gore] * (light * seam)[..., None], 0, 255), shape)
    bottom, basket = cy + 1.22 * r, cy + 1.62 * r
    for side in (-1, -0.35, 0.35, 1):
        line = cx + side * (0.2 * r + (0.05 - 0.2) * r * 0.5 * (y - bottom) / (basket - bottom))
        rope = (np.abs(x - line) < 0.0018) & (y > bottom - 0.004) & (y < basket)
        picture = over(picture, (60, 44, 36), rope.astype(float))
    weave = 0.8 + 0.2 * np.sign(np.sin(y * 420)) * np.sign(np.sin(x * 420))
    box = (np.abs(x - cx) < 0.15 * r) & (y > basket) & (y < basket + 0.22 * r)
    return over(picture, np.array((140, 92, 48)) * weave[..., None], box.astype(float))


def candle() -> np.ndarray:
    y, x = grid()
    cx, tip, wick = 0.8, 0.17, 0.46
    glow = np.hypot((y - 0.36) * 0.92, x - cx)
    wall = 0.75 + 0.5 * noise(70, y, x, 6)
    picture = np.exp(-((glow / 0.42) ** 2))[..., None] * (112, 58, 20) * wall[..., None] + (10, 7, 9)
    table = ramp(y - 0.83, 0, 0.005)
    grain = 0.6 + 0.7 * noise(71, y * 26, x * 1.2, 3)
    lit = np.exp(-(((x - cx) / 0.5) ** 2) - ((y - 0.84) / 0.24) ** 2)
    picture = over(picture, (lit * grain)[..., None] * (156, 86, 40) + (12, 7, 6), table)
    shadow = np.exp(-(((x - cx) / 0.2) ** 2) - ((y - 0.885) / 0.03) ** 2)
    picture *= 1 - 0.75 * shadow[..., None]
    body = (
        (np.abs(x - cx) < 0.088)
        & (y > 0.52 + 0.012 * np.cos((x - cx) * 50))
        & (y < 0.872 + 0.012 * (1 - ((x - cx) / 0.088) ** 2))
    )
    round_ = np.sqrt(np.clip(1 - ((x - cx) / 0.09) ** 2, 0, 1))
    wax = (
        gradient(y, [(0.5, (255, 214, 140)), (0.6, (232, 168, 96)), (0.87, (112, 66, 40))])
        * (0.45 + 0.6 * round_)[..., None]
    )
    picture = over(picture, wax, body.astype(float))
    rim = np.hypot((y - 0.525) / 0.018, (x - cx) / 0.086)
    picture = over(picture, (255, 226, 160), ramp(1 - rim, 0, 0.1))
    picture = over(picture, (196, 122, 62), ramp(1 - np.hypot((y - 0.527) / 0.012, (x - cx) / 0.07), 0, 0.2))
    stem = (np.abs(x - cx - 0.004 * np.sin(y * 60)) < 0.004) & (y > wick) & (y < 0.528)
    picture = over(picture, (34, 22, 18), stem.astype(float))
    t = np.clip((y - tip) / (0.5 - tip), 0, 1)
    lean = cx + 0.012 * np.sin((0.5 - y) * 9)
    half = 0.062 * np.sin(np.pi * np.clip(t, 0, 1) ** 1.6) ** 0.9 + 1e-6
    r = np.abs(x - lean) / half
    heart = ramp(1.15 - r, 0, 0.9) * ramp(t, 0.02, 0.14) * ramp(1.0 - t, 0.0, 0.04)
    flame = gradient(
        t, [(0, (255, 150, 40)), (0.35, (255, 206, 92)), (0.7, (255, 240, 180)), (0.93, (120, 130, 220))]
    )
    picture = over(picture + 0.5 * np.exp(-((glow / 0.1) ** 2))[..., None] * (255, 170, 70), flame, heart)
    return picture


def planet() -> np.ndarray:
    y, x = grid()
    picture = (noise(80, y, x, 2.2)[..., None] ** 2) * (44, 30, 78) + (
        noise(81, y, x, 3.0)[..., None] ** 3
    ) * (16, 46, 70)
    picture = _stars(picture, y, x)
    cy, cx, r, tilt = 0.52, 0.78, 0.25, -0.34
    ring, back = _ring(y - cy, x - cx, r, tilt)
    picture = over(picture, ring[0], ring[1] * back)
    dy, dx = (y - cy) / r, (x - cx) / r
    square = dy**2 + dx**2
    dz = np.sqrt(np.clip(1 - square, 0, 1))
    light = np.clip(-0.62 * dx - 0.42 * dy + 0.66 * dz, 0, 1)
    latitude = dy * np.cos(tilt) - dx * np.sin(tilt) + 0.22 * dz
    band = noise(82, latitude * 3.2, dx * 0.25 + 0.12 * noise(83, dy, dx, 5), 3.0)
    ball = gradient(
        band, [(0.2, (122, 74, 48)), (0.4, (206, 150, 98)), (0.55, (236, 204, 158)), (0.75, (168, 104, 70))]
    )
    ball = ball * (0.03 + 1.05 * light)[..., None]
    picture = over(picture, ball, ramp(1 - np.sqrt(square), 0, 0.012))
    rim = np.exp(-(((np.sqrt(square) - 1) / 0.035) ** 2)) * np.clip(-0.8 * dx - 0.5 * dy, 0, 1)
    picture = picture + rim[..., None] * (60, 44, 30)
    picture = over(picture, ring[0], ring[1] * (1 - back))
    return _moon(picture, y, x)


def _stars(picture: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(84)
    for _ in range(420):
        sy, sx, size = rng.random(), 1.6 * rng.random(), 0.0011 + 0.0022 * rng.random() ** 6
        top, left = (int(v * HEIGHT * OVER) for v in (sy, sx))
        part = np.s_[max(0, top - 12) : top + 12, max(0, left - 12) : left + 12]
        spot = np.exp(-((y[part] - sy) ** 2 + (x[part] - sx) ** 2) / size**2)
        colour = np.array([(255, 255, 255), (190, 210, 255), (255, 226, 190)][rng.integers(3)])
        picture[part] += spot[..., None] * colour * rng.uniform(0.4, 1)
    return picture


def _ring(dy: np.ndarray, dx: np.ndarray, r: float, tilt: float):
    """((colour, opacity) of the rings, 1 where they are behind the planet)."""
    u, v = dx * np.cos(tilt) + dy * np.sin(tilt), (-dx * np.sin(tilt) + dy * np.cos(tilt)) / 0.24
    radius = np.hypot(u, v) / r
    rings = noise(85, radius * 0, radius, 9.0, 4)
    opacity = ramp(radius, 1.32, 1.38) * ramp(2.28 - radius, 0, 0.06) * np.clip(0.25 + 1.2 * rings, 0, 0.95)
    opacity *= 1 - 0.85 * np.exp(-(((radius - 1.9) / 0.035) ** 2))
    axis = np.abs(0.42 * u + 0.9 * v * 0.24 + 0.1 * r) / r
    shadow = 1 - 0.85 * ramp(0.8 - axis, 0, 0.3) * ramp(u, 0.25 * r, 0.6 * r) * ramp(-v, 0, 0.5 * r)
    colour = (
        gradient(rings, [(0.2, (120, 96, 84)), (0.5, (214, 184, 148)), (0.8, (250, 232, 204))])
        * shadow[..., None]
    )
    return (colour, opacity), (v < 0).astype(float)


def _moon(picture: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    cy, cx, r = 0.2, 1.34, 0.042
    dy, dx = (y - cy) / r, (x - cx) / r
    square = dy**2 + dx**2
    light = np.clip(-0.62 * dx - 0.42 * dy + 0.66 * np.sqrt(np.clip(1 - square, 0, 1)), 0, 1)
    ground = (0.7 + 0.5 * noise(86, y, x, 40))[..., None] * (176, 176, 184)
    return over(picture, ground * (0.03 + light)[..., None], ramp(1 - np.sqrt(square), 0, 0.06))


DRAW = dict(zip(SCENES, (boat, balloon, candle, planet), strict=True))


def render(name: str) -> np.ndarray:
    """A scene as uint8 (320, 512, 3)."""
    picture = np.clip(DRAW[name](), 0, 255)
    small = picture.reshape(HEIGHT, OVER, WIDTH, OVER, 3).mean(axis=(1, 3))
    return np.round(small).astype(np.uint8)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in SCENES:
        Image.fromarray(render(name)).save(folder / f"{name}.png", optimize=True)
    (folder / "prompts.txt").write_text("\n".join(SCENES.values()) + "\n", encoding="utf-8")


def folder_of(arguments: Sequence[str] | None = None) -> Path:
    """The folder that the arguments name, prompts/scenes without one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path(__file__).resolve().parents[1] / "prompts/scenes"
    )
    return parser.parse_args(arguments).folder


if __name__ == "__main__":
    main(folder_of())
