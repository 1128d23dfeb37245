"""Records of a training run: the settings in its folder, its result, and comparisons of a run with both."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

import edg
from edg.core.config import to_dict
from edg.core.dist import World
from edg.core.errors import BadFileError, UsageError, require
from edg.core.files import read_json, write_json
from edg.core.log import log, warn
from edg.data.batches import SampleSource
from edg.merging.provenance import base_reference, input_record
from edg.networks import open_weights
from edg.systems.edg.training.config import TrainingConfig
from edg.training.callbacks import last_checkpoint, step_of
from edg.weights.base_file import sha256_weights
from edg.weights.store import Weights
from edg.weights.writers import write_safetensors

Record = dict[str, Any]
# Keys of the fingerprint of the data, and of those that it had until a checkpoint.
DATA, FORMER = "data_fingerprint", "data_before"
STEPS = "train.steps"  # may grow: the run goes on from its last checkpoint
SHORTER = "steps_before"  # key of the numbers of steps that a run was to have until it was made longer
# Settings that do not change the result, or count as hashes.
IGNORED = {DATA, FORMER, "out", "init", "vae", "samples", "samples_in_data", "processes"}
IGNORED |= {"data.require_captions"}
IGNORED |= {"train." + n for n in ("batch", "accumulate", "strategy", "gradient_checkpointing")}
IGNORED |= {"train." + n for n in ("save_every", "keep", "log_every", "logger", "workers")}


def settings_record(config: TrainingConfig, world: World) -> Record:
    """The settings of a run, its number of processes, and the hashes of the weights it starts from."""
    hashes = {
        key: None if path is None else sha256_weights(open_weights(path))
        for key, path in (("init_sha256", config.init), ("vae_sha256", config.vae))
    }
    samples = config.train.batch * config.train.accumulate * world.size
    return {**to_dict(config), **hashes, "processes": world.size, "samples_per_step": samples}


def record_settings(config: TrainingConfig, world: World, data: SampleSource | None = None) -> Record:
    """Write the settings of a run and the fingerprint of its data into its folder, and return them.

    Logs when a resumed run has other data than before. Raises UsageError when it was begun there with other
    settings.
    """
    file, record = config.folder / "settings.json", settings_record(config, world)
    if (found := fingerprint(data)) is not None:
        record[DATA] = found
    if file.exists() and (last := last_checkpoint(config.folder)) is not None:
        before = read_json(file)
        require_same_settings(config, world, before, f"the run in {config.folder} was begun")
        record |= {key: before[key] for key in (FORMER, SHORTER) if key in before}
        if (steps := before["train"]["steps"]) < config.train.steps:
            record[SHORTER] = [*record.get(SHORTER, []), steps]
            if config.train.schedule != "constant" and step_of(last) > config.train.warmup:
                warn(
                    f"{config.name}: {config.train.steps} steps instead of {steps}: after {last.name} the "
                    f"learning rate follows the {config.train.schedule} schedule of the longer run"
                )
        if change := describe_change(before, record.get(DATA)):
            log(f"{config.name}: {change} since {last.name}; the remaining steps use the present data")
            record[FORMER] = [*record.get(FORMER, []), {"until": last.name, **before[DATA]}]
    write_json(file, record)
    return record


def fingerprint(data: SampleSource | None) -> dict[str, str] | None:
    """Hashes that identify the data, None for data without."""
    return data.fingerprint() if hasattr(data, "fingerprint") else None


def describe_change(record: Mapping[str, Any], now: Mapping[str, Any] | None) -> str:
    """Describe how the data differs from that of a record, "" if it does not or if either is unknown."""
    then = record.get(DATA)
    if not isinstance(then, Mapping) or now is None or then == now:
        return ""
    if then.get("content") == now.get("content"):
        return "the modification times of the data files changed (their names, captions and sizes did not)"
    return "the data changed"


def data_change(config: TrainingConfig, data: SampleSource) -> str:
    """Describe how the data differs from what a finished run was trained on, "" if it does not."""
    record = open_weights(config.result, join_base=False).provenance["training"]
    return describe_change(record, fingerprint(data))


def is_finished(config: TrainingConfig, world: World) -> bool:
    """True if the result is there, made with the same settings; False if it was with fewer steps, and can be
    trained on. Raises UsageError if made with others."""
    if not config.result.exists():
        return False
    try:
        record = open_weights(config.result, join_base=False).provenance
    except BadFileError:
        record = {}
    valid = isinstance(record.get("training"), dict)
    require(valid, f"{config.result} is not a result of edg train", fix="choose another out=FOLDER")
    require_same_settings(config, world, record["training"], f"{config.result} was trained")
    if record["training"]["train"]["steps"] == config.train.steps:
        return True
    require(
        last_checkpoint(config.folder) is not None,
        f"train.steps is larger than for {config.result}, and {config.folder} has no checkpoint",
        "the checkpoints of that run",
        "choose another out=FOLDER",
    )
    return False


def require_same_settings(config: TrainingConfig, world: World, record: Mapping[str, Any], what: str) -> None:
    """Raise UsageError if a setting that changes the result is another one in `record`, except fewer
    steps."""
    former, wanted = relevant_settings(record), relevant_settings(settings_record(config, world))
    for name in wanted:
        longer = name == STEPS and former.get(STEPS, 0) < wanted[STEPS]
        require(
            longer or former.get(name) == wanted[name],
            f"{what} with another {name}: {former.get(name)!r}",
            repr(wanted[name]),
            "choose another out=FOLDER, or remove the old results",
        )


def relevant_settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that change the result, flat: `train.lr` -> 0.001."""

    def flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
        if name in IGNORED:
            return
        if isinstance(value, Mapping):
            for key, item in value.items():
                yield from flat(item, f"{name}.{key}".lstrip("."))
        else:
            yield name, value

    return dict(flat(record, ""))


# ---- the result --------------------------------------------------------------------------------------------


def write_result(
    config: TrainingConfig,
    tensors: Mapping[str, Tensor],
    base: Weights | None,
    training: Mapping[str, Any],
    hashes: Mapping[str, str],
) -> None:
    """Write {out}/{name}.safetensors: complete without a base, else what changed and a reference.

    training: the record of the run. hashes: of the base's files when they were read. Raises UsageError if
    training has left a value that is not finite.
    """
    kept = dict(tensors) if base is None else dict(changed_tensors(tensors, base))
    for name, tensor in kept.items():
        if not torch.isfinite(tensor).all():
            raise UsageError(f"{name} is not finite after training", fix="set a lower train.lr")
    record: Record = {
        "format": 1,
        "edg": edg.__version__,
        "output": config.name,
        "training": dict(training),
        "inputs": [],
        "tensors": len(tensors),
        "stored": len(kept),
    }
    if base is not None:
        record["inputs"] = [input_record("init", base, hashes)]
        record |= base_reference({"init": base}, hashes, config.result, [])
    write_safetensors(config.result, kept, {"spec": config.spec, "edg": json.dumps(record)})


def changed_tensors(tensors: Mapping[str, Tensor], base: Weights) -> Iterator[tuple[str, Tensor]]:
    """The tensors that differ in some bit from the base's."""
    for name, tensor in tensors.items():
        if name not in base or not torch.equal(tensor, base[name].to(tensor.dtype)):
            yield name, tensor
