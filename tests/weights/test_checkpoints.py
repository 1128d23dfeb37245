"""Files that are no checkpoints, or broken ones: cases 1 to 18 and 25 to 29, through the commands.

Each ends with exit code 3 and one line that says what the file is; what the parsers themselves refuse is in
tests/weights/test_hostile.py.
"""

import json
import os
import struct
import time
import tracemalloc
import zipfile

import pytest
import safetensors.torch
import torch
from pickles import NAME, VALUES, program, zipped

from edg.weights.store import open_weights

MEGABYTE = 1 << 20


@pytest.fixture
def refused(tmp_path, command):
    """refused(bytes, part of the message): `edg info` and `edg merge` end with 3, and nothing is written."""

    def check(data, *parts, name="model.ckpt"):
        path = tmp_path / name
        path.write_bytes(data)
        merge = ["merge", "average", "--base", path, "--tuned", path, "--out", tmp_path / "out", "--quiet"]
        for argv in (["info", path], merge):
            code, err = command(argv)
            assert code == 3 and all(part in err for part in (str(path), *parts)), err
        assert [item.name for item in tmp_path.iterdir()] == [name]

    return check


@pytest.fixture
def peak():
    """Bytes that Python and the readers have allocated at most since the test began, as a function."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


def header(table, data=b"", length=None):
    """A safetensors file by hand."""
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def rewritten(path, change):
    """The bytes of a zip checkpoint whose entries went through change(name, data) -> (data, compression)."""
    copy = path.with_suffix(".copy")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(copy, "w") as target:
        for name in source.namelist():
            target.writestr(name, *change(name, source.read(name)))
    data = copy.read_bytes()
    copy.unlink()
    path.unlink()
    return data


@pytest.fixture
def saved(tmp_path, state):
    """A checkpoint as torch.save writes it, the only file of its folder."""
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": state}, path)
    return path


@pytest.mark.parametrize("share", [0.2, 0.5, 0.99])
def test_c01_truncated_zip(refused, saved, share):
    whole = saved.read_bytes()
    cut = whole[: int(len(whole) * share)]
    refused(cut, "incomplete download", f"{len(cut)} bytes", "download it again")


def test_c02_zero_byte_file(refused):
    refused(b"", "is empty (0 bytes)")


def test_c03_html_page(refused):
    refused(b"<!DOCTYPE html>\n<html><body>Not found</body></html>", "web page", "download the file itself")


def test_c04_git_lfs_pointer(refused):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 10400000000\n"
    refused(pointer, "git-lfs pointer", "git lfs pull")


def test_c05_gzip(refused):
    refused(b"\x1f\x8b\x08\x00" + bytes(40), "gzip", "unpack it first")


def test_c06_safetensors_named_ckpt(tmp_path, state, command):
    safetensors.torch.save_file(state, tmp_path / "x.ckpt")
    assert command(["info", tmp_path / "x.ckpt"])[0] == 0
    assert "named .ckpt, but it is a safetensors file" in command.out
    assert open_weights(tmp_path / "x.ckpt").names() == sorted(state)


def test_c07_zip_named_safetensors(tmp_path, state, command):
    torch.save(state, tmp_path / "x.safetensors")
    assert command(["info", tmp_path / "x.safetensors"])[0] == 0
    assert "named .safetensors, but it is a torch checkpoint" in command.out


@pytest.mark.parametrize("left", [9, 30, -4])
def test_c08_truncated_safetensors(refused, left):
    refused(header({"a": entry(0, 64, [16])}, bytes(64))[:left], "truncated", "download it again")


def test_c09_trailing_bytes(refused):
    refused(header({"a": entry(0, 4, [1])}, bytes(4)) + b"PK\x03\x04", "foreign bytes", "expected")


def test_c10_header_length_of_a_terabyte(refused, peak):
    began = time.process_time()
    refused(
        header({"a": entry(0, 4, [1])}, bytes(4), length=1 << 40), "claims a header of 1099511627776 bytes"
    )
    assert peak() < 10 * MEGABYTE and time.process_time() - began < 2


def test_c11_header_of_more_than_100_megabytes(tmp_path, command, peak):
    path = tmp_path / "x.safetensors"
    path.write_bytes(header({"a": entry(0, 4, [1])}, bytes(4), length=100_000_001))
    os.truncate(path, 101_000_000)  # the bytes are there; the file system does not store them
    code, err = command(["info", path])
    assert code == 3 and str(path) in err and peak() < 10 * MEGABYTE


@pytest.mark.parametrize("filling", [b"[],", b"{},", b"1,", b'"\xf0\x9f\x8e\x88",'])
def test_c11_the_largest_header_stays_small_in_memory(tmp_path, command, peak, filling):
    text = b'{"a":[' + filling * (24_000_000 // len(filling)) + b"0]}"
    (tmp_path / "x.safetensors").write_bytes(header(text))
    code, err = command(["info", tmp_path / "x.safetensors"])
    assert code == 3 and len(err) < 1000 and peak() < 200 * MEGABYTE


def test_c12_deep_json(refused):
    refused(header(b'{"a":' + b"[" * 100_000, bytes(4)), "header cannot be read")
    refused(header(b'{"a":' + b'{"a":' * 100_000, bytes(4)), "header cannot be read")


def test_c13_duplicate_header_keys(refused):
    part = json.dumps({"a": entry(0, 4, [1])})[1:-1]
    refused(header(f"{{{part},{part}}}".encode(), bytes(4)), "occurs twice")


@pytest.mark.parametrize("second, word", [((4, 12), "overlap"), ((12, 20), "hole")])
def test_c14_overlapping_or_holed_offsets(refused, second, word):
    refused(header({"a": entry(0, 8, [2]), "b": entry(*second, [2])}, bytes(20)), word, "'b'")


def test_c15_wrong_size_for_its_shape(refused):
    refused(header({"a": entry(0, 8, [3])}, bytes(8)), "'a' has 8 bytes", "expected 12 for F32 [3]")


def test_c16_shape_overflow(refused):
    refused(header({"a": entry(0, 4, [1 << 33, 1 << 33])}, bytes(4)), "no file can hold")


@pytest.mark.parametrize("dtype", ["F6_E2M3", "F4", "C128", "X"])
def test_c17_unknown_dtype(refused, dtype):
    refused(header({"a": entry(0, 4, [4], dtype)}, bytes(4)), f"dtype {dtype}", "expected one of F64, F32")


def test_c18_a_tensor_named_like_a_path(tmp_path, command):
    names = ["../../escaped", "/etc/passwd", "a\nb: error", "nul\0", "\x1b[31mred", "<script>"]
    torch.save({name: torch.ones(2) for name in names}, tmp_path / "x.pt")
    assert open_weights(tmp_path / "x.pt").names() == names
    assert command(["info", tmp_path / "x.pt", "--names"])[0] == 0
    assert all(repr(name) in command.out for name in names)
    assert not {"\0", "\x1b"} & set(command.out)
    out = tmp_path / "out"
    merge = ["merge", "extrapolate", "--base", tmp_path / "x.pt", "--tuned", tmp_path / "x.pt", "--out", out]
    assert command([*merge, "--full", "--format", "pt"])[0] == 0
    assert open_weights(out / "extrapolated.pt").names() == names
    assert {path.name for path in tmp_path.rglob("*")} == {
        "x.pt",
        "out",
        "extrapolated.pt",
        "extrapolated.pt.json",
    }


@pytest.mark.parametrize("part", ["data.pkl", "data/0"])
def test_c25_compressed_entries_are_never_inflated(refused, saved, part, peak):
    """A bomb: 64 MB of zeros that deflate to 64 KB."""

    def deflate(name, data):
        bomb = name.endswith(part)
        return bytes(64 * MEGABYTE) if bomb else data, zipfile.ZIP_DEFLATED if bomb else zipfile.ZIP_STORED

    data = rewritten(saved, deflate)
    tracemalloc.reset_peak()
    refused(data, "compressed")
    assert peak() < 10 * MEGABYTE


def test_c26_zip_entries_are_never_extracted(tmp_path, command):
    data = bytearray(zipped(program(b"N", legacy=False)))
    (tmp_path / "inner").mkdir()
    path = tmp_path / "inner" / "x.ckpt"
    path.write_bytes(data)
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("../../escaped", "/tmp/escaped-by-edg", "archive/../../escaped"):
            archive.writestr(name, "x")
    assert command(["info", path, "--verify"])[0] == 0
    assert torch.equal(open_weights(path)[NAME], VALUES)
    assert [p.name for p in tmp_path.rglob("*")] == ["inner", "x.ckpt"]
    assert not os.path.exists("/tmp/escaped-by-edg")


def test_c27_a_storage_that_is_missing(refused, saved):
    with zipfile.ZipFile(saved) as archive:
        root = archive.namelist()[0].partition("/")[0]
    data = rewritten(saved, lambda n, d: (d, 0) if n != f"{root}/data/1" else (d, 0))
    refused(
        data.replace(f"{root}/data/1".encode(), f"{root}/data/x".encode()), "the storage of", "is missing"
    )


def test_c28_a_storage_shorter_than_claimed(refused, saved):
    data = rewritten(saved, lambda n, d: (d[:-4] if n.endswith("/data/0") else d, 0))
    refused(data, "time_embed.0.weight has 124 bytes", "expected 128 bytes")


def test_c29_a_flipped_bit_is_found_by_verify(tmp_path, tiny, command):
    name = "model.diffusion_model.out.2.bias"
    data = bytearray(tiny.base.read_bytes())
    data[open_weights(tiny.base).tensors[name].where[1] + 5] ^= 8
    tiny.base.write_bytes(data)
    assert command(["info", tiny.base])[0] == 0  # the values are still numbers
    merge = [
        "merge",
        "edg",
        "--base",
        tiny.base,
        "--tuned",
        tiny.tuned,
        "--out",
        tmp_path / "out",
        "--verify",
    ]
    for argv in (["info", tiny.base, "--verify"], merge):
        code, err = command(argv)
        assert code == 3 and name in err and "CRC-32" in err
    assert not (tmp_path / "out").exists()
