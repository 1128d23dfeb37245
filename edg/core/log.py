"""Lines for people, on stderr: with the rank in front, and without tearing a progress bar."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress

from edg.core.errors import visible

WIPE = "\r\x1b[K"


def say(text: str) -> None:
    """One line for the user, on stderr, with the rank in front where there are several."""
    size = os.environ.get("WORLD_SIZE", "1")
    rank = f"[rank {os.environ.get('RANK', '0')}] " if size != "1" else ""
    write(f"{WIPE if on_terminal() else ''}{rank}{visible(text)}\n")


def write(text: str) -> None:
    """Words for people. Where they cannot be written (a log on a full disk) the work goes on."""
    with suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


def on_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def progress_line(what: str = "merging") -> Callable[[int, int], None] | None:
    """A percentage that rewrites itself on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        return None
    shown = [-1]

    def show(done: int, total: int) -> None:
        percent = 100 * done // max(total, 1)
        if percent != shown[0]:
            shown[0] = percent
            end = "\n" if done >= total else ""
            print(
                f"\r{what} {percent:3d} %  {done / 1e9:.1f} of {total / 1e9:.1f} GB",
                end=end,
                file=sys.stderr,
                flush=True,
            )

    return show
