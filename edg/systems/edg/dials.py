"""`--motion` and `--hold`: two plain words over a recipe, each the inverse of a measured curve.

A step between two measured points counts when the interval of what the same clips changed leaves out 0. The
monotone range is the stretch of such steps of one sign with the largest change; a dial turns from its one
end to the other, linear in what was measured. Where no step counts there is no dial, and it says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from edg.core import config
from edg.core.errors import UsageError
from edg.core.shipped import shipped

FOLDER = shipped("configs", "dials")
WORDS = ("motion", "hold")


@dataclass(frozen=True)
class Point:
    """at: the strength, or T. mean, low, high: of the figure there, with its 95 % interval. change: that
    of what the same clips changed since the point before; none at the first."""

    at: float
    mean: float
    low: float
    high: float
    change: tuple[float, float] | None = None


@dataclass(frozen=True)
class Dial:
    """moves: OUTPUT.SETTING of the recipe, or T. figure: what was measured over it, in words with the unit.
    wants: whether the dial's 1 is the most or the least of it."""

    moves: str
    figure: str
    wants: Literal["more", "less"]
    points: tuple[Point, ...]

    def __post_init__(self):
        places = [point.at for point in self.points]
        if places != sorted(set(places)) or not all(map(math.isfinite, places)):
            raise UsageError(f"points of {self.moves} at {places}", expected="rising values, each once")

    def range(self) -> tuple[Point, ...]:
        """The monotone stretch of the points, () where there is none."""
        best: tuple[Point, ...] = ()
        chain, way = self.points[:1], 0
        for before, point in pairwise(self.points):
            now = _way(before, point)
            chain = (*chain, point) if now == way != 0 else (before, point)
            way = now
            if way and (not best or _change(chain) > _change(best)):
                best = chain
        return best

    def strength(self, turned: float) -> float:
        """The value of the dial's setting, at `turned` from 0 to 1. Raises UsageError for a flat curve."""
        stretch = self.range()
        if not stretch:
            low, high = (f(point.mean for point in self.points) for f in (min, max))
            raise UsageError(
                f"over {self.moves} {self.points[0].at:g} to {self.points[-1].at:g} no step of the measured "
                f"curve is certain ({self.figure}: {low:.4g} to {high:.4g})",
                fix="without it the dial has no scale; docs/dials.md shows the curve",
            )
        ends = sorted((stretch[0], stretch[-1]), key=lambda point: point.mean, reverse=self.wants == "less")
        if turned in (0, 1):
            return ends[int(turned)].at
        wanted = ends[0].mean + turned * (ends[1].mean - ends[0].mean)
        a, b = next(
            (a, b) for a, b in pairwise(stretch) if min(a.mean, b.mean) <= wanted <= max(a.mean, b.mean)
        )
        return round(a.at + (wanted - a.mean) / (b.mean - a.mean) * (b.at - a.at), 4)


def _way(before: Point, point: Point) -> int:
    """1 or -1 where the figure certainly rises or falls from one point to the next, else 0."""
    low, high = point.change or (0.0, 0.0)
    return (low > 0 and point.mean > before.mean) - (high < 0 and point.mean < before.mean)


def _change(points: tuple[Point, ...]) -> float:
    return abs(points[-1].mean - points[0].mean)


@dataclass(frozen=True)
class Dials:
    """The measured dials of a model. recipe: what they turn, one of configs/merge; inputs: SHA-256 of the
    files that were measured, by input; sampling: flags of the measured clips; T: the switch while hold is not
    given; command: what measured it."""

    model: str
    recipe: str
    inputs: dict[str, str]
    sampling: dict[str, Any]
    T: int
    command: str
    motion: Dial
    hold: Dial

    def strengths(self, motion: float | None, hold: float | None) -> dict[str, float]:
        """The settings that the given dials stand for, by OUTPUT.SETTING or T. Raises UsageError."""
        found = {}
        for word, turned in zip(WORDS, (motion, hold), strict=True):
            if turned is None:
                continue
            dial: Dial = getattr(self, word)
            check_range(word, turned)
            try:
                found[dial.moves] = dial.strength(turned)
            except UsageError as error:
                raise UsageError(
                    f"--{word}: {error.given}", expected="a measured change", fix=error.fix
                ) from None
        return {name: round(value) if name == "T" else value for name, value in found.items()}


def check_range(word: str, turned: float) -> None:
    """Raise UsageError for a dial beyond its ends."""
    if not 0 <= turned <= 1:
        raise UsageError(f"--{word} {turned:g}", expected="a number from 0 to 1")


def find_dials(name: str | None, model: str) -> Dials | None:
    """The dials in a file, or those shipped for a model; None where nobody measured any."""
    path = Path(name) if name else FOLDER / f"{model}.yaml"
    if not name and not path.is_file():
        return None
    dials = config.load(Dials, path)
    if dials.model != model:
        raise UsageError(f"{path} holds the dials of {dials.model}", expected=f"those of {model}")
    return dials


def unmeasured(word: str, model: str, why: str, base: object = "FILE", tuned: object = "FILE") -> UsageError:
    """The error for a dial without a curve, with the command that measures one."""
    command = f"edg sweep dynamicrafter_motion options.base={base} options.tuned={tuned}"
    if model == "sprites":
        command = f"python scripts/measure_dials.py --base {base} --tuned {tuned} --dials FILE"
    return UsageError(
        f"--{word}: {why}", expected="a measured curve (--dials FILE)", fix=f"measure one with: {command}"
    )
