"""The comparison page of runs: one HTML file that opens from disk, its media beside or inside it."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import mimetypes
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edg.core.errors import BadFileError, SomeFailedError, require
from edg.core.files import (
    ensure_writable,
    lock_folder,
    remove_leftovers,
    temporary_folder,
    write_json,
    write_text,
)
from edg.core.hashing import sha256_file
from edg.core.log import log
from edg.report.collect import ReportClip, ReportRun, collect, is_unchanged, natural_key
from edg.runner.outputs import check_picture
from edg.runner.progress import Meter

if TYPE_CHECKING:
    import numpy as np

PAGE, MEDIA, DIFFERENCES = "index.html", "media", "differences.json"
LARGEST = 50e6  # bytes of a page with everything inside
SCRIPTS = ("figures.js", "player.js", "scores.js", "page.js")
OURS = re.compile(r"[0-9a-f]{32}\.(mp4|webm|m4v|(strip|flow|input|image)\.webp|(facts|record)\.json)")


def write_report(runs: Sequence[Path], out: Path, embed: bool = False) -> Path:
    """Write the comparison page of some runs into a folder; returns its path.

    Clips of several runs stand beside each other by their id. Media made before are found again. embed: no
    media folder. Raises EdgError; SomeFailedError, with the page written, when something was damaged.
    """
    problems: dict[str, str] = {}
    began = time.monotonic()
    found = collect(runs, problems)
    out = Path(out)
    with ExitStack() as stack:
        check = stack.enter_context(lock_folder(out))
        kept = out / MEDIA
        inside = embed and not kept.is_dir()
        media = stack.enter_context(temporary_folder(out)) if inside else kept
        ensure_writable(media)
        remove_leftovers(media)
        _remove_old(media, lambda path: path.is_symlink())  # the folder may be somebody else's
        before = {path.name for path in media.iterdir()}
        data, names = page_data(found, media, problems)
        check()
        write_text(out / PAGE, fill(data, _embedded(media, names) if embed else None))
        _write_differences(out / DIFFERENCES, data)
        if not embed:
            _remove_old(media, lambda path: path.name not in names)
    fresh = sum(name.endswith(".facts.json") for name in names - before)
    count = sum(len(run.clips) for run in found)
    log(f"{count} clips, {fresh} of them new in {out}, in {time.monotonic() - began:.1f} s")
    if problems:
        given = f"{len(problems)} file(s) could not be shown, first: {next(iter(problems.values()))}"
        raise SomeFailedError(given, fix=f"{out / PAGE} shows the rest", failed=problems)
    return out / PAGE


def _write_differences(path: Path, data: Mapping[str, Any]) -> None:
    """The differences of the Scores view as JSON; the file of an earlier page goes where there is one run."""
    from edg.report.differences import METHOD

    if not data["differences"]:
        path.unlink(missing_ok=True)
        return
    folders = {run["name"]: run["folder"] for run in data["runs"]}
    write_json(path, _finite(METHOD | {"runs": folders, "differences": data["differences"]}))


# ---- the data ----------------------------------------------------------------------------------------------


def page_data(
    runs: Sequence[ReportRun], media: Path, problems: dict[str, str]
) -> tuple[dict[str, Any], set[str]]:
    """The page's data (see page.js), and the names of all files in the media folder that it needs."""
    from edg.core.sheet import SMALL
    from edg.report import flow_pictures
    from edg.report.differences import differences
    from edg.report.summary import metric_entries, summaries, trade_offs

    meter, total, names = Meter(), sum(len(run.clips) for run in runs), set()
    cells: dict[str, dict[str, Any]] = {}
    for run in runs:
        cells[run.name] = {}
        for clip in run.clips.values():
            cells[run.name][clip.id] = _cell(clip, media, problems, names)
            meter("clips", sum(map(len, cells.values())), total)
    meter.close()
    runs = [_without_stale_means(run, cells[run.name]) for run in runs]
    values = {run.name: {k: c["scores"] for k, c in cells[run.name].items()} for run in runs}
    metrics = metric_entries(runs, values)
    scored = [metric["name"] for metric in metrics]
    ids = sorted({clip_id for run in runs for clip_id in run.clips}, key=natural_key)
    data = {
        "title": " · ".join(run.name for run in runs),
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "runs": [_run_data(run, summaries(run, values[run.name])) for run in runs],
        "metrics": metrics,
        "plots": trade_offs(runs, values, scored),
        "differences": differences(runs, values, scored),
        "requests": [_request(clip_id, runs, cells, media, names) for clip_id in ids],
        "problems": list(problems.values()),
        "key": {
            "wheel": _data_url("wheel.png", _png(flow_pictures.colour_wheel())),
            "limit": flow_pictures.LIMIT,
            "floor": flow_pictures.FLOOR,
            "side": flow_pictures.WORKING_SIDE,
        },
        "small": SMALL,
    }
    return data, names


def _without_stale_means(run: ReportRun, cells: Mapping[str, Mapping[str, Any]]) -> ReportRun:
    """The run without the means of scores.json where these are of other clips than those on the page."""
    scored = [clip for clip in run.clips.values() if clip.scores]
    if run.rows == sum(clip.scores.items() <= cells[clip.id]["scores"].items() for clip in scored):
        return run
    log(f"{run.folder}: clips have changed since they were scored; run edg score again to measure them")
    about = {name: {key: one[key] for key in one if key != "mean"} for name, one in run.scores.items()}
    return replace(run, scores=about)


def _run_data(run: ReportRun, scores: Mapping[str, Any]) -> dict[str, Any]:
    shown = sum(clip.video is not None for clip in run.clips.values())
    return {
        "name": run.name,
        "folder": str(run.folder),
        "clips": shown,
        "scores": scores,
        "point": run.point,
        **{key: run.recipe.get(key) for key in ("settings", "sets", "notes")},
    }


def _cell(clip: ReportClip, media: Path, problems: dict[str, str], names: set[str]) -> dict[str, Any]:
    """The data of one clip of one run: {"video", ... of clip_media, "record", "scores", "error"}."""
    from edg.report.flow_pictures import KEY, add_media, clip_media, media_files
    from edg.report.summary import MOTION

    cell: dict[str, Any] = {"error": clip.error, "scores": dict(clip.scores), "prompt": clip.prompt}
    if clip.record:
        cell["record"] = add_media(clip.record, media / f"{sha256_file(clip.record)[:KEY]}.record.json")
        names.add(cell["record"])
    if clip.video:
        try:
            facts = clip_media(clip.video, media)
        except BadFileError as error:
            problems[str(clip.video)] = str(error)
            return cell | {"error": str(error), "scores": {}}
        names.update([*media_files(facts), f"{facts['key']}.facts.json"])
        cell |= {key: value for key, value in facts.items() if key not in ("version", "key")}
        if clip.scored and clip.scored[:KEY] != facts["key"]:
            cell |= {"scores": {}, "note": "changed since it was scored"}
        if facts["curve"]:
            cell["scores"].setdefault(MOTION, sum(facts["curve"]) / len(facts["curve"]))
    return cell


def _request(
    clip_id: str, runs: Sequence[ReportRun], cells: Mapping[str, Mapping[str, dict[str, Any]]],
    media: Path, names: set[str],
) -> dict[str, Any]:  # fmt: skip
    """The data of one row: {"id", "prompt", "image", "image_error", "cells": by run, None where it lacks the
    clip}."""
    clips = [run.clips.get(clip_id) for run in runs]
    there = [clip for clip in clips if clip]
    prompt = next((clip.prompt for clip in there if clip.prompt), "")
    row: dict[str, Any] = {"id": clip_id, "prompt": prompt, "image": "", "image_error": ""}
    row["cells"] = [cells[run.name].get(clip_id) for run in runs]
    pictured = next((clip for clip in there if clip.settings.get("image_sha256")), None)
    if pictured:
        row |= _image(pictured, media)
        if row["image"]:
            names.add(row["image"])
        expected = pictured.settings["image_sha256"]
        for clip, cell in zip(clips, row["cells"], strict=True):
            if clip and clip.settings.get("image_sha256", expected) != expected:
                _note(cell, "made from another input image")
    for cell in filter(None, row["cells"]):
        if cell.pop("prompt") not in ("", row["prompt"]):
            _note(cell, "made with another prompt, see its record")
    return row


def _note(cell: dict[str, Any], text: str) -> None:
    cell["note"] = "; ".join(filter(None, [cell.get("note"), text]))


def _image(clip: ReportClip, media: Path) -> dict[str, str]:
    from edg.report.flow_pictures import image_media

    try:
        if clip.image is None:
            return {"image_error": "the input image is not at the path in the record"}
        check_picture(clip.image)
        if not is_unchanged(clip.image, str(clip.settings["image_sha256"])):
            return {"image_error": f"{clip.image} has changed since then"}
        return {"image": image_media(clip.image, media)}
    except BadFileError as error:
        return {"image_error": str(error)}


# ---- the file ----------------------------------------------------------------------------------------------


def fill(data: Mapping[str, Any], embedded: Mapping[str, str] | None = None) -> str:
    """The HTML of the page. embedded: name of a media file -> its data URL, None when they lie in the folder.
    Its content security policy holds the hashes of its style and script, so no others can run."""
    style = _part("page.css")
    script = '(() => {\n"use strict";\n' + "".join(_part(name) for name in SCRIPTS) + "start();\n})();\n"
    sources = "data:" if embedded is not None else "'self' file: data:"
    policy = (
        f"default-src 'none'; img-src {sources}; media-src {sources}; style-src {_digest(style)}; "
        f"script-src {_digest(script)}; base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy,
        "title": html.escape(data["title"]),
        "style": style,
        "script": script,
        "data": safe_json(dict(data) | {"media": embedded, "folder": MEDIA}),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _part("page.html"))


def safe_json(value: Any) -> str:
    """JSON that cannot end the <script> it is put in."""
    text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), default=str)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _finite(value: Any) -> Any:
    """The value with None in place of NaN and infinities, which JSON does not have."""
    if isinstance(value, float):
        return value if abs(value) != float("inf") and value == value else None
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _part(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _embedded(media: Path, names: set[str]) -> dict[str, str]:
    """Name -> data URL of media files. Raises UsageError above LARGEST bytes."""
    wanted = sorted(name for name in names if not name.endswith(".facts.json"))
    size = sum((media / name).stat().st_size for name in wanted) * 4 / 3
    require(
        size <= LARGEST,
        f"the page with its media inside would have {size / 1e6:.1f} MB",
        f"at most {LARGEST / 1e6:.0f} MB",
        "leave out --embed, or report on fewer clips",
    )
    return {name: _data_url(name, (media / name).read_bytes()) for name in wanted}


def _data_url(name: str, content: bytes) -> str:
    known = {".webp": "image/webp", ".m4v": "video/mp4"}
    kind = known.get(Path(name).suffix) or mimetypes.guess_type(name)[0]
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _png(picture: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def _remove_old(media: Path, is_old: Callable[[Path], bool]) -> None:
    """Remove files of an earlier page, known by their names."""
    for path in list(media.iterdir()):
        if OURS.fullmatch(path.name) and is_old(path):
            path.unlink(missing_ok=True)
