"""A memory estimate as text: `edg doctor --plan`, and the line before `edg sample`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from edg.core.device import choose, device_kind, dtype_for, dtype_name, memory
from edg.systems.base import MemoryEstimate, Placement, Request

if TYPE_CHECKING:
    from edg.runner.config import SampleConfig

GB = 1e9
SIZES = ("parameters", "activations", "together")
CARDS = (4, 6, 8, 10, 12, 16, 24, 32, 40, 48, 80, 141)  # GB of memory that GPUs have


def one_line(estimate: MemoryEstimate, device: Any) -> str:
    """The estimate in one line."""
    worst, needed = estimate.largest, estimate.required_bytes / GB
    parts = f"{worst.name}: parameters {worst.parameters / GB:.2f}, activations {worst.activations / GB:.2f}"
    overhead = f"overhead {estimate.overhead_bytes / GB:.1f}"
    return f"expects {needed:.2f} GB on {device} ({parts}, {overhead})"


def report_lines(config: SampleConfig) -> Iterator[str]:
    """The estimate of `edg sample` with these settings of a named model: how it runs, a table, whether it
    fits this machine. Raises UsageError."""
    import torch

    from edg.runner.config import offload_of
    from edg.runner.prepare import check_numbers, chosen_model, frame_size

    place = config.placement
    kind = choose()[0].type if place.device == "auto" else device_kind(place.device)[0]
    system, spec, given = chosen_model(config)
    options, roles, together = system.part("plan_options")(spec, config.weights.files(), given)
    check_numbers(config, spec)
    height, width = frame_size(config.prompts, spec)
    frames = spec.frames if config.prompts.video_length is None else config.prompts.video_length
    dtype, offload = dtype_for(place.dtype, kind), offload_of(place, together)
    placement = Placement(torch.device(kind), dtype, min(place.bs, place.chunk), offload, place.compile)
    request = Request("plan", "", config.prompts.seed, frames, height, width, options)
    estimate = system.part("estimate")(spec, dict.fromkeys(roles, {}), request, placement)
    ways = [
        f"{spec.name} at {height}x{width}, {frames} frames",
        f"{place.bs} clip{'s' if place.bs > 1 else ''} at a time",
        f"{dtype_name(dtype)} on {kind}",
        f"{len(roles)} parameter sets {'resident' if together or place.resident else 'swapped'}",
        *(["low memory"] if place.low_memory else []),
    ]
    yield ", ".join(ways)
    yield from (f"  {row}" for row in table(estimate))
    overhead = f"{estimate.overhead_bytes / GB:.1f} of it assumed, not counted"
    yield f"  needs {estimate.required_bytes / GB:.2f} GB{card(estimate, kind)}; {overhead}"
    if estimate.host_bytes:
        yield f"  and {estimate.host_bytes / GB:.2f} GB of main memory for parameters off the device"
    yield f"  {estimate.note}"
    yield f"  {verdict(estimate, kind)}"


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
