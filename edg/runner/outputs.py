"""A clip's files in its folder: which formats there are, whether they are whole, what is written inside."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

import edg
from edg.core.errors import BadFileError
from edg.core.files import read_json, remove
from edg.core.formats import FORMATS, digest, place, read_clip, write_clip
from edg.core.hashing import hash_value


def read_record(path: Path) -> dict[str, Any]:
    """A clip's record, {} where there is none that can be read."""
    with suppress(BadFileError):
        record = read_json(path)
        return record if isinstance(record, dict) else {}
    return {}


def named(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """File name -> digest of the formats that a record tells of; in old records there is one."""
    files, alone = record.get("files"), record.get("video")
    if not files and isinstance(alone, str):
        return {alone: record.get("video_sha256")}
    return files if isinstance(files, Mapping) else {}


def intact(folder: Path, stem: str, record: Mapping[str, Any]) -> dict[str, str]:
    """Format -> digest of the files that a record says are done and that are what it describes."""
    files = named(record)
    if record.get("status") != "done":
        return {}
    found = {}
    for format in FORMATS:
        path = place(folder, stem, format)
        if path.name in files:
            with suppress(BadFileError, OSError):
                if digest(path) == files[path.name]:
                    found[format] = files[path.name]
    return found


def write(
    folder: Path, stem: str, formats: Sequence[str], frames: np.ndarray, settings: Mapping[str, Any]
) -> dict[str, str]:
    """Write a clip in every format; returns format -> digest. settings: with fps and crf. Raises
    EdgError."""
    made, inside = {}, tags(settings)
    for format in formats:
        path = place(folder, stem, format)
        write_clip(path, frames, format, fps=settings["fps"], crf=settings["crf"], tags=inside)
        made[format] = digest(path)
    return made


def tags(settings: Mapping[str, Any]) -> dict[str, str]:
    """The texts inside every file: prompt, seed, the hash of its parameter sets' identities,
    the version, and all settings as JSON in the comment."""
    return {
        "title": str(settings["prompt"]),
        "prompt": str(settings["prompt"]),
        "seed": str(settings["seed"]),
        "recipe_sha256": hash_value(settings.get("sets")),
        "software": f"edg {edg.__version__}",
        "comment": json.dumps(settings, ensure_ascii=False),
    }


def described(folder: Path, stem: str, first: str, files: Mapping[str, str], count: int) -> dict[str, Any]:
    """A record's part about its files. first: the format that stands for the clip; files: by format."""
    return {
        "video": place(folder, stem, first).name,
        "video_sha256": files[first],
        "video_frames": count,
        "files": {place(folder, stem, format).name: sha256 for format, sha256 in files.items()},
    }


def drop(folder: Path, stem: str, formats: Sequence[str] = FORMATS) -> None:
    for format in formats:
        remove(place(folder, stem, format))


def frames_of(folder: Path, stem: str, formats: Sequence[str]) -> np.ndarray:
    """A clip's frames, from its first format. Raises BadFileError."""
    return read_clip(place(folder, stem, formats[0]))
