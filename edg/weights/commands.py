"""`edg merge` and `edg info`: their flags and what they print."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from edg.core.arguments import as_path, named_path, whole
from edg.core.errors import BadFileError, UsageError, visible
from edg.weights import keys
from edg.weights.store import DAMAGED, Weights, open_inputs, open_weights
from edg.weights.tables import HELP as TABLE_HELP
from edg.weights.tables import by_input
from edg.weights.tensors import TensorInfo

Identify = Callable[[Mapping], str]


def add_merge_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", type=as_path, help="a YAML file, or the name of one in configs/merge (edg, ties, ...)"
    )
    parser.add_argument("--base", type=as_path, help="the input named base")
    parser.add_argument("--tuned", type=as_path, help="the input named tuned")
    parser.add_argument(
        "--input", type=named_path, action="append", default=[], metavar="NAME=FILE", help="any other input"
    )
    parser.add_argument(
        "--table", action="append", default=[], metavar="[INPUT=]NAME", help=f"{TABLE_HELP}, INPUT's or all"
    )
    parser.add_argument(
        "--out", "--outdir", type=as_path, default="merged", help="folder of the outputs (default: merged)"
    )
    parser.add_argument(
        "--full", action="store_true", help="complete files, not only what differs from the base"
    )
    parser.add_argument("--format", choices=("safetensors", "pt"), default="safetensors")
    parser.add_argument(
        "--seed", type=whole(0, 2**64 - 1), help="of the random masks (default: the recipe's)"
    )
    parser.add_argument("--dtype", help="of the outputs: float32, float16, bfloat16 (default: the base's)")
    parser.add_argument("--missing", help="names not in every input: identity, error or drop")
    parser.add_argument("--strict", action="store_true", help="NaN or Inf in an input is an error")
    parser.add_argument("--verify", action="store_true", help="compare the inputs with their checksums first")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, write nothing")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--overwrite", action="store_true", help="merge again what is finished already")


def merge_command(args: argparse.Namespace) -> int:
    """Carry out `edg merge`. Raises EdgError; returns the exit code."""
    from edg.weights import recipe as recipes

    recipe = recipes.load_recipe(args.recipe)
    inputs = dict(recipe.inputs)
    given = [item.partition("=") for item in args.input]
    for item, (_, equals, _) in zip(args.input, given, strict=True):
        if not equals:
            raise UsageError(f"--input {item}", expected="NAME=FILE")
    named = [("base", args.base), ("tuned", args.tuned), *((n, f) for n, _, f in given)]
    inputs |= {name: path for name, path in named if path}
    empty = [name for name, path in inputs.items() if not path]
    if empty:
        raise UsageError(
            f"{args.recipe} names no file for {', '.join(empty)}", fix=f"give --input {empty[0]}=FILE"
        )
    tables = {**recipe.tables, **by_input(args.table, inputs)}
    changes = {"tables": tables or None, "seed": args.seed, "dtype": args.dtype, "missing": args.missing}
    recipe = dataclasses.replace(recipe, inputs=inputs, **{k: v for k, v in changes.items() if v is not None})
    if args.verify:
        for name, weights in open_inputs(recipe).items():
            print(f"{name}: {weights.verify()} checksums compared")
    if args.dry_run:
        return _plan(recipe, args.full)
    return merge_and_report(
        recipe,
        args.out,
        full=args.full,
        format=args.format,
        strict=args.strict,
        quiet=args.quiet,
        overwrite=args.overwrite,
    )


def merge_and_report(
    recipe,
    out,
    *,
    full: bool,
    format: str,
    strict: bool = False,
    quiet: bool = False,
    overwrite: bool = False,
) -> int:
    """Run a recipe with a progress line and a closing line for every output, unless it was run already."""
    from edg.weights import merge
    from edg.weights.provenance import is_made

    if not overwrite and is_made(recipe, Path(out), full, format):
        print(f"{', '.join(recipe.outputs)}: finished already in {out} (--overwrite makes them again)")
        return 0
    began = time.monotonic()
    made = merge.run(
        recipe, out, full=full, format=format, strict=strict, progress=None if quiet else progress_line()
    )
    seconds = time.monotonic() - began
    for item in made:
        what = "complete" if full else f"{item.stored} of {item.tensors} tensors, the others in the base"
        print(f"{item.path}  {item.nbytes / 1e9:.2f} GB, {what}")
    print(f"merged in {seconds:.1f} s")
    return 0


def progress_line(what: str = "merging") -> Callable[[int, int], None] | None:
    """A percentage that rewrites itself on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        return None
    shown = [-1]

    def show(done: int, total: int) -> None:
        percent = 100 * done // max(total, 1)
        if percent != shown[0]:
            shown[0] = percent
            end = "\n" if done >= total else ""
            print(
                f"\r{what} {percent:3d} %  {done / 1e9:.1f} of {total / 1e9:.1f} GB",
                end=end,
                file=sys.stderr,
                flush=True,
            )

    return show


def _plan(recipe, full: bool) -> int:
    from edg.weights.masks import BLOCK
    from edg.weights.plan import make_plan

    notes: list[str] = []
    plan = make_plan(recipe, None, full, "safetensors", BLOCK, notes.append)
    aligned = plan.aligned
    nbytes = sum(info.nbytes for info in plan.outputs[0].infos)
    print(f"{len(aligned)} tensors, {nbytes / 1e9:.2f} GB, {len(plan.absent)} left out, seed {recipe.seed}")
    for note in notes:
        print(visible(note))
    for output in recipe.outputs:
        counts = Counter(recipe.step_for(output, tensor.name).op for tensor in aligned)
        steps = ", ".join(f"{op}: {n} tensors" for op, n in counts.most_common())
        print(f"{output}: {steps}; {'at most ' * (not full)}{nbytes / 1e9:.2f} GB")
    return 0


def add_info_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=as_path, help="a checkpoint or a folder of shards")
    parser.add_argument(
        "--names", nargs="?", const="*", metavar="PATTERN", help="list tensors, e.g. '*cc_projection*'"
    )
    parser.add_argument("--table", default="", metavar="NAME", help=TABLE_HELP)
    parser.add_argument("--verify", action="store_true", help="compare the data with its checksums")


def info_command(args: argparse.Namespace, identify: Identify | None = None) -> int:
    """Print what a checkpoint is, from names and shapes. identify: mapping -> name of its spec or ''."""
    try:
        weights = open_weights(args.file, check_base=args.verify, table=args.table)
    except BadFileError:  # tell what is in the file even when its base is not there
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
        f"family      {family(infos)}",
        f"spec        {spec or ('unknown' if identify else 'not checked')}",
        f"adapter     {'yes' if any(map(keys.is_adapter, infos)) else 'no'}",
        "dtype       " + ", ".join(f"{d} {100 * n / max(total, 1):.4g} %" for d, n in dtypes.most_common()),
        f"parameters  {total:,}",
    ]
    counts = keys.parameter_counts({name: info.numel for name, info in infos.items()})
    lines += [f"  {part:<12}{count:>15,}" for part, count in counts.items()]
    lines += [f"note        {note}" for note in weights.notes]
    try:
        return lines + _provenance(weights.provenance)
    except DAMAGED:
        return [*lines, "made by     a merge whose record is damaged"]


def family(infos: Mapping[str, TensorInfo]) -> str:
    """A guess from the names."""
    found = {keys.component(name) for name in infos}
    if "unet" in found and any(".temopral_conv." in name or ".init_attn." in name for name in infos):
        whole = {"vae", "image_proj"} <= found
        return "DynamiCrafter / EDG image-to-video" + ("" if whole else " (parts of it)")
    if "unet" in found:
        return "latent diffusion (another family)"
    return "unknown" if found <= {"other", "buffers"} else "parts of a latent diffusion model"


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
        told = {"trainable": training["trainable"], "data": training["data"], "seed": training["seed"]}
        told |= {name: training["train"][name] for name in ("steps", "batch", "lr")}
        return [*lines, *(f"  {name:<10}{value}" for name, value in told.items())]
    for step in (recipe.get("outputs") or {}).get(record.get("output"), []):
        settings = ", ".join(f"{k} {v}" for k, v in step.items() if k != "op" and v not in ("", []))
        lines.append(f"  step      {step.get('op')}: {settings}")
    rest = {k: v for k, v in recipe.items() if k not in ("inputs", "outputs") and v != ""}
    return [*lines, "  recipe    " + ", ".join(f"{k} {v}" for k, v in rest.items())]
