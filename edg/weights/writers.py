"""Streaming, atomic writers: tensors are appended block by block, the file appears whole at the end.

    writer = open_writer(path, format, plan)
    writer.begin(name, info); writer.append(bytes); ...; writer.end()
    writer.finish({"edg": json})        # or writer.abort()

`.pt` files are zip archives as torch.save makes them (uncompressed records on 64-byte boundaries, CRC-32,
zip64 where needed) and open with torch.load(weights_only=True).
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zlib
from collections import OrderedDict
from collections.abc import Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edg.core.atomic_file import AtomicFile
from edg.core.errors import UsageError
from edg.weights.readers.safetensors import CODES, MAX_HEADER, is_text
from edg.weights.tensors import CHUNK, ITEMSIZE, TensorInfo, dtype_name, raw_bytes, torch_dtype

if TYPE_CHECKING:
    import torch

FORMATS = ("safetensors", "pt")
AS_PT = "write a .pt file: edg export FILE OUT.pt, or edg merge --format pt"
SLACK = 4096  # bytes of header kept free for metadata that is known only at the end
ALIGNMENT = 64
LIMIT32 = 0xFFFFFFFF
STORAGE_CLASSES = {
    "float64": "DoubleStorage", "float32": "FloatStorage", "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage", "int32": "IntStorage", "int16": "ShortStorage", "int8": "CharStorage",
    "uint8": "ByteStorage", "bool": "BoolStorage", "complex64": "ComplexFloatStorage",
    "complex128": "ComplexDoubleStorage",
}  # fmt: skip


class TensorWriter:
    """Common part: a tensor at a time, its bytes in order. An exception of a constructor leaves no file:
    what can be refused is before the file is made."""

    def __init__(self, path: str | os.PathLike, nbytes: int, reserve: bool):
        self.file = AtomicFile(path)
        try:
            self.file.expect(nbytes, reserve)
        except BaseException:
            self.file.abort()
            raise
        self.written: dict[str, TensorInfo] = {}
        self.at = 0  # where the next byte goes
        self._left = 0

    def begin(self, name: str, info: TensorInfo) -> None:
        assert not self._left and name not in self.written, name
        self.written[name], self._left = info, info.nbytes
        self._place(name, info)

    def append(self, data) -> None:
        view = memoryview(data).cast("B")
        assert len(view) <= self._left
        self.file.write(self.at, view)
        self.at += len(view)
        self._left -= len(view)

    def end(self) -> None:
        assert not self._left, "the tensor is not complete"

    def _place(self, name: str, info: TensorInfo) -> None:
        raise NotImplementedError

    def finish(self, metadata: Mapping[str, str]) -> None:
        raise NotImplementedError

    def abort(self) -> None:
        self.file.abort()


def _check_dtype(name: str, info: TensorInfo, known: Container[str], form: str) -> None:
    if info.dtype not in known:
        fix = AS_PT if form == "safetensors" else ""
        raise UsageError(f"{name} is {info.dtype}, which {form} files cannot hold", fix=fix)


def _check_name(name: str) -> None:
    """Raise UsageError for a tensor's name with which no reader opens a header: that of its metadata, or half
    a pair of UTF-16."""
    if name == "__metadata__" or not is_text(name):
        raise UsageError(f"a tensor named {name!r}, which safetensors files cannot hold", fix=AS_PT)


class SafetensorsWriter(TensorWriter):
    """plan: every tensor that may come (fixes the header's room); metadata_size: bytes of its metadata."""

    def __init__(self, path, plan: Mapping[str, TensorInfo], metadata_size: int = 0, reserve: bool = True):
        for name, info in plan.items():
            _check_name(name)
            _check_dtype(name, info, CODES, "safetensors")
        total = sum(info.nbytes for info in plan.values())
        entries = {name: self._entry(info, total, total) for name, info in plan.items()}
        room = len(json.dumps(entries).encode()) + metadata_size + SLACK
        self.header_size = -(-room // 8) * 8
        if self.header_size > MAX_HEADER:
            raise UsageError(f"{len(plan)} names need a header of {self.header_size} bytes", fix=AS_PT)
        super().__init__(path, 8 + self.header_size + total, reserve)
        self.start = self.at = 8 + self.header_size
        self.offsets: dict[str, int] = {}

    @staticmethod
    def _entry(info: TensorInfo, begin: int, end: int) -> dict:
        return {"dtype": CODES[info.dtype], "shape": list(info.shape), "data_offsets": [begin, end]}

    def _place(self, name, info):
        _check_dtype(name, info, CODES, "safetensors")
        self.offsets[name] = self.at - self.start

    def finish(self, metadata):
        header = {"__metadata__": dict(metadata)} if metadata else {}
        for name, info in self.written.items():
            header[name] = self._entry(info, self.offsets[name], self.offsets[name] + info.nbytes)
        text = json.dumps(header, ensure_ascii=True, separators=(",", ":")).encode()
        assert len(text) <= self.header_size, "metadata larger than announced"
        self.file.write(0, struct.pack("<Q", self.header_size) + text.ljust(self.header_size))
        self.file.commit(self.at)


class PtWriter(TensorWriter):
    """A zip archive {stem}/data/0, 1, ... with {stem}/data.pkl = {'state_dict': OrderedDict, 'edg': text}
    last.

    zip64_from: sizes and offsets from here on use the 64-bit fields (a parameter for the tests)."""

    def __init__(self, path, plan: Mapping[str, TensorInfo], reserve: bool = True, zip64_from: int = LIMIT32):
        for name, info in plan.items():
            _check_dtype(name, info, ITEMSIZE, "pt")
        super().__init__(path, sum(info.nbytes + 512 for info in plan.values()), reserve)
        self.root = Path(path).stem.encode("ascii", "replace").decode().replace("/", "_") or "archive"
        self.zip64_from, self.entries, self.crc, self.header_at = zip64_from, [], 0, 0

    def _place(self, name, info):
        _check_dtype(name, info, ITEMSIZE, "pt")
        self._open_record(f"data/{len(self.written) - 1}", info.nbytes)

    def _open_record(self, name: str, size: int) -> None:
        self.name, self.size, self.crc, self.header_at = f"{self.root}/{name}".encode(), size, 0, self.at
        self.wide = size >= self.zip64_from
        fixed = self.at + 30 + len(self.name) + (20 if self.wide else 0)
        self.padding = -(fixed + 4) % ALIGNMENT  # torch pads with an extra field called FB
        self.at = fixed + 4 + self.padding

    def append(self, data):
        self.crc = zlib.crc32(data, self.crc)
        super().append(data)

    def end(self):
        super().end()
        extra = struct.pack("<HHQQ", 1, 16, self.size, self.size) if self.wide else b""
        extra += struct.pack("<2sH", b"FB", self.padding) + b"Z" * self.padding
        sizes = (LIMIT32, LIMIT32) if self.wide else (self.size, self.size)
        version, flags, date = 45 if self.wide else 20, 0, (1 << 5) | 1  # 1980-01-01: equal runs, equal files
        head = struct.pack(
            "<4s5HL2L2H",
            b"PK\x03\x04",
            version,
            flags,
            0,
            0,
            date,
            self.crc,
            *sizes,
            len(self.name),
            len(extra),
        )
        self.file.write(self.header_at, head + self.name + extra)
        self.entries.append((self.name, self.crc, self.size, self.header_at))

    def _record(self, name: str, data: bytes) -> None:
        self._open_record(name, len(data))
        self._left = len(data)
        self.append(data)
        self.end()

    def finish(self, metadata):
        self._record("data.pkl", state_dict_pickle(self.written, metadata))
        self._record("byteorder", b"little")
        self._record("version", b"3\n")
        directory = b"".join(self._directory_entry(*entry) for entry in self.entries)
        start, count, size = self.at, len(self.entries), len(directory)
        end = b""
        if start >= self.zip64_from or count >= 0xFFFF:
            end = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start)
            end += struct.pack("<4sLQL", b"PK\x06\x07", 0, start + size, 1)
            count, size, offset = min(count, 0xFFFF), size, LIMIT32
        else:
            offset = start
        end += struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, size, offset, 0)
        self.file.write(start, directory + end)
        self.file.commit(start + len(directory) + len(end))

    def _directory_entry(self, name: bytes, crc: int, size: int, offset: int) -> bytes:
        wide_size, wide_offset = size >= self.zip64_from, offset >= self.zip64_from
        values = [size, size] * wide_size + [offset] * wide_offset
        extra = struct.pack(f"<HH{len(values)}Q", 1, 8 * len(values), *values) if values else b""
        version = 45 if values else 20
        sizes = (LIMIT32, LIMIT32) if wide_size else (size, size)
        return (
            struct.pack(
                "<4s6H3L5H2L", b"PK\x01\x02", version, version, 0, 0, 0, (1 << 5) | 1, crc, *sizes, len(name),
                len(extra), 0, 0, 0, 0, LIMIT32 if wide_offset else offset,
            )
            + name
            + extra
        )  # fmt: skip


class _Storage:
    """Pickled as the persistent id of record `key`."""

    def __init__(self, key: int, info: TensorInfo):
        self.key, self.info = str(key), info


class _Tensor:
    """Pickled as the call torch makes for a contiguous tensor."""

    def __init__(self, key: int, info: TensorInfo):
        self.storage = _Storage(key, info)

    def __reduce__(self):
        import torch

        shape, strides, step = self.storage.info.shape, [], 1
        for n in reversed(shape):
            strides.insert(0, step)
            step *= max(n, 1)
        arguments = (self.storage, 0, shape, tuple(strides), False, OrderedDict())
        if self.storage.info.dtype in STORAGE_CLASSES:
            return torch._utils._rebuild_tensor_v2, arguments
        return torch._utils._rebuild_tensor_v3, (*arguments, torch_dtype(self.storage.info.dtype))


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        import torch

        if isinstance(obj, _Storage):
            if obj.info.dtype not in STORAGE_CLASSES:  # of torch's newer dtypes
                return ("storage", torch.UntypedStorage, obj.key, "cpu", obj.info.nbytes)
            kind = getattr(torch, STORAGE_CLASSES[obj.info.dtype])
            return ("storage", kind, obj.key, "cpu", obj.info.numel)
        return None


def state_dict_pickle(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    """data.pkl for records 0, 1, ... in the order of `tensors`; `metadata` lies beside state_dict."""
    table = OrderedDict((name, _Tensor(key, info)) for key, (name, info) in enumerate(tensors.items()))
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=2).dump({"state_dict": table, **metadata})
    return buffer.getvalue()


def open_writer(
    path: str | os.PathLike,
    form: str,
    plan: Mapping[str, TensorInfo],
    metadata_size: int = 0,
    reserve: bool = True,
) -> TensorWriter:
    """A writer for `form` ('safetensors' or 'pt'). reserve=False when fewer tensors than planned may come."""
    if form == "safetensors":
        return SafetensorsWriter(path, plan, metadata_size, reserve)
    if form == "pt":
        return PtWriter(path, plan, reserve)
    raise UsageError(f"format {form!r}", expected="one of " + ", ".join(FORMATS))


def _info(tensor: torch.Tensor) -> TensorInfo:
    return TensorInfo(tuple(tensor.shape), dtype_name(tensor.dtype))


def _write(path, form: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None) -> None:
    metadata = dict(metadata or {})
    plan = tensors.infos() if hasattr(tensors, "infos") else {n: _info(t) for n, t in tensors.items()}
    if form == "safetensors":  # wide dtypes first: every tensor stays aligned
        plan = dict(sorted(plan.items(), key=lambda item: -ITEMSIZE[item[1].dtype]))
    writer = open_writer(path, form, plan, len(json.dumps(metadata)))
    try:
        for name in plan:
            writer.begin(name, plan[name])
            flat = tensors[name].detach().cpu().contiguous().view(-1)
            for start in range(0, flat.numel(), 4 * CHUNK):
                writer.append(raw_bytes(flat[start : start + 4 * CHUNK]))
            writer.end()
        writer.finish(metadata)
    finally:
        writer.abort()


def write_safetensors(
    path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a mapping name -> tensor (lazy ones too: one tensor is in memory at a time) atomically."""
    _write(path, "safetensors", tensors, metadata)


def write_pt(path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write {'state_dict': ..., **metadata} so that torch.load(weights_only=True) opens it, atomically."""
    _write(path, "pt", tensors, metadata)
