"""One tensor of a checkpoint before it is read: what it is, where it lies, how to read a part of it.

Nothing here imports torch until a tensor is really read, so `edg info` stays quick.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edg.core.errors import BadFileError, MachineError
from edg.core.hashing import file_state

if TYPE_CHECKING:
    import torch

ITEMSIZE = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1,
    "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1,
    "bool": 1, "complex64": 8, "complex128": 16,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
}  # fmt: skip
FLOATS = frozenset(name for name in ITEMSIZE if name.startswith(("float", "bfloat")))
NARROW = FLOATS - {"float64", "float32", "bfloat16"}  # values of float32 may be too large for these
CHUNK = 1 << 20  # elements converted at a time when the stored dtype is not the wanted one
MAX_NUMEL = 1 << 40
MAX_BROADCAST = 1 << 24  # elements of a view that repeats its storage more than 64 times


@dataclass(frozen=True)
class TensorInfo:
    """shape and dtype ('float32', 'bfloat16', 'int64', ...) of a stored tensor."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * ITEMSIZE[self.dtype]


def torch_dtype(name: str) -> torch.dtype:
    import torch

    return getattr(torch, name)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, writable and without a copy (numpy has no bfloat16)."""
    assert tensor.is_contiguous() and tensor.device.type == "cpu"
    nbytes = tensor.numel() * tensor.element_size()
    if not nbytes:
        return memoryview(bytearray())
    array = (ctypes.c_ubyte * nbytes).from_address(tensor.data_ptr())
    array.owner = tensor  # the view keeps the memory alive
    return memoryview(array).cast("B")


#: What to do about a file that is not there.
MISSING = "check the path; edg fetch downloads the published files, run_merge.py makes dyn.pt and con.pt"


class InputFile:
    """A file opened for positioned reads. The descriptor is closed with the last tensor that uses it."""

    def __init__(self, path: Path):
        self.path = Path(path)
        try:
            self.fd = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError as error:
            raise BadFileError(f"{path} does not exist", fix=MISSING) from error
        except OSError as error:
            raise BadFileError(f"cannot open {path}: {error.strerror}") from error
        self.stat = os.fstat(self.fd)
        self.size = self.stat.st_size

    def __reduce_ex__(self, protocol):
        raise TypeError("an open file cannot be copied: the first copy to go would close it for all")

    def __del__(self):
        if getattr(self, "fd", -1) >= 0:
            os.close(self.fd)
            self.fd = -1

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes at `offset`. Raises BadFileError when the file ends before."""
        done, total = 0, len(buffer)
        while done < total:
            try:
                count = os.preadv(self.fd, [buffer[done : done + (1 << 30)]], offset + done)
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.EOVERFLOW):  # an offset that no file has
                    raise BadFileError(
                        f"{self.path} is damaged: it refers to byte {offset}, which does not exist"
                    ) from error
                raise MachineError(f"reading {self.path} failed: {error.strerror}") from error
            if not count:
                raise BadFileError(f"{self.path} ends at byte {offset + done}", expected="more data")
            done += count

    def read(self, offset: int, count: int) -> bytes:
        buffer = bytearray(count)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def check_bytes(self) -> None:
        """Raise BadFileError when the file was altered since it was opened; its path may hold another one."""
        if file_state(os.fstat(self.fd)) != file_state(self.stat):
            raise BadFileError(f"{self.path} changed while it was being read", fix="run the command again")

    def check_unchanged(self) -> None:
        """Raise BadFileError when the file was altered since it was opened, or its path holds another one."""
        self.check_bytes()
        try:
            same = file_state(os.stat(self.path)) == file_state(self.stat)
        except OSError:
            same = False
        if not same:
            raise BadFileError(
                f"{self.path} was replaced or removed while it was being read", fix="run the command again"
            )


class StoredTensor:
    """Base of everything a checkpoint can hold. `info`; `read_into(start, out)`; `load()`."""

    info: TensorInfo
    where: tuple[str, int] = ("", 0)  # (file, byte offset): the order in which reading is cheapest

    def read_into(self, start: int, out: torch.Tensor) -> None:
        """Fill the contiguous 1-d tensor `out` with elements start.. in row-major order.

        Values are converted when out.dtype is not the stored one."""
        import torch

        wanted = torch_dtype(self.info.dtype)
        if not 0 <= start <= start + out.numel() <= self.info.numel:
            raise IndexError(f"elements {start}..{start + out.numel()} of {self.info.numel}")
        if out.dtype == wanted:
            self._read(start, out)
            return
        chunk = torch.empty(min(CHUNK, out.numel()), dtype=wanted)
        for at in range(0, out.numel(), CHUNK):
            part = chunk[: min(CHUNK, out.numel() - at)]
            self._read(start + at, part)
            out[at : at + part.numel()].copy_(part)

    def load(self) -> torch.Tensor:
        """The whole tensor, freshly allocated, in its stored dtype."""
        import torch

        out = torch.empty(self.info.shape, dtype=torch_dtype(self.info.dtype))
        self._read(0, out.view(-1))
        return out

    def blocks(self) -> Iterator[torch.Tensor]:
        """All values in row-major order, a flat block at a time in the same memory, in the stored dtype."""
        import torch

        block = torch.empty(min(CHUNK, self.info.numel), dtype=torch_dtype(self.info.dtype))
        for start in range(0, self.info.numel, CHUNK):
            part = block[: min(CHUNK, self.info.numel - start)]
            self._read(start, part)
            yield part

    def digest(self) -> str:
        """SHA-256 of the values' bytes in row-major order."""
        found = hashlib.sha256()
        for block in self.blocks():
            found.update(raw_bytes(block))
        return found.hexdigest()

    def last(self) -> float:
        """The last value in row-major order."""
        return float(self.load().reshape(-1)[-1])

    def _read(self, start: int, out: torch.Tensor) -> None:
        raise NotImplementedError


class MemoryTensor(StoredTensor):
    """A tensor that is already in memory."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor
        self.info = TensorInfo(tuple(tensor.shape), dtype_name(tensor.dtype))

    def _read(self, start, out):
        flat = self.tensor.detach().reshape(-1)
        out.copy_(flat[start : start + out.numel()])


class FileTensor(StoredTensor):
    """A tensor in a file. offset: first byte of its storage; first: storage offset in elements;
    strides None means contiguous. storage_numel: elements of the storage, None when it is the tensor itself.
    """

    def __init__(
        self, file: InputFile, info: TensorInfo, offset: int, first=0, strides=None, storage_numel=None
    ):
        self.file, self.info, self.offset, self.first = file, info, offset, first
        self.strides = None if strides is None or is_contiguous(info.shape, strides) else tuple(strides)
        self.where = (str(file.path), offset + first * ITEMSIZE[info.dtype])
        self._last: torch.Tensor | None = None
        span = self._span()
        available = span + first if storage_numel is None else storage_numel
        if info.numel and (first < 0 or first + span > available or info.numel > MAX_NUMEL):
            raise BadFileError(
                f"{file.path}: a tensor of shape {info.shape} from element {first} does not fit its storage "
                f"of {available} elements",
                fix="the file is damaged",
            )
        if self.strides and info.numel > max(MAX_BROADCAST, 64 * available):
            raise BadFileError(
                f"{file.path}: a broadcast tensor of shape {info.shape} over {available} elements"
            )

    def _span(self) -> int:
        """Elements of storage between the first and the last element of the tensor."""
        if not self.info.numel:
            return 0
        if self.strides is None:
            return self.info.numel
        return 1 + sum((n - 1) * s for n, s in zip(self.info.shape, self.strides, strict=True))

    def last(self):
        plain = type(self) is FileTensor and self.info.dtype == "float32" and self.strides is None
        if not plain or not self.info.numel:
            return super().last()
        (value,) = struct.unpack("<f", self.file.read(self.where[1] + self.info.nbytes - 4, 4))
        return value

    def _read(self, start, out):
        if not out.numel():
            return
        if self.strides is not None:  # rare (views, channels_last): gather once, keep it for the next block
            whole = self._last if self._last is not None else self._gather()
            out.copy_(whole[start : start + out.numel()])
            self._last = whole if start + out.numel() < self.info.numel else None
            return
        size = ITEMSIZE[self.info.dtype]
        self.file.read_into(self.offset + (self.first + start) * size, raw_bytes(out))

    def _gather(self) -> torch.Tensor:
        import torch

        storage = torch.empty(self._span(), dtype=torch_dtype(self.info.dtype))
        self.file.read_into(self.where[1], raw_bytes(storage))
        return torch.as_strided(storage, self.info.shape, self.strides).reshape(-1)


class Conjugate(FileTensor):
    """The conjugates of what is stored: torch's conjugate bit."""

    def _read(self, start, out):
        super()._read(start, out)
        out.copy_(out.conj())


class Negative(FileTensor):
    """The negatives of what is stored: torch's negative bit."""

    def _read(self, start, out):
        super()._read(start, out)
        out.neg_()


class NegativeConjugate(Negative, Conjugate):
    """Both at once."""


def is_contiguous(shape, strides) -> bool:
    """torch's rule: dimensions of one element may have any stride, empty tensors are contiguous."""
    expected = 1
    if 0 in shape:
        return True
    for n, stride in zip(reversed(shape), reversed(strides), strict=True):
        if n != 1:
            if stride != expected:
                return False
            expected *= n
    return True
