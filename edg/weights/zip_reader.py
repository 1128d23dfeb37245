"""torch's zip checkpoints (.ckpt, .pt, .pth): the directory of the archive, then `data.pkl` as data.

Only uncompressed entries are read, in place, by positioned reads; nothing is ever extracted to a path.
Format: PKWARE APPNOTE 6.3.9 (4.3.6 to 4.5.3); torch writes records `{root}/data.pkl`, `{root}/data/{key}`.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from edg.core.errors import BadFileError
from edg.weights import pickle_machine
from edg.weights.pickle_machine import TensorRef
from edg.weights.tensors import ITEMSIZE, FileTensor, InputFile, TensorInfo

MAX_PICKLE = 32 << 20
MAX_DIRECTORY = 32 << 20
MAX_ENTRIES = 200_000
END, END64, LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
FULL16, FULL32 = 0xFFFF, 0xFFFFFFFF


@dataclass(frozen=True)
class ZipEntry:
    """name, first byte of its data, bytes, stored (not compressed), CRC-32."""

    name: str
    offset: int
    size: int
    stored: bool
    crc: int


def read_directory(file: InputFile) -> dict[str, ZipEntry]:
    """All entries of a zip archive by name, with the place of their data. Raises BadFileError."""
    count, size, offset = _end_record(file)
    if size > MAX_DIRECTORY or offset + size > file.size:
        raise BadFileError(f"{file.path}: the zip directory is damaged or too large ({size} bytes)")
    if count > MAX_ENTRIES:
        raise BadFileError(
            f"{file.path}: a zip archive of {count} entries", expected=f"at most {MAX_ENTRIES}"
        )
    data = file.read(offset, size)
    entries, at = {}, 0
    for _ in range(count):
        if data[at : at + 4] != b"PK\x01\x02" or at + 46 > len(data):
            raise BadFileError(f"{file.path}: the zip directory is damaged at byte {offset + at}")
        (_, _, _, flags, method, _, _, crc, packed, full, n, x, c, _, _, _, header) = struct.unpack_from(
            "<4s6H3L5H2L", data, at
        )
        name = data[at + 46 : at + 46 + n].decode("utf-8")
        full, packed, header = _wide(data[at + 46 + n : at + 46 + n + x], full, packed, header)
        at += 46 + n + x + c
        if name in entries:
            raise BadFileError(f"{file.path}: the zip archive holds {name!r} twice")
        if flags & 1:
            raise BadFileError(f"{file.path}: the zip archive is encrypted")
        entries[name] = ZipEntry(name, _data_offset(file, header), full, method == 0 and packed == full, crc)
    return entries


def _end_record(file: InputFile) -> tuple[int, int, int]:
    tail_size = min(file.size, 22 + FULL16)
    tail = file.read(file.size - tail_size, tail_size)
    at = tail.rfind(END)
    if at < 0 or len(tail) - at < 22:
        raise BadFileError(
            f"{file.path} is truncated or an incomplete download (no zip directory, {file.size} bytes)",
            fix="download it again",
        )
    count, size, offset = struct.unpack_from("<HLL", tail, at + 10)
    if FULL16 in (count,) or FULL32 in (size, offset):
        place = file.size - tail_size + at - 20
        locator = file.read(place, 20) if place >= 0 else b""
        if locator[:4] == LOCATOR64:
            record = file.read(struct.unpack_from("<Q", locator, 8)[0], 56)
            if record[:4] != END64:
                raise BadFileError(f"{file.path}: the zip64 directory is damaged")
            count, size, offset = struct.unpack_from("<QQQ", record, 32)
    return count, size, offset


def _wide(extra: bytes, full: int, packed: int, header: int) -> tuple[int, int, int]:
    """Replace the fields that do not fit 32 bits by those of the zip64 extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            values = [v for (v,) in struct.iter_unpack("<Q", extra[at + 4 : at + 4 + length // 8 * 8])]
            full = values.pop(0) if full == FULL32 else full
            packed = values.pop(0) if packed == FULL32 else packed
            header = values.pop(0) if header == FULL32 else header
        at += 4 + length
    return full, packed, header


def _data_offset(file: InputFile, header: int) -> int:
    local = file.read(header, 30)
    if local[:4] != b"PK\x03\x04":
        raise BadFileError(f"{file.path}: a zip entry is missing at byte {header}")
    name, extra = struct.unpack_from("<HH", local, 26)
    return header + 30 + name + extra


def open_zip(file: InputFile) -> tuple[object, dict[str, ZipEntry], list[str]]:
    """(top object with FileTensor leaves still as TensorRef, entries by record name, notes)."""
    entries = read_directory(file)
    pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise BadFileError(
            f"{file.path} is a zip archive with {len(pickles)} data.pkl entries",
            expected="a file made by torch.save",
        )
    root = pickles[0].removesuffix("data.pkl")
    records = {name.removeprefix(root): entry for name, entry in entries.items() if name.startswith(root)}
    data = _record(file, records["data.pkl"])
    order = records.get("byteorder")
    if order is not None and _record(file, order).strip() != b"little":
        raise BadFileError(
            f"{file.path} was written on a big-endian machine", expected="little-endian tensors"
        )
    try:
        top, foreign = pickle_machine.load(data)
    except pickle_machine.PickleError as error:
        raise BadFileError(
            f"{file.path}: its data.pkl cannot be read: {error}", expected="a torch checkpoint"
        ) from error
    return top, records, [foreign_note(foreign)] if foreign else []


def foreign_note(foreign: dict[str, int]) -> str:
    names = sorted(foreign)
    shown = ", ".join(repr(name)[1:-1][:60] for name in names[:5])
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{len(names)} kinds of non-tensor objects ignored: {shown}{more}"


def _record(file: InputFile, entry: ZipEntry) -> bytes:
    if not entry.stored:
        raise BadFileError(
            f"{file.path}: {entry.name} is compressed", expected="uncompressed records (torch.save)"
        )
    if entry.size > MAX_PICKLE:
        raise BadFileError(
            f"{file.path}: {entry.name} has {entry.size} bytes", expected=f"at most {MAX_PICKLE}"
        )
    return file.read(entry.offset, entry.size)


def file_tensor(file: InputFile, records: dict[str, ZipEntry], name: str, ref: TensorRef) -> FileTensor:
    """Where the tensor `name` lies. BadFileError when its storage is missing, compressed or too short."""
    storage = ref.storage
    if ref.dtype not in ITEMSIZE:
        raise BadFileError(f"{file.path}: {name} is {ref.dtype}", expected="one of " + ", ".join(ITEMSIZE))
    entry = records.get(f"data/{storage.key}")
    if entry is None:
        raise BadFileError(f"{file.path}: the storage of {name} is missing", fix="download the file again")
    unit = ITEMSIZE.get(storage.dtype, 1) if storage.dtype else 1
    if not entry.stored or entry.size != storage.numel * unit or entry.offset + entry.size > file.size:
        raise BadFileError(
            f"{file.path}: the storage of {name} has {entry.size} bytes"
            + ", compressed" * (not entry.stored),
            expected=f"{storage.numel * unit} bytes, uncompressed",
            fix="download the file again",
        )
    info = TensorInfo(ref.shape, ref.dtype)
    return FileTensor(file, info, entry.offset, ref.first, ref.strides, entry.size // ITEMSIZE[ref.dtype])


def check_crc(file: InputFile, entry: ZipEntry) -> bool:
    """Whether the bytes of an entry still have the CRC-32 written with them."""
    crc, buffer = 0, bytearray(min(entry.size, 16 << 20))
    for at in range(0, entry.size, 16 << 20):
        view = memoryview(buffer)[: min(len(buffer), entry.size - at)]
        file.read_into(entry.offset + at, view)
        crc = zlib.crc32(view, crc)
    return crc == entry.crc
