"""Which device and which precision: decided once, at the edge, and passed down."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edg.core.errors import MachineError, UsageError, nearest

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda")
DTYPES = {
    "auto": "",
    "fp32": "float32",
    "float32": "float32",
    "fp16": "float16",
    "float16": "float16",
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
}


def choose(
    device: str = "auto", dtype: str = "auto", local_rank: int = 0
) -> tuple[torch.device, torch.dtype]:
    """The torch device and dtype for what the user asked.

    device: auto (cuda when there is one), cpu, cuda (this rank's GPU) or cuda:N.
    dtype: auto (float16 on cuda as in the release, float32 on cpu), fp32, fp16, bf16 and their long names.
    Raises UsageError for an unknown name, MachineError when the device is not there.
    """
    import torch

    return (chosen := _device(device, local_rank)), getattr(torch, _dtype(dtype, chosen.type))


def _device(name: str, local_rank: int) -> torch.device:
    import torch

    kind, _, index = name.partition(":")
    if kind not in DEVICES or (index and not (kind == "cuda" and index.isdigit())):
        raise UsageError(
            f"unknown device {name!r}", expected="auto, cpu, cuda or cuda:N", fix=nearest(name, DEVICES)
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cpu" or (kind == "auto" and not count):
        return torch.device("cpu")
    if not count:
        raise MachineError(
            f"device {name!r} was asked for, but torch sees no CUDA device", fix="use --device cpu"
        )
    number = int(index) if index else local_rank
    if number >= count:
        raise MachineError(
            f"this process needs GPU {number}, the machine has {count}",
            fix="start at most one process per GPU",
        )
    return torch.device("cuda", number)


def _dtype(name: str, kind: str) -> str:
    name = name.removeprefix("torch.")
    if name not in DTYPES:
        raise UsageError(
            f"unknown dtype {name!r}", expected="auto, fp32, fp16 or bf16", fix=nearest(name, DTYPES)
        )
    return DTYPES[name] or ("float16" if kind == "cuda" else "float32")


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for torch.float32, as records and flags spell it."""
    return str(dtype).removeprefix("torch.")
