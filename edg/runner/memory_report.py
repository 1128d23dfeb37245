"""What a run will cost, in words: `edg doctor --plan`, and the line before `edg sample`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from edg.core.device import choose, device_kind, dtype_for, dtype_name, memory
from edg.runner import flags
from edg.systems.base import Plan, Request, Spec, System

GB = 1e9
SIZES = ("parameters", "activations", "together")
CARDS = (4, 6, 8, 10, 12, 16, 24, 32, 40, 48, 80, 141)  # GB of memory that GPUs have


def plan_of(
    args: argparse.Namespace,
    system: System,
    spec: Spec,
    sets: Mapping[str, Any],
    kind: str,
    request: Request | None = None,
) -> Plan:
    """The plan of a run with these flags on a device of `kind`, cuda or cpu. sets: weights by name, empty
    where none are there yet. request: a clip like all of them, None for one by the flags."""
    if request is None:
        options = flags.sampling_options(args, system, spec, len(sets))
        height, width = flags.frame_size(args, spec)
        frames = flags.frame_count(args, spec)
        request = Request("plan", "", args.seed, frames, height, width, options)
    return system.plan(
        spec,
        sets,
        request,
        device=kind,
        dtype=dtype_for(args.dtype, kind),
        resident=is_resident(args),
        batch_size=min(args.bs, args.chunk),
        low_memory=args.low_memory,
    )


def is_resident(args: argparse.Namespace) -> bool:
    return args.resident or args.blend == "soft"


def in_a_line(plan: Plan, device: Any) -> str:
    """The plan in one line."""
    worst = plan.largest
    parts = f"{worst.name}: parameters {worst.parameters / GB:.2f}, activations {worst.activations / GB:.2f}"
    return f"expects {plan.need / GB:.2f} GB on {device} ({parts}, beside them {plan.beside / GB:.1f})"


def tell(args: argparse.Namespace, system: System, spec: Spec) -> Iterator[str]:
    """The plan of `edg sample` with these flags as lines: what is planned, a table, whether it fits here."""
    kind = choose()[0].type if args.device == "auto" else device_kind(args.device)[0]
    flags.check_numbers(args, spec)
    height, width = flags.frame_size(args, spec)
    sets = dict.fromkeys(args.sets or ("dyn", "con"), {})
    plan = plan_of(args, system, spec, sets, kind)
    ways = [
        f"{spec.name} at {height}x{width}, {flags.frame_count(args, spec)} frames",
        f"{args.bs} clip{'s' if args.bs > 1 else ''} at a time",
        f"{dtype_name(dtype_for(args.dtype, kind))} on {kind}",
        f"{len(sets)} parameter sets {'resident' if is_resident(args) else 'swapped'}",
        *(["low memory"] if args.low_memory else []),
    ]
    yield ", ".join(ways)
    yield from (f"  {row}" for row in table(plan))
    beside = f"{plan.beside / GB:.1f} of it assumed, not counted"
    yield f"  needs {plan.need / GB:.2f} GB{card(plan, kind)}; {beside}"
    if plan.waiting:
        yield f"  and {plan.waiting / GB:.2f} GB of main memory for parameters that wait"
    yield f"  {plan.note}"
    yield f"  {verdict(plan, kind)}"


def table(plan: Plan) -> list[str]:
    rows = [f"{'phase':<12}" + "".join(f"{name:>14}" for name in SIZES) + "    operations"]
    for phase in plan.phases:
        sizes = (phase.parameters, phase.activations, phase.peak)
        numbers = "".join(f"{size / GB:>11.2f} GB" for size in sizes)
        rows.append(f"{phase.name:<12}{numbers}    {phase.flops / 1e12:.3g} TFLOP x {phase.calls}")
    return rows


def card(plan: Plan, kind: str) -> str:
    """The smallest GPU that this fits, in words."""
    sizes = [size for size in CARDS if plan.need <= size * GB] if kind == "cuda" else []
    return f", a GPU of {sizes[0]} GB" if sizes else ""


def verdict(plan: Plan, kind: str) -> str:
    """Whether the plan fits what is free here, in words."""
    found = list(cuda_devices()) if kind == "cuda" else [("the CPU", *memory())]
    if not found:
        return "no CUDA device here"
    name, _, free = max(found, key=lambda device: device[2])
    fits = "fits" if plan.need <= free else "DOES NOT FIT"
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
