"""A checkpoint as a lazy mapping name -> tensor: .ckpt/.pt/.pth, .safetensors, sharded folders, and our
own files.

Opening reads names, shapes and places only. Tensors are read by positioned reads, whole or in parts, so
memory does not depend on the size of the file, and no code that a file may contain ever runs
(`pickle_machine`).
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edg.core.errors import BadFileError, EdgError, UsageError
from edg.core.files import read_small
from edg.core.process import stopping
from edg.weights import base_file, keys
from edg.weights.family import UNKNOWN, Family, FamilyOf, resolve
from edg.weights.hashing import places_key
from edg.weights.readers.legacy import open_legacy
from edg.weights.readers.safetensors import open_safetensors
from edg.weights.readers.sniff import sniff
from edg.weights.readers.zip_archive import ZipEntry, check_crc, file_tensor, open_zip
from edg.weights.tables import choose_table
from edg.weights.tensors import MISSING, InputFile, MemoryTensor, StoredTensor, TensorInfo
from edg.weights.writers import write_pt, write_safetensors

if TYPE_CHECKING:
    import torch


__all__ = ["TensorInfo", "Weights", "open_weights", "write_pt", "write_safetensors"]
MAX_INDEX = 64 << 20  # bytes
DAMAGED = (
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    RecursionError,
    MemoryError,
    struct.error,
)


class Weights(Mapping):
    """Tensors of a checkpoint by published name.

    container: 'zip' | 'safetensors' | 'sharded' | 'legacy' | 'memory'.
    metadata: texts stored in the file, and plain numbers beside its tensors.
    notes: lines on names that were ignored or changed.
    tensors: name -> StoredTensor.
    files: every file read.
    family: of the names.
    """

    def __init__(
        self,
        path: Path,
        container: str,
        tensors: Mapping[str, StoredTensor],
        *,
        metadata: Mapping[str, str] | None = None,
        notes: list[str] | None = None,
        files: list[InputFile] | None = None,
        family: FamilyOf = UNKNOWN,
    ):
        self.path, self.container = Path(path), container
        self.metadata, self.notes, self.files = dict(metadata or {}), list(notes or []), list(files or [])
        self.family: Family = resolve(family, tensors)
        try:
            names, more = keys.normalise(tensors, self.family)
        except ValueError as error:
            raise BadFileError(f"{path}: {error}") from error
        self.tensors = {name: tensors[stored] for name, stored in names.items()}
        self.stored_names = names
        self.notes += more
        self.records: list[tuple[InputFile, ZipEntry]] = []
        self.table = ""  # that was asked for, of several in the file

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], path: str = "memory") -> Weights:
        """A mapping over tensors that are already in memory."""
        return cls(Path(path), "memory", {name: MemoryTensor(t) for name, t in tensors.items()})

    def __getitem__(self, name: str) -> torch.Tensor:
        """The whole tensor, freshly allocated on the CPU in its stored dtype."""
        return self.tensors[name].load()

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def names(self) -> list[str]:
        return list(self.tensors)

    def info(self, name: str) -> TensorInfo:
        return self.tensors[name].info

    def infos(self) -> dict[str, TensorInfo]:
        return {name: tensor.info for name, tensor in self.tensors.items()}

    def last(self, name: str) -> float:
        """The last value of a tensor."""
        return self.tensors[name].last()

    def read_into(self, name: str, start_element: int, out: torch.Tensor) -> None:
        """Fill the contiguous 1-d CPU tensor `out` with elements start_element.. , converting dtype."""
        self.tensors[name].read_into(start_element, out)

    @property
    def provenance(self) -> dict:
        """The record that `edg merge` wrote into this file ({} for other files)."""
        try:
            found = json.loads(self.metadata.get("edg", "{}"))
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def content_key(self) -> list | None:
        """Cache key of the numbers (JSON-like), None if there is none."""
        return places_key(self)

    def check_unchanged(self) -> None:
        """Raise BadFileError when a file was modified since it was opened."""
        for file in self.files:
            file.check_unchanged()

    def verify(self) -> int:
        """Compare every zip record with its CRC-32; returns how many were compared. Raises BadFileError."""
        for file, entry in self.records:
            stopping.check()
            if not check_crc(file, entry):
                raise BadFileError(
                    f"{file.path}: {self._tensor_in(file, entry)} does not match its CRC-32",
                    expected="unchanged bytes",
                    fix="download the file again",
                )
        return len(self.records)

    def _tensor_in(self, file: InputFile, entry: ZipEntry) -> str:
        for name, tensor in self.tensors.items():
            path, offset = tensor.where
            if path == str(file.path) and entry.offset <= offset < entry.offset + entry.size:
                return name
        return entry.name


def open_weights(
    path: str | os.PathLike,
    *,
    check_base: bool = True,
    join_base: bool = True,
    table: str = "",
    family: FamilyOf = UNKNOWN,
) -> Weights:
    """Open a checkpoint file or a sharded folder for lazy reading.

    A file in which `edg merge` stored only what changed opens as the complete mapping; check_base=False
    skips the check of the base's SHA-256 then, join_base=False shows only what is stored. table: the name of
    one of several tables in the file, '' for the raw weights (`tables.choose_table`). family: whose published
    names the tensors get, or a function that finds it from the stored names. Raises BadFileError
    (exit 3) for anything that is not a readable checkpoint, UsageError for a table that it does not have.
    """
    return _open_joined(Path(path), table, check_base, join_base, {}, family)


def _open_joined(
    path: Path,
    table: str,
    check_base: bool,
    join_base: bool,
    known: dict[tuple[str, str], Weights | None],
    family: FamilyOf,
) -> Weights:
    """known: bases found so far by path and table, None for a file whose base is being looked for: none is
    opened twice."""
    try:
        place = os.path.realpath(path), table
        known[place] = None
        weights = _open(path, family, table)
        if join_base and weights.provenance.get("base"):
            find = partial(_open_joined, check_base=check_base, join_base=True, known=known, family=family)
            weights = base_file.complete(weights, known, find, check_base)
        known[place] = weights
        return weights
    except EdgError:
        raise
    except OSError as error:
        raise BadFileError(f"cannot read {path}: {error.strerror or error}") from error
    except DAMAGED as error:
        raise BadFileError(
            f"{path} is damaged: {type(error).__name__} {error}"[:300],
            expected="a checkpoint",
            fix="download it again",
        ) from error


def _open(path: Path, family: FamilyOf, table: str = "") -> Weights:
    if path.is_dir() or path.name.endswith(".index.json"):
        _check_one_table(path, table)
        return _open_sharded(path, family)
    if path.exists() and not path.is_file():
        raise BadFileError(f"{path} is not a regular file", expected="a checkpoint")
    file = InputFile(path)
    kind = sniff(file)
    if kind == "safetensors":
        tensors, metadata = open_safetensors(file)
        _check_one_table(path, table)
        notes = _name_note(path, kind)
        return Weights(path, kind, tensors, metadata=metadata, notes=notes, files=[file], family=family)
    top, records, notes = open_zip(file) if kind == "zip" else open_legacy(file)
    refs, metadata, more = choose_table(path, top, table)
    tensors = {name: file_tensor(file, records, name, ref) for name, ref in refs.items()}
    notes += _name_note(path, kind) + more
    weights = Weights(path, kind, tensors, metadata=metadata, notes=notes, files=[file], family=family)
    weights.table = table
    used = dict.fromkeys(f"data/{ref.storage.key}".lower() for ref in refs.values())
    if kind == "zip":  # the others have no checksums
        weights.records = [(file, records[key]) for key in used]
    return weights


def _check_one_table(path: Path, table: str) -> None:
    if table:
        raise UsageError(f"--table {table}: {path} has only one table", expected="no --table for this file")


def _name_note(path: Path, kind: str) -> list[str]:
    suffix = path.suffix.lower()
    if kind == "safetensors" and suffix in (".ckpt", ".pt", ".pth", ".bin"):
        return [f"named {suffix}, but it is a safetensors file"]
    return (
        ["named .safetensors, but it is a torch checkpoint"]
        if kind == "zip" and suffix == ".safetensors"
        else []
    )


def _open_sharded(path: Path, family: FamilyOf) -> Weights:
    """A folder of shards, with or without *.index.json."""
    folder = path if path.is_dir() else path.parent
    index = [path] if path.is_file() else sorted(folder.glob("*.index.json"))
    if not folder.is_dir() or (not index and path.name.endswith(".index.json")):
        raise BadFileError(f"{path} does not exist", fix=MISSING)
    if len(index) > 1:
        raise BadFileError(f"{folder} has {len(index)} index files", fix="give the path of one of them")
    weight_map = _weight_map(index[0]) if index else None
    if weight_map is not None:
        names = sorted(set(weight_map.values()))
    else:
        names = sorted(
            p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
        )
        if any(n.startswith(("zero_pp_rank", "mp_rank", "bf16_zero_pp_rank")) for n in names):
            raise BadFileError(f"{folder} holds DeepSpeed ZeRO shards", fix="run zero_to_fp32.py in it first")
        if not names:
            raise BadFileError(f"{folder} has no weights", expected="a checkpoint or *.index.json in it")
        if len(names) > 1 and any(not n.endswith(".safetensors") for n in names):
            raise BadFileError(f"{folder} has {len(names)} checkpoints", fix="give the path of one of them")
    shards = {}
    for name in names:
        shard = folder / name
        if not shard.is_file() or name.endswith(".index.json"):
            raise BadFileError(f"{index[0] if index else folder} names the shard {name}, which is missing")
        if index and not _is_inside(shard, folder):
            raise BadFileError(f"{index[0]}: its weight_map names files outside the folder, such as {name}")
        shards[name] = _open(shard, family)
    tensors = _gather_shards(path, shards, weight_map)
    notes = [note for shard in shards.values() for note in shard.notes]
    files = [file for shard in shards.values() for file in shard.files]
    weights = Weights(path, "sharded", tensors, notes=notes, files=files, family=family)
    weights.records = [record for shard in shards.values() for record in shard.records]
    return weights


def _gather_shards(
    path: Path, shards: dict[str, Weights], weight_map: dict | None
) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for shard_name, shard in shards.items():
        for name, stored in shard.stored_names.items():
            if stored in tensors:
                raise BadFileError(f"{path}: {stored!r} is in two shards")
            if weight_map is None or weight_map.get(stored) == shard_name:
                tensors[stored] = shard.tensors[name]
    lost = [name for name in weight_map or () if name not in tensors and not name.startswith("model_ema.")]
    if lost:
        raise BadFileError(f"{path}: the shards lack {len(lost)} tensors of the index, first {lost[0]!r}")
    return tensors


def _weight_map(path: Path) -> dict[str, str]:
    try:
        found = json.loads(read_small(path, MAX_INDEX))["weight_map"]
        good = all(_is_relative(value) for value in found.values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise BadFileError(f"{path} is not an index of shards ({error})"[:300]) from error
    if not good:
        raise BadFileError(f"{path}: its weight_map names files outside the folder")
    return found


def _is_relative(name: object) -> bool:
    """True if the name of a shard leads down from the index's folder."""
    parts = Path(name).parts if isinstance(name, str) else ()
    return bool(parts) and not Path(name).is_absolute() and ".." not in parts


def _is_inside(shard: Path, folder: Path) -> bool:
    """True if a shard is in the folder when links are followed; a snapshot of the Hugging Face cache is
    made of links to the blobs of its repository."""
    top, place = folder.resolve(), shard.resolve()
    snapshots = next((parent for parent in (top, *top.parents) if parent.name == "snapshots"), None)
    allowed = [top] if snapshots is None else [top, snapshots.parent / "blobs"]
    return any(place.is_relative_to(root) for root in allowed)


def refuse_lora(weights: Weights) -> None:
    """Raise BadFileError where a whole model is wanted and the file holds low-rank changes to one."""
    if keys.is_lora(weights):
        raise BadFileError(
            f"{weights.path} looks like a LoRA, which is a change to a model and not a model",
            expected="a whole model",
            fix="merge it into its model with the tool that trained it, and give the resulting file",
        )
