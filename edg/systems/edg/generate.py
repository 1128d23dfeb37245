"""The method: high noise with the first parameter set, low noise with the next, one network in memory.

requests -> condition -> latents -> frames. Read `generate` first; it is the whole way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from edg.core.device import out_of_memory
from edg.core.errors import is_out_of_memory
from edg.core.video import to_uint8
from edg.diffusion.ddim import SamplerStep, State, ddim
from edg.diffusion.guidance import Branches, guided, in_interval, side_by_side
from edg.diffusion.multistep import dpmpp, unipc
from edg.diffusion.prediction import Denoiser, to_x0
from edg.diffusion.switch import blend
from edg.networks.latent_video.clip_encoders import cut_warning
from edg.networks.latent_video.deepcache import deep_feature
from edg.systems.base import Observer, Request, Result, Silent
from edg.systems.edg.clip_state import Clip, condition_batch, decode, start, to_frames
from edg.systems.edg.condition import Condition, lost_texts
from edg.systems.edg.options import SamplingOptions
from edg.systems.edg.parameter_sets import ParameterSets
from edg.systems.edg.preview import TinyDecoder, preview, read_tiny_decoder
from edg.systems.edg.sampling_schedule import plan_of_sets

T = TypeVar("T")
Look = Callable[[Sequence[Clip], State], None]
PREVIEWS = 6  # of a clip
TEXTS = {"prompt": "the prompt", "negative_prompt": "the negative prompt"}
SMALLER = "the memory was too small: made one clip and one frame at a time"


@torch.no_grad()
def generate(
    sets: ParameterSets,
    requests: Sequence[Request],
    observer: Observer | None = None,
) -> Iterator[Result]:
    """Make the requests' clips, all of them one phase at a time: a parameter set is read once per call.

    Results come in the order of the requests; one that failed carries its reason instead of frames. Requests
    with other options, size or length than their neighbours form a call of their own.
    """
    observer = observer or Silent()
    look = None
    if observer.wants_preview and requests:
        tiny = requests[0].options.preview_decoder
        decoder = read_tiny_decoder(tiny, sets.spec, sets.device) if tiny is not None else None
        look = partial(show, observer, decoder)
    groups = groupby(requests, key=lambda r: (r.options, r.frames, r.height, r.width))
    alike = [list(group) for _, group in groups]
    report = Counted(observer, sum(count_steps(sets, group) for group in alike))
    for group in alike:
        yield from _generate_alike(sets, group, report, look)


class Counted:
    """Reports every step to an observer, with its share of `total`."""

    def __init__(self, observer: Observer, total: int):
        self.observer, self.total, self.count = observer, total, 0

    def __call__(self, phase: str, done: int, total: int, request: Request) -> None:
        self.count += 1
        self.observer.step(phase, done, total, request, min(self.count / self.total, 1.0))


def count_steps(sets: ParameterSets, requests: Sequence[Request]) -> int:
    """How often `report` is called for requests that are alike: each step of a batch, each clip decoded."""
    steps = sum(len(steps) for _, steps in plan_of_sets(sets, requests[0].options))
    return steps * -(-len(requests) // sets.batch_size) + len(requests)


def _generate_alike(
    sets: ParameterSets, requests: list[Request], report: Counted, look: Look | None
) -> Iterator[Result]:
    options: SamplingOptions = requests[0].options

    def denoised() -> list[Clip]:
        clips = [start(sets, request) for request in requests]
        denoise_all(sets, clips, options, report, look)
        return clips

    clips = sparingly(sets, denoised)
    last = len(sets.names) - 1
    with sets.only("decode", [last]):
        for done, clip in enumerate(clips):
            video = None if clip.error else sparingly(sets, partial(decode, sets.use(last), clip, options))
            if video is not None and not torch.isfinite(video).all():
                clip.error = f"the latent is finite, its frames decoded with {sets.names[last]} are not"
            frames = None if clip.error else to_frames(video, options)
            report("decode", done + 1, len(clips), clip.request)
            lost = lost_texts(sets.spec.text, clip.request.prompt, options)
            cut = [cut_warning(TEXTS[name], text, sets.spec.text) for name, text in lost.items()]
            warnings = (*cut, SMALLER) if sets.shrunk else tuple(cut)
            yield Result(clip.request, frames, clip.error, {"lost_text": lost} if lost else {}, warnings)


def sparingly(sets: ParameterSets, work: Callable[[], T]) -> T:
    """work(); where the memory is too small, again one clip and one frame at a time. All randomness belongs
    to the clip, so what is begun anew becomes the same. Raises MachineError when that is too much too."""
    while True:
        try:
            return work()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            told = out_of_memory(error, sets.device)
        if not sets.shrink():  # outside of the handler: inside, the traceback holds the tensors of `work`
            raise told
        if sets.device.type == "cuda":
            torch.cuda.empty_cache()


def denoise_all(
    sets: ParameterSets,
    clips: Sequence[Clip],
    options: SamplingOptions,
    report: Callable[[str, int, int, Request], None] = lambda *_: None,
    look: Look | None = None,
) -> None:
    """Take the clips' latents from noise to clean, phase by phase: one swap of parameters for all of them.
    In each, the encoders have the device first, for all clips, and then the denoiser.
    """
    for use, steps in plan_of_sets(sets, options):
        name = "+".join(sets.names[index] for index in use)
        todo = [clip for clip in clips if not clip.error]
        batches = [todo[at : at + sets.batch_size] for at in range(0, len(todo), sets.batch_size)]
        if sets.compiled:  # for one shape: the last clip of a batch stands in for those that it lacks
            batches = [batch + batch[-1:] * (sets.batch_size - len(batch)) for batch in batches]
        with sets.only("condition", use):
            told = [condition_sets(sets, use, batch, options) for batch in batches]
        with sets.only("denoise", use):
            for batch, what in zip(batches, told, strict=True):
                denoise = denoiser(sets, use, what, steps, options)
                advance(batch, denoise, steps, name, report, look)


def condition_sets(
    sets: ParameterSets, use: Sequence[int], batch: Sequence[Clip], options: SamplingOptions
) -> list[Mapping[str, Condition]]:
    """What a batch of clips tells each of the sets `use`."""
    return [condition_batch(sets.use(index), index, batch, options) for index in use]


def denoiser(
    sets: ParameterSets,
    use: Sequence[int],
    told: Sequence[Mapping[str, Condition]],
    steps: Sequence[SamplerStep],
    options: SamplingOptions,
) -> Denoiser:
    """(x, t) -> x0: one set (or the blend of two) under all conditions, guided, turned into x0. The
    conditions share one call of the network, or come one after the other where memory is low."""

    def one(index: int, conditions: Sequence[Condition]) -> Branches:
        network = sets.use(index)
        if not sets.one_branch_at_a_time:
            return Condition.predict_all(conditions, network, deep_feature(steps, options.reuse))
        return side_by_side(*(c.predict(network, deep_feature(steps, options.reuse)) for c in conditions))

    def predict(names: Iterable[str]) -> Branches:
        raw = [one(index, [of[name] for name in names]) for index, of in zip(use, told, strict=True)]
        return raw[0] if len(raw) == 1 else blend(*raw)

    weights = options.guidance_weights
    denoise = guided(predict(weights), list(weights.values()), options.guidance_rescale)
    if options.guided and options.guidance_interval is not None:
        denoise = in_interval(denoise, guided(predict(["full"]), [1.0]), *options.guidance_interval)
    return to_x0(denoise, sets.schedule, sets.spec.parameterization)


def advance(
    batch: Sequence[Clip],
    denoise: Denoiser,
    steps: Sequence[SamplerStep],
    name: str,
    report: Callable[[str, int, int, Request], None],
    look: Look | None = None,
) -> None:
    """Take a batch of clips through `steps`; a clip whose latent is no longer finite is marked as failed."""
    options: SamplingOptions = batch[0].request.options
    x = torch.cat([clip.x_1CTHW for clip in batch])

    def noise(step: SamplerStep, shape: Sequence[int]) -> Float[Tensor, "b c t h w"]:
        drawn = [clip.noise("step", step.index, shape=(1, *shape[1:])) for clip in batch]
        return torch.cat(drawn).to(x.device)

    multistep = {"dpmpp": dpmpp, "unipc": unipc}.get(options.solver)
    walk = multistep(denoise, x, steps) if multistep else ddim(denoise, x, steps, noise)
    for done, state in enumerate(walk):
        report(name, done + 1, len(steps), batch[0].request)
        if look and (state.step.index + 1) * PREVIEWS % options.steps < PREVIEWS:
            look(batch, state)
        for clip, latent in zip(batch, state.x, strict=True):
            if not clip.error and not torch.isfinite(latent).all():
                clip.error = f"the latent is not finite after timestep {state.step.t} with {name}"
        if all(clip.error for clip in batch):
            break
    for clip, latent in zip(batch, state.x, strict=True):
        clip.x_1CTHW = latent[None]


def show(observer: Observer, decoder: TinyDecoder | None, batch: Sequence[Clip], state: State) -> None:
    """Show the observer every clip's predicted x0; without the decoder where there is no room."""
    clean = state.x0 / state.step.scale_prev  # the dynamic rescale's factor off
    once = {clip.request.id: (clip, x0) for clip, x0 in zip(batch, clean, strict=True)}
    for clip, x0 in once.values():
        of_clip = (x0, clip.concat_1CTHW[0, :, 0], clip.image_13HW[0])
        try:
            frames = preview(*of_clip, decoder)
        except (MemoryError, RuntimeError) as error:
            if decoder is None or not is_out_of_memory(error):
                raise
            frames = preview(*of_clip)
        observer.preview(clip.request, f"t = {state.step.t}", to_uint8(frames))
