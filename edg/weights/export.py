"""Write any parameter set as one complete file for other tools, a block of a tensor at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edg.core.errors import UsageError
from edg.core.process import stopping
from edg.weights.base_file import sha256_weights
from edg.weights.family import UNKNOWN, FamilyOf
from edg.weights.store import Weights, open_weights, refuse_lora
from edg.weights.tensors import CHUNK, FLOATS, ITEMSIZE, TensorInfo, raw_bytes, torch_dtype
from edg.weights.writers import TensorWriter, open_writer

if TYPE_CHECKING:
    import torch

FORMATS = {".safetensors": "safetensors", ".pt": "pt", ".ckpt": "pt", ".pth": "pt"}


def export(
    source: str | os.PathLike,
    out: str | os.PathLike,
    dtype: str | None = None,
    *,
    table: str = "",
    family: FamilyOf = UNKNOWN,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> dict[str, TensorInfo]:
    """Write every tensor of `source` to `out` and return what was written; a file of changes is joined with
    its base. Atomic; memory is one block of a tensor.

    dtype: 'float16', 'bfloat16' or 'float32' for floating tensors, None keeps each as it is. The schedule is
    kept as stored: 16 bits cannot hold it. table: of several in the file. family: as for `open_weights`.
    warn: is given what the file has and OUT will not. Raises UsageError (ending, an `out` that is there,
    values too large for float16), BadFileError, MachineError.
    """
    out = Path(out)
    form = FORMATS.get(out.suffix.lower())
    if form is None:
        raise UsageError(f"export to {str(out)!r}", expected="a name that ends in .safetensors, .pt or .ckpt")
    weights = open_weights(source, table=table, family=family)
    refuse_lora(weights)
    for note in weights.notes:
        warn(f"note: {note}")
    if any(out.resolve() == file.path.resolve() for file in weights.files):
        raise UsageError(f"{out} is one of the input files", fix="choose another name")
    if out.exists() and not overwrite:
        raise UsageError(
            f"{out} already exists", fix="choose another name, or give --overwrite to replace it"
        )
    computed = weights.family.buffers
    plan = {
        name: info
        if dtype is None or info.dtype not in FLOATS or name in computed
        else TensorInfo(info.shape, dtype)
        for name, info in weights.infos().items()
    }
    if form == "safetensors":  # wide dtypes first: every tensor stays aligned
        plan = dict(sorted(plan.items(), key=lambda item: -ITEMSIZE[item[1].dtype]))
    text = json.dumps(_record(weights, dtype))
    writer = open_writer(out, form, plan, len(json.dumps({"edg": text})))
    try:
        total, done = sum(info.nbytes for info in plan.values()), 0
        for name, info in plan.items():
            _copy(weights, name, info, writer)
            done += info.nbytes
            if progress:
                progress(done, total)
        weights.check_unchanged()
        writer.finish({"edg": text})
    finally:
        writer.abort()
    return plan


def _record(weights: Weights, dtype: str | None) -> dict:
    """The source's own record without its base, and the file that was exported."""
    import edg

    kept = {key: value for key, value in weights.provenance.items() if key not in ("base", "absent")}
    source = {"path": str(weights.path), "sha256": sha256_weights(weights), "dtype": dtype or "as stored"}
    source |= {"table": weights.table} if weights.table else {}
    kept |= {"edg": kept.get("edg", edg.__version__), "exported": source}
    if "stored" in kept:
        kept["stored"] = kept["tensors"] = len(weights)
    return kept


def _copy(weights: Weights, name: str, info: TensorInfo, writer: TensorWriter) -> None:
    import torch

    writer.begin(name, info)
    stored, wanted = torch_dtype(weights.info(name).dtype), torch_dtype(info.dtype)
    block = torch.empty(min(CHUNK, info.numel), dtype=stored)
    narrow = block if stored == wanted else torch.empty_like(block, dtype=wanted)
    for start in range(0, info.numel, CHUNK):
        stopping.check()
        count = min(CHUNK, info.numel - start)
        weights.read_into(name, start, block[:count])
        if narrow is not block:
            narrow[:count].copy_(block[:count])
            _check_overflow(name, block[:count], narrow[:count])
        writer.append(raw_bytes(narrow[:count]))
    writer.end()


def _check_overflow(name: str, wide: torch.Tensor, narrow: torch.Tensor) -> None:
    import torch

    if not torch.isfinite(narrow.sum(dtype=torch.float32)):
        lost = int((torch.isfinite(wide) & ~torch.isfinite(narrow)).sum())
        if lost:
            kind = str(narrow.dtype).removeprefix("torch.")
            raise UsageError(f"{lost} values of {name} are too large for {kind}", fix="use --dtype bf16")
