"""The latent cache: what the frozen networks say about every clip, in a folder, read one clip at a time.

    index.json                  what is in it, and of which encoders and clips it was made
    clips-00000.safetensors     the first `shard` clips, clips-00001 the next, ...
    clips-00000.json            the shard's hash, and for each clip the video that it is of: size, times, hash

`encode.py` writes it, a shard at a time and each whole or not at all; training and Analytic-Init read it. A
shard counts as finished while its bytes are those that were written, for this index and place. Caches of
earlier versions have no hashes: `edg encode` fills them in.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edg.core.config import to_dict
from edg.core.errors import BadFileError, UsageError
from edg.core.files import read_json, write_json
from edg.core.hashing import cached_sha256, hash_value, stamp
from edg.data.sources import Video
from edg.networks.latent_video.load import TOWERS, canonical
from edg.networks.latent_video.spec import ModelSpec
from edg.weights.store import Weights, open_weights
from edg.weights.tensors import CHUNK, raw_bytes, torch_dtype
from edg.weights.writers import write_safetensors

INDEX = "index.json"
MARK = "of"  # in a shard's metadata; shards of earlier versions have none
FORMAT = "edg clips 1"
FROZEN = ("first_stage_model.encoder.", "first_stage_model.quant_conv.", *TOWERS)
OPEN_SHARDS = 32  # files a reader holds open
AGAIN = "run the same `edg encode` again, it continues"


@dataclass(frozen=True)
class Index:
    """What makes a cache this one; two runs with equal indices write equal shards.

    spec: name of the model. encoders: identity of what computed it, see encoder_identity. clips: the clip
    settings. videos: hash of the list of videos and captions. size: clips of one pass; passes: how often the
    list is gone through, each time with other clips of the same videos. shard: clips in one file.
    """

    spec: str
    encoders: dict[str, str]
    clips: dict[str, Any]
    videos: str
    size: int
    passes: int
    seed: int
    every_frame: bool
    dtype: str
    shard: int
    format: str = FORMAT

    @property
    def count(self) -> int:
        return self.size * self.passes

    @property
    def shards(self) -> int:
        return -(-self.count // self.shard)

    def numbers(self, shard: int) -> range:
        """The clips of a shard: clip n is clip n % size of pass n // size."""
        return range(shard * self.shard, min((shard + 1) * self.shard, self.count))

    def path(self, folder: Path, shard: int) -> Path:
        return folder / f"clips-{shard:05d}.safetensors"

    def about(self, folder: Path, shard: int) -> Path:
        return folder / f"clips-{shard:05d}.json"


def is_cache(folder: str | Path) -> bool:
    return (Path(folder) / INDEX).is_file()


def read_index(folder: str | Path) -> Index:
    """The index of a cache. Raises BadFileError when it is not one."""
    path = Path(folder) / INDEX
    values = read_json(path)
    known = {field.name for field in fields(Index)}
    if not isinstance(values, dict) or values.get("format") != FORMAT or set(values) != known:
        raise BadFileError(f"{path} is no index of encoded clips", expected=f"format {FORMAT!r}")
    return Index(**values)


def read_about(folder: Path, index: Index, shard: int) -> dict[str, Any] | None:
    """What was noted of a shard, None where nothing (usable) was."""
    with suppress(BadFileError):
        found = read_json(index.about(folder, shard))
        clips = found.get("clips") if isinstance(found, dict) else None
        good = isinstance(clips, list) and all(isinstance(clip, dict) and "path" in clip for clip in clips)
        if good and len(clips) == len(index.numbers(shard)) and isinstance(found.get("sha256"), str):
            return found
    return None


def damage(folder: Path, index: Index, shard: int) -> str:
    """Why a shard does not count as finished, "" where it does. Its bytes are hashed when its file's state is
    not the one of the last time."""
    path = index.path(folder, shard)
    if not path.is_file():
        return "is not there"
    try:
        known = read_about(folder, index, shard)
        if known is not None and cached_sha256(path) != known["sha256"]:
            return "is not what was written"
        marked = open_shard(folder, index, shard)[0].metadata.get(MARK, "")
        if marked and marked != _mark(index, shard):
            return "is of another index or place"
        if marked and known is None:
            return "has lost the note of its videos"
    except BadFileError as error:
        return f"cannot be used ({error})"
    return ""


def _mark(index: Index, shard: int) -> str:
    """What a shard is of: its index and its place in it."""
    return hash_value([to_dict(index), shard])


def begin(folder: str | Path, index: Index) -> None:
    """Write the index, or find the same one there.

    Raises UsageError when the folder holds clips that were encoded otherwise, naming what differs, or shards
    of an earlier version without the index.
    """
    folder = Path(folder)
    if is_cache(folder):
        there, wanted = (json.loads(json.dumps(to_dict(i))) for i in (read_index(folder), index))
        other = [name for name in wanted if there[name] != wanted[name]]
        if other:
            name = other[0]
            raise UsageError(
                f"{folder} holds clips encoded with another {', '.join(other)} ({name} {there[name]!r})",
                expected=f"{name} {wanted[name]!r}",
                fix="choose another --out"
                + (" (a video was added or removed, or a caption changed)" if "videos" in other else ""),
            )
        return
    for path in (index.path(folder, shard) for shard in range(index.shards)):
        with suppress(BadFileError):
            if path.is_file() and MARK not in open_weights(path).metadata:
                raise UsageError(
                    f"{folder} holds {path.name} but no {INDEX} that says of what",
                    fix=f"choose another --out, or put the {INDEX} back",
                )
    write_json(folder / INDEX, to_dict(index))


def write_shard(folder: Path, index: Index, shard: int, items: Iterable[Mapping[str, Any]]) -> None:
    """Write one shard, atomically, then what is noted of it. items: in the order of index.numbers(shard);
    floating tensors are stored in index.dtype, integers and numbers as they are, texts in the metadata, their
    `source` in the note."""
    rows = [dict(item) for item in items]
    assert len(rows) == len(index.numbers(shard))
    clips = [{"path": str(row.get("path", "")), **(row.pop("source", None) or {})} for row in rows]
    tensors, texts = {}, {}
    for name, value in rows[0].items():
        column = [row[name] for row in rows]
        if isinstance(value, str):
            texts[name] = column
            continue
        stacked = torch.stack([torch.as_tensor(one) for one in column])
        # a plain number is told exactly, only tensors of the networks are narrowed
        narrow = stacked.ndim > 1 and stacked.is_floating_point()
        tensors[name] = stacked.to(torch_dtype(index.dtype)) if narrow else stacked
        if narrow and not torch.isfinite(tensors[name]).all():
            what = ", ".join(sorted({str(row.get("path", "?")) for row in rows})[:2])
            raise BadFileError(
                f"{name} of a clip in shard {shard} ({what}, ...) is not finite in {index.dtype}",
                fix="use --dtype float32 and --compute float32",
            )
    metadata = {"texts": json.dumps(texts), MARK: _mark(index, shard)}
    write_safetensors(index.path(folder, shard), tensors, metadata)
    write_about(folder, index, shard, clips)


def write_about(folder: Path, index: Index, shard: int, clips: Sequence[Mapping[str, Any]]) -> None:
    """Note a shard's hash and its clips' videos."""
    digest = cached_sha256(index.path(folder, shard))
    write_json(index.about(folder, shard), {"sha256": digest, "clips": list(clips)})


def open_shard(folder: Path, index: Index, shard: int) -> tuple[Weights, dict[str, list[str]]]:
    """A shard's tensors and texts. Raises BadFileError when it does not hold its clips."""
    path = index.path(folder, shard)
    weights = open_weights(path)
    try:
        texts = json.loads(weights.metadata["texts"])
    except (LookupError, ValueError) as error:
        raise BadFileError(f"{path} is no shard of encoded clips") from error
    wanted = len(index.numbers(shard))
    if any(len(column) != wanted for column in texts.values()) or any(
        weights.info(name).shape[:1] != (wanted,) for name in weights
    ):
        raise BadFileError(f"{path} does not hold {wanted} clips", fix="remove it and encode again")
    return weights, texts


class CachedClips:
    """Map-style: cache[key] is one clip, as ClipDataset gives it but with `moments` (2C, T, h, w), `text`
    (L, D) and `image` (M, W) or `images` (T, M, W) in place of frames, float32.

    key: an index, (epoch, index), or anything with both as attributes. Epoch e reads pass e % passes. Only
    the asked for clip is read; readers may be pickled and forked. Raises BadFileError when shards are
    missing or not what was written, IndexError for an index outside 0..len.
    """

    def __init__(self, folder: str | Path):
        self.folder, self.index = Path(folder), read_index(folder)
        lost = [n for n in range(self.index.shards) if not self.index.path(self.folder, n).is_file()]
        if lost:
            raise BadFileError(
                f"{folder} lacks {len(lost)} of {self.index.shards} shards, first {lost[0]}", fix=AGAIN
            )
        for shard in range(self.index.shards):
            if why := damage(self.folder, self.index, shard):
                raise BadFileError(f"{self.index.path(self.folder, shard)} {why}", fix=AGAIN)
        self._states = [self._state(shard) for shard in range(self.index.shards)]
        self._open: OrderedDict[int, tuple[Weights, dict[str, list[str]]]] = OrderedDict()

    def __len__(self) -> int:
        """Clips of one pass."""
        return self.index.size

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": OrderedDict()}

    def __getitem__(self, key: Any) -> dict[str, Any]:
        epoch, index = split_key(key)
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        return self.read((epoch % self.index.passes) * len(self) + index)

    def read(self, number: int) -> dict[str, Any]:
        """Clip `number` of all passes, 0..index.count."""
        shard, row = divmod(number, self.index.shard)
        weights, texts = self._shard(shard)
        item: dict[str, Any] = {name: column[row] for name, column in texts.items()}
        for name in weights:
            info = weights.info(name)
            value = torch.empty(info.shape[1:], dtype=torch_dtype(info.dtype))
            weights.read_into(name, row * value.numel(), value.view(-1))
            whole = not value.ndim
            item[name] = value.item() if whole else value.float() if value.is_floating_point() else value
        return item

    def moments(self, number: int) -> Tensor:
        """Posterior mean and log variance (2C, T, h, w) of clip `number` alone, float32."""
        shard, row = divmod(number, self.index.shard)
        weights, _ = self._shard(shard)
        value = torch.empty(weights.info("moments").shape[1:])
        weights.read_into("moments", row * value.numel(), value.view(-1))
        return value

    @property
    def videos(self) -> list[Video]:
        """The videos of one pass with their captions, as they were encoded."""
        texts = [self._shard(shard)[1] for shard in range(-(-len(self) // self.index.shard))]
        paths, captions = ([text for part in texts for text in part[name]] for name in ("path", "caption"))
        return [Video(Path(path), text) for path, text in zip(paths, captions, strict=True)][: len(self)]

    def check(self, spec: ModelSpec, weights: Mapping[str, Any]) -> None:
        """Raise UsageError unless the cache was made by the frozen networks of this parameter set."""
        ours = encoder_identity(spec, weights)
        if any(self.index.encoders.get(name) != value for name, value in ours.items()):
            raise UsageError(
                f"{self.folder} was encoded by other networks than these of {spec.name}",
                expected="the same autoencoder and towers",
                fix="encode again with these --weights",
            )

    def without_hashes(self) -> int:
        """Shards of an earlier version, whose bytes cannot be checked."""
        return sum(not self.index.about(self.folder, n).is_file() for n in range(self.index.shards))

    def fingerprint(self) -> dict[str, str]:
        """What the data is: the index, and the shards by their hashes, or sizes without them."""
        shards = []
        for shard in range(self.index.shards):
            known = read_about(self.folder, self.index, shard)
            shards.append(known["sha256"] if known else self.index.path(self.folder, shard).stat().st_size)
        return {"content": hash_value([to_dict(self.index), shards])}

    def _state(self, shard: int) -> tuple:
        return stamp(self.index.path(self.folder, shard))

    def _shard(self, shard: int) -> tuple[Weights, dict[str, list[str]]]:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if self._state(shard) != self._states[shard] and (why := damage(self.folder, self.index, shard)):
            raise BadFileError(f"{self.index.path(self.folder, shard)} {why}", fix=AGAIN)
        self._open[shard] = open_shard(self.folder, self.index, shard)
        if len(self._open) > OPEN_SHARDS:
            self._open.popitem(last=False)
        return self._open[shard]


def split_key(key: Any) -> tuple[int, int]:
    """(epoch, index) of a key: an index alone belongs to epoch 0."""
    if hasattr(key, "epoch"):
        return int(key.epoch), int(key.index)
    return (int(key[0]), int(key[1])) if isinstance(key, tuple) else (0, int(key))


def encoder_identity(spec: ModelSpec, weights: Mapping[str, Any]) -> dict[str, str]:
    """{"spec", "weights"}: SHA-256 of what describes the encoders, and of their parameters as stored.

    Denoiser, adapter and projector are left out: fine-tunes of one base share a cache. Reads the encoders'
    tensors once (about 4 GB for the published models).
    """
    parts = {"vae": spec.vae, "text": spec.text, "image": spec.image, "towers_seed": spec.towers_seed}
    digest = hashlib.sha256()
    stored = canonical(weights)
    for name in sorted(name for name in stored if name.startswith(FROZEN)):
        value = weights[stored[name]]
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        flat = value.detach().cpu().contiguous().view(-1)
        for start in range(0, flat.numel(), 4 * CHUNK):
            digest.update(raw_bytes(flat[start : start + 4 * CHUNK]))
    return {"spec": hash_value(to_dict(parts)), "weights": digest.hexdigest()}
