"""`edg encode`: videos -> a cache of posterior moments, text and image tokens."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

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
from edg.data.batches import Caught, told
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
from edg.systems.edg.training.encode_flags import stride_range
from edg.systems.edg.training.latent_cache import CachedClips

Item = dict[str, Any]
WORKERS = 4
SKIPPED = "skipped.jsonl"

__all__ = ["CachedClips", "encode_clip", "encode_command", "encode_moments", "load_encoders"]


# ---- clips -------------------------------------------------------------------------------------------------


def open_dataset(
    args: argparse.Namespace, spec: ModelSpec, skipped: Path, captions: bool = False
) -> tuple[Any, Any]:
    """(clips of the videos that the flags name, one of every video; their ClipSpec). Videos that cannot be
    read are listed in `skipped`, a .jsonl. captions: every video needs one. Raises EdgError."""
    from edg.data.clips import ClipDataset, Skipped, read_videos

    clips = spec.clip(
        args.frames,
        args.height,
        args.width,
        stride=stride_range(args.stride or "1:6"),
        fixed_fps=args.fixed_fps,
        fps_max=args.fps_max,
        flip=args.flip,
    )
    path = Path(args.data)
    where = (path, None) if path.is_dir() else (args.root, path)
    videos = read_videos(*where, args.columns, captions)
    for line in data_remarks(videos, spec) if world_from_environment().is_first else ():
        warn(line)
    return ClipDataset(videos, clips, args.seed, Skipped(skipped), digests=True), clips


def data_remarks(videos: Sequence[Any], spec: ModelSpec, encoded: bool = False) -> list[str]:
    """Lines on captions that are not there, or are longer than the text tower reads, and on files that are
    not there. encoded: the files are not needed any more."""
    from edg.data.captions import caption_remarks, file_remarks

    captions = [video.caption for video in videos if video.caption]
    files = [] if encoded else file_remarks(videos)
    return [*caption_remarks(videos), *cut_remarks(captions, spec.text, "captions"), *files]


def tell_skipped(file: Path) -> None:
    """Say how many videos of a run could not be used, and where they are listed."""
    from edg.data.clips import Skipped

    if lost := Skipped(file).entries():
        path, reason = next(iter(lost.items()))
        log(f"unusable videos, replaced by others: {len(lost)}, see {file}")
        log(f"  {path}: {reason}")


def read_items(dataset: Any, keys: Sequence[Any], workers: int) -> Iterator[Item]:
    """dataset[key] for every key, in order; worker processes read ahead."""
    loader = torch.utils.data.DataLoader(Caught(dataset), batch_size=None, sampler=keys, num_workers=workers)
    for item in loader:
        stopping.check()
        yield told(item)


def workers_for(args: argparse.Namespace, device: torch.device) -> int:
    if args.workers is not None:
        return args.workers
    return min(WORKERS, usable_cores()) if device.type == "cuda" else 0


# ---- the frozen networks -----------------------------------------------------------------------------------


@torch.no_grad()
def load_encoders(
    spec: ModelSpec,
    weights: Mapping[str, Any],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    towers: bool = True,
) -> LatentVideoModel:
    """The model without denoiser, decoder, projector layers and adapter: what `encode_clip` needs, no more.

    towers=False: without the text and image towers, too. Raises BadFileError when `weights` is not a complete
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
    """Frames in [-1, 1] -> (2C, T, h, w): mean and clamped log variance of the posterior, unscaled, float32.

    chunk: frames at once. A clip is encoded alone, so that its bits do not depend on its neighbours.
    """
    parts = []
    for x in rearrange(frames_3THW.to(model.device), "c t h w -> t c h w").split(chunk):
        stopping.check()
        posterior = model.encode_frames(x)
        parts.append(torch.cat([posterior.mean, posterior.logvar], dim=1))
    return rearrange(torch.cat(parts), "t c h w -> c t h w").cpu()


@torch.no_grad()
def encode_clip(model: LatentVideoModel, item: Mapping[str, Any], every_frame: bool, chunk: int = 8) -> Item:
    """A clip of ClipDataset with moments, text (L, D) and image (M, W) of frame 0, or images (T, M, W) of all
    frames, in place of its frames."""
    frames = item["frames"]
    images = rearrange(frames if every_frame else frames[:, :1], "c t h w -> t c h w").to(model.device)
    tokens = torch.cat([model.embedder(part).float().cpu() for part in images.split(chunk)])
    made = {
        "moments": encode_moments(model, frames, chunk),
        "text": model.encode_text([item["caption"]])[0].float().cpu(),
    }
    made |= {"images": tokens} if every_frame else {"image": tokens[0]}
    return {name: value for name, value in item.items() if name != "frames"} | made


# ---- the command -------------------------------------------------------------------------------------------


def encode_command(args: argparse.Namespace) -> int:
    """Carry out `edg encode`; under torchrun every process has its share of shards. Raises EdgError."""
    with world(args.device) as here, ExitStack() as stack:
        return _encode(args, here, stack)


def _encode(args: argparse.Namespace, here: World, stack: ExitStack) -> int:
    out = Path(args.out)
    spec, (_, stored) = load_spec(args.spec), choose("cpu", args.dtype)
    device, compute = choose(args.device, args.compute, here.local_rank)
    weights = open_weights(args.weights)
    for note in weights.notes if here.is_first else ():
        log(f"{args.weights}: {note}")
    dataset, clips = open_dataset(args, spec, out / SKIPPED, args.require_captions)
    index = latent_cache.Index(
        spec=spec.name,
        encoders=latent_cache.encoder_identity(spec, weights) | {"compute": dtype_name(compute)},
        clips=to_dict(clips),
        videos=hash_value([[str(video.path), video.caption] for video in dataset.videos]),
        size=len(dataset),
        passes=args.passes,
        seed=args.seed,
        every_frame=args.every_frame,
        dtype=dtype_name(stored),
        shard=args.shard,
    )

    def begin() -> list[int]:
        stack.enter_context(lock_folder(out))
        latent_cache.begin(out, index)
        return unfinished(out, index, dataset, range(index.shards))

    todo = here.first(begin)
    check = stack.enter_context(same_folder(out))  # on every rank
    mine = [shard for shard in todo if shard % here.size == here.rank]
    if mine:
        model = load_encoders(spec, weights, device, compute)
        encode_shards(model, dataset, out, index, mine, workers_for(args, device), args.chunk, check)
    here.gather(len(mine))  # the folder is held until everybody is done
    log(f"{out}: {index.count} clips, {len(mine)} of {index.shards} shards written now")
    tell_skipped(out / SKIPPED)
    return 0


def unfinished(out: Path, index: latent_cache.Index, dataset: Any, shards: Sequence[int]) -> list[int]:
    """Those of `shards` that are to be encoded: missing, damaged, or of videos that are other ones now. Says
    why; notes hashes where an earlier version left none."""
    todo, filled = [], 0
    for shard in shards:
        why = latent_cache.damage(out, index, shard)
        if not why:
            known = latent_cache.read_about(out, index, shard)
            why = outdated(out, index, dataset, shard, known)
            if not why and known is None:
                paths = paths_of(out, index, shard, None)
                clips = [{"path": path, **source_now(path)} for path in paths]
                latent_cache.write_about(out, index, shard, clips)
                filled += 1
        if why:
            todo.append(shard)
            if index.path(out, shard).exists():
                log(f"  shard {shard} is encoded again: {why}")
    if filled:
        log(f"{filled} shards of an earlier version had no hashes: noted those of what is there now")
    return todo


def paths_of(out: Path, index: latent_cache.Index, shard: int, known: Mapping[str, Any] | None) -> list[str]:
    """The video of every clip of a shard, as it was read."""
    if known is not None:
        return [clip["path"] for clip in known["clips"]]
    return latent_cache.open_shard(out, index, shard)[1].get("path", [])


def source_now(path: str) -> dict[str, Any]:
    from edg.data.clips import source_of

    with suppress(BadFileError):
        return source_of(Path(path))
    return {}


def outdated(
    out: Path, index: latent_cache.Index, dataset: Any, shard: int, known: Mapping[str, Any] | None
) -> str:
    """Why what a shard holds is not what its videos would give now, "" where it is. known: its note; without
    one a video that is younger than the shard counts as another."""
    from edg.data.clips import is_same, state_of

    made = index.path(out, shard).stat().st_mtime_ns
    for place, path in enumerate(paths_of(out, index, shard, known)):
        epoch, at = divmod(index.numbers(shard)[place], index.size)
        asked = str(dataset.videos[at].path)
        if path != asked and dataset.usable(epoch, at):
            dataset.skipped.forget([asked])
            return f"{asked} can be read now"
        clip = known["clips"][place] if known else {}
        if "sha256" in clip and not is_same(Path(path), clip):
            return f"{path} is another video now"
        if known is None and state_of(Path(path)).get("mtime_ns", 0) > made:
            return f"{path} is younger than the shard"
    return ""


def encode_shards(
    model: LatentVideoModel,
    dataset: Any,
    out: Path,
    index: latent_cache.Index,
    shards: Sequence[int],
    workers: int = 0,
    chunk: int = 8,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Encode and write `shards` of the cache, one after the other; check() before each is written."""
    keys = [divmod(number, index.size) for shard in shards for number in index.numbers(shard)]
    items = read_items(dataset, keys, workers)
    for done, shard in enumerate(shards):
        rows = [encode_clip(model, next(items), index.every_frame, chunk) for _ in index.numbers(shard)]
        check()
        latent_cache.write_shard(out, index, shard, rows)
        log(f"  shard {shard}: {done + 1} of {len(shards)}")
