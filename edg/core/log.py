"""Text for people: the logger "edg" writes lines to stderr, with the rank in front where there are several.

A program that embeds the package can silence them (`logging.getLogger("edg").setLevel("ERROR")`) or add
handlers of its own.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import Protocol

from edg.core.dist import rank_label, terminal_type
from edg.core.errors import visible

WIPE = "\r\x1b[K"


class Bar(Protocol):
    """A progress bar on the last line of the terminal."""

    def refresh(self) -> object: ...


class LineHandler(logging.Handler):
    """Write a record as one line to the current `sys.stderr`. On a terminal the line takes the place of a
    progress bar, of this process or another rank; `bar` is drawn again below it."""

    bar: Bar | None = None

    def emit(self, record: logging.LogRecord) -> None:
        level = "warning: " if record.levelno >= logging.WARNING else ""
        wipe = WIPE if on_terminal() else ""
        write(f"{wipe}{rank_label()}{level}{visible(record.getMessage())}\n")
        if self.bar is not None:
            self.bar.refresh()


def _logger() -> logging.Logger:
    logger = logging.getLogger("edg")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # no line twice where a program has set up the root logger
    return logger


handler = LineHandler()
logger = _logger()


def log(text: str) -> None:
    """Write a line for the user to stderr."""
    logger.info("%s", text)


def warn(text: str) -> None:
    """The same, with "warning: " in front."""
    logger.warning("%s", text)


def write(text: str) -> None:
    """Write text to stderr. Where that fails (a log on a full disk) the work goes on."""
    with suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


def on_terminal() -> bool:
    """True if stderr is a terminal that can clear a line."""
    return sys.stderr.isatty() and terminal_type() != "dumb"
