"""`edg score DIR`: clips -> scores.jsonl, scores.csv and scores.json in the same folder."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edg.core.arguments import Parser
from edg.core.errors import BadFileError, EdgError, SomeFailedError, UsageError, nearest
from edg.runner.clips import ClipFile, failed_in_run, find_clips, videos
from edg.runner.progress import Meter, say

if TYPE_CHECKING:
    from edg.metrics.catalogue import Clip, Tools
    from edg.metrics.networks import Network
    from edg.metrics.table import Row

KINDS = {
    "raft": "RAFT for the flow (raft-things.pth or torchvision's raft_large)",
    "clip": "a checkpoint whose towers embed, instead of the run's own",
    "dino": "TorchScript for the consistencies: (T, 3, 224, 224) -> (T, D)",
    "features": "TorchScript for Frechet and kernel distance",
}
EMBEDDED = ("subject", "picture", "text")


def add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("folder", help="a folder of clips, such as output/1000; what is found is written into it")
    add("--metrics", metavar="A,B", help="names, see docs/metrics.md (all that need no extra file)")
    add("--reference", metavar="DIR", help="real clips: of the same names for reference_*, any for distances")
    kinds = "; ".join(f"{name}: {what}" for name, what in KINDS.items())
    add("--weights", action="append", default=[], metavar="NAME=PATH", help=kinds)
    add("--sha256", action="append", default=[], metavar="NAME=HASH", help="what a file of --weights must be")
    add(
        "--trust-sha256", action="append", default=[], metavar="HASH",
        help="a TorchScript file is a program: it runs only if its sha256 is named here",
    )  # fmt: skip
    add("--feature-size", type=int, default=224, help="px that frames are squeezed to for `features` (224)")
    add("--feature-range", default="-1,1", metavar="LOW,HIGH", help="what black and white become (-1,1)")
    add("--feature-frames", action="store_true", help="`features` takes frames (T, 3, S, S), not a clip")
    add("--feature-options", default="{}", metavar="JSON", help="keyword arguments of `features`")
    add(
        "--config", metavar="NAME|YAML", help="the model of the towers (told by the record or the checkpoint)"
    )
    add("--vbench-layout", metavar="OUT", help="only copy the clips to OUT/videos/{prompt}-{i}.mp4")
    add("--device", default="auto", help="for networks: auto, cpu, cuda or cuda:N (auto)")
    add("--seed", type=int, default=0, help="of the intervals' bootstrap (0)")


@dataclass
class Equipment:
    """What there is to measure with. protocol: what goes into scores.json about it; missing: need ->
    reason."""

    tools: Tools
    features: Network | None = None
    protocol: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    note: str = ""  # why text and pictures cannot be compared here


def score(args: argparse.Namespace) -> int:
    """Run `edg score`; returns the exit code. Raises EdgError, SomeFailedError when a clip or a metric
    failed."""
    folder = Path(args.folder)
    found = find_clips(folder)
    if args.vbench_layout:
        from edg.runner.vbench import export

        say(f"{len(export(found, Path(args.vbench_layout)))} clips in {Path(args.vbench_layout) / 'videos'}")
        return 0
    asked = asked_metrics(args.metrics)
    equipment = equip(args, found, asked)
    names, left_out = choose_metrics(asked, found, equipment, args.reference)
    rows = measure_all(found, names, equipment.tools, args.reference)
    sets = distances(found, equipment.features, args.reference)
    write(args, folder, found, rows, names, left_out, sets, equipment)
    failed = {f"{row.clip}: {name}": why for row in rows for name, why in row.failed.items()}
    failed |= {name: entry["failed"] for name, entry in sets.items() if entry.get("failed")}
    if failed:
        name, why = next(iter(failed.items()))
        raise SomeFailedError(
            f"{len(failed)} scores failed, first {name}: {why}", fix=f"see {folder}/scores.jsonl"
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


# ---- what with ---------------------------------------------------------------------------------------------


def named(pairs: Sequence[str], flag: str) -> dict[str, str]:
    """NAME=VALUE pairs. Raises UsageError."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if name not in KINDS or not equals or not value:
            raise UsageError(
                f"{flag} {pair!r}",
                expected=f"NAME=..., NAME one of {', '.join(KINDS)}",
                fix=nearest(name, KINDS),
            )
        found[name] = value
    return found


def equip(args: argparse.Namespace, found: Sequence[ClipFile], asked: list[str] | None) -> Equipment:
    """Open the networks that the flags and the metrics ask for. Raises EdgError."""
    from edg.core.device import choose
    from edg.metrics.catalogue import METRICS, Tools
    from edg.metrics.networks import DINO, Network, checked_sha256

    paths, expected = named(args.weights, "--weights"), named(args.sha256, "--sha256")
    if unused := expected.keys() - paths.keys():
        raise UsageError(f"--sha256 {min(unused)}=... without --weights {min(unused)}=PATH")
    for name, path in paths.items():
        if not Path(path).is_file() and name != "clip":
            raise BadFileError(f"no file {path}", expected=KINDS[name])
        if Path(path).is_file():
            checked_sha256(path, expected, name)
    device = choose(args.device, "fp32")[0]
    made: dict[str, Any] = {}
    kit = Equipment(
        Tools(), protocol={"flow": {"by": "OpenCV DIS, medium, 10 refinements, on the clip's colour axis"}}
    )
    if "raft" in paths:
        from edg.metrics.raft import ITERATIONS, Raft

        raft = Raft(paths["raft"], device)
        made |= {"flow": raft, "flow_vbench": raft.padded}
        hash_ = checked_sha256(paths["raft"], expected, "raft")
        kit.protocol["flow"] = {
            "by": "RAFT",
            "iterations": ITERATIONS,
            "file": paths["raft"],
            "sha256": hash_,
        }
    needs = {need for name in asked or METRICS for need in METRICS[name].needs}
    if needs & set(EMBEDDED) and not ("dino" in paths and not needs & {"picture", "text"}):
        try:
            towers, kit.protocol["clip"] = load_embedder(args.config, paths.get("clip"), found, device)
            made |= {"picture": towers.embed_image, "text": towers.embed_text, "subject": towers.embed_image}
            kit.note = kit.protocol["clip"]["note"] = towers.note
        except EdgError as error:
            if "clip" in paths:
                raise
            kit.missing |= dict.fromkeys(EMBEDDED, str(error))
    kit.protocol["subject"] = "clip" if "subject" in made else None
    if "dino" in paths:
        dino = Network(paths["dino"], args.trust_sha256, DINO, device)
        made["subject"], kit.protocol["subject"] = dino, dino.protocol
        kit.missing.pop("subject", None)
    if "features" in paths:
        if not args.reference:
            raise UsageError("--weights features=... without --reference", expected="a folder of real clips")
        kit.features = Network(paths["features"], args.trust_sha256, feature_input(args), device)
    kit.tools = Tools(**made)
    return kit


def feature_input(args: argparse.Namespace) -> Any:
    """How `features` is fed, from the flags. Raises UsageError."""
    import json

    from edg.metrics.networks import Input

    try:
        low, high = (float(part) for part in args.feature_range.split(","))
        options = json.loads(args.feature_options)
        if not (high > low and isinstance(options, dict) and args.feature_size > 0):
            raise ValueError
    except ValueError as error:
        raise UsageError(
            f"--feature-range {args.feature_range} --feature-size {args.feature_size} "
            f"--feature-options {args.feature_options}",
            expected="such as -1,1, 224 and '{\"return_features\": true}'",
        ) from error
    scale = 1 / (high - low)
    return Input(
        args.feature_size, (-low * scale,) * 3, (scale,) * 3, not args.feature_frames, tuple(options.items())
    )


def load_embedder(
    config: str | None, path: str | None, found: Sequence[ClipFile], device: Any
) -> tuple[Any, dict[str, Any]]:
    """(the towers of a checkpoint, where they are from): of the file given, else of the run's first parameter
    set, as the records tell it. Raises EdgError when there is none, or when it is not the record's model."""
    from edg import systems
    from edg.core.config import to_dict
    from edg.core.records import cached_sha256, hash_value
    from edg.runner.command import find_spec
    from edg.weights.store import open_weights

    record: Mapping[str, Any] = next((clip.record for clip in found if clip.record.get("set_paths")), {})
    if path is None and not record:
        raise UsageError("no record names the parameter sets", fix="--weights clip=CHECKPOINT")
    settings = record.get("settings") or {}
    model = settings.get("model") or {}
    file = Path(path or next(iter(record["set_paths"].values())))
    if not file.exists():
        raise BadFileError(f"the run's parameter set {file} is gone", fix="--weights clip=CHECKPOINT")
    system = systems.get(settings.get("system", systems.DEFAULT) if path is None else systems.DEFAULT)
    spec = find_spec(system, config or (None if path else model.get("name")), {"clip": file})
    if path is None and config is None and hash_value(to_dict(spec)) != model.get("spec_sha256"):
        raise UsageError(
            f"the run's model is another {spec.name} than the known one", fix="--config with its YAML"
        )
    weights = open_weights(file)
    origin = {
        "file": str(file),
        "sha256": [cached_sha256(part.path) for part in weights.files],
        "model": spec.name,
    }
    return system.embedder(spec, weights, device=device), origin


# ---- measuring ---------------------------------------------------------------------------------------------


def measure_all(
    found: Sequence[ClipFile], names: Sequence[str], tools: Tools, reference: str | None
) -> list[Row]:
    meter, rows = Meter(), []
    for index, clip in enumerate(found):
        meter("score", index, len(found))
        rows.append(measure(clip, names, tools, Path(reference) if reference else None))
    meter("score", len(found), len(found))
    meter.close()
    return rows


def measure(file: ClipFile, names: Sequence[str], tools: Tools, reference: Path | None) -> Row:
    """One clip's scores; what fails is named and the rest goes on."""
    from edg.metrics.catalogue import METRICS
    from edg.metrics.table import Row

    scores: dict[str, float | None] = dict.fromkeys(names)
    failed: dict[str, str] = {}
    labels: dict[str, Any] = {}
    try:
        clip, missing = open_clip(file, {need for n in names for need in METRICS[n].needs}, tools, reference)
    except EdgError as error:
        failed = dict.fromkeys(names, str(error))
        return Row(file.path.name, file.id, file.prompt, file.seed, scores, failed, labels)
    for name in names:
        metric = METRICS[name]
        try:
            if lacking := [missing[need] for need in metric.needs if need in missing]:
                raise UsageError(lacking[0])
            value = metric.of(clip)
            if value is not None and not math.isfinite(value):
                raise UsageError(f"the value is {value}")
            scores[name] = value
        except EdgError as error:
            failed[name] = str(error)
    if len(clip.frames) > 1 and any(name.startswith("camera") for name in names):
        labels["camera"] = clip.camera
    return Row(file.path.name, file.id, file.prompt, file.seed, scores, failed, labels)


def open_clip(
    file: ClipFile, needs: set[str], tools: Tools, reference: Path | None
) -> tuple[Clip, dict[str, str]]:
    """(the clip with what the metrics need, what is missing with the reason). Raises BadFileError for the
    video."""
    from edg.core.video import read_clip, read_frames
    from edg.metrics.catalogue import Clip

    frames, fps = read_clip(file.path)
    given: dict[str, Any] = {}
    missing = {} if file.prompt else {"prompt": "no record tells its prompt"}
    readers = {
        "image": lambda: file.image(*frames.shape[1:3]),
        "reference": lambda: read_frames(_same_name(reference, file.path)),
    }
    for need in needs & readers.keys():
        try:
            given[need] = readers[need]()
        except EdgError as error:
            missing[need] = str(error)
    return Clip(frames, fps, file.prompt, tools=tools, **given), missing


def _same_name(folder: Path | None, path: Path) -> Path:
    same = (
        [other for other in videos(folder) if other.stem == path.stem] if folder and folder.is_dir() else []
    )
    if not same:
        raise BadFileError(f"no clip called {path.stem} in {folder}")
    return same[0]


def distances(found: Sequence[ClipFile], network: Network | None, reference: str | None) -> dict[str, Any]:
    """Distances between all clips and all real ones, by name; {} without a feature network. A clip that
    cannot be read makes the distance fail: it would be that of other sets."""
    import numpy as np

    from edg.core.video import read_frames
    from edg.metrics import frechet
    from edg.metrics.catalogue import SETS

    if network is None:
        return {}
    common: dict[str, Any] = {"features": network.protocol}
    try:
        real = [clip.path for clip in find_clips(Path(reference))]
        ours, theirs = (
            np.concatenate([network(read_frames(path)) for path in paths])
            for paths in ([clip.path for clip in found], real)
        )
        common |= {"clips": len(found), "reference": str(reference), "reference_clips": len(real)}
        common |= {"rows": len(ours), "reference_rows": len(theirs), "length": ours.shape[1]}
        if min(len(ours), len(theirs)) <= ours.shape[1]:
            common["note"] = (
                "fewer rows than features: the covariances are singular, the Frechet distance is biased"
            )
        return {
            name: common | {"value": getattr(frechet, name)(ours, theirs), "what": SETS[name]}
            for name in SETS
        }
    except EdgError as error:
        return {name: common | {"value": None, "failed": str(error), "what": SETS[name]} for name in SETS}


# ---- the result --------------------------------------------------------------------------------------------


def write(
    args: argparse.Namespace, folder: Path, found: Sequence[ClipFile], rows: Sequence[Row], names: Sequence[str],
    left_out: Mapping[str, str], sets: Mapping[str, Any], equipment: Equipment,
) -> None:  # fmt: skip
    """The three files, the summary last, and what it says in a few lines."""
    from edg.metrics.catalogue import METRICS
    from edg.metrics.table import DRAWS, summary, write_rows, write_summary
    from edg.runner.command import versions

    means = summary(rows, names, seed=args.seed)
    metrics = {
        name: {
            **means[name],
            "unit": METRICS[name].unit,
            "better": METRICS[name].better,
            "what": METRICS[name].what,
        }
        for name in names
    }
    protocol = {
        "command": ["edg", *sys.argv[1:]],
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "clips": len(found),
        "failed_in_run": failed_in_run(folder, found),
        "left_out": dict(left_out),
        "interval": {
            "level": 0.95,
            "bootstrap": "percentile",
            "over": "prompts",
            "draws": DRAWS,
            "seed": args.seed,
        },
        **equipment.protocol,
        "versions": versions(),
    }
    write_rows(folder, rows, names)
    write_summary(folder, {"protocol": protocol, "metrics": metrics, "sets": dict(sets)})
    for name, entry in metrics.items():
        say(f"{name:22}{_shown(entry)} {entry['unit']}".rstrip())
    for name, entry in sets.items():
        say(f"{name:22}{'failed' if entry['value'] is None else format(entry['value'], '10.4g')}")
    for name, why in left_out.items():
        say(f"{name:22} left out: {why}")
    say(f"{len(rows)} clips: {folder / 'scores.json'}")


def _shown(entry: Mapping[str, Any]) -> str:
    if entry["mean"] is None:
        return "         -"
    within = "" if entry["low"] is None else f"  [{entry['low']:.4g}, {entry['high']:.4g}]"
    return f"{entry['mean']:10.4g}{within}"
