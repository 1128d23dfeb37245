"""Checkpoints as torch wrote them before 1.6: five pickles one after another, then the storages.

Read like the zip format: the pickles as data by `pickle_machine`, the tensors by positioned reads. Nothing in
the file is called, and memory does not follow its size. Format: torch/serialization.py, `_legacy_save`.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping

from edg.core.errors import BadFileError
from edg.weights.readers.pickle_machine import MAX_OPCODES, PickleError, PickleMachine, StorageRef
from edg.weights.readers.zip_archive import ZipEntry, foreign_note
from edg.weights.tensors import ITEMSIZE, InputFile

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
# Bytes of an element, of those too whose tensors are not read.
SIZES = {"": 1, "QInt8Storage": 1, "QUInt8Storage": 1, "QInt32Storage": 4, "QUInt4x2Storage": 1,
         "QUInt2x4Storage": 1, **ITEMSIZE}  # fmt: skip
MAX_PICKLES = 16 << 20  # bytes of the five together


def open_legacy(file: InputFile) -> tuple[object, dict[str, ZipEntry], list[str]]:
    """(top object with TensorRef leaves, storages as entries `data/{key}`, notes). Raises BadFileError."""
    stream = io.BytesIO(file.read(0, min(file.size, MAX_PICKLES)))
    found, foreign, storages, left = [], {}, {}, MAX_OPCODES
    try:
        for place in range(5):  # magic number, protocol, system, the object, order of the storages
            machine = PickleMachine(stream, left)
            found.append(machine.run()[0])
            left = machine.left
            foreign |= machine.foreign
            storages |= machine.storages
            if place == 2:
                _check_system(file, *found)
    except PickleError as error:
        raise _damaged(file, str(error)) from error
    entries = _entries(file, found[4], storages, stream.tell())
    return (
        found[3],
        entries,
        ["a pickle of an old format, read as data", *([foreign_note(foreign)] if foreign else [])],
    )


def _damaged(file: InputFile, reason: str) -> BadFileError:
    return BadFileError(
        f"{file.path} is a pickle that is damaged or no checkpoint: {reason}"[:300],
        expected="a checkpoint made by torch.save",
        fix="code in a file is never run; save it again as a plain state dict",
    )


def _check_system(file: InputFile, magic: object, protocol: object, system: object) -> None:
    if (magic, protocol) != (MAGIC, PROTOCOL):
        raise _damaged(file, "it does not begin with torch's magic number")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise BadFileError(
            f"{file.path} was written on a big-endian machine", expected="little-endian tensors"
        )


def _entries(
    file: InputFile, order: object, storages: Mapping[str, StorageRef], at: int
) -> dict[str, ZipEntry]:
    """Byte position of each storage. order: their keys as they follow one another from byte `at`, each as 8
    bytes number of elements and the elements."""
    entries: dict[str, ZipEntry] = {}
    for key in order if isinstance(order, list) else ():
        if not isinstance(key, str):
            raise _damaged(file, f"a storage whose key is a {type(key).__name__}")
        name, storage = f"data/{key}", storages.get(key)
        if storage is None or name in entries or storage.dtype not in SIZES:
            raise _damaged(file, f"an unexpected storage {key!r:.60}")
        (numel,) = struct.unpack("<q", file.read(at, 8))
        size = numel * SIZES[storage.dtype]
        if not 0 <= size <= file.size - at - 8:
            raise BadFileError(f"{file.path} is truncated ({file.size} bytes)", fix="download it again")
        entries[name] = ZipEntry(name, at + 8, size, stored=True, crc=0)
        at += 8 + size
    return entries
