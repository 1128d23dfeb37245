"""How far a run is: one line on a terminal that is drawn again and again, a plain line now and then in a log.

Rank 0 draws, for its own share; what other ranks say is whole lines with their rank in front, and wipes the
drawn line instead of being appended to it.
"""

from __future__ import annotations

import os
import sys
import time
import unicodedata
from typing import Any

from edg.core.log import WIPE, log, on_terminal, write
from edg.core.process import stopping

BAR = 20  # characters
DRAWN = 0.1  # seconds between two drawings


class Meter:
    """Called as systems report (`base.Progress`), in the main thread also the place where a signal ends the
    work; silent when `quiet` (all ranks but one).

    clips: how many this rank makes; rank, size: of the processes. every: seconds between two plain lines.
    """

    def __init__(
        self, quiet: bool = False, clips: int = 1, rank: int = 0, size: int = 1, every: float = 15.0
    ):
        self.quiet, self.clips, self.rank, self.size, self.every = quiet, clips, rank, size, every
        self.done, self.chunk = 0, [""]
        self.began, self.last = time.monotonic(), time.monotonic()
        self.drawn = False

    def loading(self) -> None:
        """The model is being loaded: on a terminal only, and no part of the time that is measured."""
        if not self.quiet and on_terminal():
            self._draw("loading the parameter sets")

    def begin(self, done: int, chunk: list[str]) -> None:
        """The clips of these ids come next, `done` before them."""
        self.done, self.chunk = done, chunk
        if not done:
            self.began = self.last = time.monotonic()

    def __call__(self, phase: str, done: int, total: int, *, request: Any = None, share: float = 0) -> None:
        stopping.check()
        now = time.monotonic()
        wait = DRAWN if on_terminal() else self.every
        if self.quiet or now - self.last < wait:
            return
        self.last = now
        whole = min((self.done + share * len(self.chunk)) / max(1, self.clips), 1)
        line = self._line(phase, done, total, request, whole, now - self.began)
        if on_terminal():
            filled = round(BAR * whole)
            self._draw(f"[{'#' * filled}{'.' * (BAR - filled)}] {line}")
        else:
            log(f"  {line}")

    def _line(self, phase: str, done: int, total: int, request: Any, whole: float, spent: float) -> str:
        parts = [f"{100 * whole:.0f} %"]
        if whole:
            parts.append(f"{clock(spent / whole - spent)} left")
        if self.size > 1:
            parts.append(f"rank {self.rank} of {self.size}")
        name = getattr(request, "id", "")
        if name in self.chunk:
            parts.append(f"clip {self.done + self.chunk.index(name) + 1}/{self.clips}")
        parts.append(f"{phase} {done}/{total}")
        if getattr(request, "prompt", ""):
            parts.append(request.prompt)
        return ", ".join(parts)

    def _draw(self, text: str) -> None:
        write(WIPE + fitted(text, _columns() - 1))
        self.drawn = True

    def close(self) -> None:
        if self.drawn:
            write(WIPE)
            self.drawn = False


def clock(seconds: float) -> str:
    """83 -> 1:23, 3723 -> 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def fitted(text: str, columns: int) -> str:
    """As much of the text as fits a line; wide characters take two columns, control characters go."""
    kept, used = [], 0
    for letter in text:
        if not letter.isprintable():
            continue
        used += 2 if unicodedata.east_asian_width(letter) in "WF" else not unicodedata.combining(letter)
        if used > columns:
            return "".join(kept[:-3]) + "..."
        kept.append(letter)
    return "".join(kept)


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
