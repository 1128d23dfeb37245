"""Plots of figures with their intervals: one against another, and along an axis, by matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edg.core.errors import MachineError


class Value(Protocol):
    """A figure with its interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """Values along an axis."""

    at: Sequence[float]
    values: Sequence[Value]


def scatter(path: Path, groups: Mapping[str, Mapping[str, tuple[Value, Value]]], x: str, y: str) -> None:
    """One figure against another: group -> name -> (x, y), with intervals; every point carries its name."""
    figure, axes = _new(1, (9.0, 6.5))
    ax = axes[0]
    for number, (group, points) in enumerate(groups.items()):
        xs, ys = zip(*points.values(), strict=True)
        at = [v.mean for v in xs], [v.mean for v in ys]
        look = {"fmt": "osD^vPX*"[number % 8], "ms": 5, "lw": 0.6, "alpha": 0.8}
        ax.errorbar(*at, xerr=_error(xs), yerr=_error(ys), label=group, **look)
    ax.set(xlabel=x, ylabel=y)
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.08, 0.5))
    figure.canvas.draw()  # only now are the scales known that the labels are laid out in
    _label(ax, {name: (a.mean, b.mean) for points in groups.values() for name, (a, b) in points.items()})
    save(figure, path)


def _label(
    ax: Any, points: Mapping[str, tuple[float, float]], height: float = 9.0, width: float = 75.0
) -> None:
    """Names beside their points; from below, each is lifted over those already there (all in screen dots)."""
    placed: list[tuple[float, float]] = []
    for name, point in sorted(points.items(), key=lambda item: item[1][1]):
        left, bottom = ax.transData.transform(point)
        at = bottom
        while any(abs(left - x) < width and abs(at - y) < height for x, y in placed):
            at += 1.0
        placed.append((left, at))
        arrow = {"arrowstyle": "-", "lw": 0.3, "alpha": 0.5}
        offset = (6, (at - bottom) * 72 / ax.figure.dpi)
        ax.annotate(name, point, offset, textcoords="offset points", fontsize=6, arrowprops=arrow)


def panels(path: Path, curves: Mapping[str, Mapping[str, Curve]], x: str) -> None:
    """Panels side by side over one axis: y label -> name of a curve -> its values."""
    figure, axes = _new(len(curves), (4.6 * len(curves), 3.8))
    for ax, (y, named) in zip(axes, curves.items(), strict=True):
        for name, curve in named.items():
            means = [v.mean for v in curve.values]
            ax.errorbar(
                curve.at, means, _error(curve.values), marker="o", ms=4, lw=1.2, capsize=2, label=name
            )
        ax.set(ylabel=y)
    figure.supxlabel(x, fontsize="medium")
    axes[0].legend(fontsize=8)
    save(figure, path)


def _error(values: Sequence[Value]) -> list[list[float]]:
    return [[max(v.mean - v.low, 0.0) for v in values], [max(v.high - v.mean, 0.0) for v in values]]


def pyplot() -> Any:
    """matplotlib.pyplot, drawing to files. Raises MachineError where it is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise MachineError("plots need matplotlib", fix="pip install -e '.[plots]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _new(count: int, size: tuple[float, float]) -> tuple[Any, Any]:
    figure, axes = pyplot().subplots(1, count, figsize=size, squeeze=False, constrained_layout=True)
    for ax in axes[0]:
        ax.grid(alpha=0.3)
    return figure, axes[0]


def save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot().close(figure)
