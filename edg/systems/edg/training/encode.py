"""`edg encode`: turn videos into a cache of posterior moments, text and image tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from edg.core.config import to_dict
from edg.core.device import choose, dtype_name, usable_cores
from edg.core.dist import World, world, world_from_environment
from edg.core.errors import BadFileError
from edg.core.files import lock_folder, same_folder
from edg.core.hashing import hash_value
from edg.core.log import log, warn
from edg.core.process import stopping
from edg.data.batches import ErrorCatchingDataset, Sample, SampleSource, raise_if_error
from edg.data.captions import caption_remarks, file_remarks
from edg.data.clips import (
    CaptionedVideo,
    ClipDataset,
    ClipSettings,
    SkippedVideos,
    is_same,
    read_videos,
    source_of,
    state_of,
)
from edg.data.kinds import SKIPPED
from edg.networks import open_weights
from edg.networks.latent_video.clip_encoders import cut_remarks
from edg.networks.latent_video.load import (
    TOWERS,
    build,
    canonical,
    check,
    check_bytes,
    rebuild_towers,
    with_adapter_of,
)
from edg.networks.latent_video.model import LatentVideoModel
from edg.networks.latent_video.models import load_spec
from edg.networks.latent_video.spec import ModelSpec
from edg.systems.edg.training import latent_cache
from edg.systems.edg.training.encode_flags import ClipEncoding, EncodeConfig, stride_range
from edg.systems.edg.training.latent_cache import CacheIndex

WORKERS = 4  # processes that read videos for a GPU


# ---- clips -------------------------------------------------------------------------------------------------


def open_dataset(
    config: ClipEncoding, spec: ModelSpec, skipped: Path, captions: bool = False
) -> tuple[ClipDataset, ClipSettings]:
    """Open the clips of the videos that the flags name, one of every video; with their settings.

    Videos that cannot be read are listed in `skipped`, a .jsonl. captions: every video needs one. Raises
    EdgError.
    """
    clips = spec.clip_settings(
        config.frames,
        config.height,
        config.width,
        stride=stride_range(config.stride or "1:6"),
        fixed_fps=config.fixed_fps,
        fps_max=config.fps_max,
        flip=config.flip,
    )
    path = Path(config.data)
    where = (path, None) if path.is_dir() else (config.root, path)
    videos = read_videos(*where, config.columns, captions)
    for remark in data_remarks(videos, spec) if world_from_environment().is_first else ():
        warn(remark)
    return ClipDataset(videos, clips, config.seed, SkippedVideos(skipped), digests=True), clips


def data_remarks(videos: Sequence[CaptionedVideo], spec: ModelSpec, encoded: bool = False) -> list[str]:
    """Warnings about missing captions, captions that are longer than the text tower reads, and missing files.
    encoded: the files are not needed any more."""
    captions = [video.caption for video in videos if video.caption]
    files = [] if encoded else file_remarks(videos)
    return [*caption_remarks(videos), *cut_remarks(captions, spec.text, "captions"), *files]


def log_skipped_videos(file: Path) -> None:
    """Log the number of videos that could not be used, and the first of them."""
    if skipped := SkippedVideos(file).entries():
        path, reason = next(iter(skipped.items()))
        log(f"unusable videos, replaced by other videos: {len(skipped)}, see {file}")
        log(f"  {path}: {reason}")


def read_samples(dataset: SampleSource, keys: Sequence[tuple[int, int]], workers: int) -> Iterator[Sample]:
    """Read dataset[key] for every key, in order; worker processes read ahead."""
    loader = torch.utils.data.DataLoader(
        ErrorCatchingDataset(dataset), batch_size=None, sampler=keys, num_workers=workers
    )
    for sample in loader:
        stopping.check()
        yield raise_if_error(sample)


def reader_processes(config: ClipEncoding, device: torch.device) -> int:
    """Number of worker processes: --workers, else some for a GPU only."""
    if config.workers is not None:
        return config.workers
    return min(WORKERS, usable_cores()) if device.type == "cuda" else 0


# ---- the frozen networks -----------------------------------------------------------------------------------


@torch.no_grad()
def load_encoders(
    spec: ModelSpec,
    weights: Mapping[str, Tensor],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    towers: bool = True,
) -> LatentVideoModel:
    """Load a model without denoiser, decoder, projector layers and adapter, for `encode_clip`.

    towers=False: without the text and image towers, too. Raises BadFileError if `weights` is not a complete
    parameter set of the spec.
    """
    model = build(with_adapter_of(spec, [weights]))
    check(model, weights)
    model.model, model.first_stage_model.decoder = nn.ModuleDict(), nn.Identity()
    model.image_proj_model.layers = nn.ModuleList()
    for part in ("queries", "qformer", *(() if towers else ("cond_stage_model", "embedder"))):
        if hasattr(model, part):
            delattr(model, part)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
        parameter.requires_grad_(False)
    model.to_empty(device=device)
    targets, stored = model.state_dict(), canonical(weights)
    for name, value in model.schedule_buffers().items():
        targets[name].copy_(value)
    for name, actual in stored.items():
        if name in targets:
            targets[name].copy_(weights[actual])
    if towers and spec.towers_seed is not None and not any(name.startswith(TOWERS) for name in stored):
        rebuild_towers(model)
    check_bytes(weights)
    return model


@torch.no_grad()
def encode_moments(model: LatentVideoModel, frames_3THW: Tensor, chunk: int = 8) -> Tensor:
    """Encode frames in [-1, 1] to mean and clamped log variance of the posterior, (2C, T, h, w), unscaled,
    float32.

    chunk: frames at once. A clip is encoded alone, so that its bits do not depend on its neighbours.
    """
    parts = []
    for x in rearrange(frames_3THW.to(model.device), "c t h w -> t c h w").split(chunk):
        stopping.check()
        posterior = model.encode_frames(x)
        parts.append(torch.cat([posterior.mean, posterior.logvar], dim=1))
    return rearrange(torch.cat(parts), "t c h w -> c t h w").cpu()


@torch.no_grad()
def encode_clip(model: LatentVideoModel, clip: Sample, every_frame: bool, chunk: int = 8) -> Sample:
    """Replace the frames of a clip of ClipDataset by moments, text (L, D) and image (M, W) of frame 0, or
    images (T, M, W) of all frames."""
    frames = clip["frames"]
    images = rearrange(frames if every_frame else frames[:, :1], "c t h w -> t c h w").to(model.device)
    tokens = torch.cat([model.embedder(part).float().cpu() for part in images.split(chunk)])
    encoded = {
        "moments": encode_moments(model, frames, chunk),
        "text": model.encode_text([clip["caption"]])[0].float().cpu(),
    }
    encoded |= {"images": tokens} if every_frame else {"image": tokens[0]}
    return {name: value for name, value in clip.items() if name != "frames"} | encoded


# ---- the command -------------------------------------------------------------------------------------------


def encode(config: EncodeConfig) -> None:
    """Encode the clips of videos into a folder; under torchrun every process has its share of shards. Raises
    EdgError."""
    with world(config.device) as ranks, ExitStack() as stack:
        _encode(config, ranks, stack)


def _encode(config: EncodeConfig, ranks: World, stack: ExitStack) -> None:
    out = Path(config.out)
    spec, (_, stored) = load_spec(config.spec), choose("cpu", config.dtype)
    device, compute = choose(config.device, config.compute, ranks.local_rank)
    weights = open_weights(config.weights)
    for note in weights.notes if ranks.is_first else ():
        log(f"{config.weights}: {note}")
    dataset, clips = open_dataset(config, spec, out / SKIPPED, config.require_captions)
    index = CacheIndex(
        spec=spec.name,
        encoders=latent_cache.encoder_identity(spec, weights) | {"compute": dtype_name(compute)},
        clips=to_dict(clips),
        videos=hash_value([[str(video.path), video.caption] for video in dataset.videos]),
        size=len(dataset),
        passes=config.passes,
        seed=config.seed,
        every_frame=config.every_frame,
        dtype=dtype_name(stored),
        shard=config.shard,
    )

    def prepare() -> list[int]:
        stack.enter_context(lock_folder(out))
        latent_cache.write_index(out, index)
        return shards_to_encode(out, index, dataset)

    todo = ranks.first(prepare)
    check = stack.enter_context(same_folder(out))  # on every rank
    mine = [shard for shard in todo if shard % ranks.size == ranks.rank]
    if mine:
        model = load_encoders(spec, weights, device, compute)
        encode_shards(model, dataset, out, index, mine, reader_processes(config, device), config.chunk, check)
    ranks.gather(len(mine))  # the folder is held until everybody is done
    log(f"{out}: {index.count} clips, {len(mine)} of {index.shards} shards written in this run")
    log_skipped_videos(out / SKIPPED)


def shards_to_encode(out: Path, index: CacheIndex, dataset: ClipDataset) -> list[int]:
    """The shards that are missing, damaged, or of videos that were replaced. Logs the reasons, and writes the
    notes that an earlier version did not write."""
    todo, filled = [], 0
    for shard in range(index.shards):
        reason = latent_cache.shard_damage(out, index, shard)
        if not reason:
            note = latent_cache.read_note(out, index, shard)
            reason = outdated_reason(out, index, dataset, shard, note)
            if not reason and note is None:
                paths = video_paths(out, index, shard, None)
                clips = [{"path": path, **source_or_nothing(path)} for path in paths]
                latent_cache.write_note(out, index, shard, clips)
                filled += 1
        if reason:
            todo.append(shard)
            if index.shard_path(out, shard).exists():
                log(f"  shard {shard} is encoded again: {reason}")
    if filled:
        log(f"{filled} shards of an earlier version had no hashes: recorded those of the present files")
    return todo


def video_paths(out: Path, index: CacheIndex, shard: int, note: latent_cache.Note | None) -> list[str]:
    """The video of every clip of a shard, as it was read."""
    if note is not None:
        return [clip["path"] for clip in note["clips"]]
    return latent_cache.open_shard(out, index, shard)[1].get("path", [])


def source_or_nothing(path: str) -> dict[str, int | str]:
    """Size, times and hash of a video, {} if it cannot be read."""
    with suppress(BadFileError):
        return source_of(Path(path))
    return {}


def outdated_reason(
    out: Path, index: CacheIndex, dataset: ClipDataset, shard: int, note: latent_cache.Note | None
) -> str:
    """The reason why the videos of a shard would give other clips now, "" if they would not. A video that is
    younger than a shard without a note counts as another one."""
    written = index.shard_path(out, shard).stat().st_mtime_ns
    for place, path in enumerate(video_paths(out, index, shard, note)):
        epoch, at = divmod(index.numbers(shard)[place], index.size)
        own = str(dataset.videos[at].path)
        if path != own and dataset.usable(epoch, at):
            dataset.skipped.forget([own])
            return f"{own} can now be read"
        clip = note["clips"][place] if note else {}
        if "sha256" in clip and not is_same(Path(path), clip):
            return f"{path} was replaced by another video"
        if note is None and state_of(Path(path)).get("mtime_ns", 0) > written:
            return f"{path} is newer than the shard"
    return ""


def encode_shards(
    model: LatentVideoModel,
    dataset: SampleSource,
    out: Path,
    index: CacheIndex,
    shards: Sequence[int],
    workers: int = 0,
    chunk: int = 8,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Encode and write `shards` of the cache, one after the other; check() before each is written."""
    keys = [divmod(number, index.size) for shard in shards for number in index.numbers(shard)]
    samples = read_samples(dataset, keys, workers)
    for done, shard in enumerate(shards):
        rows = [encode_clip(model, next(samples), index.every_frame, chunk) for _ in index.numbers(shard)]
        check()
        latent_cache.write_shard(out, index, shard, rows)
        log(f"  shard {shard}: {done + 1} of {len(shards)}")
