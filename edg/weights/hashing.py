"""SHA-256 of inputs: of a file, or following a merge so that bytes come from the page cache."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edg.weights.tensors import InputFile

if TYPE_CHECKING:
    from edg.weights.store import Weights

STEP = 4 << 20
_KNOWN: dict[
    tuple, str
] = {}  # (path, size, mtime, inode) -> sha256, so that dyn and con hash their base once


def _key(path: Path, stat: os.stat_result) -> tuple:
    return os.fspath(Path(path).resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino


def sha256_file(path: Path) -> str:
    """SHA-256 of a whole file, remembered while the process lives and the file does not change."""
    key = _key(path, os.stat(path))
    if key not in _KNOWN:
        digest, buffer = hashlib.sha256(), bytearray(STEP)
        with open(path, "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(memoryview(buffer)[:count])
        _KNOWN[key] = digest.hexdigest()
    return _KNOWN[key]


def combined(hashes: Sequence[tuple[str, str]]) -> str:
    """One SHA-256 for a checkpoint: its file's, or for several that of the lines 'sha256  filename'."""
    if len(hashes) == 1:
        return hashes[0][1]
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes))
    return hashlib.sha256(lines.encode()).hexdigest()


def sha256_weights(weights: Weights) -> str:
    return combined([(file.path.name, sha256_file(file.path)) for file in weights.files])


class HashFollower(threading.Thread):
    """Hashes files in the background, staying behind the positions told to `advance`; `result()` ends it."""

    def __init__(self, files: Sequence[InputFile]):
        super().__init__(daemon=True, name="edg-hash")
        self.files = {str(file.path): file for file in files}
        self.digests = {path: hashlib.sha256() for path in self.files}
        self.done = dict.fromkeys(self.files, 0)
        self.goal = dict.fromkeys(self.files, 0)
        self.wake, self.stopped, self.error = threading.Condition(), False, None
        self.start()

    def advance(self, path: str, position: int) -> None:
        """The merge has read up to here."""
        with self.wake:
            if path in self.goal and position > self.goal[path]:
                self.goal[path] = min(position, self.files[path].size)
                if position - self.done[path] >= STEP:
                    self.wake.notify()

    def _next(self) -> tuple[str, int] | None:
        """(file, bytes) to hash now: the file that lags most, in whole steps until its end."""
        with self.wake:
            while not self.stopped:
                path = max(self.files, key=lambda p: self.goal[p] - self.done[p], default=None)
                if path is None:
                    return None
                lag, size = self.goal[path] - self.done[path], self.files[path].size
                if lag >= STEP or (lag and self.goal[path] == size):
                    return path, min(lag, STEP)
                if all(self.done[p] == f.size for p, f in self.files.items()):
                    return None
                self.wake.wait()
        return None

    def run(self):
        buffer = memoryview(bytearray(STEP))
        try:
            while (item := self._next()) is not None:
                path, count = item
                self.files[path].read_into(self.done[path], buffer[:count])
                self.digests[path].update(buffer[:count])
                self.done[path] += count
        except Exception as error:  # told to the caller of result()
            self.error = error

    def result(self) -> dict[str, str]:
        """Hash what is left and return path -> SHA-256."""
        with self.wake:
            self.goal = {path: file.size for path, file in self.files.items()}
            self.wake.notify()
        self.join()
        if self.error:
            raise self.error
        found = {path: digest.hexdigest() for path, digest in self.digests.items()}
        for path, file in self.files.items():
            _KNOWN[_key(file.path, file.stat)] = found[path]
        return found

    def stop(self) -> None:
        with self.wake:
            self.stopped = True
            self.wake.notify()
        self.join()
