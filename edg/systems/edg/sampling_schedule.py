"""The sampling schedule: parameter sets and their steps; and checks of requests that read no weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edg.core.errors import UsageError
from edg.diffusion.ddim import SamplerStep, ddim_plan
from edg.diffusion.schedule import Schedule, make_schedule
from edg.diffusion.switch import phases
from edg.networks.latent_video.clip_encoders import cut_remarks
from edg.networks.latent_video.load import build, with_adapter_of
from edg.networks.latent_video.load import check as check_weights
from edg.networks.latent_video.spec import ModelSpec
from edg.systems.base import Request
from edg.systems.edg.clip_state import latent_shape, read_initial_noise
from edg.systems.edg.options import SamplingOptions
from edg.systems.edg.preview import read_tiny_decoder

if TYPE_CHECKING:
    from edg.systems.edg.parameter_sets import ParameterSets


def schedule_of_sets(
    sets: ParameterSets, options: SamplingOptions
) -> list[tuple[list[int], list[SamplerStep]]]:
    """The sampling schedule of loaded sets: [(set indices, steps)], the noisiest first."""
    if options.blend == "soft" and not sets.resident:
        raise UsageError("a soft blend with swapped parameter sets", fix="use --resident")
    return sampling_schedule(sets.schedule, len(sets.names), options)


def sampling_schedule(
    schedule: Schedule, count: int, options: SamplingOptions
) -> list[tuple[list[int], list[SamplerStep]]]:
    """The sampling schedule of `count` parameter sets. Raises UsageError where settings do not fit them."""
    if len(options.switch_at) != count - 1:
        raise UsageError(
            f"{count} parameter sets and {len(options.switch_at)} switch timesteps",
            expected=f"{count - 1} switch timesteps, one between each two sets",
        )
    if options.blend == "soft" and count != 2:
        raise UsageError(f"a soft blend of {count} parameter sets", expected="exactly two")
    released = options.timesteps == "released"
    eta = options.eta if options.solver == "ddim" else 0.0
    try:
        steps = ddim_plan(schedule, options.steps, options.spacing, eta, options.start, released=released)
    except ValueError as error:
        raise UsageError(str(error), fix="choose other --ddim_steps, --M or --timestep_spacing") from error
    if options.blend == "soft":
        return [([0, 1], steps)]
    return [([index], part) for index, part in phases(steps, options.switch_at)]


def check(spec: ModelSpec, sets: Mapping[str, Any], requests: Sequence[Request]) -> list[str]:
    """Raise EdgError for anything that would stop `generate` with these sets and requests, and return
    warnings about options without effect. Reads names and shapes only, except for a preview decoder."""
    spec = with_adapter_of(spec, sets.values())
    network = build(spec)
    for weights in sets.values():
        check_weights(network, weights)
    schedule = make_schedule(spec.schedule, spec.parameterization)
    for options, shape in {(r.options, latent_shape(spec, r)): None for r in requests}:
        options.check()
        check_length(spec, shape[2])
        sampling_schedule(schedule, len(sets), options)
        if options.analytic_init is not None:
            read_initial_noise(Path(options.analytic_init), shape)
        if options.preview_decoder is not None:
            read_tiny_decoder(options.preview_decoder, spec)
    return remarks(spec, requests)


def remarks(spec: ModelSpec, requests: Sequence[Request]) -> list[str]:
    """Warnings about prompts and negative prompts that are longer than the text encoder reads."""
    prompts = list({r.prompt: None for r in requests if r.options.text_input})
    negative = list({r.options.negative_prompt: None for r in requests if r.options.guided})
    return [
        *cut_remarks(prompts, spec.text, "prompts"),
        *cut_remarks(negative, spec.text, "negative prompts"),
    ]


def check_length(spec: ModelSpec, frames: int) -> None:
    """Raise UsageError if the network cannot take so many frames."""
    unet = spec.unet
    if (unet.use_causal_attention or unet.use_relative_position) and frames > unet.temporal_length:
        raise UsageError(
            f"{frames} frames", expected=f"at most {unet.temporal_length}, the temporal length of {spec.name}"
        )
