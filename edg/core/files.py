"""Files that are written completely or not at all (temporary file, fsync, rename), locks of folders, and the
folders that environment variables name."""

from __future__ import annotations

import errno
import json
import os
import platform
import secrets
import shutil
import stat
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from edg.core.errors import BadFileError, MachineError
from edg.core.log import log
from edg.core.paths import check_name, user_path
from edg.core.process import stopping

TEMPORARY = ".edg-tmp"
OPEN = ".edg-tmp."  # in the name of one that is locked while it is written: .NAME.edg-tmp.PID
DAY = 86400
FORMER = ".former"  # of a temporary folder: in it lies what a new folder takes the place of
LOCK = ".edg.lock"
LOCK_TIMEOUT = 20.0  # seconds to wait for the holder of a lock, which may be a killed run on its way out
SMALL = 16 << 20  # bytes of a record or of settings
_BEGAN = time.time()
FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP}
_REFUSED |= {errno.ENAMETOOLONG}


def _host() -> str:
    return f"{zlib.crc32(platform.node().encode()):08x}"


def machine_error(error: OSError, path: Path) -> MachineError | None:
    """The error to show for a write that the machine refused, or None when it is something else."""
    if error.errno in FULL_DISK:
        return MachineError(
            f"no room left while writing {path}", fix="free some disk space or choose another folder"
        )
    if error.errno in _REFUSED:
        reason = os.strerror(error.errno)
        return MachineError(f"cannot write {path}: {reason}", fix="choose a writable folder")
    return None


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to the disk and renamed to `path`.

    On any exception, signals included, the temporary file is removed and `path` stays as it was.
    Raises MachineError when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    check_name(path)
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise machine_error(error, path) or error from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY}-{_host()}-{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")


@contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """A folder inside `folder` that is removed at the end; that of a killed process, at the next start
    there."""
    path = _temporary(folder / "-")
    path.mkdir()
    try:
        yield path
    finally:
        remove(path)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success its files are flushed and it replaces `path`. On
    any exception `path` stays as it was; killed in between, it is put back by `remove_leftovers`. Raises
    MachineError."""
    path = Path(path)
    temporary = _temporary(path)
    former = temporary.with_suffix(FORMER)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in (*temporary.iterdir(), temporary):
            _sync(file)
        if os.path.lexists(path):
            former.mkdir()
            os.replace(path, former / path.name)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise machine_error(error, path) or error from error
    finally:
        _put_back(former)
        remove(temporary)


def _put_back(former: Path) -> None:
    """Remove the replaced folder, or put it back where the new one did not come."""
    if former.is_symlink() or not former.is_dir():
        return remove(former)
    for kept in list(former.iterdir()):
        if os.path.lexists(former.parent / kept.name):
            remove(kept)
        else:
            with suppress(OSError):
                os.replace(kept, former.parent / kept.name)
    with suppress(OSError):  # what could not be put back is kept
        former.rmdir()


def remove(path: Path) -> None:
    """Remove a file, or a folder with its contents, if it is there and can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some file systems cannot flush a folder
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def remove_leftovers(folder: str | Path) -> int:
    """Remove temporary files of processes that no longer run (or older than a day); returns how many.
    Called by `lock_folder`, and by all that write single files into a folder."""
    stale = [path for path in Path(folder).glob(f"{TEMPORARY}-*") if _is_stale(path)]
    for path in stale:
        (_put_back if path.suffix == FORMER else remove)(path)
    return len(stale) + sum(map(_remove_unlocked, Path(folder).glob(f".*{OPEN}*")))


def _remove_unlocked(path: Path) -> bool:
    """Remove a temporary file that its writer would hold locked (`atomic_file`); True if it was one."""
    if not path.name.rpartition(OPEN)[2].isdecimal() or path.is_symlink() or not path.is_file():
        return False
    with suppress(OSError):
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if lock(handle) or time.time() - os.fstat(handle).st_mtime > DAY:
                path.unlink()
                return True
        finally:
            os.close(handle)
    return False


def _is_stale(path: Path) -> bool:
    host, _, rest = path.name[len(TEMPORARY) + 1 :].partition("-")
    pid = rest.partition("-")[0]
    ours = host == _host() and pid.isdecimal() and len(pid) < 10
    if ours and not _alive(int(pid)):
        return True
    with suppress(OSError):
        changed = path.lstat().st_mtime
        if ours and int(pid) == os.getpid():
            return changed < _BEGAN  # of a former process with our number
        return time.time() - changed > DAY
    return False


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8, atomically. A byte of a file name that is no text is written as its escape
    (`\\udcff`), which JSON reads back."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as readable JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def read_small(path: str | Path, most: int = SMALL) -> bytes:
    """The bytes of a file of at most `most`. Raises BadFileError when it cannot be read, is larger, or is no
    file: a pipe would be waited for, a device may have no end."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BadFileError(f"{path} is not a file")
            data = file.read(most + 1)
    except IsADirectoryError as error:
        raise BadFileError(f"{path} is not a file") from error
    except OSError as error:
        raise BadFileError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:  # a NUL in the name
        raise BadFileError(f"cannot read {path}: {error}") from error
    if len(data) > most:
        raise BadFileError(f"{path} has more than {most:,} bytes", expected="a small text file")
    return data


def read_json(path: str | Path) -> Any:
    """Read a JSON file. Raises BadFileError when it is torn or not JSON."""
    try:
        return json.loads(read_small(path).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadFileError(f"cannot read {path} as JSON: {error}") from error


def ensure_writable(folder: str | Path) -> Path:
    """Make `folder` and check that a file can be written in it. Raises MachineError."""
    folder = Path(folder)
    check_name(folder)
    probe = folder / f"{TEMPORARY}-{_host()}-{os.getpid()}-probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"edg")
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise machine_error(error, folder) or MachineError(
            f"cannot write {folder}: {reason}", fix="choose a writable folder"
        ) from error
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return folder


@contextmanager
def lock_folder(folder: str | Path, timeout: float | None = None) -> Iterator[Callable[[], None]]:
    """Hold the lock of `folder`, made if missing, for this process; leftovers of dead processes in it are
    removed. The lock ends with the process, so a killed run leaves nothing behind. Yields `check` of
    `same_folder`.

    timeout: seconds to wait for another holder (LOCK_TIMEOUT), which is logged once. Raises MachineError
    naming it when it still has the folder, or when the folder cannot be written.
    """
    folder, timeout = ensure_writable(folder), LOCK_TIMEOUT if timeout is None else timeout
    with _open_lock(folder / LOCK) as file, same_folder(folder) as check:
        end, named = time.monotonic() + timeout, False
        while not _locked(file):
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            if time.monotonic() >= end:
                raise MachineError(
                    f"{folder} is locked by {holder}",
                    fix="wait until it has finished, or choose another folder",
                )
            if not named:
                log(f"{folder} is locked by {holder}; waiting up to {timeout:g} s for it to finish")
                named = True
            stopping.check()
            time.sleep(0.2)
        file.seek(0)
        file.truncate()
        file.write(f"pid {os.getpid()} on host {platform.node()}\n")
        file.flush()
        check()  # it may have been removed while we waited
        remove_leftovers(folder)
        yield check


@contextmanager
def same_folder(folder: str | Path) -> Iterator[Callable[[], None]]:
    """Yield `check`, which raises MachineError when `folder` or the lock in it has been removed since, or
    made again: then others may hold what stands there now."""
    folder = Path(folder)
    handles = []
    try:
        for path in (folder, folder / LOCK):  # while they are open no other file gets their numbers
            with suppress(OSError):
                handles.append(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK))
        then = _numbers(folder)

        def check() -> None:
            if _numbers(folder) != then:
                raise MachineError(
                    f"{folder} was removed or replaced while this run was writing to it",
                    fix="run the same command again: it makes the lost results again",
                )

        yield check
    finally:
        for handle in handles:
            os.close(handle)


def _numbers(folder: Path) -> list[tuple[int, int] | None]:
    found: list[tuple[int, int] | None] = []
    for path in (folder, folder / LOCK):
        try:
            status = path.stat()
            found.append((status.st_dev, status.st_ino))
        except OSError:
            found.append(None)
    return found


def _open_lock(path: Path) -> IO[str]:
    """Open the lock file for reading and writing. Raises MachineError for a link, a pipe or the like in
    its place, which is not touched."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise MachineError(
                f"{path} is a symbolic link", fix="remove it, or choose another folder"
            ) from error
        raise machine_error(error, path) or error from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(handle)
        raise MachineError(
            f"{path} is not a regular file, or has several hard links",
            fix="remove it, or choose another folder",
        )
    return open(handle, "r+", encoding="utf-8", errors="replace")


def lock(handle: int) -> bool:
    """Take the lock of an open file, which ends with the process; False on a file system without locks.
    Raises BlockingIOError when another process has it."""
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
            raise
        return False


def _locked(file: IO[str]) -> bool:
    try:
        lock(file.fileno())
    except BlockingIOError:
        return False
    return True


def cache_folder() -> Path:
    """The user's cache folder of the package."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "edg"


def checkpoints() -> Path:
    """The folder of checkpoints: $CKPT_PATH, else ./ckpt."""
    return Path(user_path(os.environ.get("CKPT_PATH") or "ckpt", "CKPT_PATH"))
