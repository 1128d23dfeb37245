"""The networks that `edg score` measures with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edg.core.errors import BadFileError, EdgError, UsageError, require
from edg.runner.outputs import ClipFile, find_named

if TYPE_CHECKING:
    import torch

    from edg.metrics.catalogue import FeatureExtractors
    from edg.metrics.networks import Input, Network

KINDS = {
    "raft": "RAFT for the flow (raft-things.pth or torchvision's raft_large)",
    "clip": "a checkpoint whose towers embed, instead of the run's own",
    "dino": "TorchScript for the consistencies: (T, 3, 224, 224) -> (T, D)",
    "features": "TorchScript for Frechet and kernel distance",
}
EMBEDDED = ("subject", "picture", "text")
DIS = "OpenCV DIS, medium, 10 refinements, on the clip's colour axis"


@dataclass(frozen=True)
class ScoreConfig:
    """Settings of `edg score`.

    folder: of the clips, and for the scores.
    metrics: names; None measures all that can be had.
    reference: a folder of real clips.
    weights, sha256: kind (KINDS) -> file, and the hash that it must have.
    trusted: SHA-256 of TorchScript files that may run.
    feature_*: the input of the network `features`: px a side, the values of black and white, frames instead
        of clips, keyword arguments.
    model: name or YAML file of the towers' model; None takes the record's.
    seed: of the bootstrap.
    """

    folder: Path
    metrics: Sequence[str] | None = None
    reference: Path | None = None
    weights: Mapping[str, str] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    trusted: Sequence[str] = ()
    feature_size: int = 224
    feature_range: tuple[float, float] = (-1, 1)
    feature_frames: bool = False
    feature_options: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    device: str = "auto"
    seed: int = 0

    @property
    def feature_input(self) -> Input:
        from edg.metrics.networks import Input

        low, high = self.feature_range
        scale = 1 / (high - low)
        options = tuple(self.feature_options.items())
        return Input(self.feature_size, (-low * scale,) * 3, (scale,) * 3, not self.feature_frames, options)


@dataclass
class MetricModels:
    """Loaded networks.

    extractors: flow and embeddings for the metrics.
    features: the network of the distances between sets.
    protocol: what scores.json notes about the networks.
    missing: need of a metric -> why it is not met.
    note: why the towers compare no text with a picture, "" where they do.
    by_towers: needs that the towers meet.
    text_remarks: remarks on prompts (see base.Embedder).
    """

    extractors: FeatureExtractors
    features: Network | None = None
    protocol: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    note: str = ""
    by_towers: tuple[str, ...] = ()
    text_remarks: Callable[[Sequence[str]], Sequence[str]] = lambda prompts: ()


def load_metric_models(config: ScoreConfig, found: Sequence[ClipFile]) -> MetricModels:
    """Open the networks that the settings and the metrics ask for. Raises EdgError."""
    from edg.core.device import choose
    from edg.metrics.catalogue import METRICS, FeatureExtractors
    from edg.metrics.networks import DINO, Network, checked_sha256

    check_files(config)
    paths, device = config.weights, choose(config.device, "fp32")[0]
    made: dict[str, Any] = {}
    models = MetricModels(FeatureExtractors(), protocol={"flow": {"by": DIS}})
    if "features" in paths:
        require(config.reference, "--weights features=... without --reference", "a folder of real clips")
        models.features = Network(paths["features"], config.trusted, config.feature_input, device)
    if "raft" in paths:
        from edg.metrics.raft import ITERATIONS, Raft

        raft = Raft(paths["raft"], device)
        made |= {"flow": raft, "flow_vbench": raft.padded}
        sha256 = checked_sha256(paths["raft"], config.sha256, "raft")
        about = {"by": "RAFT", "iterations": ITERATIONS, "file": paths["raft"], "sha256": sha256}
        models.protocol["flow"] = about
    needs = {need for name in config.metrics or METRICS for need in METRICS[name].needs}
    if needs & set(EMBEDDED) and not ("dino" in paths and not needs & {"picture", "text"}):
        try:
            towers, models.protocol["clip"] = load_embedder(config.model, paths.get("clip"), found, device)
            made |= {"picture": towers.embed_image, "text": towers.embed_text, "subject": towers.embed_image}
            models.note = models.protocol["clip"]["note"] = towers.note
            models.by_towers, models.text_remarks = ("picture", "text"), towers.text_remarks
        except EdgError as error:
            if "clip" in paths:
                raise
            models.missing |= dict.fromkeys(EMBEDDED, str(error))
    models.protocol["subject"] = "clip" if "subject" in made else None
    if "dino" in paths:
        dino = Network(paths["dino"], config.trusted, DINO, device)
        made["subject"], models.protocol["subject"] = dino, dino.protocol
        models.missing.pop("subject", None)
    elif "subject" in made:
        models.by_towers = EMBEDDED
    models.extractors = FeatureExtractors(**made)
    return models


def check_files(config: ScoreConfig) -> None:
    """Raise UsageError, BadFileError for files of networks that are not there or have another hash."""
    from edg.metrics.networks import checked_sha256

    if unused := config.sha256.keys() - config.weights.keys():
        raise UsageError(f"--sha256 {min(unused)}=... without --weights {min(unused)}=PATH")
    for name, path in config.weights.items():
        if not Path(path).is_file() and name != "clip":
            raise BadFileError(f"no file {path}", expected=KINDS[name])
        if Path(path).is_dir() or path.endswith(".index.json"):
            given = f"--sha256 {name}=... of {path}: it is several files"
            require(name not in config.sha256, given, "one file")
        elif Path(path).is_file():
            checked_sha256(path, config.sha256, name)


def load_embedder(
    config: str | None, path: str | None, found: Sequence[ClipFile], device: torch.device
) -> tuple[Any, dict[str, Any]]:
    """(the CLIP towers of a checkpoint, the note on their origin): of the given file, else of the run's first
    recorded parameter set. Raises EdgError when there is none, or when it is not the record's model."""
    from edg import systems
    from edg.core.config import to_dict
    from edg.core.hashing import cached_sha256, hash_value
    from edg.weights.store import open_weights

    run = next((clip for clip in found if clip.set_paths), None)
    if path is None and run is None:
        raise UsageError("no record names the parameter sets", fix="give --weights clip=CHECKPOINT")
    recorded = path or next(iter(run.set_paths.values()))
    file = Path(path) if path else find_named(recorded, run.path.parent)
    if file is None or not file.exists():
        raise BadFileError(
            f"the run's parameter set {recorded} is gone", fix="give --weights clip=CHECKPOINT"
        )
    model = {} if path else run.model
    weights = open_weights(file)
    name = config or model.get("name")
    if name is None:
        _, name, why = systems.identify(weights)
        require(
            name is not None,
            f"cannot tell which model {file} is ({why})",
            "--config with a name or a YAML file",
        )
    system, spec = systems.find(name, model.get("system"))
    if path is None and config is None:
        same = hash_value(to_dict(spec)) == model.get("spec_sha256")
        require(
            same,
            f"the run's model differs from the known {spec.name}",
            fix="give --config with its YAML file",
        )
    origin = {
        "file": str(file),
        "sha256": [cached_sha256(part.path) for part in weights.files],
        "model": spec.name,
    }
    return system.part("embed")(spec, weights, device), origin
