"""Effect of a dial on every figure: a table, and small multiples with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edg.systems.edg.dials import Dial
from experiments.plots import pyplot, save
from experiments.scoring import SHARES, Estimate

FIGURES = {
    "speed": "speed, px/frame",
    "gain": "paired gain in speed, px/frame",
    "intact": "colour and shape intact",
    "direction": "direction correct",
    "first_frame": "first-frame error, levels of 255",
}


@dataclass(frozen=True)
class Panel:
    """One row of the picture. rows: place on the axis -> FIGURES (gain: since the first place); strengths:
    what a place stood for; promise: the dial that was turned."""

    axis: str
    rows: Mapping[float, Mapping[str, Estimate]]
    strengths: Mapping[float, Mapping[str, float]]
    promise: Dial | None


def table(panels: Sequence[Panel]) -> str:
    """Markdown: a table for each panel, intervals in brackets."""
    parts = []
    for panel in panels:
        names = list(dict.fromkeys(name for s in panel.strengths.values() for name in s))
        names = [name for name in names if name != panel.axis and panel.promise]
        lines = ["| " + " | ".join([panel.axis, *names, *FIGURES.values()]) + " |"]
        lines.append("|---" * (1 + len(names) + len(FIGURES)) + "|")
        for at, figures in panel.rows.items():
            stood = [f"{panel.strengths[at][name]:g}" for name in names]
            cells = [_cell(name, figures[name]) for name in FIGURES]
            lines.append("| " + " | ".join([f"{at:g}", *stood, *cells]) + " |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _cell(name: str, e: Estimate) -> str:
    if name in SHARES:
        return f"{e.mean:.0%} ({100 * e.low:.0f} to {100 * e.high:.0f})"
    return f"{e.mean:.2f} ({e.low:.2f} to {e.high:.2f})"


def draw(path: Path, panels: Sequence[Panel]) -> None:
    """A row for each panel, a column for each figure; columns share their scale, shares go from 0 to 1.
    Dashed: what the dial promises, linear between the ends of its measured curve."""
    size = (3.1 * len(FIGURES), 2.9 * len(panels))
    figure, grid = pyplot().subplots(
        len(panels), len(FIGURES), figsize=size, sharey="col", squeeze=False, constrained_layout=True
    )
    for line, panel in zip(grid, panels, strict=True):
        for ax, (name, title) in zip(line, FIGURES.items(), strict=True):
            found = [figures[name] for figures in panel.rows.values()]
            error = [[max(e.mean - e.low, 0) for e in found], [max(e.high - e.mean, 0) for e in found]]
            ax.errorbar(
                list(panel.rows), [e.mean for e in found], error,
                marker="o", ms=4, lw=1.2, elinewidth=1, capsize=3, color="#1f5fa8", ecolor="#8fb3d9",
            )  # fmt: skip
            if panel.promise and panel.promise.figure == title:
                _draw_promise(ax, panel.promise)
            ax.set(xlabel=panel.axis, title=title if panel is panels[0] else "")
            ax.title.set_fontsize(10)
            ax.grid(alpha=0.25)
            ax.set_xticks(list(panel.rows))
            ax.tick_params(labelsize=8)
    for ax, name in zip(grid[0], FIGURES, strict=True):  # once, for the whole column
        low, high = ax.get_ylim()
        ax.set_ylim(min(low, 0) if name == "gain" else 0, 1.05 if name in SHARES else high)
    save(figure, path)


def _draw_promise(ax, dial: Dial) -> None:
    ends = sorted((dial.range()[0].mean, dial.range()[-1].mean), reverse=dial.wants == "less")
    ax.plot([0, 1], ends, ls="--", lw=1.2, color="#b5502b", label="as measured for the dial", zorder=3)
    ax.legend(fontsize=7, loc="lower right")
