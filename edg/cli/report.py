"""`edg report RUN [RUN ...]`: one HTML page that opens from disk, its media beside or inside it."""

from __future__ import annotations

import argparse
from pathlib import Path

from edg.core.arguments import Parser, as_path
from edg.report.page import LARGEST, write_report


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "runs", nargs="+", type=as_path, metavar="RUN", help="folders of clips, with or without records"
    )
    parser.add_argument(
        "--out", type=as_path, default="report", metavar="FOLDER", help="folder of the page (report)"
    )
    parser.add_argument(
        "--embed", action="store_true", help=f"put everything into one file, at most {LARGEST / 1e6:.0f} MB"
    )


def run(args: argparse.Namespace) -> int:
    print(write_report([Path(run) for run in args.runs], Path(args.out), args.embed))
    return 0
