"""Where training videos come from: a csv (WebVid's columns, or paths) or a folder tree, as a list of Video.

No video is opened here; one that is missing or broken is found out when it is read, see clips.py.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edg.core.errors import BadFileError, UsageError, nearest
from edg.core.records import read_small

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".3gp")
# Where the file of a csv row lies under the root. DynamiCrafter's trainer and CIL's read the same WebVid csv,
# with different trees; "webvid" is the tree of WebVid's own downloader.
LAYOUTS = {
    "dynamicrafter": "videos/{page_dir}/{videoid}.mp4",
    "webvid": "{page_dir}/{videoid}.mp4",
    "cil": "{videoid}.mp4",
    "path": "{path}",
    "file": "{file}",
    "video": "{video}",
}
CAPTIONS = ("name", "caption", "text", "prompt")
_FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Video:
    """A video file and what it shows ("" when nothing is written about it). trouble: why it cannot be used,
    where that is known before it is read."""

    path: Path
    caption: str
    trouble: str = ""


def read_videos(
    root: str | Path | None, csv_file: str | Path | None = None, columns: str = "auto", captions: bool = False
) -> list[Video]:
    """read_csv when there is a csv_file, else read_tree. Raises UsageError when there is neither."""
    if csv_file is not None:
        return read_csv(csv_file, root, columns)
    if root is None:
        raise UsageError("no videos are named", expected="a folder of videos (root) or a csv")
    return read_tree(root, captions)


def read_csv(path: str | Path, root: str | Path | None = None, columns: str = "auto") -> list[Video]:
    """The videos of a csv with a header, in its order.

    root: folder that the files lie under (None: the csv's own). columns: a name of LAYOUTS, or a template of
    the file below root such as "clips/{videoid}.webm", or "auto": the first of LAYOUTS whose columns are
    there and whose files exist. The caption is the column name, caption, text or prompt ("" without one). A
    row that names no file is a video with trouble.
    Raises BadFileError for a csv that is unreadable or names no video, UsageError for unfit columns.
    """
    path = Path(path)
    root = path.parent if root is None else Path(root)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            header = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            rows = ((reader.line_num, row) for row in reader)
            head = list(itertools.islice(rows, 50))
            template = _template(columns, header, [row for _, row in head], root, path)
            caption = next((name for name in CAPTIONS if name in header), None)
            videos = list(_videos(itertools.chain(head, rows), template, caption, root, path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadFileError(f"cannot read {path}: {getattr(error, 'strerror', '') or error}") from error
    if all(video.trouble for video in videos):
        raise BadFileError(f"{path} lists no video", expected="a header and one row per video")
    return videos


def _template(columns: str, header: Sequence[str], rows: Sequence[dict], root: Path, path: Path) -> str:
    if columns == "auto":
        return _detect(header, rows, root, path)
    if columns not in LAYOUTS and "{" not in columns:
        raise UsageError(
            f"{columns!r} is no known set of columns",
            expected=f"auto, {', '.join(LAYOUTS)} or a template with {{column}}",
            fix=nearest(columns, LAYOUTS),
        )
    template = LAYOUTS.get(columns, columns)
    for name in _FIELD.findall(template):
        if name not in header:
            raise UsageError(
                f"{path} has no column {name!r}",
                expected=f"one of {', '.join(header)}" if header else "a header line",
                fix=nearest(name, header),
            )
    return template


def _detect(header: Sequence[str], rows: Sequence[dict], root: Path, path: Path) -> str:
    """The layout whose columns exist, and of several the first that has a file on the disk for some row."""
    fitting = [text for text in LAYOUTS.values() if set(_FIELD.findall(text)) <= set(header)]
    if not fitting:
        raise UsageError(
            f"{path} has the columns {', '.join(header) or '(none)'}",
            expected="videoid (and page_dir), or path, file or video",
            fix="or say where a row's file lies, for instance columns='clips/{id}.mp4'",
        )
    for template in fitting if len(fitting) > 1 else ():
        if any(_file(row, template, root).is_file() for row in rows if _filled(row, template)):
            return template
    return fitting[0]


def _filled(row: dict, template: str) -> bool:
    return all((row.get(name) or "").strip() for name in _FIELD.findall(template))


def _file(row: dict, template: str, root: Path) -> Path:
    return root / _FIELD.sub(lambda match: row[match[1]].strip(), template)


def _videos(rows: Iterable, template: str, caption: str | None, root: Path, path: Path) -> Iterator[Video]:
    for line, row in rows:
        if _filled(row, template):
            yield Video(_file(row, template, root), (row.get(caption) or "").strip() if caption else "")
        else:
            wanted = ", ".join(_FIELD.findall(template))
            yield Video(Path(f"{path}, line {line}"), "", f"names no video; expected a value in {wanted}")


def read_tree(root: str | Path, captions: bool = False) -> list[Video]:
    """The videos of a folder at any depth (links are followed), sorted by path.

    The caption of a.mp4 is a.txt, or a.json with "caption", "text" or "prompt", beside it, "" without one.
    A video whose caption cannot be read has trouble. Raises BadFileError when root is no folder, UsageError
    without a video or, where `captions` are needed, without a single caption.
    """
    root = Path(root)
    if not root.is_dir():
        raise BadFileError(f"{root} is not a folder", expected="a folder of videos")
    paths = sorted(_walk(root), key=lambda path: path.relative_to(root).parts)
    if not paths:
        raise UsageError(f"no video in {root}", expected=f"files ending in {', '.join(SUFFIXES)}")
    videos = [_with_caption(path) for path in paths]
    if captions and not any(video.caption for video in videos):
        raise UsageError(
            f"no video in {root} has a caption",
            expected=f"{paths[0].stem}.txt or {paths[0].stem}.json beside {paths[0].name}",
        )
    return videos


def _walk(root: Path) -> Iterator[Path]:
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, n) for n in names if not n.startswith(".") and n.lower().endswith(SUFFIXES))


def _with_caption(path: Path) -> Video:
    try:
        return Video(path, _caption(path))
    except BadFileError as error:
        return Video(path, "", str(error))


def _caption(path: Path) -> str:
    text, data = path.with_suffix(".txt"), path.with_suffix(".json")
    try:
        if text.is_file():
            return " ".join(read_small(text).decode("utf-8-sig").split())
        if not data.is_file():
            return ""
        value = json.loads(read_small(data).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BadFileError(f"cannot read the caption of {path}: {error}") from error
    for name in ("caption", "text", "prompt"):
        if isinstance(value, dict) and isinstance(value.get(name), str):
            return " ".join(value[name].split())
    raise BadFileError(f"{data} holds no caption", expected='{"caption": "..."}, or "text" or "prompt"')
