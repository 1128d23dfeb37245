"""Drop pages of large one-pass files from the page cache (posix_fadvise).

Their pages are used again at once. New ones would have to be cleared first (in a virtual machine even got
from the host, which can take longer than the merge itself), and would push out what others have cached.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor

from edg.core.device import memory

STEP = 64 << 20


def too_large(size: int) -> bool:
    """Whether a file takes more than a quarter of the memory, too much to be kept for whoever comes next."""
    return hasattr(os, "posix_fadvise") and 4 * size > memory()[0]


def forget(fd: int, start: int, count: int) -> None:
    """Give the pages of a range back; those not on the disk yet stay."""
    os.posix_fadvise(fd, start, count, os.POSIX_FADV_DONTNEED)


class Flusher:
    """Brings a file that grows to the disk in the background, and forgets what is there."""

    def __init__(self, fd: int):
        self.fd, self.done, self.running = fd, 0, Future()
        self.running.set_result(None)
        self.pool = ThreadPoolExecutor(1, "edg-flush")

    def reached(self, end: int) -> None:
        """Everything below `end` is written. Raises OSError when bringing it to the disk failed."""
        if end - self.done >= STEP and self.running.done():
            self.running.result()
            self.running = self.pool.submit(self._flush, self.done, end - self.done)
            self.done = end

    def _flush(self, start: int, count: int) -> None:
        os.fdatasync(self.fd)
        forget(self.fd, start, count)

    def finish(self) -> None:
        """Wait for the last. Raises OSError as `reached` does."""
        self.pool.shutdown()
        self.running.result()
