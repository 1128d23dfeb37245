"""How far a run is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time


def say(text: str) -> None:
    """One line for the user, on stderr, out of the way of a bar."""
    print(text, file=sys.stderr, flush=True)


class Meter:
    """Called with (phase, done, total), as systems report; silent when `quiet` (all ranks but one)."""

    def __init__(self, quiet: bool = False, every: float = 15.0):
        self.quiet, self.every = quiet, every
        self.bar, self.phase, self.last = None, "", time.monotonic()

    def __call__(self, phase: str, done: int, total: int) -> None:
        if self.quiet:
            return
        if sys.stderr.isatty():
            self._draw(phase, done, total)
        elif time.monotonic() - self.last >= self.every:
            say(f"  {phase} {done}/{total}")
            self.last = time.monotonic()

    def _draw(self, phase: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if self.bar is None or self.phase != phase or self.bar.total != total or done < self.bar.n:
            self.close()
            self.bar, self.phase = tqdm(total=total, desc=phase, leave=False), phase
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
