"""Merge a base and a fine-tuned checkpoint into dyn.pt and con.pt, with the flags of the released
run_merge.py.

    python run_merge.py --ckptdir ckpt --outdir ckpt/merge --dyn-alpha 0.25 --dyn-beta 0.75

Both files are complete and open with torch.load(weights_only=True). `edg merge` does the same and more.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def parse(argv: list[str] | None = None):
    from edg.core.arguments import Parser, as_path, number, whole

    strength = number(-(10**6), 10**6)
    parser = Parser(prog="run_merge.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--basedir", type=as_path, default=".", help="folder to which relative paths are relative (.)"
    )
    parser.add_argument(
        "--ckptdir",
        type=as_path,
        default=os.environ.get("CKPT_PATH") or "ckpt",
        help="folder of the checkpoints (CKPT_PATH or ckpt)",
    )
    parser.add_argument("--outdir", type=as_path, help="folder of dyn.pt and con.pt (CKPTDIR/merge)")
    numbers = parser.add_argument_group("the recipe (without --config)")
    numbers.add_argument(
        "--dyn-alpha", type=strength, help="alpha of dyn, base + beta D(alpha (base - tuned)) (0.25)"
    )
    numbers.add_argument("--dyn-beta", type=strength, help="beta of dyn (0.75)")
    numbers.add_argument(
        "--con-alpha",
        type=strength,
        help="alpha of con: scale of the tuned model (released) or strength (anchored) (1)",
    )
    numbers.add_argument("--con-beta", type=strength, help="beta of con, weight of D(tuned - base) (0.25)")
    numbers.add_argument(
        "--drop-rate", type=strength, help="share of the difference that D drops at random (0.7)"
    )
    numbers.add_argument("--con", choices=("released", "anchored"), help="formula of con (released)")
    parser.add_argument("--seed", type=whole(0, 2**64 - 1), help="seed of the random masks (123)")
    parser.add_argument(
        "--base", type=as_path, help="base checkpoint (CKPTDIR/dynamicrafter_512_v1/model.ckpt)"
    )
    parser.add_argument(
        "--tuned",
        type=as_path,
        help="fine-tuned checkpoint (CKPTDIR/dynamicrafter_cil_512_v1/timenoise.ckpt)",
    )
    parser.add_argument("--config", type=as_path, help="a recipe (YAML) instead of the numbers above")
    parser.add_argument(
        "--format", choices=("pt", "safetensors"), default="pt", help="format of the outputs (pt)"
    )
    parser.add_argument(
        "--missing",
        choices=("identity", "error", "drop"),
        help="for tensors that only one file has: identity (a missing adapter becomes one that does nothing; "
        "default), error, or drop (released)",
    )
    parser.add_argument("--dtype", help="dtype of the outputs: float32, float16 or bfloat16 (the base's)")
    parser.add_argument("--overwrite", action="store_true", help="make finished outputs again")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--json", action="store_true", help="print an error as one line of JSON on stderr")
    return parser.parse_args(argv)


NUMBERS = ("dyn_alpha", "dyn_beta", "con_alpha", "con_beta", "drop_rate", "con")


def recipe_from(args):
    """The recipe that the flags describe: the published pair, or --config with --base and --tuned put in."""
    import dataclasses

    from edg.core.errors import UsageError
    from edg.merging.recipe import edg_recipe, is_recipe, load_recipe

    root = Path(args.basedir)
    ckpt = root / args.ckptdir
    base = str(root / args.base) if args.base else str(ckpt / "dynamicrafter_512_v1" / "model.ckpt")
    tuned = (
        str(root / args.tuned) if args.tuned else str(ckpt / "dynamicrafter_cil_512_v1" / "timenoise.ckpt")
    )
    numbers = {name: getattr(args, name) for name in NUMBERS if getattr(args, name) is not None}
    general = {n: getattr(args, n) for n in ("seed", "missing", "dtype") if getattr(args, n) is not None}
    if args.config and not is_recipe(args.config):
        print(f"note: {args.config} is a model's configuration; merging does not need it")
    elif args.config:
        if numbers:
            flag = "--" + next(iter(numbers)).replace("_", "-")
            raise UsageError(
                f"{flag} together with --config", expected="one of them", fix="set it in the recipe"
            )
        recipe, filled = load_recipe(args.config), {"base": base, "tuned": tuned}
        use = {n for n, path in recipe.inputs.items() if n in filled and (not path or getattr(args, n))}
        inputs = {n: filled[n] if n in use else path for n, path in recipe.inputs.items()}
        return dataclasses.replace(recipe, inputs=inputs, **general)
    return edg_recipe(base, tuned, **numbers, **general)


def merge(argv: list[str] | None) -> int:
    from edg.cli.main import check_working_directory
    from edg.cli.merge import merge_and_report

    check_working_directory()
    args = parse(argv)
    out = Path(args.basedir) / (args.outdir or Path(args.ckptdir) / "merge")
    return merge_and_report(recipe_from(args), out, full=True, format=args.format, overwrite=args.overwrite)


def main(argv: list[str] | None = None) -> int:
    from edg.cli.main import guard, terminate

    signal.signal(signal.SIGTERM, terminate)  # an exception: temporary files are removed
    given = sys.argv[1:] if argv is None else argv
    return guard(lambda: merge(argv), "run_merge.py", "--debug" in given, "--json" in given)


if __name__ == "__main__":
    sys.exit(main())
