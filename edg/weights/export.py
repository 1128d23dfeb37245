"""`edg export`: any parameter set -> one complete file for other tools, a block of a tensor at a time."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edg.core.arguments import as_path
from edg.core.device import DTYPES
from edg.core.errors import UsageError, nearest, visible
from edg.core.process import stopping
from edg.weights.align import refuse_lora
from edg.weights.keys import BUFFERS
from edg.weights.reference import sha256_weights
from edg.weights.store import Weights, open_weights
from edg.weights.tables import HELP as TABLE_HELP
from edg.weights.tensors import CHUNK, FLOATS, ITEMSIZE, TensorInfo, raw_bytes, torch_dtype
from edg.weights.writers import TensorWriter, open_writer

if TYPE_CHECKING:
    import torch

FORMATS = {".safetensors": "safetensors", ".pt": "pt", ".ckpt": "pt", ".pth": "pt"}


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", type=as_path, help="a parameter set: of a merge, of a training run, a checkpoint, shards"
    )
    parser.add_argument(
        "out", type=as_path, help="OUT.safetensors, OUT.pt or OUT.ckpt; the ending chooses the format"
    )
    parser.add_argument("--dtype", help="of the floating tensors: fp16, bf16 or float32 (as they are stored)")
    parser.add_argument("--table", default="", metavar="NAME", help=TABLE_HELP)
    parser.add_argument("--overwrite", action="store_true", help="replace OUT where it is there already")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def export_command(args: argparse.Namespace) -> int:
    """Carry out `edg export`. Raises EdgError; returns the exit code."""
    from edg.weights.commands import progress_line

    progress = None if args.quiet else progress_line("exporting")
    infos = export(
        args.file,
        args.out,
        dtype_of(args.dtype),
        table=args.table,
        overwrite=args.overwrite,
        progress=progress,
        warn=lambda text: print(visible(text), file=sys.stderr),
    )
    size = os.stat(args.out).st_size
    print(f"{args.out}  {size / 1e9:.2f} GB, complete: {len(infos)} tensors")
    return 0


def dtype_of(name: str | None) -> str | None:
    """'float16' for fp16, and so on; None stays None. Raises UsageError."""
    if name is None:
        return None
    full = DTYPES.get(name.removeprefix("torch."))
    if not full:
        known = [key for key, value in DTYPES.items() if value]
        raise UsageError(f"--dtype {name}", expected="fp16, bf16 or float32", fix=nearest(name, known))
    return full


def export(
    source: str | os.PathLike,
    out: str | os.PathLike,
    dtype: str | None = None,
    *,
    table: str = "",
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> dict[str, TensorInfo]:
    """Write every tensor of `source` to `out` and return what was written; a file of changes is joined with
    its base. Atomic; memory is one block of a tensor.

    dtype: 'float16', 'bfloat16' or 'float32' for floating tensors, None keeps each as it is. The schedule is
    kept as stored: 16 bits cannot hold it. table: of several in the file. warn: is given what the file has
    and OUT will not. Raises UsageError (ending, an `out` that is there, values too
    large for float16), BadFileError, MachineError.
    """
    out = Path(out)
    form = FORMATS.get(out.suffix.lower())
    if form is None:
        raise UsageError(f"export to {str(out)!r}", expected="a name that ends in .safetensors, .pt or .ckpt")
    weights = open_weights(source, table=table)
    refuse_lora(weights)
    for note in weights.notes:
        warn(f"note: {note}")
    if any(out.resolve() == file.path.resolve() for file in weights.files):
        raise UsageError(f"{out} is one of the files to be read", fix="choose another name")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} is there already", fix="choose another name or give --overwrite")
    plan = {name: _target(name, info, dtype) for name, info in weights.infos().items()}
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


def _target(name: str, info: TensorInfo, dtype: str | None) -> TensorInfo:
    if dtype is None or info.dtype not in FLOATS or name in BUFFERS:
        return info
    return TensorInfo(info.shape, dtype)


def _record(weights: Weights, dtype: str | None) -> dict:
    """The source's own record without its base (nothing refers to another file any more), and whence."""
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
