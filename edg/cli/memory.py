"""`edg doctor --plan`: the memory that a run of `edg sample` will need."""

from __future__ import annotations

from collections.abc import Iterator

from edg.core.device import choose, device_kind, dtype_for, dtype_name
from edg.runner.config import SampleConfig, offload_of
from edg.runner.memory_report import GB, card, table, verdict
from edg.runner.prepare import check_numbers, chosen_model, frame_size
from edg.systems.base import Placement, Request


def report_lines(config: SampleConfig) -> Iterator[str]:
    """The estimate of `edg sample` with these settings of a named model: how it runs, a table, whether it
    fits this machine. Raises UsageError."""
    import torch

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
        yield f"  and {estimate.host_bytes / GB:.2f} GB of main memory for parameters not on the device"
    yield f"  {estimate.note}"
    yield f"  {verdict(estimate, kind)}"
