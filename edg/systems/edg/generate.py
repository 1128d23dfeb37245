"""The method: high noise with the first parameter set, low noise with the next, one network in memory.

The stages are encode, noise, denoise, decode; `generate` runs all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor

from edg.diffusion.ddim import SamplerStep, ddim
from edg.diffusion.multistep import dpmpp, unipc
from edg.diffusion.prediction import Denoiser
from edg.systems.base import Observer, Request, Result
from edg.systems.edg.clip_state import ClipState, condition_batch, decode, result, start, to_frames
from edg.systems.edg.denoiser import denoiser
from edg.systems.edg.options import SamplingOptions
from edg.systems.edg.parameter_sets import ParameterSets, retry_with_smaller_batches
from edg.systems.edg.progress import ProgressCounter
from edg.systems.edg.sampling_schedule import schedule_of_sets


@torch.no_grad()
def generate(
    sets: ParameterSets, requests: Sequence[Request], observer: Observer | None = None
) -> Iterator[Result]:
    """Make the requests' clips, all of them one phase at a time: a parameter set is read once per call.

    Results come in the order of the requests; one that failed carries its reason instead of frames. Requests
    with other options, size or length than their neighbours form a call of their own.
    """
    groups = [
        list(group) for _, group in groupby(requests, key=lambda r: (r.options, r.frames, r.height, r.width))
    ]
    progress = ProgressCounter.for_groups(observer, sets, groups)
    for group in groups:
        for attempt in retry_with_smaller_batches(sets):
            with attempt:
                clips = [start(sets, request) for request in group]
                denoise_all(sets, clips, group[0].options, progress)
        yield from _decoded(sets, clips, progress)


def denoise_all(
    sets: ParameterSets,
    clips: Sequence[ClipState],
    options: SamplingOptions,
    progress: ProgressCounter | None = None,
) -> None:
    """Denoise the latents of the clips, phase by phase, with one swap of parameters for all of them.
    In each phase the encoders are on the device first, for all clips, and then the denoiser.
    """
    for use, steps in schedule_of_sets(sets, options):
        name = "+".join(sets.names[index] for index in use)
        batches = sets.batches([clip for clip in clips if not clip.error])
        with sets.on_device("condition", use):
            conditions = [
                [condition_batch(sets.network(index), index, batch, options) for index in use]
                for batch in batches
            ]
        with sets.on_device("denoise", use):
            for batch, given in zip(batches, conditions, strict=True):
                advance(batch, denoiser(sets, use, given, steps, options), steps, name, progress)


def advance(
    batch: Sequence[ClipState],
    denoise: Denoiser,
    steps: Sequence[SamplerStep],
    name: str,
    progress: ProgressCounter | None = None,
) -> None:
    """Run `steps` for a batch of clips; a clip whose latent is no longer finite is marked as failed."""
    options: SamplingOptions = batch[0].request.options
    x = torch.cat([clip.x_1CTHW for clip in batch])

    def noise(step: SamplerStep, shape: Sequence[int]) -> Float[Tensor, "b c t h w"]:
        drawn = [clip.noise("step", step.index, shape=(1, *shape[1:])) for clip in batch]
        return torch.cat(drawn).to(x.device)

    multistep = {"dpmpp": dpmpp, "unipc": unipc}.get(options.solver)
    states = multistep(denoise, x, steps) if multistep else ddim(denoise, x, steps, noise)
    for done, state in enumerate(states):
        if progress:
            progress.step(name, done + 1, len(steps), batch[0].request)
            progress.preview(batch, state)
        for clip, latent in zip(batch, state.x, strict=True):
            if not clip.error and not torch.isfinite(latent).all():
                clip.error = f"the latent is not finite after timestep {state.step.t} with {name}"
        if all(clip.error for clip in batch):
            break
    for clip, latent in zip(batch, state.x, strict=True):
        clip.x_1CTHW = latent[None]


def _decoded(sets: ParameterSets, clips: Sequence[ClipState], progress: ProgressCounter) -> Iterator[Result]:
    """The clips' results, decoded with the last parameter set."""
    last = len(sets.names) - 1
    with sets.on_device("decode", [last]):
        for done, clip in enumerate(clips):
            frames, options = None, clip.request.options
            for attempt in () if clip.error else retry_with_smaller_batches(sets):
                with attempt:
                    video = decode(sets.network(last), clip, options)
                    if torch.isfinite(video).all():
                        frames = to_frames(video, options)
                    else:
                        name = sets.names[last]
                        clip.error = (
                            f"the latent is finite, but the frames decoded from it with {name} are not"
                        )
            progress.step("decode", done + 1, len(clips), clip.request)
            yield result(clip, frames, sets.spec, shrunk=sets.shrunk)
