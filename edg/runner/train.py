"""Training runs of a YAML file: one run, or several in a row (`stages`).

    spec: NAME                         of a model; all keys: the train_config of its system
    data: {kind: videos, root: ...}    see edg/data/kinds.py
    train: {steps: 20000, ...}         see edg/training/config.py

In a file with `stages: {name: {...}}` every stage is a run of its own settings over the file's common ones
(see `merge_settings`), and `init: name` means the result of an earlier one. To resume, run the same command
again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from edg import systems
from edg.core import config
from edg.core.device import fix_threads, keep_memory, usable_cores
from edg.core.dist import World, world
from edg.core.errors import BadFileError, EdgError, UsageError, nearest, require
from edg.core.files import LOCK_TIMEOUT, lock_folder, remove_leftovers
from edg.core.process import stopping
from edg.core.written import is_written
from edg.data.batches import SampleSource
from edg.data.kinds import DATA_KINDS, SKIPPED, DataKind
from edg.systems.base import Trainer, Training, load_part


def trainer_of(run: Training) -> Trainer:
    """The trainer of the system that a run's model belongs to."""
    return systems.of(None, run.spec).part("train")


def config_class(spec: object) -> type[Training]:
    """The settings of a training of the system that a model belongs to."""
    return systems.of(None, str(spec) if spec else None).part("train_config")


# ---- training ----------------------------------------------------------------------------------------------


def train_runs(runs: Sequence[Training], device: str = "auto", threads: int = 0) -> Iterator[str]:
    """Train the runs that are not finished, in order; rank 0 yields a line for each. Raises EdgError, before
    anything is trained for settings that are wrong."""
    check_starts(runs)
    for run in runs:
        data_settings(run)
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with world(device) as ranks:
        fix_threads(threads or max(1, usable_cores() // ranks.size))
        if device == "cpu":
            keep_memory()
        ranks.first(lambda: _check_later_stages(runs, ranks))
        for run in runs:
            stopping.check()
            outcome = _train(run, ranks, device)
            if ranks.is_first:
                yield f"{run.name}: {run.result} {outcome}"


def _train(run: Training, ranks: World, device: str) -> str:
    """Train a run unless it is finished, and describe the outcome."""
    trainer = trainer_of(run)
    if ranks.first(lambda: trainer.is_finished(run, ranks)):
        return "is already trained" + ranks.first(lambda: _data_change(run, trainer))
    with ExitStack() as stack:
        ranks.first(lambda: _lock(run, stack))
        trainer.run_training(run, open_data(run), ranks, device)
    return "done" + _skipped_videos(run)


def _data_change(run: Training, trainer: Trainer) -> str:
    """`; the data changed since`, or the reason why that is unknown, or ""."""
    if not data_settings(run).changes:
        return ""
    try:
        change = trainer.data_change(run, open_data(run))
    except EdgError as error:
        return f"; its data cannot be compared with those it was trained on: {error}"
    return f"; {change} since it was trained: to train again, set another out=FOLDER" if change else ""


def check_starts(runs: Sequence[Training]) -> None:
    """Raise BadFileError for an init or vae that is neither there nor the result of an earlier run."""
    results: dict[str, str] = {}
    for run in runs:
        for key, path in (("init", run.init), ("vae", run.vae)):
            if path is not None and path not in results and not Path(path).exists():
                raise BadFileError(
                    f"the {key} of {run.name} is {path!r}, which does not exist",
                    expected="a file, or the name of an earlier stage",
                    fix=nearest(path, results.values()),
                )
        results[str(run.result)] = run.name


def _check_later_stages(runs: Sequence[Training], ranks: World) -> None:
    """Raise UsageError for a run that began from the result of one that is to be trained longer now."""
    for number, run in enumerate(runs):
        later = [other for other in runs[number + 1 :] if str(run.result) in (other.init, other.vae)]
        begun = [other for other in later if other.result.exists() or other.folder.exists()]
        there = all(Path(path).exists() for path in (run.init, run.vae, run.result) if path is not None)
        if not begun or not there or trainer_of(run).is_finished(run, ranks):
            continue
        raise UsageError(
            f"train.steps of {run.name} was increased, but {begun[0].name} began from its earlier result",
            fix=f"train {run.name} alone (--stages {run.name}), or remove {begun[0].result} and "
            f"{begun[0].folder} to train {begun[0].name} again, too",
        )


def _lock(run: Training, stack: ExitStack) -> None:
    """Lock the run's folder until the stack closes, and remove leftovers beside its result. Raises
    MachineError."""
    stack.enter_context(lock_folder(run.folder, LOCK_TIMEOUT))
    remove_leftovers(run.result.parent)


def _skipped_videos(run: Training) -> str:
    """`; skipped videos: 3, see FILE`, or ""."""
    from edg.data.clips import SkippedVideos

    file = run.folder / SKIPPED
    count = len(SkippedVideos(file).entries())
    return f"; skipped videos: {count}, see {file}" if count else ""


# ---- settings ----------------------------------------------------------------------------------------------


def read_runs(
    path: str | Path, overrides: Sequence[str], only: Sequence[str] | None = None
) -> list[Training]:
    """Read the runs of a file, in order. overrides: `key=value`. only: names of stages. Raises UsageError for
    unknown keys and stages, BadFileError for the file."""
    values = config.read_yaml(path, overrides)
    stages = values.pop("stages", None)
    require(stages is not None or not only, f"{path} has no stages", fix="leave --stages out")
    if stages is None:
        named = {"name": Path(path).stem, **values}
        return [_with_typed_data(config.build(config_class(named.get("spec")), named, str(path), overrides))]
    _check_stages(stages, path)
    for name in only or ():
        fix = nearest(name, stages)
        require(name in stages, f"{path} has no stage {name!r}", ", ".join(stages), fix)
    runs = []
    for name, own in stages.items():
        merged = {key: merge_settings(values.get(key), value) for key, value in (own or {}).items()}
        merged = {**values, **merged, "name": name}
        for text in overrides:
            key = text.partition("=")[0].strip()
            given = f"{text}: the stages of {path} set {key} themselves"
            require(_value_at(values, key) == _value_at(merged, key), given, fix=f"stages.NAME.{text}")
        run = _with_typed_data(config.build(config_class(merged.get("spec")), merged, f"stages.{name}"))
        earlier = {key: value for key, value in (("init", run.init), ("vae", run.vae)) if value in stages}
        runs.append(replace(run, **{k: str(run.out / f"{v}.safetensors") for k, v in earlier.items()}))
    return [run for run in runs if not only or run.name in only]


def _with_typed_data(run: Training) -> Training:
    """The run with its data's settings in the types of their kind, if YAML took a text for a number, so that
    the record has them right. Errors in them are left to `data_settings`."""
    if not any(map(is_written, run.data.values())) or run.data.get("kind") not in DATA_KINDS:
        return run
    typed = config.build(load_part(DATA_KINDS[run.data["kind"]]), run.data, "data")
    data = {key: getattr(typed, key) if is_written(value) else value for key, value in run.data.items()}
    return replace(run, data=config.to_dict(data))


def _check_stages(stages: object, path: str | Path) -> None:
    if not isinstance(stages, Mapping) or not stages:
        raise UsageError(f"the stages of {path} are {stages!r}", expected="stages: {name: {settings}}")
    for name, own in stages.items():
        valid = isinstance(name, str) and isinstance({} if own is None else own, Mapping)
        require(valid, f"stages.{name} is {own!r}", "a name, and a mapping of settings")


def merge_settings(common: Any, own: Any) -> Any:
    """A stage's setting over the common one: mappings are merged, key by key, unless their `kind` differs."""
    both = isinstance(common, Mapping) and isinstance(own, Mapping)
    if not both or own.get("kind", common.get("kind")) != common.get("kind"):
        return own
    return {**common, **{key: merge_settings(common.get(key), value) for key, value in own.items()}}


def _value_at(values: Any, key: str) -> Any:
    """The value of a dotted key, None without one."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


# ---- data --------------------------------------------------------------------------------------------------


def data_settings(run: Training) -> DataKind:
    """The settings of a run's data. Raises UsageError for an unknown kind or key."""
    kind = run.data.get("kind")
    known = isinstance(kind, str) and kind in DATA_KINDS
    require(known, f"data.kind is {kind!r}", ", ".join(DATA_KINDS), nearest(kind, DATA_KINDS))
    settings = config.build(load_part(DATA_KINDS[kind]), run.data, "data")
    require(
        settings.sample_type == run.sample_type,
        f"{run.name}: data {run.data} gives {settings.sample_type}",
        f"{run.sample_type} for kind {run.kind}",
    )
    return settings


def open_data(run: Training) -> SampleSource:
    """The samples of a run. Raises EdgError."""
    _, spec = systems.find(run.spec)
    return data_settings(run).open(run, spec, partial(trainer_of(run).open_cache, run))
