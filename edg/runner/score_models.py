"""What `edg score` measures with: the networks that flags, metrics and records ask for."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edg.core.errors import BadFileError, EdgError, UsageError, nearest
from edg.runner.outputs import ClipFile, find_named

if TYPE_CHECKING:
    from edg.metrics.catalogue import Tools
    from edg.metrics.networks import Network

KINDS = {
    "raft": "RAFT for the flow (raft-things.pth or torchvision's raft_large)",
    "clip": "a checkpoint whose towers embed, instead of the run's own",
    "dino": "TorchScript for the consistencies: (T, 3, 224, 224) -> (T, D)",
    "features": "TorchScript for Frechet and kernel distance",
}
EMBEDDED = ("subject", "picture", "text")


@dataclass
class Equipment:
    """What there is to measure with. protocol: what goes into scores.json about it; missing: need ->
    reason."""

    tools: Tools
    features: Network | None = None
    protocol: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    note: str = ""  # what is to be known about the towers: why they compare no text with a picture
    by_towers: tuple[str, ...] = ()  # needs that the towers meet
    text_remarks: Callable[[Sequence[str]], Sequence[str]] = lambda prompts: ()  # see base.Embedder


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
        if Path(path).is_dir() or path.endswith(".index.json"):
            if name in expected:
                raise UsageError(f"--sha256 {name}=... of {path}: it is several files", expected="one file")
        elif Path(path).is_file():
            checked_sha256(path, expected, name)
    device = choose(args.device, "fp32")[0]
    made: dict[str, Any] = {}
    kit = Equipment(
        Tools(), protocol={"flow": {"by": "OpenCV DIS, medium, 10 refinements, on the clip's colour axis"}}
    )
    if "features" in paths:
        if not args.reference:
            raise UsageError("--weights features=... without --reference", expected="a folder of real clips")
        kit.features = Network(paths["features"], args.trust_sha256, feature_input(args), device)
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
            kit.by_towers, kit.text_remarks = ("picture", "text"), towers.text_remarks
        except EdgError as error:
            if "clip" in paths:
                raise
            kit.missing |= dict.fromkeys(EMBEDDED, str(error))
    kit.protocol["subject"] = "clip" if "subject" in made else None
    if "dino" in paths:
        dino = Network(paths["dino"], args.trust_sha256, DINO, device)
        made["subject"], kit.protocol["subject"] = dino, dino.protocol
        kit.missing.pop("subject", None)
    elif "subject" in made:
        kit.by_towers = EMBEDDED
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
    from edg.core.hashing import cached_sha256, hash_value
    from edg.weights.store import open_weights

    run = next((clip for clip in found if clip.set_paths), None)
    if path is None and run is None:
        raise UsageError("no record names the parameter sets", fix="--weights clip=CHECKPOINT")
    told = path or next(iter(run.set_paths.values()))
    file = Path(path) if path else find_named(told, run.path.parent)
    if file is None or not file.exists():
        raise BadFileError(f"the run's parameter set {told} is gone", fix="--weights clip=CHECKPOINT")
    model = {} if path else run.model
    weights = open_weights(file)
    name = config or model.get("name")
    if name is None:
        system, name, why = systems.identify(weights)
        if name is None:
            raise UsageError(f"cannot tell which model {file} is ({why})", expected="--config NAME or YAML")
    system, spec = systems.find(name, model.get("system"))
    if path is None and config is None and hash_value(to_dict(spec)) != model.get("spec_sha256"):
        raise UsageError(
            f"the run's model is another {spec.name} than the known one", fix="--config with its YAML"
        )
    origin = {
        "file": str(file),
        "sha256": [cached_sha256(part.path) for part in weights.files],
        "model": spec.name,
    }
    return system.part("embed")(spec, weights, device), origin
