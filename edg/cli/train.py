"""`edg train CONFIG [key=value ...]`: the flags and the command."""

from __future__ import annotations

import argparse

from edg.core.arguments import Parser, as_path, whole


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "config", type=as_path, metavar="CONFIG", help="a YAML file such as those in configs/train"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        default=[],
        help="settings to change, by dotted name: train.lr=1e-5",
    )
    parser.add_argument("--stages", metavar="NAME,...", help="only these stages of the file")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="device (auto)")
    parser.add_argument("--threads", type=whole(0, 4096), default=0, help="CPU threads (all cores)")


def train(args: argparse.Namespace) -> int:
    """Train the runs of the file that are not finished; prints one line for each."""
    from edg.runner.train import read_runs, train_runs

    runs = read_runs(args.config, args.overrides, args.stages.split(",") if args.stages else None)
    for line in train_runs(runs, args.device, args.threads):
        print(line, flush=True)
    return 0
