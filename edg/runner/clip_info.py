"""The lines of `edg info` for a clip: what the file is, and how it was made.

The record beside a clip says most; without one the settings inside the file do. A clip of another program
has neither.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edg.core.errors import BadFileError
from edg.core.formats import clip_sha256, clip_shape, clip_stem, read_tags
from edg.runner.outputs import ClipFile, read_record, recorded_files

# Of a record: shown elsewhere, of the run and not of the clip, or too long to be read.
SHOWN = ("id", "status", "settings_hash", "settings", "spec", "versions", "set_origins", "set_paths")
SHOWN += ("image", "made_at", "command", "video", "video_sha256", "video_frames", "files", "warnings", "info")
HEAD = ("id", "prompt", "seed", "model", "system", "sets")  # of the settings, shown elsewhere
KNOWN_TAGS = ("title", "artist", "date", "creation_time", "comment", "description", "software", "encoder")
DEEPEST = 4  # mappings in mappings; those below are one value
MEASURED = ("frames", "height", "width", "fps")  # of the settings: those of the file are shown


@dataclass(frozen=True)
class ClipInfo:
    """A clip's file and what is known of its making. clip: with its record, or one that holds the settings of
    the file alone. tags: the texts inside the file."""

    clip: ClipFile
    tags: Mapping[str, str]
    recorded: bool
    changed: bool

    def lines(self) -> list[str]:
        """The lines of `edg info`. Raises BadFileError for a file that cannot be read."""
        found = [f"file        {self.clip.path}", f"clip        {describe_shape(self.clip.path)}"]
        if self.clip.settings:
            return [*found, *self._making()]
        found += [f"{name:<11} {_one_line(text)}" for name, text in self.tags.items() if name in KNOWN_TAGS]
        return [*found, "made by     another program: it has no record, and contains no settings of edg"]

    def _making(self) -> Iterator[str]:
        clip = self.clip
        record, model = clip.record, clip.model
        yield f"prompt      {clip.prompt or '(none)'}"
        yield f"seed        {_one_line(clip.settings.get('seed'))}"
        if record.get("image"):
            yield f"image       {_one_line(record['image'])}"
        yield f"model       {model.get('name', 'unknown')}, system {model.get('system', 'unknown')}"
        yield from _sets(clip)
        options = clip.settings.get("options")
        settings = {k: v for k, v in clip.settings.items() if k not in (*HEAD, *MEASURED, "options")}
        yield "settings"
        yield from _indented(settings | dict(options if isinstance(options, Mapping) else {}))
        yield from self._record()

    def _record(self) -> Iterator[str]:
        record = self.clip.record
        if not self.recorded:
            by = self.tags.get("software") or "edg"
            yield f"record      none: the lines above are from the file itself, written by {by}"
            return
        version = record.get("versions")
        version = version.get("edg", "unknown") if isinstance(version, Mapping) else "unknown"
        changed = "changed since then: its SHA-256 differs" if self.changed else "unchanged since then"
        yield f"record      {record_path(self.clip.path)}"
        yield f"  made      {record.get('made_at', 'at an unknown time')} by edg {version}"
        yield f"  file      {changed}"
        if isinstance(record.get("command"), list):
            yield f"  command   {shlex.join(map(_one_line, record['command']))}"
        yield from _indented({k: v for k, v in record.items() if k not in SHOWN})
        for warning in record.get("warnings") if isinstance(record.get("warnings"), list) else ():
            yield f"  warning   {_one_line(warning)}"


def read_clip_info(path: Path) -> ClipInfo:
    """A clip with its record, or with the settings inside the file. Raises BadFileError."""
    tags = read_tags(path)
    record = read_record(record_path(path))
    listed = recorded_files(record)
    if path.name in listed and isinstance(record.get("settings"), Mapping):
        changed = isinstance(listed[path.name], str) and clip_sha256(path) != listed[path.name]
        return ClipInfo(ClipFile(path, record), tags, recorded=True, changed=changed)
    return ClipInfo(ClipFile(path, {"settings": settings_inside(tags)}), tags, recorded=False, changed=False)


def record_path(path: Path) -> Path:
    """The place of a clip's record."""
    return path.parent / f"{clip_stem(path)}.json"


def settings_inside(tags: Mapping[str, str]) -> dict[str, Any]:
    """The settings that `edg` has written into a clip's file, {} for a file of another program."""
    with suppress(ValueError, RecursionError, TypeError, KeyError):
        settings = json.loads(tags["comment"])
        if isinstance(settings, dict) and {"prompt", "seed", "options"} <= settings.keys():
            return settings
    return {}


def describe_shape(path: Path) -> str:
    """`mp4, 8 frames of 32x32 (width x height), 8 frames/s, 1 s, 0.01 MB`."""
    frames, height, width, fps = clip_shape(path)
    kind = "folder of frames" if path.is_dir() else path.suffix.lstrip(".").lower()
    try:
        files = [file for file in path.iterdir() if file.is_file()] if path.is_dir() else [path]
        size = sum(file.stat().st_size for file in files)
    except OSError as error:
        raise BadFileError(f"cannot read {path}: {error.strerror}") from error
    speed = f"{fps:g} frames/s, {frames / fps:.3g} s" if fps > 0 else "frame rate unknown"
    plural = "" if frames == 1 else "s"
    return f"{kind}, {frames} frame{plural}, {width}x{height} (width x height), {speed}, {size / 1e6:.2f} MB"


def _sets(clip: ClipFile) -> Iterator[str]:
    """The parameter sets: their merge where they have one, else what identifies them; and their files."""
    sets, origins = clip.settings.get("sets"), clip.record.get("set_origins")
    origins = origins if isinstance(origins, Mapping) else {}
    if isinstance(sets, Mapping):
        yield "sets"
        for name, identity in sets.items():
            yield f"  {name:<9} {_merge_steps(origins.get(name)) or _one_line(identity)}"
    merged = [one["inputs"] for one in origins.values() if isinstance(one, Mapping) and "inputs" in one]
    inputs = merged[0] if merged and isinstance(merged[0], Mapping) else {}
    for name in dict.fromkeys([*inputs, *clip.set_paths]):
        sha256 = f"  sha256 {str(inputs[name])[:16]}..." if name in inputs else ""
        yield f"  file      {name}: {clip.set_paths.get(name, 'path unknown')}{sha256}"


def _merge_steps(origin: object) -> str:
    """The steps of a merge in one line, "" where there is none."""
    recipe = origin.get("recipe") if isinstance(origin, Mapping) else None
    outputs = recipe.get("outputs") if isinstance(recipe, Mapping) else None
    steps = outputs.get(str(origin.get("output"))) if isinstance(outputs, Mapping) else None
    if not isinstance(steps, list):
        return ""
    return "; ".join(_merge_step(one) for one in steps if isinstance(one, Mapping))


def _merge_step(step: Mapping[str, Any]) -> str:
    given = {key: value for key, value in step.items() if key != "op" and value not in ("", [])}
    return f"{step.get('op')}: " + ", ".join(f"{key} {_one_line(value)}" for key, value in given.items())


def _indented(values: Mapping[str, Any], where: str = "  ") -> Iterator[str]:
    """A line for each value, those of inner mappings with dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value and where.count(".") < DEEPEST:
            yield from _indented(value, f"{where}{name}.")
        else:
            yield f"{where + name:<26} {_one_line(value)}"


def _one_line(value: object) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "..."
