"""Archives that a reader could take in two ways, against torch's own reader: equal values, or refused.

Every byte of every structural record of an archive is altered; then whole records are added, moved and
doubled by hand."""

import io
import struct
import unicodedata
import zipfile

import pytest
import torch

from edg.core.errors import BadFileError
from edg.weights.store import open_weights

STATE = {"a": torch.arange(6.0).view(2, 3), "b": torch.arange(100.0, 106.0), "c": torch.zeros(0, 2)}
END, END64, LOCATOR64, CENTRAL = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x01\x02"


def saved(state=STATE):
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


def by_hand(entries, *, comment=b""):
    """An archive of zipfile's: name -> bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = comment
        for name, data in entries.items():
            archive.writestr(name, data)
    return stream.getvalue()


def unpacked(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture
def ours(tmp_path):
    """ours(bytes): the tensors we read, None where the file is refused."""

    def read(data):
        path = tmp_path / "x.ckpt"
        path.write_bytes(data)
        try:
            weights = open_weights(path)
            return {name: weights[name] for name in weights}
        except BadFileError:
            return None

    return read


def torchs(data):
    try:
        return torch.load(io.BytesIO(data), weights_only=True)
    except Exception:
        return None


def equal(a, b):
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def structures(data):
    """First and last byte of every record that is no data: local headers with their names, descriptors,
    the directory, the end records."""
    found, at = [], 0
    for info in zipfile.ZipFile(io.BytesIO(data)).infolist():
        found.append((info.header_offset, info.header_offset + 30 + len(info.filename) + 2))
        name, extra = struct.unpack_from("<HH", data, info.header_offset + 26)
        end = info.header_offset + 30 + name + extra + info.file_size
        found.append((end, end + 16 if info.flag_bits & 8 else end))
        at = max(at, end)
    return [*found, (data.index(CENTRAL), len(data))]


def test_the_archive_of_torch_is_read(ours):
    assert equal(ours(saved()), STATE) and equal(torchs(saved()), STATE)


@pytest.mark.parametrize("bits", [0x01, 0x10, 0xFF])
def test_no_altered_byte_gives_other_values_than_torch(ours, bits):
    data, opened = saved(), 0
    for begin, end in structures(data):
        for at in range(begin, end):
            altered = bytearray(data)
            altered[at] ^= bits
            mine = ours(bytes(altered))
            if mine is not None:
                opened += 1
                theirs = torchs(bytes(altered))
                assert equal(mine, STATE) and (theirs is None or equal(mine, theirs)), at
    assert opened  # dates, versions: bytes that mean nothing to any reader


def without(data, sign, size):
    at = data.rindex(sign)
    return data[:at] + data[at + size :]


def moved(data, sign, field, value, form="<L"):
    altered = bytearray(data)
    struct.pack_into(form, altered, altered.rindex(sign) + field, value)
    return bytes(altered)


def with_second_directory(data):
    """A directory of another archive between this one and its own end record, named by zip64 alone."""
    plain = by_hand(unpacked(data))
    swapped = by_hand(
        {n: d[:-24] + b"\7" * 24 if n.endswith("data/1") else d for n, d in unpacked(data).items()}
    )
    end = plain.rindex(END)
    second = swapped.index(CENTRAL)
    directory = bytearray(swapped[second : swapped.rindex(END)])
    step = 0
    while directory[step : step + 4] == CENTRAL:
        (n, x, c), (offset,) = (
            struct.unpack_from("<3H", directory, step + 28),
            struct.unpack_from("<L", directory, step + 42),
        )
        struct.pack_into("<L", directory, step + 42, offset + end)
        step += 46 + n + x + c
    whole = plain[:end] + swapped[:second]
    place, count = len(whole), plain.count(CENTRAL)
    whole += bytes(directory)
    wide = struct.pack("<4sQ2H2L4Q", END64, 44, 45, 45, 0, 0, count, count, len(directory), place)
    wide += struct.pack("<4sLQL", LOCATOR64, 0, len(whole), 1)
    return whole + wide + plain[end:]


def appended_name(data, name, content=b"\x00" * 24):
    return by_hand(unpacked(data) | {name: content})


LAST = "archive/data/1"
REFUSED = {
    "bytes before": lambda d: b"PK\x03\x04junk" + d,
    "an archive before": lambda d: d + saved({"a": torch.ones(2, 3)}),
    "bytes after": lambda d: d + b"\0",
    "an archive after": lambda d: saved({"a": torch.ones(2, 3)}) + d,
    "an end record after": lambda d: d + d[d.rindex(END) :],
    "a comment with an end record": lambda d: by_hand(unpacked(d), comment=d[d.rindex(END) :]),
    "a comment with a zip64 locator": lambda d: by_hand(unpacked(d), comment=LOCATOR64 + bytes(16)),
    "a comment longer than the file": lambda d: moved(d, END, 20, 9, "<H"),
    "zip64 that names another directory": with_second_directory,
    "zip64 of fewer entries": lambda d: moved(moved(d, END64, 24, 3, "<Q"), END64, 32, 3, "<Q"),
    "zip64 of more entries": lambda d: moved(moved(d, END64, 24, 99, "<Q"), END64, 32, 99, "<Q"),
    "zip64 of another place": lambda d: moved(d, END64, 48, 5, "<Q"),
    "zip64 of another size": lambda d: moved(d, END64, 40, 5, "<Q"),
    "zip64 with bytes after it": lambda d: moved(d, END64, 4, 30, "<Q"),
    "zip64 that is not there": lambda d: moved(moved(d, LOCATOR64, 0, 0), END, 16, 0xFFFFFFFF),
    "a locator of another place": lambda d: moved(d, LOCATOR64, 8, 7, "<Q"),
    "a locator of many disks": lambda d: moved(d, LOCATOR64, 16, 2),
    "disks": lambda d: moved(d, END, 4, 1, "<H"),
    "disks of the directory": lambda d: moved(d, END, 6, 1, "<H"),
    "entries on this disk": lambda d: moved(d, END, 8, 2, "<H"),
    "the disk of an entry": lambda d: moved(d, CENTRAL, 34, 1, "<H"),
    "fewer entries": lambda d: moved(moved(by_hand(unpacked(d)), END, 8, 3, "<H"), END, 10, 3, "<H"),
    "a larger directory": lambda d: moved(by_hand(unpacked(d)), END, 12, 10_000),
    "a directory elsewhere": lambda d: moved(by_hand(unpacked(d)), END, 16, 4),
    "an entry elsewhere": lambda d: moved(d, CENTRAL, 42, 0),
    "another name in the header": lambda d: d.replace(b"archive/data/1", b"archive/data/2", 1),
    "the same name twice": lambda d: appended_name(d, "archive/data/x").replace(b"data/x", b"data/1"),
    "a folder with bytes": lambda d: moved(d, CENTRAL + bytes(4) + b"\x08\x08", 38, 16),
    "a link with bytes": lambda d: moved(by_hand(unpacked(d)), CENTRAL, 38, 0o120777 << 16),
    "capitals": lambda d: appended_name(d, "archive/DATA/1"),
    "capitals of the root": lambda d: appended_name(d, "Archive/data.pkl"),
    "another pickle": lambda d: appended_name(d, "archive/sub/DATA.PKL"),
    "backslashes": lambda d: appended_name(d, "archive/data\\1"),
    "dots": lambda d: appended_name(d, "archive/./data/1"),
    "two slashes": lambda d: appended_name(d, "archive//data/1"),
    "wide letters": lambda d: appended_name(d, "archive/data/\N{FULLWIDTH DIGIT ONE}"),
    "names in two forms": lambda d: by_hand(
        unpacked(d) | {f"archive/{unicodedata.normalize(form, 'ä')}": b"" for form in ("NFC", "NFD")}
    ),
    "a name that ends early": lambda d: appended_name(d, "archive/data/1y").replace(b"/1y", b"/1\0"),
    "big-endian in capitals": lambda d: by_hand(
        {"archive/BYTEORDER" if n == "archive/byteorder" else n: d for n, d in unpacked(d).items()}
        | {"archive/BYTEORDER": b"big"}
    ),
    "a program": lambda d: appended_name(d, "archive/constants.pkl"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_two_readings_are_refused(ours, case):
    assert ours(REFUSED[case](saved())) is None


@pytest.mark.parametrize(
    "field", ["<HH 6 flags", "<HH 8 method", "<LL 14 crc", "<LL 18 packed", "<LL 22 size"]
)
def test_a_local_header_that_differs_is_refused(ours, field):
    _, at, _ = field.split()
    data = bytearray(by_hand(unpacked(saved())))
    assert equal(ours(bytes(data)), STATE)
    data[data.index(b"PK\x03\x04") + int(at)] ^= 2
    assert ours(bytes(data)) is None


def test_entries_that_overlap_are_refused(ours):
    """The header of `b` begins inside the data of `a`: both are whole, but not side by side."""
    entries = unpacked(saved())
    inner = by_hand({LAST: entries[LAST]})
    header = inner[: inner.index(CENTRAL)]
    plain = by_hand({n: header if n == "archive/data/0" else d for n, d in entries.items()})
    data = bytearray(plain)
    place = plain.index(header)
    at = plain.index(CENTRAL)
    while data[at : at + 4] == CENTRAL:
        n, x, c = struct.unpack_from("<3H", data, at + 28)
        if data[at + 46 : at + 46 + n] == LAST.encode():
            struct.pack_into("<L", data, at + 42, place)
        at += 46 + n + x + c
    assert ours(bytes(data)) is None


def test_what_has_one_reading_is_read(ours):
    """zipfile's archives, a plain comment, numbers after the data, files of foreign names beside."""
    plain = unpacked(saved())
    assert equal(ours(by_hand(plain, comment=b"of 2020")), STATE)
    assert equal(ours(by_hand(plain | {"notes/read me": b"x", "archive/data/77": b"y"})), STATE)

    class Pipe(io.RawIOBase):
        def __init__(self):
            self.data = b""

        def writable(self):
            return True

        def write(self, data):
            self.data += bytes(data)
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as archive:
        for name, data in plain.items():
            with archive.open(name, "w", force_zip64=name.endswith("0")) as entry:
                entry.write(data)
    assert equal(ours(pipe.data), STATE)
    cut = bytearray(pipe.data)
    cut[cut.rindex(b"PK\x07\x08") + 4] ^= 1
    assert ours(bytes(cut)) is None


def test_zip64_alone(ours):
    """What torch writes has both end records; the plain one may leave its fields to the other."""
    data = saved()
    for field, most, form in (
        (8, 0xFFFF, "<H"),
        (10, 0xFFFF, "<H"),
        (12, 0xFFFFFFFF, "<L"),
        (16, 0xFFFFFFFF, "<L"),
    ):
        data = moved(data, END, field, most, form)
    assert equal(ours(data), STATE) and equal(torchs(data), STATE)
