"""The files of clips in a folder of results: formats, records, and the texts inside the files.

A record is the JSON file `STEM.json` beside the clip `STEM.mp4` (or .gif, ...); folders without records are
read, too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import edg
from edg.core.errors import BadFileError, UsageError
from edg.core.files import read_json, remove
from edg.core.formats import (
    ANIMATIONS,
    FORMATS,
    STILLS,
    VIDEOS,
    clip_path,
    clip_sha256,
    clip_stem,
    is_clip,
    write_clip,
)
from edg.core.hashing import hash_value, sha256_file

# Endings that a record's image may have (those of `video.PICTURES`), and its largest size in bytes.
PICTURES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff")
PICTURES += (".ppm", ".pgm", ".avif")
LARGEST_PICTURE = 200e6


# ---- writing -----------------------------------------------------------------------------------------------


if TYPE_CHECKING:
    from torch import Tensor


def write_clips(
    folder: Path, stem: str, formats: Sequence[str], frames: np.ndarray, settings: Mapping[str, Any]
) -> dict[str, str]:
    """Write a clip in every format; returns format -> SHA-256. settings: with fps and crf. Raises
    EdgError."""
    made, texts = {}, tags(settings)
    for format in formats:
        path = clip_path(folder, stem, format)
        write_clip(path, frames, format, fps=settings["fps"], crf=settings["crf"], tags=texts)
        made[format] = clip_sha256(path)
    return made


def tags(settings: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of a clip's files: prompt, seed, the hash of its parameter sets' identities, the version,
    and all settings as JSON in the comment."""
    return {
        "title": str(settings["prompt"]),
        "prompt": str(settings["prompt"]),
        "seed": str(settings["seed"]),
        "recipe_sha256": hash_value(settings.get("sets")),
        "software": f"edg {edg.__version__}",
        "comment": json.dumps(settings, ensure_ascii=False),
    }


def files_entry(folder: Path, stem: str, first: str, files: Mapping[str, str], count: int) -> dict[str, Any]:
    """The part of a record that lists its files. first: the format that stands for the clip; files: format ->
    SHA-256; count: of frames."""
    return {
        "video": clip_path(folder, stem, first).name,
        "video_sha256": files[first],
        "video_frames": count,
        "files": {clip_path(folder, stem, format).name: sha256 for format, sha256 in files.items()},
    }


def remove_files(folder: Path, stem: str, formats: Sequence[str] = FORMATS) -> None:
    """Remove a clip's files of these formats."""
    for format in formats:
        remove(clip_path(folder, stem, format))


def write_artifacts(
    folder: Path, stem: str, artifacts: Mapping[str, Tensor], former: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the tensors that a system gives beside a clip to STEM.safetensors; returns the part of the record
    that names the file. Without tensors the file that the former record names is removed."""
    path = folder / f"{stem}.safetensors"
    if not artifacts:
        if path.name in (former.get("artifacts") or {}):
            remove(path)
        return {}
    from edg.weights.store import write_safetensors

    write_safetensors(path, dict(artifacts))
    return {"artifacts": {path.name: sha256_file(path)}}


# ---- records -----------------------------------------------------------------------------------------------


def read_record(path: Path) -> dict[str, Any]:
    """A clip's record, {} where there is none that can be read."""
    with suppress(BadFileError):
        record = read_json(path)
        return record if isinstance(record, dict) else {}
    return {}


def recorded_files(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """File name -> SHA-256 of the files that a record lists; records of early versions list one."""
    files, alone = record.get("files"), record.get("video")
    if not files and isinstance(alone, str):
        return {alone: record.get("video_sha256")}
    return files if isinstance(files, Mapping) else {}


def verified_files(folder: Path, stem: str, record: Mapping[str, Any]) -> dict[str, str]:
    """Format -> SHA-256 of the files that a record lists as finished and that still have that hash."""
    files = recorded_files(record)
    if record.get("status") != "done":
        return {}
    found = {}
    for format in FORMATS:
        path = clip_path(folder, stem, format)
        if path.name in files:
            with suppress(BadFileError, OSError):
                if clip_sha256(path) == files[path.name]:
                    found[format] = files[path.name]
    return found


def find_named(name: object, folder: Path) -> Path | None:
    """The file that a record in `folder` names: as written, or relative to one of the folders above; None
    where there is nothing. Records name files as they were given, relative to where their run was started."""
    paths = [Path(str(name)), *(parent / str(name) for parent in (folder, *folder.resolve().parents))]
    with suppress(OSError, ValueError):  # not a possible file name
        return next((path for path in paths if path.exists()), None)
    return None


def check_picture(path: Path) -> None:
    """Raise BadFileError unless a file that a record names looks like a picture from outside: a record may
    be somebody else's and name any file, some of which never end."""
    size = path.stat().st_size if path.is_file() and path.suffix.lower() in PICTURES else 0
    if not 0 < size <= LARGEST_PICTURE:
        raise BadFileError(
            f"the record's image {path} is not an image file",
            expected=f"a png, jpg, webp, ... of at most {LARGEST_PICTURE / 1e6:.0f} MB",
        )


# ---- the clips of a folder ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClipFile:
    """A video and its record ({} without one)."""

    path: Path
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> Mapping[str, Any]:
        found = self.record.get("settings")
        return found if isinstance(found, Mapping) else {}

    @property
    def id(self) -> str:
        found = self.record.get("id")
        return str(found) if found and isinstance(found, (str, int)) else clip_stem(self.path)

    @property
    def prompt(self) -> str:
        found = self.settings.get("prompt")
        return found if isinstance(found, str) else ""

    @property
    def seed(self) -> int | None:
        found = self.settings.get("seed")
        return found if isinstance(found, int) else None

    @property
    def model(self) -> Mapping[str, str]:
        """The recorded model: "system", "name", "spec_sha256"."""
        found = self.settings.get("model")
        known = {"system": self.settings.get("system"), **(found if isinstance(found, Mapping) else {})}
        return {key: value for key, value in known.items() if isinstance(value, str)}

    @property
    def set_paths(self) -> Mapping[str, str]:
        """The recorded files of its parameter sets by name, {} where there are none."""
        found = self.record.get("set_paths")
        if isinstance(found, Mapping) and all(isinstance(path, str) for path in found.values()):
            return found
        return {}

    @property
    def has_image(self) -> bool:
        return bool(self.record.get("image"))

    def image(self, height: int, width: int) -> np.ndarray:
        """The input image as the model was given it, uint8 (H, W, 3). Raises BadFileError when it is gone or
        has changed."""
        from edg.core.video import fit_image, picture_bytes, read_image

        name = self.record.get("image")
        if not name:
            raise BadFileError(f"no record beside {self.path.name} names its input image")
        path = find_named(name, self.path.parent)
        if path is None:
            raise BadFileError(f"the input image {name!r} of {self.path.name} does not exist")
        check_picture(path)
        data = picture_bytes(path)
        picture = read_image(path, data)
        expected = self.settings.get("image_sha256")
        if expected and hashlib.sha256(data).hexdigest() != expected:
            raise BadFileError(f"{path} is no longer the image from which {self.path.name} was made")
        options = self.settings.get("options")
        crop, pad = (isinstance(options, Mapping) and options.get(fit) is True for fit in ("crop", "pad"))
        pixels = fit_image(picture, height, width, crop, pad and not crop).permute(1, 2, 0).numpy()
        return np.round((pixels + 1) * 127.5).clip(0, 255).astype(np.uint8)


def find_clips(folder: Path) -> list[ClipFile]:
    """The clips of a folder by name, in one format each. Raises BadFileError when there is no such folder,
    UsageError when it has no clip."""
    if not folder.is_dir():
        raise BadFileError(f"{folder} is not a folder", expected="a folder of clips, such as output/1000")
    found = [
        ClipFile(path, record)
        for name, paths in clips_by_name(folder).items()
        for record in [read_record(folder / f"{name}.json")]
        for path in one_of_each(paths, record)
    ]
    if not found:
        raise UsageError(
            f"no clip in {folder}",
            expected=f"{' '.join(VIDEOS)}, animated {' '.join(ANIMATIONS[1:])} or folders of numbered frames "
            "(00000.png, frame_0001.png, 1.jpg, ...)",
            fix=_hint(folder),
        )
    return found


def _hint(folder: Path) -> str:
    """A guess at what was meant by a folder that has no clip."""
    if is_clip(folder.resolve()):
        return f"{folder} is itself a clip of frames: give the folder above it"
    below = next((path.parent for path in sorted(folder.rglob("*")) if is_clip(path)), None)
    if below:
        return f"there are clips in {below}"
    picture = next((path for path in sorted(folder.rglob("*")) if path.suffix.lower() in STILLS), None)
    return (
        f"{picture} is a single picture: the frames of a clip have names that differ in a number"
        if picture
        else ""
    )


def clips_by_name(folder: Path) -> dict[str, list[Path]]:
    """The clips of a folder by stem, with webp files of one frame where a record lists them."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if is_clip(path) or (path.suffix == ".webp" and path.name in recorded_files(_record_of(path))):
            found.setdefault(clip_stem(path), []).append(path)
    return found


def one_of_each(paths: Sequence[Path], record: Mapping[str, Any]) -> list[Path]:
    """The paths without further formats of the record's clip: mp4 stays, else the first that it lists."""
    ours = [path for name in recorded_files(record) for path in paths if path.name == name]
    best = min(ours, key=lambda path: path.suffix != ".mp4", default=None)
    return [path for path in paths if path == best or path not in ours]


def _record_of(path: Path) -> Mapping[str, Any]:
    return read_record(path.parent / f"{clip_stem(path)}.json")


def failed_in_run(folder: Path, found: Sequence[ClipFile]) -> list[str]:
    """Ids of clips that are recorded as failed: they are in no mean."""
    there = {clip_stem(clip.path) for clip in found}
    others = (path for path in sorted(folder.glob("*.json")) if path.stem not in there)
    return [path.stem for path in others if read_record(path).get("status") == "failed"]
