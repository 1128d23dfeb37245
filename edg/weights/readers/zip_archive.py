"""torch's zip checkpoints (.ckpt, .pt, .pth): the directory of the archive, then `data.pkl` as data.

Only uncompressed entries are read, in place, by positioned reads; nothing is ever extracted to a path.
Format: PKWARE APPNOTE 6.3.9 (4.3.6 to 4.5.3); torch writes records `{root}/data.pkl`, `{root}/data/{key}`.
"""

from __future__ import annotations

import struct
import unicodedata
import zlib
from dataclasses import dataclass

from edg.core.errors import BadFileError
from edg.weights.readers import pickle_machine
from edg.weights.readers.pickle_machine import TensorRef
from edg.weights.tensors import (
    ITEMSIZE,
    Conjugate,
    FileTensor,
    InputFile,
    Negative,
    NegativeConjugate,
    TensorInfo,
)

MAX_PICKLE = 32 << 20
MAX_DIRECTORY = 32 << 20
MAX_ENTRIES = 200_000
END, END64, LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
FULL16, FULL32 = 0xFFFF, 0xFFFFFFFF
# Bits of an entry's flags: encrypted in any way, numbers after the data, name in UTF-8.
ENCRYPTED, DESCRIPTOR, UTF8 = 1 | 1 << 6 | 1 << 13, 1 << 3, 1 << 11
DOS_FOLDER, REGULAR = 1 << 4, 8  # of an entry's attributes; torch's reader gives a folder no bytes
LAZY = {(False, False): FileTensor, (True, False): Negative, (False, True): Conjugate,
        (True, True): NegativeConjugate}  # fmt: skip
UNICODE_NAME = 0x7075  # an extra field that gives another name


@dataclass(frozen=True)
class ZipEntry:
    """name, first byte of its data, bytes, stored (not compressed), CRC-32."""

    name: str
    offset: int
    size: int
    stored: bool
    crc: int


@dataclass(frozen=True)
class _Central:
    """An entry as the directory has it: flags, method, CRC-32, bytes in the file, bytes unpacked, first byte
    of its local header."""

    name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    full: int
    header: int


def read_directory(file: InputFile) -> dict[str, ZipEntry]:
    """All entries of a zip archive by name, with the place of their data, in the order of the directory.

    Readers of zip differ in which of its redundant records they believe. So an archive is read only where all
    of them agree: one directory at the end of the file, entries that follow one another from the first byte
    to the directory, local headers like the central ones. Raises BadFileError."""
    count, size, offset = _end_record(file)
    if size > MAX_DIRECTORY:
        raise BadFileError(
            f"{file.path}: its zip directory has {size} bytes", expected=f"at most {MAX_DIRECTORY}"
        )
    if count > MAX_ENTRIES:
        raise BadFileError(
            f"{file.path}: its zip archive has {count} entries", expected=f"at most {MAX_ENTRIES}"
        )
    found = _central_entries(file, file.read(offset, size), count)
    ends = [entry.header for entry in sorted(found, key=lambda entry: entry.header)] + [offset]
    if ends[0] != 0:
        raise _two_ways(file, f"{ends[0]} bytes before its first entry")
    after = dict(zip(ends, ends[1:], strict=False))
    if len(after) != count:
        raise _two_ways(file, "two entries in one place")
    entries, names = {}, {}
    for entry in found:
        name = _name(file, entry)
        known = names.setdefault(_folded(name), name)
        if known != name or name in entries:
            raise _two_ways(file, f"two entries for one name, {known[:80]!r} and {name[:80]!r}")
        at = _data_offset(file, entry, after[entry.header])
        stored = entry.method == 0 and entry.packed == entry.full
        entries[name] = ZipEntry(name, at, entry.full, stored, entry.crc)
    return entries


def _two_ways(file: InputFile, what: str) -> BadFileError:
    return BadFileError(
        f"{file.path}: a zip archive that can be read in two ways: {what}"[:500],
        expected="a file as torch.save writes it",
        fix="load it with the program that wrote it, and save it again",
    )


def _end_record(file: InputFile) -> tuple[int, int, int]:
    """(entries, bytes, first byte) of the directory, which must end where the end records begin."""
    tail_size = min(file.size, 22 + FULL16)
    tail = file.read(file.size - tail_size, tail_size)
    at = tail.rfind(END)
    if at < 0 or len(tail) - at < 22:
        raise BadFileError(
            f"{file.path} is truncated or an incomplete download (no zip directory, {file.size} bytes)",
            fix="download it again",
        )
    disk, first_disk, here, count, size, offset, comment = struct.unpack_from("<4H2LH", tail, at + 4)
    if at + 22 + comment != len(tail) or any(sign in tail[at + 4 :] for sign in (END64, LOCATOR64)):
        raise _two_ways(file, "bytes after its end record that are not its comment")
    if disk or first_disk or here != count:
        raise _two_ways(file, "several disks")
    end = file.size - tail_size + at  # where the directory ends, if no zip64 record stands between
    locator = file.read(end - 20, 20) if end >= 76 else b""
    if locator[:4] == LOCATOR64:
        end, wide = _end_record64(file, end - 20, locator)
        for plain, value, most in zip((count, size, offset), wide, (FULL16, FULL32, FULL32), strict=True):
            if plain not in (value, most):
                raise _two_ways(file, "two end records that differ")
        count, size, offset = wide
    elif count == FULL16 or FULL32 in (size, offset):
        raise _two_ways(file, "an end record that refers to another, which does not exist")
    if offset + size != end:
        raise _two_ways(file, "a directory that is not where its end record states")
    return count, size, offset


def _end_record64(file: InputFile, at: int, locator: bytes) -> tuple[int, tuple[int, int, int]]:
    """(its first byte, (entries, bytes, first byte of the directory)); at: where its locator begins."""
    first_disk, place, disks = struct.unpack_from("<LQL", locator, 4)
    if place + 56 > at:
        raise _two_ways(file, "a zip64 end record that is not before its locator")
    sign, length, _, _, disk, start_disk, here, *wide = struct.unpack("<4sQ2H2L4Q", file.read(place, 56))
    count, size, offset = wide
    if sign != END64 or place + 12 + length != at:
        raise _two_ways(file, "a zip64 end record that is not before its locator")
    if first_disk or disk or start_disk or disks > 1 or here != count:
        raise _two_ways(file, "several disks")
    return place, (count, size, offset)


def _central_entries(file: InputFile, data: bytes, count: int) -> list[_Central]:
    found, at = [], 0
    for _ in range(count):
        if data[at : at + 4] != b"PK\x01\x02" or at + 46 > len(data):
            raise BadFileError(f"{file.path}: the zip directory is damaged at its byte {at}")
        flags, method, _, _, crc, packed, full, n, x, c, disk, _, kind, header = struct.unpack_from(
            "<4H3L5H2L", data, at + 8
        )
        name, extra = data[at + 46 : at + 46 + n], data[at + 46 + n : at + 46 + n + x]
        wide = _zip64_extra(file, extra)
        full, packed, header = (
            wide.pop(0) if value == FULL32 and wide else value for value in (full, packed, header)
        )
        if flags & ENCRYPTED:
            raise BadFileError(f"{file.path}: the zip archive is encrypted")
        if full and (kind & DOS_FOLDER or kind >> 28 not in (0, REGULAR)):
            raise _two_ways(file, "a folder or a link with bytes of its own")
        if disk:
            raise _two_ways(file, "several disks")
        found.append(_Central(name, flags, method, crc, packed, full, header))
        at += 46 + n + x + c
    if at != len(data):
        raise _two_ways(file, "a directory with more entries than its end record states")
    return found


def _zip64_extra(file: InputFile, extra: bytes) -> list[int]:
    """The 64-bit numbers of an entry's extra fields. Refused: a second such field, another name."""
    at, fields = 0, []
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == UNICODE_NAME or at + 4 + length > len(extra):
            raise _two_ways(file, "an entry with a second name or a cut extra field")
        if kind == 1:
            fields.append(extra[at + 4 : at + 4 + length // 8 * 8])
        at += 4 + length
    if len(fields) > 1:
        raise _two_ways(file, "an entry with two sizes")
    return [value for field in fields for (value,) in struct.iter_unpack("<Q", field)]


def _name(file: InputFile, entry: _Central) -> str:
    """The name of an entry. Refused: letters beyond ASCII that are not marked as UTF-8, and a NUL, where some
    readers end a name."""
    name = entry.name.decode("utf-8")
    if "\0" in name or not (name.isascii() or entry.flags & UTF8):
        raise _two_ways(file, f"the name {name[:80]!r}")
    return name


def _folded(name: str) -> str:
    """Form in which some reader takes two names for one: torch's takes capitals and small letters as equal,
    others write files by them."""
    plain = unicodedata.normalize("NFKC", name).casefold().replace("\\", "/")
    return "/".join(part for part in plain.split("/") if part not in ("", "."))


def _data_offset(file: InputFile, entry: _Central, after: int) -> int:
    """First byte of an entry's data, once its local header is found to agree. after: first byte of the next
    local header or of the directory, where the entry must end."""
    guess = 30 + len(entry.name) + 64
    local = file.read(entry.header, min(guess, file.size - entry.header)) if entry.header < after else b""
    if local[:4] != b"PK\x03\x04" or len(local) < 30:
        raise BadFileError(f"{file.path}: a zip entry is missing at byte {entry.header}")
    flags, method, _, _, crc, packed, full, n, x = struct.unpack_from("<2H2H3L2H", local, 6)
    at = entry.header + 30 + n + x
    if at + entry.packed > after:
        raise _two_ways(file, f"entries that overlap at byte {entry.header}")
    if 30 + n + x > len(local):
        local = file.read(entry.header, 30 + n + x)
    wide = _zip64_extra(file, local[30 + n : 30 + n + x])
    full, packed = (wide.pop(0) if value == FULL32 and wide else value for value in (full, packed))
    same = (local[30 : 30 + n], flags, method) == (entry.name, entry.flags, entry.method)
    wanted, later = (entry.crc, entry.packed, entry.full), bool(flags & DESCRIPTOR)
    pairs = zip((crc, packed, full), wanted, strict=True)
    if not same or not all(value == good or (later and value == 0) for value, good in pairs):
        raise _two_ways(file, f"a local header that differs from the directory at byte {entry.header}")
    rest = file.read(at + entry.packed, min(after - at - entry.packed, 25))
    if rest != b"" and not (later and rest in _descriptors(*wanted)):
        raise _two_ways(file, f"bytes between its entries at byte {at + entry.packed}")
    return at


def _descriptors(crc: int, packed: int, full: int) -> list[bytes]:
    """Possible descriptors after the data of an entry: with or without a signature, in 32 or in 64 bits."""
    forms = [struct.pack("<LQQ", crc, packed, full)]
    if max(packed, full) <= FULL32:
        forms.append(struct.pack("<LLL", crc, packed, full))
    return [sign + form for form in forms for sign in (b"", b"PK\x07\x08")]


def open_zip(file: InputFile) -> tuple[object, dict[str, ZipEntry], list[str]]:
    """(top object with FileTensor leaves still as TensorRef, entries by record name, notes)."""
    entries = read_directory(file)
    pickles = [name for name in entries if _folded(name).rsplit("/", 1)[-1] == "data.pkl"]
    if len(pickles) != 1:
        raise BadFileError(
            f"{file.path} is a zip archive with {len(pickles)} data.pkl entries",
            expected="a file made by torch.save",
        )
    root = pickles[0][: -len("data.pkl")]
    # Record names in small letters, as torch's reader compares them.
    records = {name[len(root) :].lower(): e for name, e in entries.items() if name.startswith(root)}
    if "constants.pkl" in records:
        raise BadFileError(
            f"{file.path} is a TorchScript program", expected="a checkpoint", fix="save model.state_dict()"
        )
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
            f"{file.path}: {entry.name} is compressed",
            expected="uncompressed records, as torch.save writes them",
        )
    if entry.size > MAX_PICKLE:
        raise BadFileError(
            f"{file.path}: {entry.name} has {entry.size} bytes", expected=f"at most {MAX_PICKLE}"
        )
    return file.read(entry.offset, entry.size)


def file_tensor(file: InputFile, records: dict[str, ZipEntry], name: str, ref: TensorRef) -> FileTensor:
    """The tensor `name` in its place. Raises BadFileError when its storage is missing, compressed or too
    short."""
    storage = ref.storage
    if ref.dtype not in ITEMSIZE:
        raise BadFileError(f"{file.path}: {name} is {ref.dtype}", expected="one of " + ", ".join(ITEMSIZE))
    entry = records.get(f"data/{storage.key}".lower())
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
    numel = entry.size // ITEMSIZE[ref.dtype]
    return LAZY[ref.neg, ref.conj](file, info, entry.offset, ref.first, ref.strides, numel)


def check_crc(file: InputFile, entry: ZipEntry) -> bool:
    """True if the bytes of an entry have the CRC-32 written with them."""
    crc, buffer = 0, bytearray(min(entry.size, 16 << 20))
    for at in range(0, entry.size, 16 << 20):
        view = memoryview(buffer)[: min(len(buffer), entry.size - at)]
        file.read_into(entry.offset + at, view)
        crc = zlib.crc32(view, crc)
    return crc == entry.crc
