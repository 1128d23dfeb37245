"""`edg score`: clips -> scores.jsonl, scores.csv and scores.json in the same folder."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from edg.core.arguments import Parser, as_path, named_path, whole
from edg.core.errors import UsageError, nearest, require
from edg.runner.score_models import KINDS, ScoreConfig


def add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("folder", type=as_path, help="a folder of clips, such as output/1000; the scores are written into it")
    add(
        "--metrics", metavar="A,B", help="names of metrics, see docs/metrics.md (all that need no extra file)"
    )
    add(
        "--reference", type=as_path, metavar="DIR",
        help="folder of real clips: for reference_* with the same names, for distances any",
    )  # fmt: skip
    kinds = "; ".join(f"{name}: {what}" for name, what in KINDS.items())
    add("--weights", type=named_path, action="append", default=[], metavar="NAME=PATH", help=kinds)
    add(
        "--sha256",
        action="append",
        default=[],
        metavar="NAME=HASH",
        help="required SHA-256 of a file of --weights",
    )
    add(
        "--trust-sha256", action="append", default=[], metavar="HASH",
        help="SHA-256 of a TorchScript file that may run: such a file is a program",
    )  # fmt: skip
    add(
        "--feature-size", type=whole(1, 4096), default=224,
        help="size S in px to which frames are resized for `features` (224)",
    )  # fmt: skip
    add(
        "--feature-range",
        default="-1,1",
        metavar="LOW,HIGH",
        help="values of black and white for `features` (-1,1)",
    )
    add("--feature-frames", action="store_true", help="`features` takes frames (T, 3, S, S), not a clip")
    add("--feature-options", default="{}", metavar="JSON", help="keyword arguments of `features`")
    add(
        "--config", type=as_path, metavar="NAME|YAML",
        help="model of the CLIP towers (default: that of the record or the checkpoint)",
    )  # fmt: skip
    add(
        "--vbench-layout", type=as_path, metavar="OUT",
        help="only copy the clips to OUT/videos/{prompt}-{i}.mp4",
    )  # fmt: skip
    add("--device", default="auto", help="for networks: auto, cpu, cuda or cuda:N (auto)")
    add("--seed", type=whole(0, 2**63 - 1), default=0, help="seed of the bootstrap of the intervals (0)")


def run(args: argparse.Namespace) -> int:
    from edg.runner.score import score
    from edg.runner.vbench import export

    if args.vbench_layout:
        export(Path(args.folder), Path(args.vbench_layout))
    else:
        score(config_of(args))
    return 0


def config_of(args: argparse.Namespace) -> ScoreConfig:
    """The settings that the flags stand for. Raises UsageError."""
    try:
        low, high = (float(part) for part in args.feature_range.split(","))
        options = json.loads(args.feature_options)
        if not (high > low and isinstance(options, dict)):
            raise ValueError
    except ValueError as error:
        raise UsageError(
            f"--feature-range {args.feature_range} --feature-options {args.feature_options}",
            expected="such as -1,1 and '{\"return_features\": true}'",
        ) from error
    return ScoreConfig(
        folder=Path(args.folder),
        metrics=metric_names(args.metrics),
        reference=Path(args.reference) if args.reference else None,
        weights=pairs(args.weights, "--weights"),
        sha256=pairs(args.sha256, "--sha256"),
        trusted=tuple(args.trust_sha256),
        feature_size=args.feature_size,
        feature_range=(low, high),
        feature_frames=args.feature_frames,
        feature_options=options,
        model=args.config,
        device=args.device,
        seed=args.seed,
    )


def metric_names(text: str | None) -> tuple[str, ...] | None:
    """The names of --metrics, None without it. Raises UsageError for an unknown one."""
    from edg.metrics.catalogue import METRICS

    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        require(name in METRICS, f"no metric {name!r}", ", ".join(METRICS), nearest(name, METRICS))
    require(names, "--metrics without a name", ", ".join(METRICS))
    return tuple(dict.fromkeys(names))


def pairs(texts: Sequence[str], flag: str) -> dict[str, str]:
    """NAME=VALUE texts as a dictionary. Raises UsageError."""
    found = {}
    for text in texts:
        name, _, value = text.partition("=")
        expected = f"NAME=..., with NAME one of {', '.join(KINDS)}"
        require(name in KINDS and value, f"{flag} {text!r}", expected, nearest(name, KINDS))
        found[name] = value
    return found
