"""`edg score DIR`: clips -> scores.jsonl, scores.csv and scores.json in the same folder."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edg.core.arguments import Parser, as_path, named_path, whole
from edg.core.errors import SomeFailedError, UsageError, nearest
from edg.core.files import lock_folder, remove_leftovers
from edg.core.log import log, warn
from edg.runner.measure import distances, measure_all
from edg.runner.outputs import ClipFile, failed_in_run, find_clips
from edg.runner.score_models import KINDS, Equipment, equip

if TYPE_CHECKING:
    from edg.metrics.table import Row


def add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "folder",
        type=as_path,
        help="a folder of clips, such as output/1000; what is found is written into it",
    )
    add("--metrics", metavar="A,B", help="names, see docs/metrics.md (all that need no extra file)")
    add(
        "--reference", type=as_path, metavar="DIR",
        help="real clips: of the same names for reference_*, any for distances",
    )  # fmt: skip
    kinds = "; ".join(f"{name}: {what}" for name, what in KINDS.items())
    add("--weights", type=named_path, action="append", default=[], metavar="NAME=PATH", help=kinds)
    add("--sha256", action="append", default=[], metavar="NAME=HASH", help="what a file of --weights must be")
    add(
        "--trust-sha256", action="append", default=[], metavar="HASH",
        help="a TorchScript file is a program: it runs only if its sha256 is named here",
    )  # fmt: skip
    add(
        "--feature-size", type=whole(1, 4096), default=224,
        help="px that frames are squeezed to for `features` (224)",
    )  # fmt: skip
    add("--feature-range", default="-1,1", metavar="LOW,HIGH", help="what black and white become (-1,1)")
    add("--feature-frames", action="store_true", help="`features` takes frames (T, 3, S, S), not a clip")
    add("--feature-options", default="{}", metavar="JSON", help="keyword arguments of `features`")
    add(
        "--config", type=as_path, metavar="NAME|YAML",
        help="the model of the towers (told by the record or the checkpoint)",
    )  # fmt: skip
    add(
        "--vbench-layout", type=as_path, metavar="OUT",
        help="only copy the clips to OUT/videos/{prompt}-{i}.mp4",
    )  # fmt: skip
    add("--device", default="auto", help="for networks: auto, cpu, cuda or cuda:N (auto)")
    add("--seed", type=whole(0, 2**63 - 1), default=0, help="of the intervals' bootstrap (0)")


def score(args: argparse.Namespace) -> int:
    """Run `edg score`; returns the exit code. Raises EdgError, SomeFailedError when a clip or a metric
    failed."""
    from edg.metrics.catalogue import METRICS

    folder = Path(args.folder)
    asked = asked_metrics(args.metrics)  # a misspelt one is told before anything is read
    find_clips(folder)  # and a folder without clips before it is locked
    if args.vbench_layout:
        from edg.runner.vbench import export

        out = Path(args.vbench_layout)
        with lock_folder(out):
            remove_leftovers(out / "videos")
            log(f"{len(export(find_clips(folder), out))} clips in {out / 'videos'}")
        return 0
    with lock_folder(folder) as check:
        found = find_clips(folder)
        equipment = equip(args, found, asked)
        names, left_out = choose_metrics(asked, found, equipment, args.reference)
        if any("text" in METRICS[name].needs for name in names):
            prompts = list({clip.prompt: None for clip in found if clip.prompt})
            remarks = equipment.protocol["clip"]["remarks"] = list(equipment.text_remarks(prompts))
            for line in remarks:
                warn(line)
        rows = measure_all(found, names, equipment.tools, args.reference)
        sets = distances(found, equipment.features, args.reference)
        check()
        write(args, folder, found, rows, names, left_out, sets, equipment)
    failed = {f"{row.clip}: {name}": why for row in rows for name, why in row.failed.items()}
    failed |= {name: entry["failed"] for name, entry in sets.items() if entry.get("failed")}
    if failed:
        name, why = next(iter(failed.items()))
        raise SomeFailedError(
            f"{len(failed)} scores failed, first {name}: {why}",
            fix=f"see {folder}/scores.jsonl",
            failed=failed,
        )
    return 0


# ---- which metrics -----------------------------------------------------------------------------------------


def asked_metrics(text: str | None) -> list[str] | None:
    """The names of --metrics, None without it. Raises UsageError for an unknown one."""
    from edg.metrics.catalogue import METRICS

    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in METRICS:
            raise UsageError(f"no metric {name!r}", expected=", ".join(METRICS), fix=nearest(name, METRICS))
    if not names:
        raise UsageError("--metrics without a name", expected=", ".join(METRICS))
    return list(dict.fromkeys(names))


def choose_metrics(
    asked: list[str] | None, found: Sequence[ClipFile], equipment: Equipment, reference: str | None
) -> tuple[list[str], dict[str, str]]:
    """(names to measure, those left out with the reason): all that can be had, or exactly those asked for, of
    which one that cannot be had is a UsageError."""
    from edg.metrics.camera import asked_motion
    from edg.metrics.catalogue import METRICS

    missing = dict(equipment.missing)
    if not any(clip.prompt for clip in found):
        missing["prompt"] = "no record tells a prompt"
    if not any(clip.has_image for clip in found):
        missing["image"] = "no record names an input image"
    if not reference:
        missing["reference"] = "needs --reference"
    names, left_out = [], {}
    for name in asked or METRICS:
        reason = next((missing[need] for need in METRICS[name].needs if need in missing), "")
        if not reason and asked is None:
            if name == "camera_motion" and not any(asked_motion(clip.prompt) for clip in found):
                reason = "no prompt asks for a camera motion"
            if name == "text_alignment":
                reason = equipment.note
        if reason and asked:
            raise UsageError(f"{name} cannot be measured: {reason}")
        if reason:
            left_out[name] = reason
        else:
            names.append(name)
    return names, left_out


# ---- the result --------------------------------------------------------------------------------------------


def write(
    args: argparse.Namespace, folder: Path, found: Sequence[ClipFile], rows: Sequence[Row],
    names: Sequence[str], left_out: Mapping[str, str], sets: Mapping[str, Any], equipment: Equipment,
) -> None:  # fmt: skip
    """The three files, the summary last, and what it says in a few lines."""
    from edg.metrics.catalogue import METRICS
    from edg.metrics.table import DRAWS, summary, write_rows, write_summary
    from edg.runner.prepare import versions

    means, metrics = summary(rows, names, seed=args.seed), {}
    for name in names:
        metric = METRICS[name]
        about = {"unit": metric.unit, "better": metric.better, "what": metric.what}
        by_towers = set(metric.needs) & set(equipment.by_towers)
        metrics[name] = (
            means[name] | about | ({"note": equipment.note} if by_towers and equipment.note else {})
        )
    bootstrap = {
        "level": 0.95,
        "bootstrap": "percentile",
        "over": "prompts",
        "draws": DRAWS,
        "seed": args.seed,
    }
    protocol = {
        "command": ["edg", *sys.argv[1:]],
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "clips": len(found),
        "failed_in_run": failed_in_run(folder, found),
        "left_out": dict(left_out),
        "interval": bootstrap,
        **equipment.protocol,
        "versions": versions(),
    }
    write_rows(folder, rows, names)
    write_summary(folder, {"protocol": protocol, "metrics": metrics, "sets": dict(sets)})
    for name, entry in metrics.items():
        log(f"{name:22}{_shown(entry)} {entry['unit']}".rstrip())
    for name, entry in sets.items():
        log(f"{name:22}{'failed' if entry['value'] is None else format(entry['value'], '10.4g')}")
    for name, why in left_out.items():
        log(f"{name:22} left out: {why}")
    log(f"{len(rows)} clips: {folder / 'scores.json'}")


def _shown(entry: Mapping[str, Any]) -> str:
    if entry["mean"] is None:
        return "         -"
    within = "" if entry["low"] is None else f"  [{entry['low']:.4g}, {entry['high']:.4g}]"
    return f"{entry['mean']:10.4g}{within}"
