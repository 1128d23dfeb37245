"""`edg merge`: its flags and what it prints."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections import Counter
from pathlib import Path

from edg.core.arguments import as_path, named_path, whole
from edg.core.errors import UsageError, visible
from edg.core.shipped import listing
from edg.networks import family_of
from edg.runner.progress import byte_progress
from edg.weights.tables import HELP as TABLE_HELP
from edg.weights.tables import by_input


def add_merge_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe",
        nargs="?",
        type=as_path,
        help="a YAML file, or the name of one in configs/merge (edg, ties, ...); omit it to list them",
    )
    parser.add_argument("--base", type=as_path, help="the input named base")
    parser.add_argument("--tuned", type=as_path, help="the input named tuned")
    parser.add_argument(
        "--input", type=named_path, action="append", default=[], metavar="NAME=FILE", help="any other input"
    )
    parser.add_argument(
        "--table",
        action="append",
        default=[],
        metavar="[INPUT=]NAME",
        help=f"{TABLE_HELP}; for INPUT, or for every input",
    )
    parser.add_argument(
        "--out", "--outdir", type=as_path, default="merged", help="folder of the outputs (default: merged)"
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="write complete files, not only the tensors that differ from the base",
    )
    parser.add_argument("--format", choices=("safetensors", "pt"), default="safetensors")
    parser.add_argument(
        "--seed", type=whole(0, 2**64 - 1), help="seed of the random masks (default: the recipe's)"
    )
    parser.add_argument(
        "--dtype", help="dtype of the outputs: float32, float16 or bfloat16 (default: the base's)"
    )
    parser.add_argument("--missing", help="for tensors that are not in every input: identity, error or drop")
    parser.add_argument("--strict", action="store_true", help="treat NaN or Inf in an input as an error")
    parser.add_argument("--verify", action="store_true", help="first compare the inputs with their checksums")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, write nothing")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.add_argument("--overwrite", action="store_true", help="make finished outputs again")


def merge_command(args: argparse.Namespace) -> int:
    """Carry out `edg merge`. Raises EdgError; returns the exit code."""
    from edg.merging import recipe as recipes

    if args.recipe is None:
        print(listing("configs", "merge"))
        return 0
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
        flags = " ".join(map(_flag_of, empty))
        raise UsageError(f"{args.recipe} names no file for {', '.join(empty)}", fix=f"give {flags}")
    tables = {**recipe.tables, **by_input(args.table, inputs)}
    changes = {"tables": tables or None, "seed": args.seed, "dtype": args.dtype, "missing": args.missing}
    recipe = dataclasses.replace(recipe, inputs=inputs, **{k: v for k, v in changes.items() if v is not None})
    if args.verify:
        for name, weights in recipes.open_inputs(recipe, family_of).items():
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


def _flag_of(name: str) -> str:
    """The flag that gives the input of that name."""
    return f"--{name} FILE" if name in ("base", "tuned") else f"--input {name}=FILE"


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
    from edg.merging import merge
    from edg.merging.provenance import is_made

    if not overwrite and is_made(recipe, Path(out), full, format, family_of):
        print(f"{', '.join(recipe.outputs)}: already finished in {out} (--overwrite makes them again)")
        return 0
    began = time.monotonic()
    made = merge.run(
        recipe,
        out,
        full=full,
        format=format,
        strict=strict,
        progress=None if quiet else byte_progress("merging"),
        family=family_of,
    )
    seconds = time.monotonic() - began
    for item in made:
        what = "complete" if full else f"{item.stored} of {item.tensors} tensors, the others are in the base"
        print(f"{item.path}  {item.nbytes / 1e9:.2f} GB, {what}")
    print(f"merged in {seconds:.1f} s")
    return 0


def _plan(recipe, full: bool) -> int:
    from edg.merging.masks import BLOCK
    from edg.merging.plan import make_plan

    notes: list[str] = []
    plan = make_plan(recipe, None, full, "safetensors", BLOCK, notes.append, family_of)
    aligned = plan.aligned
    nbytes = sum(info.nbytes for info in plan.outputs[0].infos)
    print(f"{len(aligned)} tensors, {nbytes / 1e9:.2f} GB, {len(plan.absent)} left out, seed {recipe.seed}")
    for note in notes:
        print(visible(note))
    for output in recipe.outputs:
        counts = Counter(recipe.step_for(output, tensor.name, plan.family).op for tensor in aligned)
        steps = ", ".join(f"{op}: {n} tensors" for op, n in counts.most_common())
        print(f"{output}: {steps}; {'at most ' * (not full)}{nbytes / 1e9:.2f} GB")
    return 0
