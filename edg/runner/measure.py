"""Clips -> scores: each clip for itself, and the distances between two folders of clips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edg.core.errors import BadFileError, EdgError, UsageError
from edg.core.formats import clip_sha256, clip_stem
from edg.core.hashing import stamp
from edg.runner.outputs import ClipFile, clips_by_name, find_clips
from edg.runner.progress import Meter

if TYPE_CHECKING:
    from edg.metrics.catalogue import Clip, Tools
    from edg.metrics.networks import Network
    from edg.metrics.table import Row


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
    sha256 = ""
    try:
        before = stamp(file.path)
        sha256 = clip_sha256(file.path)
        clip, missing = open_clip(file, {need for n in names for need in METRICS[n].needs}, tools, reference)
        if stamp(file.path) != before:  # the row's hash would be of other frames
            raise BadFileError(f"{file.path} was changed while it was read")
    except Exception as error:  # whatever a damaged file or record makes of it, the others go on
        failed = dict.fromkeys(names, _reason(error))
        return Row(file.path.name, file.id, file.prompt, file.seed, scores, failed, labels, sha256)
    for name in names:
        metric = METRICS[name]
        try:
            if lacking := [missing[need] for need in metric.needs if need in missing]:
                raise UsageError(lacking[0])
            value = metric.of(clip)
            if value is not None and not math.isfinite(value):
                raise UsageError(f"the value is {value}")
            if name.startswith("camera") and len(clip.frames) > 1:
                labels["camera"] = clip.camera
            scores[name] = value
        except Exception as error:
            failed[name] = _reason(error)
    return Row(file.path.name, file.id, file.prompt, file.seed, scores, failed, labels, sha256)


def open_clip(
    file: ClipFile, needs: set[str], tools: Tools, reference: Path | None
) -> tuple[Clip, dict[str, str]]:
    """(the clip with what the metrics need, what is missing with the reason). Raises BadFileError for the
    video."""
    from edg.core.formats import read_timed
    from edg.metrics.catalogue import Clip

    frames, fps = read_timed(file.path)
    given: dict[str, Any] = {}
    missing = {} if file.prompt else {"prompt": "no record tells its prompt"}
    readers = {
        "image": lambda: file.image(*frames.shape[1:3]),
        "reference": lambda: read_timed(_same_name(reference, file.path))[0],
    }
    for need in needs & readers.keys():
        try:
            given[need] = readers[need]()
        except Exception as error:
            missing[need] = _reason(error)
    return Clip(frames, fps, file.prompt, tools=tools, **given), missing


def _same_name(folder: Path | None, path: Path) -> Path:
    name = clip_stem(path)
    same = clips_by_name(folder).get(name) if folder and folder.is_dir() else None
    if not same:
        raise BadFileError(f"no clip called {name} in {folder}")
    return same[0]


def distances(found: Sequence[ClipFile], network: Network | None, reference: str | None) -> dict[str, Any]:
    """Distances between all clips and all real ones, by name; {} without a feature network. A clip that
    cannot be read makes the distance fail: it would be that of other sets."""
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
    """What an error says; where it was not meant for people, after its kind."""
    return str(error) if isinstance(error, EdgError) else f"{type(error).__name__}: {error}"
