"""The clips of a folder, with the records that `edg sample` wrote beside them, where there are any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edg.core.errors import BadFileError, UsageError
from edg.core.records import read_json, sha256_file

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif")


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
        return str(self.record.get("id") or self.path.stem)

    @property
    def prompt(self) -> str:
        return str(self.settings.get("prompt") or "")

    @property
    def seed(self) -> int | None:
        return self.settings.get("seed")

    @property
    def has_image(self) -> bool:
        return bool(self.record.get("image"))

    def image(self, height: int, width: int) -> Any:
        """The input image as the model was given it, uint8 (H, W, 3). Raises BadFileError when it is gone or
        another one now."""
        import numpy as np

        from edg.core.video import fit_image, read_image

        path = self.record.get("image")
        if not path:
            raise BadFileError(f"no record beside {self.path.name} names its input image")
        picture = read_image(path)
        expected = self.settings.get("image_sha256")
        if expected and sha256_file(path) != expected:
            raise BadFileError(f"{path} is not the image any more that {self.path.name} was made from")
        pixels = fit_image(picture, height, width).permute(1, 2, 0).numpy()
        return np.round((pixels + 1) * 127.5).clip(0, 255).astype(np.uint8)


def find_clips(folder: Path) -> list[ClipFile]:
    """The videos of a folder by name. Raises BadFileError when there is no such folder, UsageError when it
    has no video."""
    if not folder.is_dir():
        raise BadFileError(f"{folder} is no folder", expected="a folder of clips, such as output/1000")
    paths = videos(folder)
    if not paths:
        below = next((path.parent for path in sorted(folder.rglob("*.mp4"))), None)
        raise UsageError(
            f"no clip in {folder}",
            expected=" ".join(SUFFIXES),
            fix=f"there are some in {below}" if below else "",
        )
    return [ClipFile(path, _record(path)) for path in paths]


def videos(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def _record(path: Path) -> Mapping[str, Any]:
    with suppress(BadFileError):
        record = read_json(path.with_suffix(".json"))
        return record if isinstance(record, dict) else {}
    return {}


def failed_in_run(folder: Path, found: Sequence[ClipFile]) -> list[str]:
    """Ids of clips whose record says that they failed: they are in no mean."""
    there = {clip.path.stem for clip in found}
    stems = (path for path in sorted(folder.glob("*.json")) if path.stem not in there)
    return [path.stem for path in stems if _record(path.with_suffix(".mp4")).get("status") == "failed"]
