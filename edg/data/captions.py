"""Captions in files beside videos, and checks of the captions and files of a list of videos."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edg.core.errors import BadFileError
from edg.core.files import read_small

if TYPE_CHECKING:
    from edg.data.sources import CaptionedVideo

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".3gp")
ENDINGS = (".txt", ".caption", ".json")  # in any case; the first of a video's that holds a text counts
FIELDS = ("caption", "text", "prompt")
FIRST = 50  # videos whose files are looked for before a run


def is_video(name: str) -> bool:
    """True if a file's name ends as those of videos do."""
    return name.lower().endswith(SUFFIXES)


def nfc(text: str) -> str:
    """Normalise letters with marks (NFC): file systems and programs write them in two ways."""
    return unicodedata.normalize("NFC", text)


def _folded(text: str) -> str:
    return nfc(text).casefold()


EQUALITIES: tuple[Callable[[str], str], ...] = (str, nfc, _folded)  # of names, the strictest first


def caption_files(videos: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """Map each video of a folder to its caption files among `names`, the one that counts first.

    a.mp4 has a.txt, a.caption, a.json, then a.mp4.txt, ...; the case of endings and the spelling of letters
    (NFC, NFD) do not matter, that of the stem only where another video's is closer.
    """
    stems = [_by_form(videos, like, lambda name: name.rpartition(".")[0]) for like in EQUALITIES]
    wholes = [_by_form(videos, like, str) for like in EQUALITIES]
    found: dict[str, list[tuple]] = defaultdict(list)
    for name in names:
        base, dot, ending = name.rpartition(".")
        if (ending := (dot + ending).lower()) not in ENDINGS:
            continue
        for closeness, like in enumerate(EQUALITIES):
            forms = stems[closeness].get(like(base), ()), wholes[closeness].get(like(base), ())
            for form, owners in enumerate(forms):
                for video in owners:
                    rank = closeness, form, ENDINGS.index(ending), not name.endswith(ending)
                    found[video].append((*rank, name))
            if any(forms):
                break
    return {video: [entry[-1] for entry in sorted(entries)] for video, entries in found.items()}


def _by_form(
    videos: Sequence[str], like: Callable[[str], str], part: Callable[[str], str]
) -> dict[str, list[str]]:
    """Group videos by the normalised form of a part of their names."""
    owners = defaultdict(list)
    for video in videos:
        owners[like(part(video))].append(video)
    return owners


def read_caption(files: Sequence[Path]) -> tuple[str, str]:
    """Read the caption of the first file that holds one, "" where none does; with a note on the others.

    Raises BadFileError for a file that cannot be read.
    """
    unread: BadFileError | None = None
    for file in files:
        try:
            text = _read(file)
        except BadFileError as error:
            unread = unread or (error if file is files[0] else None)
            continue
        if text:
            others = ", ".join(other.name for other in files if other is not file)
            return text, f"{file.name} is used, {others} is not" if others else ""
    if unread is not None:
        raise unread
    return "", f"{files[0].name} is empty" if files else ""


def _read(path: Path) -> str:
    data = read_small(path)
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        if "\x00" in text:
            raise ValueError("it contains a NUL character, expected text in UTF-8")
        if path.suffix.lower() != ".json":
            return " ".join(text.split())
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadFileError(f"cannot read the caption {path}: {error}") from error
    named = {key.lower(): found for key, found in value.items()} if isinstance(value, dict) else {}
    for name in FIELDS:
        texts = named[name] if isinstance(named.get(name), list) else [named.get(name)]
        if text := next((each for each in texts if isinstance(each, str)), None):
            return " ".join(text.split())
    raise BadFileError(f"{path} holds no caption", expected='{"caption": "..."}, or "text" or "prompt"')


# ---- checks before a run -----------------------------------------------------------------------------------


def caption_remarks(videos: Sequence[CaptionedVideo]) -> list[str]:
    """Warnings about videos without a caption, and about captions that have a note."""
    remarks, count = [], len(videos)
    without = [video for video in videos if not video.caption]
    if without:
        remarks.append(
            f"{len(without)} of {count} videos have no caption, first {_path_and_note(without[0])}"
        )
    noted = [video for video in videos if video.caption and video.note]
    if noted:
        remarks.append(f"{len(noted)} of {count} captions have a note, first {_path_and_note(noted[0])}")
    return remarks


def file_remarks(videos: Sequence[CaptionedVideo]) -> list[str]:
    """Warnings about videos that are listed twice, and about those of the first ones that do not exist."""
    remarks, count = [], len(videos)
    if again := count - len({video.path for video in videos}):
        remarks.append(f"{again} of {count} rows name a video that an earlier row names")
    looked = [video.path for video in videos[:FIRST] if not video.trouble]
    if gone := [path for path in looked if not path.exists()]:
        near = nearby(gone[0])
        first = f"{gone[0]}, but {near} exists" if near else gone[0]
        remarks.append(f"{len(gone)} of the first {len(looked)} videos do not exist, first {first}")
    return remarks


def require_captions(videos: Sequence[CaptionedVideo]) -> None:
    """Raise BadFileError if a video has no caption."""
    if any(not video.caption for video in videos):
        raise BadFileError(caption_remarks(videos)[0], expected="a caption for every video")


def _path_and_note(video: CaptionedVideo) -> str:
    note = video.trouble or video.note or ("" if video.caption else _unpaired(video.path))
    return f"{video.path}: {note}" if note else str(video.path)


def _unpaired(video: Path) -> str:
    """Name the caption files of a video's folder that belong to no video, and other files of its stem."""
    try:
        names = sorted(name for name in os.listdir(video.parent) if not name.startswith("."))
    except OSError:
        return ""
    videos = [name for name in names if is_video(name)]
    paired = {name for files in caption_files(videos, names).values() for name in files}
    others = [name for name in names if name not in paired and not is_video(name)]
    own = [name for name in others if re.match(rf"{re.escape(_folded(video.stem))}[^\w]", _folded(name))]
    texts = [name for name in others if name.lower().endswith((*ENDINGS, ".csv", ".tsv", ".jsonl"))]
    passed = list(dict.fromkeys([*own, *texts]))
    return (
        f"files beside it that are not read: {', '.join(passed[:3])}{', ...' if passed[3:] else ''}"
        if passed
        else ""
    )


def nearby(path: Path) -> str:
    """Find the video that was meant by a `path` that does not exist: its name with another ending, one more
    or one less, or letters with marks spelt otherwise; "" without one."""
    endings = [form for ending in ("", *SUFFIXES) for form in (ending, ending.upper())]
    names = [stem + ending for stem in (path.stem, path.name) for ending in endings]
    names += [unicodedata.normalize(form, path.name) for form in ("NFC", "NFD")]
    return next((name for name in names if path.with_name(name).is_file()), "")
