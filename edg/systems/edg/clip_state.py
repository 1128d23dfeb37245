"""The state of a clip while it is made: image, noise, latent, frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from edg.core.errors import BadFileError, EdgError, UsageError
from edg.core.hashing import cached_sha256
from edg.core.seeding import generator
from edg.core.video import fit_image, read_image, to_uint8
from edg.diffusion.analytic_init import analytic_init
from edg.networks.latent_video.clip_encoders import cut_warning
from edg.networks.latent_video.model import LatentVideoModel
from edg.networks.latent_video.spec import ModelSpec
from edg.systems.base import Request, Result
from edg.systems.edg.condition import Condition, Noise, conditions, image_latent, lost_texts
from edg.systems.edg.options import SamplingOptions

if TYPE_CHECKING:
    from edg.systems.edg.parameter_sets import ParameterSets

TEXTS = {"prompt": "the prompt", "negative_prompt": "the negative prompt"}
SMALLER = "out of memory at first: made one clip and one frame at a time instead"


@dataclass
class ClipState:
    """A request while it is made: its image, its own source of noise, its latent so far."""

    request: Request
    image_13HW: Float[Tensor, "1 3 h w"]
    noise: Noise
    x_1CTHW: Float[Tensor, "1 c t h_latent w_latent"]
    concat_1CTHW: Float[Tensor, "1 c t h_latent w_latent"] | None = None
    last_13HW: Float[Tensor, "1 3 h w"] | None = None  # of the last frame, None: the image again
    error: str = ""


def clip_noise(request: Request) -> Noise:
    """N(0, 1) from (seed, request id, what it is for): the same for any order, rank, chunk or resume."""

    def noise(*what: object, shape: Sequence[int]) -> Float[Tensor, "*shape"]:
        return torch.randn(tuple(shape), generator=generator(request.seed, request.id, *what))

    return noise


def latent_shape(spec: ModelSpec, request: Request) -> tuple[int, int, int, int, int]:
    """(1, C, T, H/f, W/f) of a request's latent."""
    height, width = (size // spec.latent_factor for size in (request.height, request.width))
    return 1, spec.latent_channels, request.frames, height, width


def start(sets: ParameterSets, request: Request) -> ClipState:
    """Start a clip: its image in [-1, 1] and initial noise; an unreadable image is the clip's error."""
    options, noise = request.options, clip_noise(request)
    x = noise("x_T", shape=latent_shape(sets.spec, request))
    if options.analytic_init is not None:
        known = options.analytic_init_sha256
        expectation, spread = read_initial_noise(Path(options.analytic_init), x.shape, known)
        x = analytic_init(expectation, spread, sets.schedule, options.start, x)
    try:
        pixels = read_pixels("image", request)
        last = read_pixels("last_image", request) if options.interp and request.last_image else None
    except EdgError as error:
        no_image = torch.zeros(1, 3, request.height, request.width)
        return ClipState(request, no_image, noise, x, error=str(error))
    last = None if last is None else last.to(sets.device)
    return ClipState(request, pixels.to(sets.device), noise, x.to(sets.device), last_13HW=last)


def read_pixels(name: str, request: Request) -> Float[Tensor, "1 3 h w"]:
    """The picture of that name of a request, in [-1, 1] at its size. Raises BadFileError."""
    crop, pad = request.options.crop, request.options.pad
    image = read_image(request.files[name], request.contents.get(name))
    return fit_image(image, request.height, request.width, crop=crop, pad=pad)[None]


def read_initial_noise(
    path: Path, shape: Sequence[int], sha256: str | None = None
) -> tuple[Float[Tensor, "1 c t h w"], Float[Tensor, "*shape"] | float]:
    """(E[x0], trace of its covariance per dimension) of a published Analytic-Init file (Zhao et al. 2024).

    sha256: expected of the file, from a record. Raises BadFileError for another file or another
    kind of file, UsageError when it was made for another size or length.
    """
    from edg.weights.store import open_weights

    file = open_weights(path)
    if sha256 is not None and cached_sha256(path) != sha256:
        raise BadFileError(f"{path} was replaced since the run began", fix="run the same command again")
    number = file.metadata.get("Tr_Cov_d")  # a plain number, or a tensor
    if "Expectation_X0" not in file or ("Tr_Cov_d" not in file and number is None):
        raise BadFileError(
            f"{path} holds {', '.join(list(file)[:3])}", expected="an initial noise: Expectation_X0, Tr_Cov_d"
        )
    expectation = file["Expectation_X0"].float()
    spread = file["Tr_Cov_d"].float() if number is None else float(number)
    file.check_unchanged()
    if tuple(expectation.shape) != tuple(shape):
        raise UsageError(
            f"{path} is an initial noise of shape {tuple(expectation.shape)}",
            expected=f"{tuple(shape)} for this size and length",
        )
    return expectation, spread


def condition_batch(
    network: LatentVideoModel, index: int, batch: Sequence[ClipState], options: SamplingOptions
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
    prompted = options.text_input and not lost
    prompts = [clip.request.prompt if prompted else "" for clip in batch]
    return conditions(network, prompts, images, concat, options)


def decode(network: LatentVideoModel, clip: ClipState, options: SamplingOptions) -> Float[Tensor, "3 t h w"]:
    """Decode a latent to a video (3, T, H, W), about [-1, 1]; frame by frame with `perframe_ae`."""
    chunk = 1 if options.perframe_ae else clip.request.frames
    return network.decode_latents(clip.x_1CTHW, chunk)[0].float().cpu()


def to_frames(
    video_3THW: Float[Tensor, "3 t h w"], options: SamplingOptions
) -> UInt8[np.ndarray, "t_kept h w 3"]:
    """Convert a video to uint8 (T, H, W, 3); a loop leaves out its last frame, which equals the first."""
    frames = to_uint8(video_3THW)
    return frames[:-1] if options.loop else frames


def result(
    clip: ClipState, frames: UInt8[np.ndarray, "t_kept h w 3"] | None, spec: ModelSpec, shrunk: bool
) -> Result:
    """The result of a clip, with warnings on texts that were cut and on memory that was too small."""
    lost = lost_texts(spec.text, clip.request.prompt, clip.request.options)
    cut = [cut_warning(TEXTS[name], text, spec.text) for name, text in lost.items()]
    warnings = (*cut, SMALLER) if shrunk else tuple(cut)
    return Result(clip.request, frames, clip.error, {"lost_text": lost} if lost else {}, warnings)
