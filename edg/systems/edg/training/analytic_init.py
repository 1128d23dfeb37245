"""`edg analytic-init`: mean and trace of the covariance of many clips' latents, in one pass."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import edg
from edg.core.atomic_file import write_atomically
from edg.core.config import to_dict
from edg.core.device import choose
from edg.core.errors import BadFileError, require
from edg.core.log import log, warn
from edg.core.seeding import generator
from edg.diffusion.analytic_init import Moments
from edg.networks import open_weights
from edg.networks.latent_video.models import load_spec
from edg.networks.latent_video.spec import ModelSpec
from edg.systems.edg.training.encode import (
    data_remarks,
    encode_moments,
    load_encoders,
    log_skipped_videos,
    open_dataset,
    read_samples,
    reader_processes,
)
from edg.systems.edg.training.encode_flags import AnalyticInitConfig
from edg.systems.edg.training.latent_cache import CachedClips, is_cache

EVERY = 100  # clips between two lines of progress
Record = dict[str, Any]


def analytic_init_file(config: AnalyticInitConfig) -> None:
    """Write the initial noise of videos. data may be a folder made by `edg encode`: then nothing is encoded.
    Raises EdgError."""
    spec = load_spec(config.spec)
    source, clips = (moments_of_cache if is_cache(config.data) else moments_of_videos)(config, spec)
    found = accumulate(clips, spec.scale_factor)
    if found.count < 2:
        raise BadFileError(f"{config.data} gives {found.count} clips", expected="at least 2 clips")
    write_initial_noise(config.out, found, {"spec": spec.name, "scale_factor": spec.scale_factor, **source})
    deviation = found.trace_cov_per_dim**0.5
    log(
        f"{config.out}: {found.count} clips, E[x0] {tuple(found.expectation.shape)} of mean magnitude "
        f"{found.expectation.abs().mean():.3f} (standard error {deviation / found.count**0.5:.3f}), "
        f"standard deviation {deviation:.3f}"
    )
    log_skipped_videos(skipped_file(config.out))


def skipped_file(out: str) -> Path:
    """The list of videos that could not be used: initial_noise.skipped.jsonl, beside the result."""
    return Path(out).with_suffix(".skipped.jsonl")


def moments_of_videos(config: AnalyticInitConfig, spec: ModelSpec) -> tuple[Record, Iterator[Tensor]]:
    """Encode videos: the record, and the posterior moments (2C, T, h, w) of one clip after the other."""
    given = config.weights is not None
    require(
        given,
        "edg analytic-init without --weights",
        "--weights CHECKPOINT, or the folder of edg encode as --data",
    )
    device, compute = choose(config.device, config.compute)
    dataset, clips = open_dataset(config, spec, skipped_file(config.out))
    weights = open_weights(config.weights)
    for note in weights.notes:
        log(f"{config.weights}: {note}")
    model = load_encoders(spec, weights, device, compute, towers=False)
    keys = draw_keys(len(dataset), config.count or len(dataset), config.seed)
    samples = read_samples(dataset, keys, reader_processes(config, device))
    record = {"data": config.data, "weights": config.weights, "seed": config.seed, "clips": to_dict(clips)}
    record |= {"data_fingerprint": dataset.fingerprint()} if hasattr(dataset, "fingerprint") else {}
    return record, (encode_moments(model, sample["frames"], config.chunk) for sample in samples)


def moments_of_cache(config: AnalyticInitConfig, spec: ModelSpec) -> tuple[Record, Iterator[Tensor]]:
    """Read the same of clips that `edg encode` has encoded; all of them, or the first --count."""
    cached = CachedClips(config.data)
    index = cached.index
    require(index.spec == spec.name, f"{config.data} was encoded for {index.spec}", f"--spec {index.spec}")
    for name in ("height", "width", "frames"):
        given, encoded = getattr(config, name), index.clips[name]
        require(given in (None, encoded), f"--{name} {given}", f"{encoded}, the value of the encoded clips")
    count = config.count or index.count
    require(
        count <= index.count,
        f"--count {count}",
        f"at most {index.count}, the number of clips in {config.data}",
    )
    for remark in data_remarks(cached.videos, spec, encoded=True):
        warn(remark)
    record = {"data": config.data, "encoders": index.encoders, "seed": index.seed, "clips": index.clips}
    record |= {"data_fingerprint": cached.fingerprint()}
    return record, (cached.moments(number) for number in range(count))


def draw_keys(size: int, count: int, seed: int) -> list[tuple[int, int]]:
    """Draw `count` keys (epoch, index): videos in random order, each once before any is taken twice."""
    keys: list[tuple[int, int]] = []
    epoch = 0
    while size and len(keys) < count:
        order = torch.randperm(size, generator=generator(seed, "analytic-init", epoch))
        keys += [(epoch, int(index)) for index in order[: count - len(keys)]]
        epoch += 1
    return keys


def accumulate(moments: Iterable[Tensor], scale: float, every: int = EVERY) -> Moments:
    """Add up the moments of x0 = scale z, z ~ the posterior, over clips given by mean and log variance
    (2C, T, h, w).

    The dynamic rescale is not in x0: it belongs to the schedule, which the sampler multiplies with.
    """
    found = Moments()
    for clip in moments:
        mean, logvar = clip.double().chunk(2)
        try:
            found.add(scale * mean[None], scale**2 * logvar.exp()[None])
        except ValueError as error:
            raise BadFileError(f"clip {found.count}: {error}", fix="use --compute float32") from error
        if found.count % every == 0:
            log(f"  {found.count} clips")
    return found


def write_initial_noise(path: str | Path, found: Moments, record: Record | None = None) -> None:
    """Write the published layout, atomically: Expectation_X0 (1, C, T, h, w) and Tr_Cov_d (), both float32,
    and `edg`, the record as a JSON text. torch.load(weights_only=True) opens it."""
    text = json.dumps({"version": edg.__version__, "count": found.count, **(record or {})}, default=str)
    buffer = io.BytesIO()
    tensors = {"Expectation_X0": found.expectation, "Tr_Cov_d": torch.tensor(found.trace_cov_per_dim)}
    torch.save({**tensors, "edg": text}, buffer)
    write_atomically(path, buffer.getvalue())
