"""`edg export`: any parameter set -> one complete file for other tools."""

from __future__ import annotations

import argparse
import os

from edg.core.arguments import as_path
from edg.core.device import DTYPES
from edg.core.errors import UsageError, nearest
from edg.core.log import log
from edg.networks import family_of
from edg.runner.progress import byte_progress
from edg.weights.export import export
from edg.weights.tables import HELP as TABLE_HELP


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        type=as_path,
        help="a parameter set: of a merge or a training run, a checkpoint, or a folder of shards",
    )
    parser.add_argument(
        "out", type=as_path, help="OUT.safetensors, OUT.pt or OUT.ckpt; the extension selects the format"
    )
    parser.add_argument(
        "--dtype", help="dtype of the floating-point tensors: fp16, bf16 or float32 (as stored)"
    )
    parser.add_argument("--table", default="", metavar="NAME", help=TABLE_HELP)
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def export_command(args: argparse.Namespace) -> int:
    """Carry out `edg export`. Raises EdgError; returns the exit code."""
    progress = None if args.quiet else byte_progress("exporting")
    infos = export(
        args.file,
        args.out,
        dtype_of(args.dtype),
        table=args.table,
        family=family_of,
        overwrite=args.overwrite,
        progress=progress,
        warn=log,
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
