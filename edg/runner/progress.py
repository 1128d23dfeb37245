"""Progress bars: tqdm on a terminal, a plain line now and then in a log.

Rank 0 draws, for its own share of the work; other ranks log whole lines.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from edg.core.errors import visible
from edg.core.log import handler, log, on_terminal, write
from edg.core.process import stopping

DRAWN = 0.1  # seconds between two drawings


class _Stderr:
    """The current stderr, which may be a log on a full disk."""

    encoding = property(lambda self: getattr(sys.stderr, "encoding", None))

    def write(self, text: str) -> None:
        write(text)

    def flush(self) -> None: ...

    def fileno(self) -> int:
        return sys.stderr.fileno()


class _Bar(tqdm):
    """A tqdm without a monitor thread and locks between processes; log lines are put above it."""

    monitor_interval = 0
    _lock = threading.RLock()

    def __init__(self, **options: Any):
        super().__init__(file=_Stderr(), leave=False, ncols=_columns(), smoothing=0, **options)
        self.dynamic_ncols = lambda file: (_columns(), 20)
        handler.bar = self

    def close(self) -> None:
        handler.bar = None
        super().close()


class Meter:
    """Progress of a system's steps, see `base.Observer.step`. In the main thread a call is also the place
    where a signal ends the work.

    quiet: draw nothing, as on all ranks but one.
    clips: number of clips that this rank makes.
    rank, size: of the processes.
    every: seconds between two plain lines.
    """

    def __init__(
        self, quiet: bool = False, clips: int = 1, rank: int = 0, size: int = 1, every: float = 15.0
    ):
        self.quiet, self.clips, self.rank, self.size, self.every = quiet, clips, rank, size, every
        self.done, self.chunk = 0, [""]
        self.began = self.last = time.monotonic()
        self.bar: _Bar | None = None

    def loading(self) -> None:
        """Show that the model is loaded: on a terminal only, and no part of the measured time."""
        if not self.quiet and on_terminal():
            self._draw(0, "loading the parameter sets")

    def begin(self, done: int, chunk: list[str]) -> None:
        """Begin with the clips of these ids, after `done` others."""
        self.done, self.chunk = done, chunk
        if not done:
            self.began = self.last = time.monotonic()

    def __call__(self, phase: str, done: int, total: int, *, request: Any = None, share: float = 0) -> None:
        """Report a step. request: the clip; share: of the current chunk, 0..1. Raises on a signal."""
        stopping.check()
        now = time.monotonic()
        if self.quiet or now - self.last < (DRAWN if on_terminal() else self.every):
            return
        self.last = now
        whole = min((self.done + share * len(self.chunk)) / max(1, self.clips), 1)
        line = self._line(phase, done, total, request, whole, now - self.began)
        if on_terminal():
            self._draw(whole, line)
        else:
            log(f"  {line}")

    def _line(self, phase: str, done: int, total: int, request: Any, whole: float, spent: float) -> str:
        parts = [f"{100 * whole:.0f} %"]
        if whole:
            parts.append(f"{format_duration(spent / whole - spent)} left")
        if self.size > 1:
            parts.append(f"rank {self.rank} of {self.size}")
        name = getattr(request, "id", "")
        if name in self.chunk:
            parts.append(f"clip {self.done + self.chunk.index(name) + 1}/{self.clips}")
        parts.append(f"{phase} {done}/{total}")
        if getattr(request, "prompt", ""):
            parts.append(request.prompt)
        return ", ".join(parts)

    def _draw(self, share: float, text: str) -> None:
        if self.bar is None:
            self.bar = _Bar(total=1.0, bar_format="{bar:20} {desc}")
        self.bar.n = share
        self.bar.set_description_str(visible(text))

    def close(self) -> None:
        """Clear the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def byte_progress(title: str) -> Callable[[int, int], None] | None:
    """A callback (bytes done, bytes in all) that draws a bar on a terminal; None elsewhere."""
    if not on_terminal():
        return None
    bar = _Bar(desc=title, total=1, unit="B", unit_scale=True)

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    return show


def _columns() -> int:
    """Columns of the terminal but one; tqdm takes those of an unknown size for none."""
    try:
        return (os.get_terminal_size(sys.stderr.fileno()).columns or 80) - 1
    except (OSError, ValueError):
        return 79


def format_duration(seconds: float) -> str:
    """83 -> 01:23, 3723 -> 1:02:03."""
    return tqdm.format_interval(seconds)
