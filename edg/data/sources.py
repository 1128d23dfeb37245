"""Lists of training videos: from a table (a csv of WebVid's columns or of paths, or JSON) or a folder tree.

No video is opened here; a missing or broken one is found when it is read, see clips.py.
"""

from __future__ import annotations

import csv
import itertools
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edg.core.errors import BadFileError, EdgError, UsageError, nearest
from edg.data.captions import SUFFIXES, caption_files, is_video, read_caption, require_captions
from edg.data.tables import HEAD, Row, open_rows, open_text, undecodable

# Path under the root of the file of a csv row. DynamiCrafter's trainer and CIL's read the same WebVid csv,
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
# Other names of these columns, lower case letters and digits only.
ALIASES = {
    "videoid": ("clipid", "vid", "youtubeid", "id"),
    "path": ("videopath", "clippath", "filepath", "relativepath", "relpath", "mediapath"),
    "file": ("filename", "videofile", "clipfile", "videofilename"),
    "video": ("videoname", "videos", "clip", "clipname", "movie"),
    "caption": ("captions", "videocaption", "clipcaption", "description", "sentence"),
    "text": ("texts",),
    "prompt": ("prompts", "textprompt"),
}
TEMPLATE = "or give a template for the path of a row's file, for instance columns='clips/{id}.mp4'"
_FIELD = re.compile(r"\{([^{}]+)\}")
_LIST = re.compile(r"""\[\s*(['"]).*\1\s*\]$""", re.DOTALL)  # as Python and JSON write it


@dataclass(frozen=True)
class CaptionedVideo:
    """A video file and its caption ("" without one). trouble: why it cannot be used, if that is known before
    it is read. note: a remark on its caption."""

    path: Path
    caption: str
    trouble: str = ""
    note: str = field(default="", compare=False)


def read_videos(
    root: str | Path | None, csv_file: str | Path | None = None, columns: str = "auto", captions: bool = False
) -> list[CaptionedVideo]:
    """List the videos of a csv if one is given, else of a folder tree. captions: every video needs one.

    Raises UsageError when there is neither, BadFileError.
    """
    if csv_file is not None:
        videos = read_csv(csv_file, root, columns)
    elif root is None:
        raise UsageError("no videos are given", expected="a folder of videos (root) or a csv")
    else:
        videos = read_tree(root)
    if captions:
        require_captions(videos)
    return videos


# ---- tables ------------------------------------------------------------------------------------------------


def read_csv(path: str | Path, root: str | Path | None = None, columns: str = "auto") -> list[CaptionedVideo]:
    """List the videos of a csv with a header (separated by commas, semicolons, tabs or bars), or of .jsonl or
    .json, in its order.

    root: folder that the files lie under (None: the csv's own). columns: a name of LAYOUTS, or a template of
    the file below root such as "clips/{videoid}.webm", or "auto": the first of LAYOUTS whose columns are
    there, also by other names, and whose files exist; else the column whose values end as videos do. The
    caption is the first of the columns name, caption, text and prompt that holds one ("" without one). A row
    that names no file is a video with trouble.
    Raises BadFileError for a csv that is unreadable, swallows rows or names no video, UsageError for unfit
    columns.
    """
    path = Path(path)
    root = path.parent if root is None else Path(root)
    try:
        with open_text(path) as file:
            header, rows = open_rows(path, file, lambda names: _score(names, columns))
            head = list(itertools.islice(rows, HEAD))
            template = _template(columns, header, [row for _, row, _ in head], root, path)
            captions = _caption_columns(header, template, [row for _, row, _ in head], path)
            videos = list(_videos(itertools.chain(head, rows), template, captions, root, path, header))
    except UnicodeDecodeError as error:
        raise undecodable(path, error) from error
    except (OSError, ValueError, csv.Error) as error:  # ValueError: a NUL in the name
        if isinstance(error, EdgError):
            raise
        raise BadFileError(f"cannot read {path}: {getattr(error, 'strerror', '') or error}") from error
    if all(video.trouble for video in videos):
        raise BadFileError(f"{path} lists no video", expected="a header and one row per video")
    return videos


def _listed(names: Sequence[str], most: int = 12, length: int = 40) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    shown = (name if len(name) <= length else name[: length - 3] + "..." for name in names[:most])
    return ", ".join(shown) + more


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()


def _column(name: str, header: Sequence[str]) -> tuple[int, str] | None:
    """Find the column of a name: (distance of the names, 0 if equal; the column), None without one."""
    if name in header:
        return 0, name
    for distance, names in ((1, (_plain(name),)), (2, ALIASES.get(name, ()))):
        for column in header:
            if _plain(column) in names:
                return distance, column
    return None


def _fitted(template: str, header: Sequence[str]) -> tuple[int, str] | None:
    """Fill in the header's own names: (largest distance of a name, template), None if a column is missing."""
    found = {name: _column(name, header) for name in _FIELD.findall(template)}
    if None in found.values():
        return None
    fitted = _FIELD.sub(lambda match: f"{{{found[match[1]][1]}}}", template)
    return max((distance for distance, _ in found.values()), default=0), fitted


def _score(header: Sequence[str], columns: str) -> int:
    """Score of a header's columns: 2 for known ones of the file, 1 for one of the caption."""
    templates = LAYOUTS.values() if columns == "auto" else [LAYOUTS.get(columns, columns)]
    fits = any(_fitted(template, header) for template in templates)
    return 2 * fits + any(_column(name, header) for name in CAPTIONS)


def _template(columns: str, header: Sequence[str], rows: Sequence[dict], root: Path, path: Path) -> str:
    if columns == "auto":
        return _detect(header, rows, root, path)
    if columns not in LAYOUTS and "{" not in columns:
        raise UsageError(
            f"{columns!r} is not a known set of columns",
            expected=f"auto, {', '.join(LAYOUTS)}, or a template with {{column}}",
            fix=nearest(columns, LAYOUTS),
        )
    template = LAYOUTS.get(columns, columns)
    for name in _FIELD.findall(template):
        if _column(name, header) is None:
            raise UsageError(
                f"{path} has no column {name!r}",
                expected=f"one of {_listed(header)}" if header else "a header line",
                fix=nearest(name, header),
            )
    return _fitted(template, header)[1]


def _detect(header: Sequence[str], rows: Sequence[dict], root: Path, path: Path) -> str:
    """Detect the layout of a csv: its columns exist, and the file of some row; exact names of columns come
    first."""
    if named := [name for name in header if is_video(name)]:
        raise UsageError(
            f"{path} has no header: its first line is the row of {named[0][:200]}",
            expected="a header line, such as path,caption",
        )
    fits = [fit for text in LAYOUTS.values() if (fit := _fitted(text, header))]
    fitting = [text for _, text in sorted(fits, key=lambda fit: fit[0])]
    fitting = fitting or [f"{{{name}}}" for name in header if _names_videos(name, rows)]
    if not fitting:
        known = [*dict.fromkeys(name for text in LAYOUTS.values() for name in _FIELD.findall(text))]
        near = next(((name, hit) for name in header if (hit := nearest(_plain(name), known))), None)
        raise UsageError(
            f"{path} has the columns {_listed(header) or '(none)'}",
            expected="videoid (and page_dir), or path, file or video",
            fix=f"rename {near[0]} to {near[1]}" if near else TEMPLATE,
        )
    for template in fitting if len(fitting) > 1 else ():
        if any(_file(row, template, root).is_file() for row in rows if _filled(row, template)):
            return template
    return fitting[0]


def _names_videos(column: str, rows: Sequence[Mapping[str, str]]) -> bool:
    values = [row.get(column, "").strip() for row in rows]
    return any(values) and all(is_video(value) and "://" not in value for value in values if value)


def _caption_columns(
    header: Sequence[str], template: str, rows: Sequence[Mapping[str, str]], path: Path
) -> list[str]:
    """Columns of captions, the one that counts first. Raises UsageError if there is none but another one has
    nearly its name and holds texts, or if a column is there twice."""
    free = [name for name in header if name not in _FIELD.findall(template)]
    found = [hit for name in CAPTIONS if (hit := _column(name, free))]
    columns = list(dict.fromkeys(column for _, column in sorted(found, key=lambda hit: hit[0])))
    for name in (*columns, *_FIELD.findall(template)):
        if header.count(name) > 1:
            raise UsageError(f"{path} has the column {name!r} {header.count(name)} times", expected="once")
    likely = {*CAPTIONS} - {"name"}  # channel_name and its kin are names of something else
    for name in () if columns else free:
        words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+", name)]
        hit = not likely.isdisjoint(words) or nearest(_plain(name), likely)
        if hit and any(len(row.get(name, "").split()) > 1 for row in rows):
            raise UsageError(
                f"{path} has no column of captions among {_listed(header)}; {name[:40]!r} is the nearest",
                expected=" or ".join(CAPTIONS),
                fix="rename it to caption; if it holds no captions, give it a name unlike these",
            )
    return columns


def _filled(row: Mapping[str, str], template: str) -> bool:
    return all((row.get(name) or "").strip() for name in _FIELD.findall(template))


def _file(row: Mapping[str, str], template: str, root: Path) -> Path:
    """The file of a row. If there is none of its name, other spellings are tried: backslashes as separators,
    letters with marks as NFC and NFD, an id that has a video's ending already, a path without its ending."""
    text = _FIELD.sub(lambda match: row[match[1]].strip(), template)
    stem, ending = os.path.splitext(text)
    if not template.endswith("}") and is_video(stem) and ending == os.path.splitext(template)[1]:
        text = text if (root / text).is_file() else stem
    if "\\" in text and not (root / text).is_file():
        text = text.replace("\\", "/")
    if not text.isascii() and not (root / text).exists():
        spelt = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
        text = next((each for each in spelt if (root / each).exists()), text)
    if template.endswith("}") and not is_video(text) and not (root / text).exists():
        endings = (form for ending in SUFFIXES for form in (ending, ending.upper()))
        text = next((text + ending for ending in endings if (root / (text + ending)).is_file()), text)
    return root / text


def _caption(row: Mapping[str, str], columns: Sequence[str], file: Path) -> str:
    """The first text of these columns that is more than the file's own name, which is the last resort."""
    texts = [text for name in columns if (text := row.get(name, "").strip())]
    return next((text for text in texts if Path(text).stem != file.stem), texts[0] if texts else "")


def _videos(
    rows: Iterable[Row], template: str, captions: Sequence[str], root: Path, path: Path, header: Sequence[str]
) -> Iterator[CaptionedVideo]:
    none = f"no column {', '.join(CAPTIONS[:-1])} or {CAPTIONS[-1]} among {_listed(header)}"
    for line, row, note in rows:
        if _filled(row, template):
            text = _caption(row, captions, file := _file(row, template, root))
            if _LIST.match(text):
                note = note or "has a list of texts as its caption"
            note = f"line {line} of {path.name} {note}" if note else ""
            yield CaptionedVideo(file, text, note=note if captions else none)
        else:
            wanted = ", ".join(_FIELD.findall(template))
            yield CaptionedVideo(
                Path(f"{path}, line {line}"), "", f"names no video; expected a value in {wanted}"
            )


# ---- folders -----------------------------------------------------------------------------------------------


def read_tree(root: str | Path) -> list[CaptionedVideo]:
    """List the videos of a folder at any depth (links are followed), sorted by path.

    The caption of a.mp4 is a.txt, a.caption, or a.json with "caption", "text" or "prompt", beside it, or
    a.mp4.txt, ..., see `caption_files`; "" without one. A video whose caption cannot be read has trouble.
    Raises BadFileError if root is no folder, UsageError without a video.
    """
    root = Path(root)
    if not root.is_dir():
        raise BadFileError(f"{root} is not a folder", expected="a folder of videos")
    videos = [video for folder, names in _walk(root) for video in _of_folder(folder, names)]
    if not videos:
        raise UsageError(f"no video in {root}", expected=f"files ending in {', '.join(SUFFIXES)}")
    return sorted(videos, key=lambda video: video.path.relative_to(root).parts)


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(folder), [name for name in names if not name.startswith(".")]


def _of_folder(folder: Path, names: Sequence[str]) -> Iterator[CaptionedVideo]:
    videos = [name for name in names if is_video(name)]
    files = caption_files(videos, names)
    for name in videos:
        path = folder / name
        try:
            caption, note = read_caption([folder / file for file in files.get(name, ())])
            yield CaptionedVideo(path, caption, note=note)
        except BadFileError as error:
            yield CaptionedVideo(path, "", str(error))
