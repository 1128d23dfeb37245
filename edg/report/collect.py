"""The contents of run folders: clips with their records, scores and recipes. Nothing is decoded here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edg.core.errors import BadFileError, require
from edg.core.files import read_json
from edg.core.hashing import sha256_file
from edg.data.prompts import leads_out
from edg.runner.outputs import clips_by_name, find_named, one_of_each

RESERVED = ("scores", "point")
OF_A_CLIP = ("id", "prompt", "image_sha256")
DEEPEST = 50  # lists and tables inside each other, in JSON that may be anybody's
LARGEST, LONGEST = 1e100, 200e6  # a score, whose square is a number too; bytes of scores.jsonl


@dataclass(frozen=True)
class ReportClip:
    """A clip of a run.

    id: of its record, or the stem of the video.
    video, record, image: files, None where there is none.
    settings: of the record.
    error: why there is no clip.
    scores: metric -> value, of the file with the SHA-256 `scored` ("" where that is unknown).
    """

    id: str
    video: Path | None
    record: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    image: Path | None = None
    error: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    scored: str = ""

    @property
    def prompt(self) -> str:
        return str(self.settings.get("prompt", ""))


@dataclass(frozen=True)
class ReportRun:
    """A folder of clips.

    recipe: what its records have in common.
    point: the sweep's point.json.
    scores: those of scores.json, metric -> {"mean", "low", "high", ...}.
    rows: how many clips these are of.
    """

    name: str
    folder: Path
    clips: Mapping[str, ReportClip]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    point: Mapping[str, Any] | None = None
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rows: int = 0


def collect(folders: Sequence[Path], problems: dict[str, str]) -> list[ReportRun]:
    """Read the folders; what is damaged is noted in `problems` (file -> reason) and left out.

    Raises BadFileError for a folder without clips, UsageError for one that is given twice.
    """
    folders = [_clip_folder(Path(folder)) for folder in folders]
    unique = len({folder.resolve() for folder in folders}) == len(folders)
    require(unique, "a run is given twice", fix="give every folder once")
    points = [_point(folder, problems) for folder in folders]
    names = _names(folders, points)
    return [_run(*one, problems) for one in zip(names, folders, points, strict=True)]


def _clip_folder(folder: Path) -> Path:
    """The folder that holds the clips: the given one, or the only one inside it that does (`output/1000`)."""
    if not folder.is_dir():
        raise BadFileError(f"{folder} is not a folder", expected="the folder of a run, with its clips")
    links: dict[str, str] = {}
    if _stems(folder, links):
        return folder
    below = sorted(path for path in folder.iterdir() if path.is_dir())
    inside = [path for path in below if _is_near(path, links, path) and _stems(path, links)]
    if len(inside) == 1:
        return inside[0]
    fix = (
        f"give its folders, such as {inside[0]}"
        if inside
        else "give the folder of clips that edg sample wrote"
    )
    fix = next(iter(links.values())) if links and not inside else fix
    raise BadFileError(f"{folder} holds no clips", expected="videos or records of edg sample", fix=fix)


def _stems(folder: Path, problems: dict[str, str]) -> dict[str, list[Path]]:
    """Clips and records by stem, without links that lead out of the folder."""
    found = clips_by_name(folder)
    for path in folder.glob("*.json"):
        if path.stem not in RESERVED and path.is_file() and not path.name.startswith("."):
            found.setdefault(path.stem, []).append(path)
    kept = {stem: [path for path in paths if _is_ours(path, problems)] for stem, paths in found.items()}
    return {stem: paths for stem, paths in sorted(kept.items()) if paths}


def _is_ours(path: Path, problems: dict[str, str]) -> bool:
    """True if a file, or every frame of a folder, lies in its folder: somebody else's run must not bring
    files of this machine into a page that is passed on."""
    return _is_near(path, problems, path, *(sorted(path.iterdir()) if path.is_dir() else ()))


def _is_near(path: Path, problems: dict[str, str], *parts: Path) -> bool:
    out = next((part for part in parts if leads_out(part, path.parent)), None)
    if out:
        problems[str(path)] = f"{out} is a link out of its folder: copy its target into the folder"
    return out is None


def _point(folder: Path, problems: dict[str, str]) -> Mapping[str, Any] | None:
    for path in (folder / "point.json", folder.parent / "point.json"):
        if path.is_file():
            value = _json(path, problems) if _is_ours(path, problems) else None
            return value if isinstance(value, dict) else None
    return None


def _json(path: Path, problems: dict[str, str]) -> Any:
    try:
        return _shallow(read_json(path), path)
    except BadFileError as error:
        problems[str(path)] = str(error)
    return None


def _shallow(value: Any, path: Path) -> Any:
    """The value itself. Raises BadFileError where it is nested deeper than DEEPEST."""
    level = [value]
    for _ in range(DEEPEST):
        level = [part for one in level if isinstance(one, (dict, list)) for part in _parts(one)]
    if level:
        raise BadFileError(f"cannot read {path}: it is nested too deep", expected=f"at most {DEEPEST} levels")
    return value


def _parts(value: dict[str, Any] | list[Any]) -> Any:
    return value.values() if isinstance(value, dict) else value


def _names(folders: Sequence[Path], points: Sequence[Mapping[str, Any] | None]) -> list[str]:
    """A name for each run: that of its point, else the part of its path in which it differs. All differ."""
    paths = [list(folder.resolve().parts) for folder in folders]
    for end in (0, -1):
        while all(len(p) > 1 for p in paths) and len(paths) > 1 and len({p[end] for p in paths}) == 1:
            for parts in paths:
                parts.pop(end)
    if len(paths) == 1:
        words = [part for part in paths[0] if not part.isdigit()]
        paths = [words[-1:]]
    names = [str((point or {}).get("name") or "/".join(p)) for p, point in zip(paths, points, strict=True)]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


# ---- one run -----------------------------------------------------------------------------------------------


def _run(name: str, folder: Path, point: Mapping[str, Any] | None, problems: dict[str, str]) -> ReportRun:
    scores = _scores_of_clips(folder / "scores.jsonl", problems)
    clips: dict[str, ReportClip] = {}
    records: list[Mapping[str, Any]] = []
    for stem, paths in _stems(folder, problems).items():
        record = next((path for path in paths if path.suffix == ".json"), None)
        value = _json(record, problems) if record else {}
        videos = one_of_each([p for p in paths if p != record], value if isinstance(value, dict) else {})
        if record and not _is_record(value):
            if value is not None and not videos:
                continue  # another program's JSON
            record, value = (record if value is not None else None), {}
        if value:
            records.append(value)
        for number, video in enumerate(videos or [None]):
            clip_id = video.name if video and number else str(value.get("id", stem))
            clip_id = stem if clip_id in clips else clip_id  # a record that was copied
            clips[clip_id] = _clip(clip_id, video, record, value, scores, problems)
    file = folder / "scores.json"
    summary = _json(file, problems) if file.is_file() and _is_ours(file, problems) else None
    metrics = summary.get("metrics") if isinstance(summary, dict) else None
    kept = {str(k): v for k, v in metrics.items() if _is_summary(v)} if isinstance(metrics, dict) else {}
    rows = sum(bool(values) for values, _ in scores.values())
    return ReportRun(name, folder, clips, _common(records), point, kept, rows)


def _is_record(value: Any) -> bool:
    return (
        isinstance(value, dict) and "id" in value and isinstance(value.get("settings", 0), (dict, type(None)))
    )


def _is_summary(value: Any) -> bool:
    return isinstance(value, dict) and is_number(value.get("mean"))


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and abs(value) <= LARGEST


def _clip(
    clip_id: str, video: Path | None, record: Path | None, value: Mapping[str, Any],
    scores: Mapping[str, tuple[dict[str, float], str]], problems: dict[str, str],
) -> ReportClip:  # fmt: skip
    settings = value.get("settings") if isinstance(value.get("settings"), dict) else {}
    error = ""
    if video is None:
        error = str(value.get("error") or "the video is missing" if value else "the record cannot be read")
        if value.get("status") != "failed" and value:
            problems[str(record)] = f"{record}: its video is missing"
    image = find_named(value["image"], record.parent) if record and value.get("image") else None
    values, scored = scores.get(video.name, ({}, "")) if video else ({}, "")
    return ReportClip(clip_id, video, record, settings, image, error, values, scored)


def _scores_of_clips(path: Path, problems: dict[str, str]) -> dict[str, tuple[dict[str, float], str]]:
    """The rows of scores.jsonl: file name of the clip -> (metric -> value, SHA-256 of the measured file)."""
    found: dict[str, tuple[dict[str, float], str]] = {}
    if not path.is_file() or not _is_ours(path, problems):
        return found
    try:
        if path.stat().st_size > LONGEST:
            raise ValueError(f"it is larger than {LONGEST / 1e6:.0f} MB")
        for line in filter(None, map(str.strip, path.read_text(encoding="utf-8").splitlines())):
            row = _shallow(json.loads(line), path)
            values = {str(k): float(v) for k, v in row["scores"].items() if is_number(v)}
            found[str(row["clip"])] = values, str(row.get("sha256") or "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problems[str(path)] = f"cannot read {path}: {error}"
    return found


# ---- the recipe --------------------------------------------------------------------------------------------


def _common(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{"settings": dotted name -> value that all records share, or how many there are, "sets", "notes"}."""
    if not records:
        return {}
    flat = [dict(flatten(record["settings"] or {}, skip=(*OF_A_CLIP, "sets"))) for record in records]
    names = list(dict.fromkeys(name for one in flat for name in one))
    settings = {}
    for name in names:
        values = {json.dumps(one.get(name), sort_keys=True, default=str): one.get(name) for one in flat}
        settings[name] = next(iter(values.values())) if len(values) == 1 else f"{len(values)} values"
    first = records[0]
    notes = {k: first[k] for k in ("command", "set_paths", "device", "made_at", "versions") if k in first}
    return {"settings": settings, "sets": _sets(first), "notes": notes}


def _sets(record: Mapping[str, Any]) -> Any:
    """The parameter sets of a record, each with the merge that it names as its origin."""
    sets, origins = (record["settings"] or {}).get("sets"), record.get("set_origins")
    if not isinstance(sets, Mapping) or not isinstance(origins, Mapping):
        return sets
    pairs = {name: (one, origins.get(name)) for name, one in sets.items()}
    return {
        name: {**one, **made} if isinstance(one, Mapping) and isinstance(made, Mapping) else one
        for name, (one, made) in pairs.items()
    }


def flatten(value: Mapping[str, Any], skip: Sequence[str] = (), where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of nested mappings, without the names in `skip`."""
    for key, inner in value.items():
        name = f"{where}.{key}".lstrip(".")
        if isinstance(inner, Mapping) and inner and name not in skip:
            yield from flatten(inner, skip, name)
        elif name not in skip:
            yield name, inner


def is_unchanged(path: Path, expected: str) -> bool:
    """True if the file has this SHA-256, or none is recorded."""
    return not expected or sha256_file(path) == expected


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Key of the natural sort order: 2 before 10."""
    parts = [(part, part.lstrip("0")) for part in re.split(r"(\d+)", name)]
    return [(0, len(digits), digits) if part.isdecimal() else (1, 0, part) for part, digits in parts]
