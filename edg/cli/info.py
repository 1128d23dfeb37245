"""`edg info`: what a checkpoint is, from names and shapes; how a clip was made, from its record."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from edg.core.arguments import as_path
from edg.core.errors import BadFileError, require, visible
from edg.networks import open_weights
from edg.weights.store import DAMAGED, Weights
from edg.weights.tables import HELP as TABLE_HELP

Identify = Callable[[Mapping], str]
CHECKPOINTS = (".ckpt", ".pt", ".pth", ".safetensors", ".bin")  # known without a look at what clips are


def add_info_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=as_path, help="a checkpoint, a folder of shards, or a clip")
    parser.add_argument(
        "--names", nargs="?", const="*", metavar="PATTERN", help="list tensors, e.g. '*cc_projection*'"
    )
    parser.add_argument("--table", default="", metavar="NAME", help=TABLE_HELP)
    parser.add_argument("--verify", action="store_true", help="compare the data with the recorded checksums")


def info_command(args: argparse.Namespace, identify: Identify | None = None) -> int:
    """Print what a checkpoint is, from names and shapes, or how a clip was made. identify: mapping -> name
    of its spec or ''."""
    if _is_clip(Path(args.file)):
        return clip_info_command(args)
    try:
        weights = open_weights(args.file, check_base=args.verify, table=args.table)
    except BadFileError:  # describe the file even when its base is not there
        for line in describe(open_weights(args.file, join_base=False, table=args.table)):
            print(visible(line))
        raise
    for line in describe(weights, identify):
        print(visible(line))
    if args.names:
        import fnmatch

        for name in weights:
            if fnmatch.fnmatchcase(name, args.names):
                info = weights.info(name)
                print(f"  {name!r}  {list(info.shape)}  {info.dtype}")
    if args.verify:
        count = weights.verify()
        print(f"{count} checksums compared, all equal" if count else "the file has no checksums to compare")
    return 0


def _is_clip(path: Path) -> bool:
    if path.suffix.lower() in CHECKPOINTS:
        return False
    from edg.core.formats import is_clip

    return is_clip(path)


def clip_info_command(args: argparse.Namespace) -> int:
    """Print what a clip is and how it was made. Raises BadFileError for one that cannot be read, and with
    --verify for one that has changed since its record was written."""
    from edg.runner.clip_info import read_clip_info

    for flag, given in (("--names", args.names), ("--table", args.table)):
        require(
            not given, f"{flag} with the clip {args.file}", expected="a checkpoint", fix=f"leave out {flag}"
        )
    info = read_clip_info(Path(args.file))
    for line in info.lines():
        print(visible(line))
    if args.verify and info.changed:
        raise BadFileError(f"{args.file} has changed since its record was written")
    if args.verify:
        print("its SHA-256 matches the record" if info.recorded else "there is no record to compare it with")
    return 0


def describe(weights: Weights, identify: Identify | None = None) -> list[str]:
    """The lines of `edg info`."""
    infos = weights.infos()
    spec = identify(weights) if identify else ""
    dtypes = Counter()
    for info in infos.values():
        dtypes[info.dtype] += info.numel
    total = sum(info.numel for info in infos.values())
    size = sum(file.size for file in weights.files)
    lines = [
        f"file        {weights.path}",
        f"container   {weights.container}, {size / 1e9:.3f} GB, {len(infos)} tensors",
        f"family      {weights.family.title(infos)}",
        f"spec        {spec or ('unknown' if identify else 'not checked')}",
        *(
            f"{group:<12}{'yes' if any(map(holds, infos)) else 'no'}"
            for group, holds in weights.family.optional.items()
        ),
        "dtype       " + ", ".join(f"{d} {100 * n / max(total, 1):.4g} %" for d, n in dtypes.most_common()),
        f"parameters  {total:,}",
    ]
    counts = weights.family.parameter_counts({name: info.numel for name, info in infos.items()})
    lines += [f"  {part:<12}{count:>15,}" for part, count in counts.items()]
    lines += [f"note        {note}" for note in weights.notes]
    try:
        return lines + _provenance(weights.provenance)
    except DAMAGED:
        return [*lines, "made by     a merge whose record is damaged"]


def _provenance(record: dict) -> list[str]:
    recipe, training = record.get("recipe"), record.get("training")
    if not isinstance(recipe, dict) and not isinstance(training, dict):
        return []
    how = "trained by  " if isinstance(training, dict) else "made by     "
    lines = [f"{how}edg {record.get('edg')} as output {record.get('output')!r}"]
    for item in record.get("inputs", []):
        lines.append(
            f"  input     {item.get('name')}: {item.get('path')}  sha256 {str(item.get('sha256'))[:16]}..."
        )
    if isinstance(training, dict):
        made = {"trainable": training["trainable"], "data": training["data"], "seed": training["seed"]}
        made |= {name: training["train"][name] for name in ("steps", "batch", "lr")}
        return [*lines, *(f"  {name:<10}{value}" for name, value in made.items())]
    for step in (recipe.get("outputs") or {}).get(record.get("output"), []):
        settings = ", ".join(f"{k} {v}" for k, v in step.items() if k != "op" and v not in ("", []))
        lines.append(f"  step      {step.get('op')}: {settings}")
    rest = {k: v for k, v in recipe.items() if k not in ("inputs", "outputs") and v != ""}
    return [*lines, "  recipe    " + ", ".join(f"{k} {v}" for k, v in rest.items())]
