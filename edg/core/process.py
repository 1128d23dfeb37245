"""A process that must not outlive the one that started it.

    python -m edg.core.process PID COMMAND...      # COMMAND ends when its parent, process PID, ends

Linux only (prctl); elsewhere nothing happens.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int | None = None) -> None:
    """Get SIGTERM when the parent ends, however it ends; at once when it is gone already.

    parent: its id where the caller knows it, else whoever is the parent now. What this process executes in
    its place (exec) inherits it, its children do not. Source: prctl(2), PR_SET_PDEATHSIG.
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
