"""The header of a .safetensors file, read strictly: no duplicate, overlapping or missing bytes, no overflow.

Format: 8 bytes little-endian header length N, N bytes of JSON {name: {dtype, shape, data_offsets}}, then
the data.
"""

from __future__ import annotations

import json
import struct

from edg.core.errors import BadFileError
from edg.weights.tensors import ITEMSIZE, MAX_NUMEL, FileTensor, InputFile, TensorInfo

MAX_HEADER = 25_000_000  # bytes; the format allows four times that, which as Python objects are gigabytes
# In a header: twice what 100,000 tensors need.
MAX_MARKS = {b"{": 200_000, b"[": 400_000, b",": 1_500_000, b'"': 2_000_000}
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
CODES = {name: code for code, name in DTYPES.items()}


def open_safetensors(file: InputFile) -> tuple[dict[str, FileTensor], dict[str, str]]:
    """(tensors by name in file order, metadata). Raises BadFileError."""
    path = file.path
    if file.size < 10:
        raise BadFileError(f"{path} is truncated ({file.size} bytes)", fix="download it again")
    (length,) = struct.unpack("<Q", file.read(0, 8))
    if length > MAX_HEADER:
        raise BadFileError(f"{path} claims a header of {length} bytes", expected=f"at most {MAX_HEADER}")
    if length > file.size - 8:
        raise BadFileError(
            f"{path} is truncated: a header of {length} bytes in a file of {file.size}",
            fix="download it again",
        )
    header = _parse(file, file.read(8, length))
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata  # as safetensors itself reads `null`
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise BadFileError(f"{path}: its __metadata__ is not a mapping of strings")
    spans = sorted((_span(path, name, entry), name) for name, entry in header.items())
    tensors, at = {}, 0
    for (begin, end, info), name in spans:
        if begin != at:
            kind = "overlap" if begin < at else "leave a hole"
            raise BadFileError(
                f"{path}: tensors {kind} at {name!r} (bytes {begin}..{end})", fix="the file is damaged"
            )
        at = end
        tensors[name] = FileTensor(file, TensorInfo(*info), 8 + length + begin)
    if 8 + length + at != file.size:
        word = "truncated" if 8 + length + at > file.size else "followed by foreign bytes"
        raise BadFileError(
            f"{path} is {word} ({file.size} bytes)",
            expected=f"{8 + length + at} bytes",
            fix="download it again",
        )
    return tensors, metadata


def _parse(file: InputFile, text: bytes) -> dict:
    def unique(pairs):
        table = dict(pairs)
        if len(table) != len(pairs):
            raise ValueError("a name occurs twice")
        if not all(map(is_text, table)):
            raise ValueError("a name is not valid Unicode")
        return table

    try:
        for mark, most in MAX_MARKS.items():
            if text.count(mark) > most:
                raise ValueError(f"more than {most} of {mark.decode()}")
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise BadFileError(f"{file.path}: its safetensors header cannot be read ({error})"[:300]) from error
    if not isinstance(header, dict) or text[:1] != b"{":
        raise BadFileError(f"{file.path}: its safetensors header is not a mapping")
    return header


def is_text(name: str) -> bool:
    """True for what UTF-8 can hold. JSON and pickles can write half a pair of UTF-16, which it cannot."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def _span(path, name: str, entry) -> tuple[int, int, tuple]:
    """(first byte, byte after the last, (shape, dtype)) of one header entry, checked."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise BadFileError(f"{path}: the header entry of {name!r} is malformed")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in DTYPES:
        raise BadFileError(f"{path}: {name!r} has dtype {dtype}", expected="one of " + ", ".join(DTYPES))
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2 or len(shape) > 64:
        raise BadFileError(f"{path}: {name!r} has a malformed shape or data_offsets")
    info = TensorInfo(tuple(shape), DTYPES[dtype])
    if info.numel > MAX_NUMEL:
        raise BadFileError(f"{path}: {name!r} has the shape {shape}, which no file can hold"[:300])
    begin, end = offsets
    if end - begin != info.numel * ITEMSIZE[info.dtype]:
        raise BadFileError(
            f"{path}: {name!r} has {end - begin} bytes",
            expected=f"{info.nbytes} for {dtype} {shape}",
            fix="the file is damaged",
        )
    return begin, end, (info.shape, info.dtype)


def _sizes(values) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 62 for v in values)
