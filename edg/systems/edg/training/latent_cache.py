"""The latent cache: a folder with the outputs of the frozen networks for every clip, read one clip at a time.

    index.json                  its contents, and the encoders and clip settings that it was made with
    clips-00000.safetensors     the first `shard` clips, clips-00001 the next, ...
    clips-00000.json            the shard's note: its hash, and size, times and hash of the video of each clip

`encode.py` writes it shard by shard, each atomically; training and Analytic-Init read it. A shard is finished
while its bytes are those that were written, for this index and place. Caches of earlier versions have no
notes: `edg encode` adds them.
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
from edg.data.batches import Key, Sample
from edg.data.sources import CaptionedVideo
from edg.networks.latent_video.load import TOWERS, canonical
from edg.networks.latent_video.spec import ModelSpec
from edg.weights.store import Weights, open_weights
from edg.weights.tensors import CHUNK, raw_bytes, torch_dtype
from edg.weights.writers import write_safetensors

INDEX = "index.json"
IDENTITY = "of"  # key of a shard's metadata; shards of earlier versions have none
FORMAT = "edg clips 1"
FROZEN = ("first_stage_model.encoder.", "first_stage_model.quant_conv.", *TOWERS)
OPEN_SHARDS = 32  # files a reader holds open
AGAIN = "run the same `edg encode` command again to complete the folder"
Note = dict[str, Any]  # {"sha256": of the shard, "clips": [{"path", "size", "mtime_ns", ...}]}


@dataclass(frozen=True)
class CacheIndex:
    """Description of a cache; two runs with equal indices write equal shards.

    spec: name of the model.
    encoders: identity of the encoders, see encoder_identity.
    clips: the clip settings.
    videos: hash of the list of videos and captions.
    size: clips of one pass over the videos.
    passes: number of passes, each with other clips of the same videos.
    every_frame: image tokens of all frames, else of frame 0.
    shard: clips in one file.
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
        """The numbers of a shard's clips: clip n is clip n % size of pass n // size."""
        return range(shard * self.shard, min((shard + 1) * self.shard, self.count))

    def shard_path(self, folder: Path, shard: int) -> Path:
        return folder / f"clips-{shard:05d}.safetensors"

    def note_path(self, folder: Path, shard: int) -> Path:
        return folder / f"clips-{shard:05d}.json"


def is_cache(folder: str | Path) -> bool:
    """True for a folder with an index."""
    return (Path(folder) / INDEX).is_file()


def read_index(folder: str | Path) -> CacheIndex:
    """Read the index of a cache. Raises BadFileError if it is none."""
    path = Path(folder) / INDEX
    values = read_json(path)
    known = {field.name for field in fields(CacheIndex)}
    if not isinstance(values, dict) or values.get("format") != FORMAT or set(values) != known:
        raise BadFileError(f"{path} is not an index of encoded clips", expected=f"format {FORMAT!r}")
    return CacheIndex(**values)


def read_note(folder: Path, index: CacheIndex, shard: int) -> Note | None:
    """Read the note of a shard, None without a usable one."""
    with suppress(BadFileError):
        found = read_json(index.note_path(folder, shard))
        clips = found.get("clips") if isinstance(found, dict) else None
        good = isinstance(clips, list) and all(isinstance(clip, dict) and "path" in clip for clip in clips)
        if good and len(clips) == len(index.numbers(shard)) and isinstance(found.get("sha256"), str):
            return found
    return None


def shard_damage(folder: Path, index: CacheIndex, shard: int) -> str:
    """The reason why a shard is not finished, "" if it is. Its bytes are hashed if its file has changed since
    the last time."""
    path = index.shard_path(folder, shard)
    if not path.is_file():
        return "does not exist"
    try:
        note = read_note(folder, index, shard)
        if note is not None and cached_sha256(path) != note["sha256"]:
            return "differs from the file that was written"
        identity = open_shard(folder, index, shard)[0].metadata.get(IDENTITY, "")
        if identity and identity != _shard_identity(index, shard):
            return "belongs to another index, or to another place in it"
        if identity and note is None:
            return "has no record of its videos"
    except BadFileError as error:
        return f"cannot be used ({error})"
    return ""


def _shard_identity(index: CacheIndex, shard: int) -> str:
    """Hash of a shard's index and its place in it."""
    return hash_value([to_dict(index), shard])


def write_index(folder: str | Path, index: CacheIndex) -> None:
    """Write the index, or accept an equal one that is there.

    Raises UsageError if the folder holds clips that were encoded with other settings, or shards of an earlier
    version without the index.
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
    for path in (index.shard_path(folder, shard) for shard in range(index.shards)):
        with suppress(BadFileError):
            if path.is_file() and IDENTITY not in open_weights(path).metadata:
                raise UsageError(
                    f"{folder} holds {path.name} but no {INDEX} that describes it",
                    fix=f"choose another --out, or put the {INDEX} back",
                )
    write_json(folder / INDEX, to_dict(index))


def write_shard(folder: Path, index: CacheIndex, shard: int, items: Iterable[Mapping[str, Any]]) -> None:
    """Write a shard, atomically, then its note.

    items: in the order of index.numbers(shard). Floating tensors are stored in index.dtype, integers and
    numbers as they are, texts in the metadata, `source` in the note.
    """
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
        # plain numbers are stored exactly, only tensors of the networks are narrowed
        narrow = stacked.ndim > 1 and stacked.is_floating_point()
        tensors[name] = stacked.to(torch_dtype(index.dtype)) if narrow else stacked
        if narrow and not torch.isfinite(tensors[name]).all():
            what = ", ".join(sorted({str(row.get("path", "?")) for row in rows})[:2])
            raise BadFileError(
                f"{name} of a clip in shard {shard} ({what}, ...) is not finite in {index.dtype}",
                fix="use --dtype float32 and --compute float32",
            )
    metadata = {"texts": json.dumps(texts), IDENTITY: _shard_identity(index, shard)}
    write_safetensors(index.shard_path(folder, shard), tensors, metadata)
    write_note(folder, index, shard, clips)


def write_note(folder: Path, index: CacheIndex, shard: int, clips: Sequence[Mapping[str, Any]]) -> None:
    """Write a shard's hash and the videos of its clips."""
    digest = cached_sha256(index.shard_path(folder, shard))
    write_json(index.note_path(folder, shard), {"sha256": digest, "clips": list(clips)})


def open_shard(folder: Path, index: CacheIndex, shard: int) -> tuple[Weights, dict[str, list[str]]]:
    """Open a shard's tensors and texts. Raises BadFileError if it does not hold its clips."""
    path = index.shard_path(folder, shard)
    weights = open_weights(path)
    try:
        texts = json.loads(weights.metadata["texts"])
    except (LookupError, ValueError) as error:
        raise BadFileError(f"{path} is not a shard of encoded clips") from error
    wanted = len(index.numbers(shard))
    if any(len(column) != wanted for column in texts.values()) or any(
        weights.info(name).shape[:1] != (wanted,) for name in weights
    ):
        raise BadFileError(f"{path} does not hold {wanted} clips", fix="remove it and encode again")
    return weights, texts


class CachedClips:
    """Clips of a cache: those of ClipDataset with `moments` (2C, T, h, w), `text` (L, D) and `image` (M, W)
    or `images` (T, M, W), float32, in place of frames.

    Keys are an index, (epoch, index), or a batches.Key. Epoch e reads pass e % passes. A clip is read alone;
    the object may be pickled and forked. Raises BadFileError if shards are missing or damaged, IndexError for
    an index outside 0..len.
    """

    def __init__(self, folder: str | Path):
        self.folder, self.index = Path(folder), read_index(folder)
        lost = [n for n in range(self.index.shards) if not self.index.shard_path(self.folder, n).is_file()]
        if lost:
            raise BadFileError(
                f"{folder} lacks {len(lost)} of {self.index.shards} shards, first {lost[0]}", fix=AGAIN
            )
        for shard in range(self.index.shards):
            if why := shard_damage(self.folder, self.index, shard):
                raise BadFileError(f"{self.index.shard_path(self.folder, shard)} {why}", fix=AGAIN)
        self._states = [self._state(shard) for shard in range(self.index.shards)]
        self._open: OrderedDict[int, tuple[Weights, dict[str, list[str]]]] = OrderedDict()

    def __len__(self) -> int:
        """Clips of one pass."""
        return self.index.size

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": OrderedDict()}

    def __getitem__(self, key: Key | tuple[int, int] | int) -> Sample:
        epoch, index = key[:2] if isinstance(key, tuple) else (0, int(key))
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        return self.read((epoch % self.index.passes) * len(self) + index)

    def read(self, number: int) -> Sample:
        """Read clip `number` of all passes, 0..index.count."""
        shard, row = divmod(number, self.index.shard)
        weights, texts = self._shard(shard)
        item: Sample = {name: column[row] for name, column in texts.items()}
        for name in weights:
            info = weights.info(name)
            value = torch.empty(info.shape[1:], dtype=torch_dtype(info.dtype))
            weights.read_into(name, row * value.numel(), value.view(-1))
            whole = not value.ndim
            item[name] = value.item() if whole else value.float() if value.is_floating_point() else value
        return item

    def moments(self, number: int) -> Tensor:
        """Read the posterior mean and log variance (2C, T, h, w) of clip `number`, float32."""
        shard, row = divmod(number, self.index.shard)
        weights, _ = self._shard(shard)
        value = torch.empty(weights.info("moments").shape[1:])
        weights.read_into("moments", row * value.numel(), value.view(-1))
        return value

    @property
    def videos(self) -> list[CaptionedVideo]:
        """The videos of one pass with their captions, as encoded."""
        texts = [self._shard(shard)[1] for shard in range(-(-len(self) // self.index.shard))]
        paths, captions = ([text for part in texts for text in part[name]] for name in ("path", "caption"))
        return [CaptionedVideo(Path(path), text) for path, text in zip(paths, captions, strict=True)][
            : len(self)
        ]

    def check(self, spec: ModelSpec, weights: Mapping[str, Tensor]) -> None:
        """Raise UsageError unless the cache was made with the frozen networks of this parameter set."""
        ours = encoder_identity(spec, weights)
        if any(self.index.encoders.get(name) != value for name, value in ours.items()):
            raise UsageError(
                f"{self.folder} was encoded by other networks than these of {spec.name}",
                expected="the same autoencoder and towers",
                fix="encode again with these --weights",
            )

    def without_hashes(self) -> int:
        """The number of shards of an earlier version, whose bytes cannot be checked."""
        return sum(not self.index.note_path(self.folder, n).is_file() for n in range(self.index.shards))

    def fingerprint(self) -> dict[str, str]:
        """Hash of the index and of the shards, by their own hashes or else sizes."""
        shards = []
        for shard in range(self.index.shards):
            note = read_note(self.folder, self.index, shard)
            shards.append(
                note["sha256"] if note else self.index.shard_path(self.folder, shard).stat().st_size
            )
        return {"content": hash_value([to_dict(self.index), shards])}

    def _state(self, shard: int) -> tuple[object, ...]:
        return stamp(self.index.shard_path(self.folder, shard))

    def _shard(self, shard: int) -> tuple[Weights, dict[str, list[str]]]:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if self._state(shard) != self._states[shard] and (
            why := shard_damage(self.folder, self.index, shard)
        ):
            raise BadFileError(f"{self.index.shard_path(self.folder, shard)} {why}", fix=AGAIN)
        self._open[shard] = open_shard(self.folder, self.index, shard)
        if len(self._open) > OPEN_SHARDS:
            self._open.popitem(last=False)
        return self._open[shard]


def encoder_identity(spec: ModelSpec, weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Identity of the encoders: SHA-256 of their description ("spec") and of their parameters ("weights").

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
