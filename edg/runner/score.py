"""Scores of a folder of clips: each clip alone, and distances to another folder of clips."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edg.core.errors import BadFileError, EdgError, SomeFailedError, UsageError, require
from edg.core.files import lock_folder
from edg.core.formats import clip_sha256, clip_stem
from edg.core.hashing import stamp
from edg.core.log import log, warn
from edg.runner.outputs import ClipFile, clips_by_name, failed_in_run, find_clips
from edg.runner.progress import Meter
from edg.runner.score_models import MetricModels, ScoreConfig, load_metric_models

if TYPE_CHECKING:
    from edg.metrics.catalogue import ClipFeatures, FeatureExtractors
    from edg.metrics.networks import Network
    from edg.metrics.table import Row


def score(config: ScoreConfig) -> None:
    """Measure the clips of a folder and write scores.jsonl, scores.csv and scores.json into it. Raises
    EdgError; SomeFailedError, with the files written, when a clip or a metric failed."""
    from edg.metrics.catalogue import METRICS

    folder = config.folder
    find_clips(folder)  # a folder without clips is not locked
    with lock_folder(folder) as check:
        found = find_clips(folder)
        models = load_metric_models(config, found)
        names, left_out = choose_metrics(config, found, models)
        if any("text" in METRICS[name].needs for name in names):
            prompts = list({clip.prompt: None for clip in found if clip.prompt})
            remarks = models.protocol["clip"]["remarks"] = list(models.text_remarks(prompts))
            for line in remarks:
                warn(line)
        rows = measure_all(found, names, models.extractors, config.reference)
        sets = distances(found, models.features, config.reference)
        check()
        write_scores(config, found, rows, names, left_out, sets, models)
    failed = {f"{row.clip}: {name}": why for row in rows for name, why in row.failed.items()}
    failed |= {name: entry["failed"] for name, entry in sets.items() if entry.get("failed")}
    if failed:
        name, why = next(iter(failed.items()))
        given, fix = f"{len(failed)} scores failed, first {name}: {why}", f"see {folder}/scores.jsonl"
        raise SomeFailedError(given, fix=fix, failed=failed)


def choose_metrics(
    config: ScoreConfig, found: Sequence[ClipFile], models: MetricModels
) -> tuple[list[str], dict[str, str]]:
    """(names to measure, those left out with the reason): all that can be measured, or exactly those of the
    settings. Raises UsageError when one of these cannot be measured."""
    from edg.metrics.camera import asked_motion
    from edg.metrics.catalogue import METRICS

    missing = dict(models.missing)
    if not any(clip.prompt for clip in found):
        missing["prompt"] = "no record contains a prompt"
    if not any(clip.has_image for clip in found):
        missing["image"] = "no record names an input image"
    if not config.reference:
        missing["reference"] = "needs --reference"
    names, left_out = [], {}
    for name in config.metrics or METRICS:
        reason = next((missing[need] for need in METRICS[name].needs if need in missing), "")
        if not reason and config.metrics is None:
            if name == "camera_motion" and not any(asked_motion(clip.prompt) for clip in found):
                reason = "no prompt asks for a camera motion"
            if name == "text_alignment":
                reason = models.note
        require(not (reason and config.metrics), f"{name} cannot be measured: {reason}")
        if reason:
            left_out[name] = reason
        else:
            names.append(name)
    return names, left_out


# ---- measuring ---------------------------------------------------------------------------------------------


def measure_all(
    found: Sequence[ClipFile], names: Sequence[str], extractors: FeatureExtractors, reference: Path | None
) -> list[Row]:
    """The scores of every clip, in order."""
    meter, rows = Meter(), []
    for index, clip in enumerate(found):
        meter("score", index, len(found))
        rows.append(measure(clip, names, extractors, reference))
    meter("score", len(found), len(found))
    meter.close()
    return rows


def measure(
    file: ClipFile, names: Sequence[str], extractors: FeatureExtractors, reference: Path | None
) -> Row:
    """The scores of one clip; a metric that fails is noted and the others go on."""
    from edg.metrics.catalogue import METRICS
    from edg.metrics.table import Row

    scores: dict[str, float | None] = dict.fromkeys(names)
    failed: dict[str, str] = {}
    labels: dict[str, Any] = {}
    sha256 = ""
    try:
        before = stamp(file.path)
        sha256 = clip_sha256(file.path)
        needs = {need for name in names for need in METRICS[name].needs}
        clip, missing = load_clip(file, needs, extractors, reference)
        if stamp(file.path) != before:  # the row's hash would be of other frames
            raise BadFileError(f"{file.path} was changed while it was read")
    except Exception as error:  # a damaged file or record may raise anything; the other clips go on
        failed = dict.fromkeys(names, _reason(error))
        return Row(file.path.name, file.id, file.prompt, file.seed, scores, failed, labels, sha256)
    for name in names:
        metric = METRICS[name]
        try:
            if lacking := [missing[need] for need in metric.needs if need in missing]:
                raise UsageError(lacking[0])
            value = metric.of(clip)
            require(value is None or math.isfinite(value), f"the value is {value}")
            if name.startswith("camera") and len(clip.frames) > 1:
                labels["camera"] = clip.camera
            scores[name] = value
        except Exception as error:
            failed[name] = _reason(error)
    return Row(file.path.name, file.id, file.prompt, file.seed, scores, failed, labels, sha256)


def load_clip(
    file: ClipFile, needs: set[str], extractors: FeatureExtractors, reference: Path | None
) -> tuple[ClipFeatures, dict[str, str]]:
    """(the clip with what the metrics need, need -> why it is missing). Raises BadFileError for the video."""
    from edg.core.formats import read_timed
    from edg.metrics.catalogue import ClipFeatures

    frames, fps = read_timed(file.path)
    given: dict[str, Any] = {}
    missing = {} if file.prompt else {"prompt": "no record contains its prompt"}
    readers = {
        "image": lambda: file.image(*frames.shape[1:3]),
        "reference": lambda: read_timed(_same_name(reference, file.path))[0],
    }
    for need in needs & readers.keys():
        try:
            given[need] = readers[need]()
        except Exception as error:
            missing[need] = _reason(error)
    return ClipFeatures(frames, fps, file.prompt, extractors=extractors, **given), missing


def _same_name(folder: Path | None, path: Path) -> Path:
    name = clip_stem(path)
    same = clips_by_name(folder).get(name) if folder and folder.is_dir() else None
    if not same:
        raise BadFileError(f"no clip called {name} in {folder}")
    return same[0]


def distances(found: Sequence[ClipFile], network: Network | None, reference: Path | None) -> dict[str, Any]:
    """Distances between all clips and all reference clips, by name; {} without a feature network. A clip that
    cannot be read makes a distance fail: it would be that of other sets."""
    import numpy as np

    from edg.core.formats import read_timed
    from edg.metrics import frechet
    from edg.metrics.catalogue import SETS

    if network is None:
        return {}
    common: dict[str, Any] = {"features": network.protocol}
    try:
        real = [clip.path for clip in find_clips(Path(reference))]
        ours, theirs = (
            np.concatenate([network(read_timed(path)[0]) for path in paths])
            for paths in ([clip.path for clip in found], real)
        )
        common |= {"clips": len(found), "reference": str(reference), "reference_clips": len(real)}
        common |= {"rows": len(ours), "reference_rows": len(theirs), "length": ours.shape[1]}
        if min(len(ours), len(theirs)) <= ours.shape[1]:
            common["note"] = "fewer rows than features: the covariances are singular"
        return {
            name: common | {"value": getattr(frechet, name)(ours, theirs), "what": SETS[name]}
            for name in SETS
        }
    except Exception as error:
        return {name: common | {"value": None, "failed": _reason(error), "what": SETS[name]} for name in SETS}


def _reason(error: Exception) -> str:
    """The text of an error of ours; of another one with its class in front."""
    return str(error) if isinstance(error, EdgError) else f"{type(error).__name__}: {error}"


# ---- the result --------------------------------------------------------------------------------------------


def write_scores(
    config: ScoreConfig, found: Sequence[ClipFile], rows: Sequence[Row], names: Sequence[str],
    left_out: Mapping[str, str], sets: Mapping[str, Any], models: MetricModels,
) -> None:  # fmt: skip
    """Write the three files, scores.json last, and log a line for each metric."""
    from edg.metrics.catalogue import METRICS
    from edg.metrics.table import DRAWS, summary, write_rows, write_summary
    from edg.runner.prepare import versions

    means, metrics = summary(rows, names, seed=config.seed), {}
    for name in names:
        metric = METRICS[name]
        about = {"unit": metric.unit, "better": metric.better, "what": metric.what}
        note = models.note if set(metric.needs) & set(models.by_towers) else ""
        metrics[name] = means[name] | about | ({"note": note} if note else {})
    interval = {"level": 0.95, "bootstrap": "percentile", "over": "prompts"}
    protocol = {
        "command": ["edg", *sys.argv[1:]],
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "clips": len(found),
        "failed_in_run": failed_in_run(config.folder, found),
        "left_out": dict(left_out),
        "interval": interval | {"draws": DRAWS, "seed": config.seed},
        **models.protocol,
        "versions": versions(),
    }
    write_rows(config.folder, rows, names)
    write_summary(config.folder, {"protocol": protocol, "metrics": metrics, "sets": dict(sets)})
    for name, entry in metrics.items():
        log(f"{name:22}{_format_mean(entry)} {entry['unit']}".rstrip())
    for name, entry in sets.items():
        log(f"{name:22}{'failed' if entry['value'] is None else format(entry['value'], '10.4g')}")
    for name, why in left_out.items():
        log(f"{name:22} not measured: {why}")
    log(f"{len(rows)} clips: {config.folder / 'scores.json'}")


def _format_mean(entry: Mapping[str, Any]) -> str:
    if entry["mean"] is None:
        return "         -"
    within = "" if entry["low"] is None else f"  [{entry['low']:.4g}, {entry['high']:.4g}]"
    return f"{entry['mean']:10.4g}{within}"
