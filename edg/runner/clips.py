"""The clips of a folder, with the records that `edg sample` wrote beside them, where there are any."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edg.core.errors import BadFileError, UsageError
from edg.core.formats import ANIMATIONS, STILLS, VIDEOS, is_clip, stem_of
from edg.runner.outputs import named, read_record

# What a record may name as its image: the endings of `video.PICTURES`, and the most bytes.
PICTURES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff")
PICTURES += (".ppm", ".pgm", ".avif")
LARGEST_PICTURE = 200e6


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
        return str(found) if found and isinstance(found, (str, int)) else stem_of(self.path)

    @property
    def prompt(self) -> str:
        found = self.settings.get("prompt")
        return found if _is_text(found) else ""

    @property
    def seed(self) -> int | None:
        found = self.settings.get("seed")
        return found if isinstance(found, int) else None

    @property
    def model(self) -> Mapping[str, str]:
        """Its model as the record tells it: "system", "name", "spec_sha256"."""
        found = self.settings.get("model")
        known = {"system": self.settings.get("system"), **(found if isinstance(found, Mapping) else {})}
        return {key: value for key, value in known.items() if _is_text(value)}

    @property
    def set_paths(self) -> Mapping[str, str]:
        """The files of its parameter sets by name, {} where the record does not tell them."""
        found = self.record.get("set_paths")
        return found if isinstance(found, Mapping) and all(map(_is_text, found.values())) else {}

    @property
    def has_image(self) -> bool:
        return bool(self.record.get("image"))

    def image(self, height: int, width: int) -> Any:
        """The input image as the model was given it, uint8 (H, W, 3). Raises BadFileError when it is gone or
        another one now."""
        import numpy as np

        from edg.core.video import fit_image, picture_bytes, read_image

        name = self.record.get("image")
        if not name:
            raise BadFileError(f"no record beside {self.path.name} names its input image")
        path = find_named(name, self.path.parent)
        if path is None:
            raise BadFileError(f"the input image {name!r} of {self.path.name} is not there")
        need_picture(path)
        data = picture_bytes(path)
        picture = read_image(path, data)
        expected = self.settings.get("image_sha256")
        if expected and hashlib.sha256(data).hexdigest() != expected:
            raise BadFileError(f"{path} is not the image any more that {self.path.name} was made from")
        options = self.settings.get("options")
        crop, pad = (isinstance(options, Mapping) and options.get(fit) is True for fit in ("crop", "pad"))
        pixels = fit_image(picture, height, width, crop, pad and not crop).permute(1, 2, 0).numpy()
        return np.round((pixels + 1) * 127.5).clip(0, 255).astype(np.uint8)


def find_named(name: Any, folder: Path) -> Path | None:
    """What a record in `folder` names: as it says, or from one of the folders above; None where there is
    nothing. Records name files as they were given, from where their run was started."""
    places = [Path(str(name)), *(parent / str(name) for parent in (folder, *folder.resolve().parents))]
    with suppress(OSError, ValueError):  # no name of a file
        return next((place for place in places if place.exists()), None)
    return None


def need_picture(path: Path) -> None:
    """Raise BadFileError unless a file that a record names looks like a picture from outside: a record may
    be somebody else's and name any file, some of which never end."""
    size = path.stat().st_size if path.is_file() and path.suffix.lower() in PICTURES else 0
    if not 0 < size <= LARGEST_PICTURE:
        told = f"a png, jpg, webp, ... of at most {LARGEST_PICTURE / 1e6:.0f} MB"
        raise BadFileError(f"the record's image {path} is no picture's file", expected=told)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def find_clips(folder: Path) -> list[ClipFile]:
    """The clips of a folder by name, in one format each. Raises BadFileError when there is no such folder,
    UsageError when it has no clip."""
    if not folder.is_dir():
        raise BadFileError(f"{folder} is no folder", expected="a folder of clips, such as output/1000")
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
            fix=_where_clips_are(folder),
        )
    return found


def _where_clips_are(folder: Path) -> str:
    """What may have been meant by a folder that has no clip."""
    if is_clip(folder.resolve()):
        return f"{folder} is itself a clip of frames: name the folder above it"
    below = next((path.parent for path in sorted(folder.rglob("*")) if is_clip(path)), None)
    if below:
        return f"there are some in {below}"
    picture = next((path for path in sorted(folder.rglob("*")) if path.suffix.lower() in STILLS), None)
    return f"{picture} is no frame of several that differ in a number" if picture else ""


def clips_by_name(folder: Path) -> dict[str, list[Path]]:
    """What is a clip, or is told to be one by its record, by the name without what tells the format."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if is_clip(path) or (path.suffix == ".webp" and path.name in named(_record(path))):
            found.setdefault(stem_of(path), []).append(path)
    return found


def one_of_each(paths: Sequence[Path], record: Mapping[str, Any]) -> list[Path]:
    """The paths without further formats of a record's clip: mp4 stays, else the first that it names."""
    ours = [path for name in named(record) for path in paths if path.name == name]
    best = min(ours, key=lambda path: path.suffix != ".mp4", default=None)
    return [path for path in paths if path == best or path not in ours]


def _record(path: Path) -> Mapping[str, Any]:
    return read_record(path.parent / f"{stem_of(path)}.json")


def failed_in_run(folder: Path, found: Sequence[ClipFile]) -> list[str]:
    """Ids of clips whose record says that they failed: they are in no mean."""
    there = {stem_of(clip.path) for clip in found}
    others = (path for path in sorted(folder.glob("*.json")) if path.stem not in there)
    return [path.stem for path in others if read_record(path).get("status") == "failed"]
