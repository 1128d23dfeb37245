"""The folder of a run: its requests, finished clips and their records.

A clip is finished when its record says so, with the same settings, and its files, one for each format asked
for, are those that the record describes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edg.core.errors import BadFileError, UsageError
from edg.core.files import read_small, write_json
from edg.core.formats import clip_path, read_clip
from edg.core.hashing import hash_value, sha256_file
from edg.core.log import log
from edg.runner import outputs
from edg.systems.base import Request, Result

MAX_VIDEO = 2_000_000_000  # bytes of a reference clip
IN_RECORD = {"video": "reference_video"}  # where "video" is the clip that was made


@dataclass(frozen=True)
class ClipFolder:
    """The clips to make, and their folder.

    shared: settings that all clips have in common and that decide the pixels (system, spec, parameter sets,
    dtype, options); compared when a run is resumed. notes: recorded, not compared (paths, versions, device).
    formats: see core/formats.py; the first stands for the clip. They are no setting: further ones may be
    asked for later. former: those of the settings that a record by earlier code has in another form, in that
    form, where they are the same ({} else); compared too when a run is resumed.
    """

    requests: Sequence[Request]
    outdir: Path
    shared: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    fps: float = 8
    crf: int = 10
    chunk: int = 8
    overwrite: bool = False
    patience: float = 0  # seconds to wait for another run that holds the folder
    preview: bool = False  # ID.preview.png, while a clip is made
    formats: tuple[str, ...] = ("mp4",)
    former: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda record: {}

    def video(self, request: Request) -> Path:
        return clip_path(self.outdir, request.id, self.formats[0])

    def record(self, request: Request) -> Path:
        return self.outdir / f"{request.id}.json"

    def settings(self, request: Request) -> dict[str, Any]:
        """Everything that decides the clip's files. Raises BadFileError when a file cannot be read."""
        hashes = {
            f"{name}_sha256": _sha256(path, request.contents.get(name))
            for name, path in request.files.items()
        }
        return {
            "id": request.id,
            "prompt": request.prompt,
            **hashes,
            "seed": request.seed,
            "frames": request.frames,
            "height": request.height,
            "width": request.width,
            "fps": self.fps,
            "crf": self.crf,
            **self.shared,
        }


def _sha256(path: Path, data: bytes | None) -> str:
    return sha256_file(path) if data is None else hashlib.sha256(data).hexdigest()


def is_finished(folder: ClipFolder, request: Request) -> bool:
    """True if the clip is there in every format, complete, and made with these settings.

    A clip that only lacks formats is completed here where its frames lie there as png. Raises UsageError when
    it is there with other settings, unless the folder overwrites.
    """
    record = outputs.read_record(folder.record(request))
    there = outputs.verified_files(folder.outdir, request.id, record)
    if not there:
        return False
    with suppress(BadFileError):  # an image that is gone now makes the clip fail later, with its reason
        settings = folder.settings(request)
        if _is_of(folder, record, settings):
            return set(folder.formats) <= there.keys() or _completed(folder, request, record, there)
        if not folder.overwrite:
            difference = _difference(folder, record, settings)
            raise UsageError(
                f"{clip_path(folder.outdir, request.id, next(iter(there)))} was made with other settings "
                f"({difference})",
                fix="use --overwrite to make it again, or another --savedir",
            )
    return False


def _is_of(folder: ClipFolder, record: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """True if a record is of a clip with these settings, in today's form or in an earlier one."""
    then = record.get("settings_hash")
    if then == hash_value(settings):
        return True
    former = folder.former(record)
    return bool(former) and then == hash_value({**settings, **former})


def _difference(folder: ClipFolder, record: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The first setting of a record that differs; for parameter sets, whose hashes say little, also that of
    their origins."""
    found = first_difference(record.get("settings", {}), settings)
    if found.startswith("sets."):
        origins = first_difference(record.get("set_origins", {}), folder.notes.get("set_origins", {}), "sets")
        found += f"; {origins}" if origins else ""
    return found


def _completed(folder: ClipFolder, request: Request, record: dict[str, Any], there: dict[str, str]) -> bool:
    """True if the missing formats could be made of the exact frames that lie there as png."""
    if "png" not in there:
        return False
    frames = read_clip(clip_path(folder.outdir, request.id, "png"))
    missing = [format for format in folder.formats if format not in there]
    try:
        settings = folder.settings(request)
        there = there | outputs.write_clips(folder.outdir, request.id, missing, frames, settings)
        parts = outputs.files_entry(folder.outdir, request.id, folder.formats[0], there, len(frames))
        write_json(folder.record(request), record | parts)
    except UsageError:  # a size that this format cannot have: made again, it fails with its reason
        return False
    log(f"made {', '.join(missing)} from the frames in {clip_path(folder.outdir, request.id, 'png')}")
    return True


def first_difference(then: Any, now: Any, where: str = "") -> str:
    """`options.eta: 1.0 then, 0.5 now` for the first place where nested values differ ("" when nowhere)."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in [*now, *(key for key in then if key not in now)]:
            inner = f"{where}.{key}".lstrip(".")
            if key not in then or key not in now:
                return f"{inner}: {_show(then.get(key))} then, {_show(now.get(key))} now"
            if difference := first_difference(then[key], now[key], inner):
                return difference
        return ""
    same = hash_value(then) == hash_value(now)
    return "" if same else f"{where or 'settings'}: {_show(then)} then, {_show(now)} now"


def _show(value: Any, length: int = 60) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."


def with_contents(request: Request) -> Request:
    """The request with its files as they are now: whatever takes their place later, the clip is made of these
    bytes and its record hashes them. Raises BadFileError for a picture that is none."""
    from edg.core.video import picture_bytes, read_image

    contents = {}
    for name, path in request.files.items():
        if name == "video":
            contents[name] = read_small(path, MAX_VIDEO)
        else:
            contents[name] = picture_bytes(path)
            read_image(path, contents[name])
    return replace(request, contents=contents)


def record_of(
    folder: ClipFolder, request: Request, status: str, settings: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The record of a clip, but for its files."""
    return {
        "id": request.id,
        "status": status,
        "settings_hash": hash_value(settings),
        "settings": settings,
        **{IN_RECORD.get(name, name): str(path) for name, path in request.files.items()},
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **folder.notes,
    }


def warnings_of(result: Result) -> list[str]:
    """Warnings of a clip: the system's own lines, a still, what is special about its pictures."""
    from edg.core.video import picture_notes

    frames, lines = result.frames, list(result.warnings)
    if frames.min() == frames.max():
        lines.append("every pixel of the video has the same value")
    elif len(frames) > 1 and (frames == frames[0]).all():
        lines.append("every frame of the video is the same picture")
    request = result.request
    for name, path in request.files.items():
        with suppress(BadFileError):  # it was read; should it be gone now, the clip is made all the same
            lines += picture_notes(path, request.contents.get(name)) if name != "video" else []
    return lines
