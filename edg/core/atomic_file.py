"""A large file that appears whole or not at all: temporary file beside it, fsync, rename.

`files.atomic_path` does so for encoders, which open a file by its name. Here the file is one open descriptor:
positioned writes, disk space taken beforehand, dirty pages flushed on the way, and a lock from the beginning,
so that a second writer waits. An encoder can do none of that with a name.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from pathlib import Path

from edg.core import files, pagecache
from edg.core.errors import MachineError, UsageError
from edg.core.files import LOCK_TIMEOUT, OPEN, lock, remove_leftovers
from edg.core.hashing import hash_value
from edg.core.process import stopping

LONG = 200  # bytes of a name
TRIES = 20


class AtomicFile:
    """Positioned writes into a hidden temporary file; `commit()` renames it to `path`, `abort()` removes it.

    The temporary is locked while it lives, so leftovers of a killed run are known from those of a running
    one, and removed at the next start in that folder. Another process that writes `path` is waited for. The
    mode follows the umask. Raises MachineError (disk, rights), UsageError (path).
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if os.path.isdir(self.path):  # unlike Path.is_dir, False for a name that is too long
            raise UsageError(f"{path} is a folder", expected="the name of a file to write")
        # the name must not be too long where the file's own is not
        name = self.path.name if len(os.fsencode(self.path.name)) < LONG else hash_value(self.path.name)
        self._prefix = f".{name}{OPEN}"
        self.temporary = self.path.parent / f"{self._prefix}{os.getpid()}"
        self.flusher: pagecache.Flusher | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._wait()
            self.fd = self._create()
        except OSError as error:
            raise machine_error(self.path, error) from error

    def _wait(self) -> None:
        """Wait until nobody else writes the file, or for LOCK_TIMEOUT; then MachineError. Leftovers go."""
        end = time.monotonic() + LOCK_TIMEOUT
        while True:
            remove_leftovers(self.path.parent)
            others = [path for path in self.path.parent.iterdir() if path.name.startswith(self._prefix)]
            busy = next(filter(_is_locked, others), None)
            if busy is None:
                return
            if time.monotonic() >= end:
                holder = f"pid {busy.name.removeprefix(self._prefix)}"
                raise MachineError(
                    f"{self.path} is being written by another process, {holder}",
                    fix="wait until it has finished",
                )
            stopping.check()
            time.sleep(0.2)

    def _create(self) -> int:
        """The handle of the temporary file, locked. Whoever removes leftovers may hold a new one for a moment
        and remove it: then once more."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        for _ in range(TRIES):
            handle, ours = os.open(self.temporary, flags, 0o666), False
            try:
                with contextlib.suppress(BlockingIOError):
                    lock(handle)
                    ours = self.temporary.exists()
                if ours:
                    return handle
            finally:
                if not ours:
                    os.close(handle)
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(self.temporary)
        raise MachineError(
            f"another program deletes {self.temporary} as soon as it is created", fix="try again"
        )

    def expect(self, size: int, reserve: bool) -> None:
        """Prepare for about so many bytes; reserve: take the disk space now where the file system can (a full
        disk shows before any work is done)."""
        if pagecache.too_large(size):
            self.flusher = pagecache.Flusher(self.fd)
        try:
            if size and reserve and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self.fd, 0, size)
        except OSError as error:
            if error.errno in files.FULL_DISK:
                self.abort()
                raise machine_error(self.path, error) from error

    def write(self, offset: int, data) -> None:
        view, done = memoryview(data).cast("B"), 0
        try:
            while done < len(view):
                done += os.pwrite(self.fd, view[done : done + (1 << 30)], offset + done)
            if self.flusher:
                self.flusher.reached(offset + done)
        except OSError as error:
            raise machine_error(self.path, error) from error

    def commit(self, size: int) -> None:
        """Cut to `size` bytes, bring everything to the disk, take the final name."""
        try:
            if self.flusher:
                self.flusher.finish()
            os.ftruncate(self.fd, size)
            os.fsync(self.fd)
            os.replace(self.temporary, self.path)
            self._close()
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise machine_error(self.path, error) from error

    def abort(self) -> None:
        """Remove the temporary file. Does nothing after commit."""
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self.temporary)
            if self.flusher:
                with contextlib.suppress(OSError):
                    self.flusher.finish()
            self._close()

    def _close(self) -> None:
        os.close(self.fd)
        self.fd = -1


def _is_locked(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        handle = os.open(path, os.O_RDWR)
        try:
            lock(handle)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
    return False


def machine_error(path: Path, error: OSError) -> MachineError:
    """The error to show for any failure to write."""
    return files.machine_error(error, path) or MachineError(
        f"cannot write {path}: {error.strerror or error}", fix="choose a writable folder"
    )


def check_writable(folder: Path) -> Path:
    """The folder, or of its parents the first that is there. Raises MachineError if no file can be made in
    it."""
    there = next((p for p in (folder, *folder.absolute().parents) if os.path.isdir(p)), Path("."))
    try:
        with tempfile.TemporaryFile(dir=there):
            return there
    except OSError as error:
        raise machine_error(folder, error) from error


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Write a small file whole or not at all."""
    file = AtomicFile(path)
    try:
        file.write(0, data)
        file.commit(len(data))
    finally:
        file.abort()
