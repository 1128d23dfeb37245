"""SHA-256 of a parameter set's numbers, whatever files hold them, and of files while a merge reads them.

The numbers decide: a record inside a file, or beside it, says where they came from, and may be wrong.
What follows a merge comes from the page cache, and is forgotten there when the file is large."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from edg.core.hashing import hash_value, kept_state, recall, remember, remember_sha256
from edg.core.pagecache import forget, too_large
from edg.core.process import stopping
from edg.weights.tensors import InputFile

if TYPE_CHECKING:
    from edg.weights.store import Weights

STEP = 4 << 20


def numbers_sha256(weights: Weights) -> str:
    """One SHA-256 of the names, dtypes, shapes and bytes of all tensors, the same for .pt, .safetensors,
    shards, complete files and files of changes.

    Reads all of it once, a block of a tensor at a time; remembered while the files stay as they are. Raises
    BadFileError when a file changes meanwhile."""
    key = weights.content_key()
    known = recall("numbers", key) if key else ""
    if len(known) == 64:
        return known
    digests = tensor_digests(weights)
    found = hashlib.sha256()
    for name in sorted(digests):
        info = weights.info(name)
        found.update(json.dumps([name, info.dtype, list(info.shape), digests[name]]).encode() + b"\n")
    if key:
        remember("numbers", key, found.hexdigest())
    return found.hexdigest()


def tensor_digests(weights: Weights) -> dict[str, str]:
    """SHA-256 of the bytes of every tensor by name; cached for tensors in files."""
    key = weights.content_key() if weights.container != "memory" else None
    if key:
        with suppress(ValueError, RecursionError):
            known = json.loads(recall("tensors", key))
            if isinstance(known, dict) and known.keys() == weights.tensors.keys():
                return known
    in_order = sorted(weights.tensors, key=lambda name: weights.tensors[name].where)
    found = {name: weights.tensors[name].digest() for name in in_order}
    weights.check_unchanged()
    if key:
        remember("tensors", key, json.dumps(found))
    return found


def places_key(weights: Weights) -> list | None:
    """Cache key of the numbers of a set in files: the files as they were when it was opened, and the place
    of each tensor in them. None for tensors in memory."""
    if not weights.files:
        return None
    places = [
        [name, t.info.dtype, t.info.shape, t.where, getattr(t, "strides", None), type(t).__name__]
        for name, t in weights.tensors.items()
    ]
    files = [[str(file.path.resolve()), *kept_state(file.stat)] for file in weights.files]
    return ["numbers", 1, files, hash_value(places)]


def combined(hashes: Sequence[tuple[str, str]]) -> str:
    """One SHA-256 for a checkpoint: its file's, or for several that of the lines 'sha256  filename'."""
    if len(hashes) == 1:
        return hashes[0][1]
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes))
    return hashlib.sha256(lines.encode()).hexdigest()


class HashFollower(threading.Thread):
    """Thread that hashes files up to the positions given to `advance`; `result()` ends it."""

    def __init__(self, files: Sequence[InputFile]):
        super().__init__(daemon=True, name="edg-hash")
        self.files = {str(file.path): file for file in files}
        self.digests = {path: hashlib.sha256() for path in self.files}
        self.passing = {path for path, file in self.files.items() if too_large(file.size)}
        self.done = dict.fromkeys(self.files, 0)
        self.goal = dict.fromkeys(self.files, 0)
        self.wake, self.stopped, self.error = threading.Condition(), False, None
        self.start()

    def advance(self, path: str, position: int) -> None:
        """Allow hashing up to this position."""
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
                if path in self.passing:
                    forget(self.files[path].fd, self.done[path], count)
                self.digests[path].update(buffer[:count])
                self.done[path] += count
        except Exception as error:  # raised by result()
            self.error = error

    def result(self) -> dict[str, str]:
        """Hash what is left and return path -> SHA-256."""
        with self.wake:
            self.goal = {path: file.size for path, file in self.files.items()}
            self.wake.notify()
        while self.is_alive():
            stopping.check()
            self.join(0.2)
        if self.error:
            raise self.error
        return {path: digest.hexdigest() for path, digest in self.digests.items()}

    def remember(self) -> None:
        """Note the digests for the next command. Only after `result()` and when no file has changed since."""
        for path, digest in self.digests.items():
            remember_sha256(path, digest.hexdigest(), self.files[path].stat)

    def stop(self) -> None:
        with self.wake:
            self.stopped = True
            self.wake.notify()
        self.join()
