"""The latent cache: what the frozen networks say about every clip, in a folder, read one clip at a time.

    index.json                  what is in it, and of which encoders and clips it was made
    clips-00000.safetensors     the first `shard` clips, clips-00001 the next, ...

`encode.py` writes it, a shard at a time and each whole or not at all; training and Analytic-Init read it.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edg.core.config import to_dict
from edg.core.errors import BadFileError, UsageError
from edg.core.records import hash_value, read_json, write_json
from edg.data.sources import Video
from edg.systems.edg.load import TOWERS, canonical
from edg.systems.edg.spec import ModelSpec
from edg.weights.store import Weights, open_weights
from edg.weights.tensors import CHUNK, raw_bytes, torch_dtype
from edg.weights.writers import write_safetensors

INDEX = "index.json"
FORMAT = "edg clips 1"
FROZEN = ("first_stage_model.encoder.", "first_stage_model.quant_conv.", *TOWERS)
OPEN_SHARDS = 32  # files a reader holds open


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


def begin(folder: str | Path, index: Index) -> list[int]:
    """Write the index, or find the same one there, and return the shards that are not finished yet.

    Raises UsageError when the folder holds clips that were encoded otherwise, naming what differs.
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
                fix="choose another --out",
            )
    else:
        write_json(folder / INDEX, to_dict(index))
    return [n for n in range(index.shards) if not index.path(folder, n).is_file()]


def write_shard(folder: Path, index: Index, shard: int, items: Iterable[Mapping[str, Any]]) -> None:
    """Write one shard, atomically. items: in the order of index.numbers(shard); floating tensors are stored
    in index.dtype, integers and numbers as they are, texts in the metadata."""
    rows = list(items)
    assert len(rows) == len(index.numbers(shard))
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
    write_safetensors(index.path(folder, shard), tensors, {"texts": json.dumps(texts)})


class CachedClips:
    """Map-style: cache[key] is one clip, as ClipDataset gives it but with `moments` (2C, T, h, w), `text`
    (L, D) and `image` (M, W) or `images` (T, M, W) in place of frames, float32.

    key: an index, (epoch, index), or anything with both as attributes. Epoch e reads pass e % passes. Only
    the asked for clip is read; readers may be pickled and forked. Raises BadFileError when shards are
    missing, IndexError for an index outside 0..len.
    """

    def __init__(self, folder: str | Path):
        self.folder, self.index = Path(folder), read_index(folder)
        lost = [n for n in range(self.index.shards) if not self.index.path(self.folder, n).is_file()]
        if lost:
            raise BadFileError(
                f"{folder} lacks {len(lost)} of {self.index.shards} shards, first {lost[0]}",
                fix="run the same `edg encode` again, it continues",
            )
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

    def _shard(self, shard: int) -> tuple[Weights, dict[str, list[str]]]:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        path = self.index.path(self.folder, shard)
        weights = open_weights(path)
        try:
            texts = json.loads(weights.metadata["texts"])
        except (LookupError, ValueError) as error:
            raise BadFileError(f"{path} is no shard of encoded clips") from error
        wanted = len(self.index.numbers(shard))
        if any(len(column) != wanted for column in texts.values()) or any(
            weights.info(name).shape[:1] != (wanted,) for name in weights
        ):
            raise BadFileError(f"{path} does not hold {wanted} clips", fix="remove it and encode again")
        self._open[shard] = weights, texts
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
