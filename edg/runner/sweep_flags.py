"""The flags of `edg sweep`."""

from __future__ import annotations

from edg.core.arguments import Parser, as_path


def add_sweep_arguments(parser: Parser) -> None:
    parser.add_argument("sweep", type=as_path, help="a YAML file, or the name of one in configs/sweeps")
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="KEY=VALUE",
        help="over the file's: out=DIR grid.seed=[1,2] options.T=300",
    )
    parser.add_argument("--dry-run", action="store_true", help="list the points, make nothing")
