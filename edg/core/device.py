"""Choice of device and precision, made once by the command and passed down."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edg.core.errors import MachineError, UsageError, nearest

if TYPE_CHECKING:
    import torch

MOST_THREADS = 4096
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
INSTRUCTIONS = {  # for matrix products, as torch calls them
    "float16": ("avx512_fp16", "amx_fp16", "fp16_arith"),
    "bfloat16": ("avx512_bf16", "amx_bf16", "bf16"),
}
RUNNABLE = Path("/proc/loadavg")  # proc(5): 0.20 0.18 0.12 1/80 11206, where 1 of 80 is runnable
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def choose(
    device: str = "auto", dtype: str = "auto", local_rank: int = 0
) -> tuple[torch.device, torch.dtype]:
    """The torch device and dtype for what the user asked.

    device: auto (cuda when there is one), cpu, cuda (this rank's GPU) or cuda:N.
    dtype: auto (float16 on cuda as in the release, float32 on cpu), fp32, fp16, bf16 and their long names.
    Raises UsageError for an unknown name, MachineError when the device is not there.
    """
    return (chosen := _device(device, local_rank)), dtype_for(dtype, chosen.type)


def device_kind(name: str) -> tuple[str, str]:
    """(auto, cpu or cuda; the number given, or nothing) of a device's name. Raises UsageError."""
    kind, _, index = name.partition(":")
    if kind not in DEVICES or (index and not (kind == "cuda" and index.isdigit())):
        raise UsageError(
            f"unknown device {name!r}", expected="auto, cpu, cuda or cuda:N", fix=nearest(name, DEVICES)
        )
    return kind, index


def _device(name: str, local_rank: int) -> torch.device:
    import torch

    kind, index = device_kind(name)
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


def dtype_for(name: str, kind: str) -> torch.dtype:
    """The dtype of that name on a device of `kind` (cpu or cuda). Raises UsageError for an unknown one."""
    import torch

    name = name.removeprefix("torch.")
    if name not in DTYPES:
        raise UsageError(
            f"unknown dtype {name!r}", expected="auto, fp32, fp16 or bf16", fix=nearest(name, DTYPES)
        )
    return getattr(torch, DTYPES[name] or ("float16" if kind == "cuda" else "float32"))


def multiplies(dtype: torch.dtype) -> bool:
    """True if the processor has instructions for matrix products in that dtype, as far as torch knows:
    without them 16 bits are slower than 32."""
    import torch

    known = getattr(torch.cpu, "get_capabilities", dict)()  # not of every torch that edg runs with
    names = INSTRUCTIONS.get(dtype_name(dtype))
    return names is None or any(known.get(name) for name in names)


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for torch.float32, as records and flags spell it."""
    return str(dtype).removeprefix("torch.")


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_are_wanted(samples: int = 3, pause: float = 0.005) -> bool:
    """True if other processes compute at this moment: in every one of some samples, `pause` seconds apart.
    False where the system does not tell (it is Linux that does)."""
    for number in range(samples):
        try:
            running = int(RUNNABLE.read_text().split()[3].partition("/")[0])
        except (OSError, ValueError, IndexError):
            return False
        if running <= 1:  # this process
            return False
        time.sleep(pause if number + 1 < samples else 0)
    return True


def fix_threads(count: int) -> None:
    """Compute with `count` CPU threads, whatever OMP_NUM_THREADS says (torchrun sets it to 1).

    Sums are split between threads, so another number gives other last bits; the same number, the same frames.
    Raises UsageError for a number that no machine has.
    """
    import torch

    if not 1 <= count <= MOST_THREADS:
        raise UsageError(f"--threads {count}", expected=f"1 to {MOST_THREADS}")
    torch.set_num_threads(count)


def keep_memory() -> None:
    """Let the allocator keep the pages of freed tensors for the next ones. Given back to the system and taken
    anew at every operation, they are zeroed each time, which takes a good part of a step on a CPU. glibc
    only; elsewhere nothing is changed. The price: small tensors that stay keep apart what could be joined."""
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def memory() -> tuple[int, int]:
    """(total, available) bytes of main memory, within a container's limit; zeros where unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        values = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        total, available = values["MemTotal"], values["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):
        try:
            total = available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError, AttributeError):
            return 0, 0
    limit, used = _container_memory()
    return min(total, limit or total), min(available, limit - used if limit else available)


def _container_memory() -> tuple[int, int]:
    """(limit, used) bytes of this container (cgroup v2), zeros without one."""
    try:
        folder = Path("/sys/fs/cgroup")
        return int((folder / "memory.max").read_text()), int((folder / "memory.current").read_text())
    except (OSError, ValueError):  # "max": no limit
        return 0, 0


def memory_of(device: torch.device) -> tuple[int, int]:
    """(total, free) bytes of the memory that the device computes in; zeros where unknown."""
    import torch

    if device.type != "cuda":
        return memory()
    free, total = torch.cuda.mem_get_info(device)
    return total, free


def out_of_memory(error: BaseException, device: torch.device) -> MachineError:
    """The error for work that did not fit, although it came in the smallest pieces."""
    total, free = memory_of(device)
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return MachineError(
        f"out of memory on {device} ({total / 1e9:.1f} GB, {free / 1e9:.1f} GB free) with one clip and one "
        f"frame at a time: {line}",
        fix="use --low-memory, --dtype fp16, a smaller --height and --width or fewer --frames, and no "
        "--resident; `edg doctor --plan` shows what fits",
    )


def check_memory(size: int, device: torch.device, what: str) -> None:
    """Raise MachineError when `size` bytes can never fit on the device, whatever else is running."""
    total = memory_of(device)[0]
    if total and size > total:
        raise MachineError(
            f"{what} need {size / 1e9:.1f} GB and {device} has {total / 1e9:.1f} GB",
            fix="use --low-memory, --dtype fp16, or no --resident; `edg doctor --plan` shows what fits",
        )
