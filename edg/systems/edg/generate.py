"""The method: high noise with the first parameter set, low noise with the next, one network in memory.

requests -> condition -> latents -> frames. Read `generate` first; it is the whole way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from edg.core.device import out_of_memory
from edg.core.errors import BadFileError, EdgError, UsageError, is_out_of_memory
from edg.core.seeding import generator
from edg.core.video import fit_image, read_image, to_uint8
from edg.diffusion.analytic_init import analytic_init
from edg.diffusion.ddim import State, Step, ddim, ddim_plan
from edg.diffusion.guidance import Branches, guided, in_interval, side_by_side
from edg.diffusion.multistep import dpmpp, unipc
from edg.diffusion.prediction import Denoiser, to_x0
from edg.diffusion.schedule import Schedule, make_schedule
from edg.diffusion.switch import blend, phases
from edg.systems.base import Progress, Request, Result, Watch
from edg.systems.edg.condition import Condition, Noise, conditions, image_latent
from edg.systems.edg.load import build
from edg.systems.edg.load import check as check_weights
from edg.systems.edg.model import LatentVideoModel
from edg.systems.edg.options import SamplingOptions
from edg.systems.edg.parameters import ParameterSets
from edg.systems.edg.preview import apply_map, preview_map
from edg.systems.edg.reuse import deep_feature
from edg.systems.edg.spec import ModelSpec

T = TypeVar("T")
SHOWN = 6  # times that `watch` is told of a clip
SMALLER = "the memory was too small: made one clip and one frame at a time"


@dataclass
class Clip:
    """A request on its way: its image, its own source of noise, and its latent so far."""

    request: Request
    image_13HW: Float[Tensor, "1 3 h w"]
    noise: Noise
    x_1CTHW: Float[Tensor, "1 c t h_latent w_latent"]
    concat_1CTHW: Float[Tensor, "1 c t h_latent w_latent"] | None = None
    last_13HW: Float[Tensor, "1 3 h w"] | None = None  # of the last frame, None: the image again
    error: str = ""


@torch.no_grad()
def generate(
    sets: ParameterSets,
    requests: Sequence[Request],
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> Iterator[Result]:
    """Make the requests' clips, all of them one phase at a time: a parameter set is read once per call.

    Results come in the order of the requests; one that failed carries its reason instead of frames. Requests
    with other options, size or length than their neighbours form a call of their own.
    """
    groups = groupby(requests, key=lambda r: (r.options, r.frames, r.height, r.width))
    alike = [list(group) for _, group in groups]
    report = Counted(progress, sum(count_steps(sets, group) for group in alike))
    for group in alike:
        yield from _generate_alike(sets, group, report, watch)


class Counted:
    """Tells `progress` of every step, and which share of `total` that makes."""

    def __init__(self, progress: Progress | None, total: int):
        self.progress, self.total, self.count = progress, total, 0

    def __call__(self, phase: str, done: int, total: int, request: Request) -> None:
        self.count += 1
        if self.progress is not None:
            self.progress(phase, done, total, request=request, share=min(self.count / self.total, 1.0))


def count_steps(sets: ParameterSets, requests: Sequence[Request]) -> int:
    """How often `report` is called for requests that are alike: each step of a batch, each clip decoded."""
    steps = sum(len(steps) for _, steps in plan_of_sets(sets, requests[0].options))
    return steps * -(-len(requests) // sets.batch_size) + len(requests)


def _generate_alike(
    sets: ParameterSets, requests: list[Request], report: Counted, watch: Watch | None
) -> Iterator[Result]:
    options: SamplingOptions = requests[0].options

    def denoised() -> list[Clip]:
        clips = [start(sets, request) for request in requests]
        denoise_all(sets, clips, options, report, watch)
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
            yield Result(clip.request, frames, clip.error, warnings=(SMALLER,) if sets.shrunk else ())


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
    watch: Watch | None = None,
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
                advance(batch, denoise, steps, name, report, watch)


def plan_of_sets(sets: ParameterSets, options: SamplingOptions) -> list[tuple[list[int], list[Step]]]:
    """Which parameter sets act on which steps: [(set indices, steps)], the noisiest first."""
    if options.blend == "soft" and not sets.resident:
        raise UsageError("a soft blend with swapped parameter sets", fix="use --resident")
    return make_plan(sets.schedule, len(sets.names), options)


def make_plan(schedule: Schedule, count: int, options: SamplingOptions) -> list[tuple[list[int], list[Step]]]:
    """The plan of `count` parameter sets. Raises UsageError when the settings do not fit their number."""
    if len(options.switch_at) != count - 1:
        raise UsageError(
            f"{count} parameter sets and {len(options.switch_at)} switch timesteps",
            expected=f"{count - 1} of them (one between each two sets)",
        )
    if options.blend == "soft" and count != 2:
        raise UsageError(f"a soft blend of {count} parameter sets", expected="exactly two")
    released = options.timesteps == "released"
    eta = options.eta if options.solver == "ddim" else 0.0
    try:
        plan = ddim_plan(schedule, options.steps, options.spacing, eta, options.start, released=released)
    except ValueError as error:
        raise UsageError(str(error), fix="choose other --ddim_steps, --M or --timestep_spacing") from error
    if options.blend == "soft":
        return [([0, 1], plan)]
    return [([index], steps) for index, steps in phases(plan, options.switch_at)]


def check(spec: ModelSpec, sets: Mapping[str, Any], requests: Sequence[Request]) -> None:
    """Raise EdgError for whatever would stop `generate` with these sets and requests; reads nothing large."""
    skeleton = build(spec)
    for weights in sets.values():
        check_weights(skeleton, weights)
    schedule = make_schedule(spec.schedule, spec.parameterization)
    for options, shape in {(r.options, latent_shape(spec, r)): None for r in requests}:
        options.check()
        check_length(spec, shape[2])
        make_plan(schedule, len(sets), options)
        if options.analytic_init is not None:
            read_initial_noise(Path(options.analytic_init), shape)


def check_length(spec: ModelSpec, frames: int) -> None:
    """Raise UsageError where the network has no place for so many frames."""
    unet = spec.unet
    if (unet.use_causal_attention or unet.use_relative_position) and frames > unet.temporal_length:
        raise UsageError(
            f"{frames} frames", expected=f"at most {unet.temporal_length}, the reach of {spec.name}"
        )


def clip_noise(request: Request) -> Noise:
    """N(0, 1) from (seed, request id, what it is for): the same for any order, rank, chunk or resume."""

    def noise(*what: object, shape: Sequence[int]) -> Float[Tensor, "*shape"]:
        return torch.randn(tuple(shape), generator=generator(request.seed, request.id, *what))

    return noise


def latent_shape(spec: ModelSpec, request: Request) -> tuple[int, int, int, int, int]:
    """(1, C, T, H/f, W/f) of a request's latent."""
    height, width = (size // spec.latent_factor for size in (request.height, request.width))
    return 1, spec.latent_channels, request.frames, height, width


def start(sets: ParameterSets, request: Request) -> Clip:
    """A request's image in [-1, 1] and its initial noise; an unreadable image is the clip's error."""
    options, noise = request.options, clip_noise(request)
    x = noise("x_T", shape=latent_shape(sets.spec, request))
    if options.analytic_init is not None:
        expectation, spread = read_initial_noise(Path(options.analytic_init), x.shape)
        x = analytic_init(expectation, spread, sets.schedule, options.start, x)
    try:
        pixels = read_pixels(request.image, request)
        last = read_pixels(request.last, request) if options.interp and request.last else None
    except EdgError as error:
        no_image = torch.zeros(1, 3, request.height, request.width)
        return Clip(request, no_image, noise, x, error=str(error))
    last = None if last is None else last.to(sets.device)
    return Clip(request, pixels.to(sets.device), noise, x.to(sets.device), last_13HW=last)


def read_pixels(path: Path, request: Request) -> Float[Tensor, "1 3 h w"]:
    """A picture file in [-1, 1] at the request's size. Raises BadFileError."""
    crop, pad = request.options.crop, request.options.pad
    return fit_image(read_image(path), request.height, request.width, crop=crop, pad=pad)[None]


def read_initial_noise(
    path: Path, shape: Sequence[int]
) -> tuple[Float[Tensor, "1 c t h w"], Float[Tensor, "*shape"] | float]:
    """(E[x0], trace of its covariance per dimension) of a published Analytic-Init file (Zhao et al. 2024).

    Raises BadFileError for another kind of file, UsageError when it was made for another size or length.
    """
    from edg.weights.store import open_weights

    file = open_weights(path)
    number = file.metadata.get("Tr_Cov_d")  # a plain number, or a tensor
    if "Expectation_X0" not in file or ("Tr_Cov_d" not in file and number is None):
        raise BadFileError(
            f"{path} holds {', '.join(list(file)[:3])}", expected="an initial noise: Expectation_X0, Tr_Cov_d"
        )
    expectation = file["Expectation_X0"].float()
    if tuple(expectation.shape) != tuple(shape):
        raise UsageError(
            f"{path} is an initial noise of shape {tuple(expectation.shape)}",
            expected=f"{tuple(shape)} for this size and length",
        )
    return expectation, file["Tr_Cov_d"].float() if number is None else float(number)


def condition_sets(
    sets: ParameterSets, use: Sequence[int], batch: Sequence[Clip], options: SamplingOptions
) -> list[Mapping[str, Condition]]:
    """What a batch of clips tells each of the sets `use`."""
    return [condition_batch(sets.use(index), index, batch, options) for index in use]


def denoiser(
    sets: ParameterSets,
    use: Sequence[int],
    told: Sequence[Mapping[str, Condition]],
    steps: Sequence[Step],
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


def condition_batch(
    network: LatentVideoModel, index: int, batch: Sequence[Clip], options: SamplingOptions
) -> dict[str, Condition]:
    """Conditions of parameter set `index` for a batch of clips, with that set's own encoders.

    The image's latent is drawn once per clip and kept for the sets that follow, unless `sample_per_set`.
    """
    images = torch.cat([clip.image_13HW for clip in batch])
    per_set = options.image_latent == "sample_per_set"
    if per_set or any(clip.concat_1CTHW is None for clip in batch):
        draw = f"set{index}" if per_set else "shared"
        noises, frames = [clip.noise for clip in batch], batch[0].request.frames
        ends = [clip.image_13HW if clip.last_13HW is None else clip.last_13HW for clip in batch]
        ends = None if all(clip.last_13HW is None for clip in batch) else torch.cat(ends)
        latents = image_latent(network, images, frames, options, noises, draw, ends)
        for clip, latent in zip(batch, latents, strict=True):
            clip.concat_1CTHW = latent[None]
    concat = torch.cat([clip.concat_1CTHW for clip in batch])
    scaled = options.guidance_scale != 1 or options.image_guidance_scale is not None
    lost = options.con_prompt == "empty" and scaled and index > 0  # so does the release, by accident
    told = options.text_input and not lost
    prompts = [clip.request.prompt if told else "" for clip in batch]
    return conditions(network, prompts, images, concat, options)


def advance(
    batch: Sequence[Clip],
    denoise: Denoiser,
    steps: Sequence[Step],
    name: str,
    report: Callable[[str, int, int, Request], None],
    watch: Watch | None = None,
) -> None:
    """Take a batch of clips through `steps`; a clip whose latent is no longer finite is marked as failed."""
    options: SamplingOptions = batch[0].request.options
    x = torch.cat([clip.x_1CTHW for clip in batch])

    def noise(step: Step, shape: Sequence[int]) -> Float[Tensor, "b c t h w"]:
        drawn = [clip.noise("step", step.index, shape=(1, *shape[1:])) for clip in batch]
        return torch.cat(drawn).to(x.device)

    multistep = {"dpmpp": dpmpp, "unipc": unipc}.get(options.solver)
    walk = multistep(denoise, x, steps) if multistep else ddim(denoise, x, steps, noise)
    for done, state in enumerate(walk):
        report(name, done + 1, len(steps), batch[0].request)
        if watch and (state.step.index + 1) * SHOWN % options.steps < SHOWN:
            show(batch, state, watch)
        for clip, latent in zip(batch, state.x, strict=True):
            if not clip.error and not torch.isfinite(latent).all():
                clip.error = f"the latent is not finite after timestep {state.step.t} with {name}"
        if all(clip.error for clip in batch):
            break
    for clip, latent in zip(batch, state.x, strict=True):
        clip.x_1CTHW = latent[None]


def show(batch: Sequence[Clip], state: State, watch: Watch) -> None:
    """Tell `watch` of every clip's predicted x0, small."""
    once = {clip.request.id: (clip, x0) for clip, x0 in zip(batch, state.x0, strict=True)}
    for clip, x0 in once.values():
        colours = preview_map(clip.concat_1CTHW[0, :, 0], clip.image_13HW[0])
        watch(clip.request, f"t = {state.step.t}", to_uint8(apply_map(colours, x0)))


def decode(network: LatentVideoModel, clip: Clip, options: SamplingOptions) -> Float[Tensor, "3 t h w"]:
    """Latent -> video (3, T, H, W), about [-1, 1]; frame by frame with `perframe_ae`."""
    chunk = 1 if options.perframe_ae else clip.request.frames
    return network.decode_latents(clip.x_1CTHW, chunk)[0].float().cpu()


def to_frames(
    video_3THW: Float[Tensor, "3 t h w"], options: SamplingOptions
) -> UInt8[np.ndarray, "t_kept h w 3"]:
    """Video -> uint8 (T, H, W, 3); a loop leaves out its last frame, which equals the first."""
    frames = to_uint8(video_3THW)
    return frames[:-1] if options.loop else frames
