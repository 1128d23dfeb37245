"""The figures of scripts/sprites_experiment.py as a table and as plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from edg.sprites.world import SpriteClip, render
from experiments.plots import Curve, panels, scatter
from experiments.scoring import SHARES, Estimate

HEAD = {
    "speed": "speed, px/frame",
    "slowly": '"slowly"',
    "quickly": '"quickly"',
    "direction": "direction correct",
    "intact": "colour and shape intact",
    "along": "motion along the prompt, px/frame",
    "first_frame": "first-frame error",
}
PANELS = ("speed", "direction", "intact", "along")


@dataclass(frozen=True)
class Row:
    """An arm of the experiment and its figures. group: what it is plotted with, "line TUNE" for the points of
    base + s (fine-tune - base), "switch" for those of T; at: the s or T."""

    title: str
    group: str
    at: float | None
    figures: Mapping[str, Estimate]


def table(rows: Mapping[str, Row]) -> str:
    """Markdown: one line for each row under the name of its group, the interval of every figure in
    brackets."""
    lines = ["| | " + " | ".join(HEAD.values()) + " |", "|---" * (len(HEAD) + 1) + "|"]
    group = ""
    for row in rows.values():
        if row.group != group:
            group = row.group
            lines.append(f"| **{group}** |" + " |" * len(HEAD))
        lines.append(f"| {row.title} | " + " | ".join(cell(n, row.figures[n]) for n in HEAD) + " |")
    return "\n".join(lines) + "\n"


def cell(name: str, e: Estimate) -> str:
    if name in SHARES:
        return f"{e.mean:.0%} ({100 * e.low:.0f}-{100 * e.high:.0f})"
    digits = 1 if name == "first_frame" else 2
    return f"{e.mean:.{digits}f} ({e.low:.{digits}f}-{e.high:.{digits}f})"


def plots(rows: Mapping[str, Row], out: Path) -> None:
    """trade_off.png: motion against control. strength.png: along the line of every fine-tune, with the
    base at 0 and the fine-tune at 1. switch.png: over T. Those without their rows are not drawn."""
    groups: dict[str, dict[str, tuple[Estimate, Estimate]]] = {}
    lines: dict[str, dict[float, Row]] = {}
    for name, row in rows.items():
        groups.setdefault(row.group, {})[name] = (row.figures["direction"], row.figures["speed"])
        if row.group.startswith("line ") and row.at is not None:
            tune = row.group.removeprefix("line ")
            ends = {at: rows[end] for at, end in ((0.0, "base_told"), (1.0, tune)) if end in rows}
            lines.setdefault(tune, ends)[row.at] = row
    switch = {row.at: row for row in rows.values() if row.group == "switch" and row.at is not None}
    scatter(out / "trade_off.png", groups, HEAD["direction"], HEAD["speed"])
    _curves(out / "strength.png", lines, "s in base + s (fine-tune - base): below 0 away from the fine-tune")
    _curves(
        out / "switch.png", {"dyn, then con": switch}, "T: dyn while t > T; 0 is dyn alone, 1000 con alone"
    )


def _curves(path: Path, lines: Mapping[str, Mapping[float, Row]], axis: str) -> None:
    lines = {name: dict(sorted(points.items())) for name, points in lines.items() if len(points) > 1}
    if lines:
        curves = {
            HEAD[figure]: {
                name: Curve(list(points), [row.figures[figure] for row in points.values()])
                for name, points in lines.items()
            }
            for figure in PANELS
        }
        panels(path, curves, axis)


def sheet(
    videos: Mapping[str, np.ndarray],
    clips: Sequence[SpriteClip],
    chosen: Sequence[int] = (0, 2, 4, 7),
    zoom: int = 2,
) -> Image.Image:
    """Frames from left to right; for each chosen clip the true motion, then every row's sample.
    videos: uint8 (N, T, H, W, 3) by row."""
    blocks = []
    for k in [k for k in chosen if k < len(clips)]:
        truth = np.round(render(clips[k])[0] * 255).astype(np.uint8)
        strips = [truth, *(video[k] for video in videos.values())]
        rows = [np.concatenate(list(np.pad(s, ((0, 0), (1, 1), (1, 1), (0, 0)))), axis=1) for s in strips]
        blocks.append(np.concatenate([*rows, np.full((4, rows[0].shape[1], 3), 255, np.uint8)]))
    pixels = np.concatenate(blocks)
    size = (pixels.shape[1] * zoom, pixels.shape[0] * zoom)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)
