"""The end of a process: with the process that started it, and by signals.

python -m edg.core.process PID COMMAND...      # COMMAND ends when its parent, process PID, ends

The former is for Linux only (prctl); elsewhere nothing happens.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

_PR_SET_PDEATHSIG = 1
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}  # signal -> exit code
GRACE = 10.0  # seconds from a signal to the forced end of a process that has not ended by itself
SECOND = 2.0  # the same from a second signal
TWICE = 1.0  # seconds within which a second one is the same: a launcher hands on what its group got too


class Stopping:
    """SIGTERM and SIGINT of this process, postponed to where the work checks for them.

    An exception out of a signal handler may strike between any two instructions, also where this thread
    holds the lock of a pool, for which all then wait for ever. Inside `postponed` a signal is only noted,
    and loops call `check`, which raises as the former handler would have. number: of the first signal, 0
    for none.
    """

    def __init__(self) -> None:
        self.number = 0
        self._former: dict[int, Callable[[int, Any], Any]] = {}
        self._raise = False
        self._unhurried = 0

    @contextmanager
    def postponed(self) -> Iterator[None]:
        """Note signals, and raise for them at the end at the latest. Does nothing in another thread,
        nor for a signal that is ignored or ends the process without a handler."""
        if threading.current_thread() is not threading.main_thread():
            yield
        elif self._former:
            before, self._raise = self._raise, False
            try:
                yield
            finally:
                self._raise = before
            if before:
                self.check()
        else:
            former = {number: signal.getsignal(number) for number in CODES}
            self._former = {number: handler for number, handler in former.items() if callable(handler)}
            try:
                for number in self._former:
                    signal.signal(number, self.note)
                yield
                self.check()
            finally:
                for number, handler in self._former.items():
                    signal.signal(number, handler)
                self._former, self.number = {}, 0

    def note(self, number: int, frame: FrameType | None) -> None:
        """Note a signal (the handler)."""
        self.number = self.number or number
        if self._raise:
            self.check()

    def check(self) -> None:
        """Raise for a noted signal (KeyboardInterrupt, SystemExit), in the main thread only."""
        if (
            self.number in self._former
            and not self._unhurried
            and threading.current_thread() is threading.main_thread()
        ):
            self._former[self.number](self.number, None)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise out of the handler again: where there is one thread and no check for seconds, as in
        imports. Does nothing in another thread. The signal stays noted."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before, self._raise = self._raise, True
        try:
            self.check()
            yield
        finally:
            self._raise = before

    @contextmanager
    def unhurried(self) -> Iterator[None]:
        """Let the caller look at `number` itself: `check` raises nothing, and only a second signal
        forces the end, as the last work may take long."""
        self._unhurried += 1
        try:
            yield
        finally:
            self._unhurried -= 1

    def force(self, report: Callable[[int], None]) -> None:
        """Start a thread that ends this process GRACE seconds after a signal, SECOND seconds after
        another one, if it has not ended by itself. Temporary files are removed at the next start.
        report(signal) comes before."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        # what a worker process gets is not ours
        os.register_at_fork(after_in_child=partial(signal.set_wakeup_fd, -1))
        threading.Thread(target=self._watch, args=(reader, report), daemon=True, name="edg-stop").start()

    def _watch(self, reader: int, report: Callable[[int], None]) -> None:
        came: list[tuple[int, float]] = []
        end = 0.0
        while not came or time.monotonic() < end:
            if select.select([reader], [], [], 0.1 if came else None)[0]:
                now = time.monotonic()
                for number in os.read(reader, 64):
                    if number in CODES and not came:
                        came, end = [(number, now)], now + GRACE
                    elif number in CODES and len(came) < 2 and now - came[0][1] > TWICE:
                        came.append((number, now))
                        end = min(end, now + SECOND)
            if len(came) == 1 and self._unhurried:
                end = time.monotonic() + GRACE
        report(came[0][0])
        os._exit(CODES[signal.Signals(came[0][0])])


stopping = Stopping()  # one, as the signals of a process are


def die_with_parent(parent: int | None = None) -> None:
    """Get SIGTERM when the parent ends, however it ends; at once when it is gone already.

    parent: its id where the caller knows it, else the current parent. A program that this process
    executes in its place (exec) inherits it, children do not. Source: prctl(2), PR_SET_PDEATHSIG.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid() if parent is None else parent
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it ended before we asked
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
