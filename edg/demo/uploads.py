"""The temporary folder of `edg demo`: uploads of visitors and their clips, removed at the end.

Files that may be named or asked for are in a list: a file that merely lies in the folder is not served.
"""

from __future__ import annotations

import math
import os
import platform
import secrets
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from edg.core.errors import MachineError
from edg.core.files import lock

PREFIX = "edg-demo-"
LOCK = ".edg-demo.lock"
MAX_KEPT = 2_000_000_000  # bytes of uploads and clips together; more uploads are refused
MAX_FILES = 10_000  # and as many files
MAX_NAME = 200  # bytes of a file's name
DAY = 86_400  # seconds that an upload is kept


class Uploads:
    """A folder for this process and its user alone; those of killed demos are removed first."""

    def __init__(self):
        sweep()
        self.folder, self._lock = _claim()
        self._named: dict[str, float] = {}  # uploads and examples -> when they came
        self._shown: set[str] = set()  # what was made for visitors
        self._coming = 0  # bytes of uploads on their way
        self._counting = threading.Lock()

    def __enter__(self) -> Uploads:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def temporary(self) -> Iterator[None]:
        """Put temporary files of this process into the folder, too."""
        before, tempfile.tempdir = tempfile.tempdir, str(self.folder)
        try:
            yield
        finally:
            tempfile.tempdir = before

    def reserve(self, size: int) -> None:
        """Reserve room for an upload of `size` bytes until `release`. Raises MachineError where there
        is none."""
        with self._counting:
            self._forget_old()
            number, kept = measure(self.folder)
            if number >= MAX_FILES or kept + self._coming + size > MAX_KEPT:
                raise MachineError("no room for more uploads", fix="try again later")
            self._coming += size

    def release(self, size: int) -> None:
        with self._counting:
            self._coming -= size

    def put(self, name: str, file: BinaryIO, lasting: bool = False) -> Path:
        """Keep an upload under a name like its own, at a path that nobody guesses. lasting: for the
        whole run. Raises OSError."""
        path = self.new_folder() / file_name(name)
        try:
            with open(path, "xb") as target:
                shutil.copyfileobj(file, target)
        except BaseException:
            shutil.rmtree(path.parent, ignore_errors=True)
            raise
        self._named[str(path)] = math.inf if lasting else time.time()
        return path

    def new_folder(self) -> Path:
        folder = self.folder / secrets.token_hex(16)
        folder.mkdir(mode=0o700)
        return folder

    def show(self, paths: Iterable[Path]) -> None:
        """Allow visitors to ask for files in the folder."""
        self._shown.update(map(str, paths))

    def is_upload(self, path: str) -> bool:
        """True for uploads of this run (and the examples), in exactly this spelling."""
        return path in self._named and _is_plain(path)

    def is_shown(self, path: str) -> bool:
        """True for files that may be handed out: uploads, examples, clips."""
        return (path in self._named or path in self._shown) and _is_plain(path)

    def forget(self, folder: Path) -> None:
        """Remove a folder inside the folder, with its entries."""
        inside = f"{folder}{os.sep}"
        self._named = {path: when for path, when in self._named.items() if not path.startswith(inside)}
        self._shown = {path for path in self._shown if not path.startswith(inside)}
        shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        _remove(self.folder)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _forget_old(self) -> None:
        for path, when in list(self._named.items()):
            if when < time.time() - DAY:
                self.forget(Path(path).parent)


def sweep() -> None:
    """Remove the folders of killed demos of this user. A running one holds its lock; folders without a
    lock file, links and folders of other users stay."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # also BlockingIOError: it lives
            _remove_if_dead(path)


def file_name(name: str) -> str:
    """A safe name like that of the upload: letters, digits, "._-, "; no folder, not hidden."""
    last = name.replace("\\", "/").rpartition("/")[2]
    kept = "".join(letter for letter in last if letter.isalnum() or letter in "._-, ").strip(". ")
    stem, dot, ending = kept.rpartition(".")
    if not stem:
        return _shortened(kept, MAX_NAME) or "image"
    return _shortened(stem, MAX_NAME // 2) + dot + _shortened(ending, MAX_NAME // 4)


def measure(folder: Path) -> tuple[int, int]:
    """(files, bytes) of a folder."""
    sizes = []
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # removed meanwhile
            status = path.lstat()
            sizes += [status.st_size] if not stat.S_ISDIR(status.st_mode) else []
    return len(sizes), sum(sizes)


def _shortened(text: str, most: int) -> str:
    return text.encode("utf-8", "ignore")[:most].decode("utf-8", "ignore")


def _is_plain(path: str) -> bool:
    with suppress(OSError, ValueError):
        return stat.S_ISREG(os.lstat(path).st_mode)
    return False


def _claim() -> tuple[Path, int | None]:
    """Make a new folder and its lock, which ends with the process. A demo that starts at the same moment
    may remove it before it is locked: then another one is made."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with suppress(BlockingIOError):
            lock(handle)
            os.write(handle, f"pid {os.getpid()} on host {platform.node()}\n".encode())
            if (folder / LOCK).exists():
                return folder, handle
        os.close(handle)


def _remove_if_dead(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        handle = os.open(LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        try:
            for status in (os.fstat(folder), os.fstat(handle)):
                if status.st_uid != os.geteuid():
                    return
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and lock(handle):
                _remove(path)
        finally:
            os.close(handle)
    finally:
        os.close(folder)


def _remove(folder: Path) -> None:
    """Remove a demo's folder, its lock last, so that a removal that is killed is completed later."""
    with suppress(OSError):
        for child in folder.iterdir():
            if child.name == LOCK:
                continue
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child, ignore_errors=True)
            else:
                child.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
