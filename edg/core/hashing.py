"""Hashes of values and files, cached in the user's cache folder while a file stays as it is."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from edg.core.errors import BadFileError, MachineError
from edg.core.files import cache_folder, remove_leftovers, write_text
from edg.core.process import stopping


def hash_value(value: Any) -> str:
    """SHA-256 of a JSON-like value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: str | Path, block: int = 1 << 20) -> str:
    """sha256 of a file's bytes, read in blocks. Raises BadFileError when it cannot be read, grows meanwhile
    (some of /proc never end) or is no file: a pipe would be waited for."""
    digest, read = hashlib.sha256(), 0
    buffer = memoryview(bytearray(block))
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise BadFileError(f"{path} is not a file")
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            while count := file.readinto(buffer):
                stopping.check()
                digest.update(buffer[:count])
                read += count
                if read > size:
                    raise BadFileError(
                        f"{path} is growing while it is being read", expected=f"its {size} bytes"
                    )
    except (OSError, ValueError) as error:  # a NUL in the name
        raise BadFileError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from error
    return digest.hexdigest()


def cached_sha256(path: str | Path) -> str:
    """SHA-256 of a large file, cached while its size and time stay the same. A file that changes while it
    is hashed is not cached. Raises BadFileError when it cannot be read."""
    path = Path(path)
    try:
        path = path.resolve()
        before = path.stat()
    except (OSError, ValueError) as error:  # a NUL in the name
        raise BadFileError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from error
    with suppress(OSError):
        known = _sha256_note(path, before).read_text().strip()
        if len(known) == 64:
            return known
    digest = sha256_file(path)
    with suppress(OSError):
        if file_state(path.stat()) == file_state(before):
            remember_sha256(path, digest, before)
    return digest


def remember_sha256(path: str | Path, digest: str, status: os.stat_result) -> None:
    """Cache a known hash for `cached_sha256`.

    status: of the file when the bytes were read, not now: the path may hold another file by then.
    """
    with suppress(OSError, MachineError):  # a cache that cannot be written is only slower
        note = _sha256_note(Path(path).resolve(), status)
        remove_leftovers(note.parent)
        write_text(note, digest)


def remember(kind: str, key: Any, text: str) -> None:
    """Cache a text under a JSON-like key."""
    with suppress(OSError, MachineError):  # a cache that cannot be written is only slower
        write_text(cache_folder() / kind / hash_value(key)[:32], text)


def recall(kind: str, key: Any) -> str:
    """The cached text of a key, "" where there is none."""
    with suppress(OSError, ValueError):
        return (cache_folder() / kind / hash_value(key)[:32]).read_text(encoding="utf-8")
    return ""


def file_state(status: os.stat_result) -> tuple[int, int, int]:
    """(inode, size, time of change): differs for an altered or replaced file."""
    return status.st_ino, status.st_size, status.st_mtime_ns


def kept_state(status: os.stat_result) -> tuple[int, int, int, int]:
    """`file_state` for what is cached between commands, with the change time of the inode, which cannot
    be set back."""
    return *file_state(status), status.st_ctime_ns


def stamp(path: Path) -> tuple:
    """The states of a file, or of the files of a folder: differs when one was touched; () where there is
    nothing."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        return tuple((file.name, *kept_state(file.stat())) for file in files)
    except OSError:
        return ()


def _sha256_note(path: Path, status: os.stat_result) -> Path:
    inode, size, changed, inode_changed = kept_state(status)
    key = hash_value([str(path), size, changed, inode, inode_changed])[:32]
    return cache_folder() / "sha256" / key
