"""A memory estimate as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edg.core.device import memory
from edg.systems.base import MemoryEstimate

GB = 1e9
SIZES = ("parameters", "activations", "together")
CARDS = (4, 6, 8, 10, 12, 16, 24, 32, 40, 48, 80, 141)  # GB of memory that GPUs have


def one_line(estimate: MemoryEstimate, device: Any) -> str:
    """The estimate in one line."""
    worst, needed = estimate.largest, estimate.required_bytes / GB
    parts = f"{worst.name}: parameters {worst.parameters / GB:.2f}, activations {worst.activations / GB:.2f}"
    overhead = f"overhead {estimate.overhead_bytes / GB:.1f}"
    return f"expects {needed:.2f} GB on {device} ({parts}, {overhead})"


def table(estimate: MemoryEstimate) -> list[str]:
    """A row per phase."""
    rows = [f"{'phase':<12}" + "".join(f"{name:>14}" for name in SIZES) + "    operations"]
    for phase in estimate.phases:
        sizes = (phase.parameters, phase.activations, phase.peak)
        numbers = "".join(f"{size / GB:>11.2f} GB" for size in sizes)
        rows.append(f"{phase.name:<12}{numbers}    {phase.flops / 1e12:.3g} TFLOP x {phase.calls}")
    return rows


def card(estimate: MemoryEstimate, kind: str) -> str:
    """The smallest GPU that is large enough, as a phrase."""
    sizes = [size for size in CARDS if estimate.required_bytes <= size * GB] if kind == "cuda" else []
    return f", a GPU of {sizes[0]} GB" if sizes else ""


def verdict(estimate: MemoryEstimate, kind: str) -> str:
    """A phrase on whether the run fits the memory that is free here."""
    found = list(cuda_devices()) if kind == "cuda" else [("the CPU", *memory())]
    if not found:
        return "no CUDA device here"
    name, _, free = max(found, key=lambda device: device[2])
    fits = "fits" if estimate.required_bytes <= free else "DOES NOT FIT"
    return f"{fits} {name}, {free / GB:.1f} GB free"


def cuda_devices() -> Iterator[tuple[str, int, int]]:
    """(name, total bytes, free bytes) of each CUDA device."""
    try:
        import torch
    except (ImportError, OSError):
        return
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        yield torch.cuda.get_device_name(index), total, free
