"""Requests x ranks -> clips in a folder. To resume, run the same command again.

A clip is finished when its record says so, with the same settings, and its files, one for each format asked
for, are those that the record describes. Files appear complete or not at all, the record last: nothing
half-written counts.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from edg.core.dist import World
from edg.core.errors import BadFileError, EdgError, MachineError, SomeFailedError, UsageError
from edg.core.files import lock_folder, same_folder, write_json
from edg.core.formats import place
from edg.core.hashing import hash_value, sha256_file
from edg.core.log import log
from edg.core.paths import file_stem
from edg.runner import outputs
from edg.runner.progress import Meter
from edg.systems.base import Request, Result, Watch

SHEET = "contact_sheet.png"
SHEET_ROWS = 64
PREVIEW = 160, 512  # pixels: between these a preview's frames are as wide as they come


@dataclass(frozen=True)
class Run:
    """What to make, and where.

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
    preview_decoder: str | None = None  # that it is made with
    formats: tuple[str, ...] = ("mp4",)
    former: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda record: {}

    def video(self, request: Request) -> Path:
        return place(self.outdir, request.id, self.formats[0])

    def record(self, request: Request) -> Path:
        return self.outdir / f"{request.id}.json"

    def settings(self, request: Request) -> dict[str, Any]:
        """Everything that decides the clip's files. Raises BadFileError when an image cannot be read."""
        last = {}
        if request.last is not None:
            last = {"last_image_sha256": _sha256(request.last, request.last_bytes)}
        return {
            "id": request.id,
            "prompt": request.prompt,
            "image_sha256": _sha256(request.image, request.image_bytes),
            **last,
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


@dataclass(frozen=True)
class Summary:
    """How a run ended, over all ranks."""

    made: int
    skipped: int
    failed: Mapping[str, str]  # request id -> reason


def run(job: Run, system: Any, load: Callable[[], Any], world: World | None = None) -> Summary:
    """Make the clips of `job` that are not finished yet, this rank's share of them.

    system: `generate(model, requests, progress)`. load: gives the model, called only when there is work.
    Raises UsageError when a finished clip has other settings, MachineError when the folder cannot be had or
    written, or is removed meanwhile, SomeFailedError (at the end) when clips failed or are gone; the other
    ranks leave with its code.
    """
    world = world or World()
    with ExitStack() as stack:
        pending = world.first(lambda: _prepare(job, stack))
        check = stack.enter_context(same_folder(job.outdir))  # on every rank
        mine = world.shard(pending)
        meter = Meter(not world.is_first, len(mine), world.rank, world.size)
        requests = [job.requests[index] for index in mine]
        failed = _make(job, system, load, requests, meter, check)
        before = [job.requests[index] for index in range(len(job.requests)) if index not in pending]
        failed |= _gone(job, [r for r in (*requests, *before * world.is_first) if r.id not in failed])
        everyone = world.gather((len(mine), failed))
        failures = {key: reason for _, part in everyone for key, reason in part.items()}
        skipped = sum(request.id not in failures for request in before)
        summary = Summary(len(job.requests) - skipped - len(failures), skipped, failures)
        world.first(lambda: _finish(job, summary))
    if failures and not world.is_first:
        raise SystemExit(SomeFailedError.exit_code)
    if failures:
        name, reason = next(iter(failures.items()))
        raise SomeFailedError(
            f"{len(failures)} of {len(job.requests)} clips failed, first {name}: {reason}",
            fix="run the same command again when the cause is gone: only these are made again",
            failed=failures,
        )
    return summary


def _prepare(job: Run, stack: ExitStack) -> list[int]:
    """Rank 0, before anything is made: take the folder and decide what is left to do."""
    ids = [request.id for request in job.requests]
    assert len(set(ids)) == len(ids), "request ids must be unique"
    for id in ids:
        file_stem(id, "a clip's name")
    stack.enter_context(lock_folder(job.outdir, job.patience))
    pending = [i for i, request in enumerate(job.requests) if not is_finished(job, request)]
    if len(pending) < len(ids):
        log(f"{len(ids) - len(pending)} of {len(ids)} clips are finished already in {job.outdir}")
    return pending


def _gone(job: Run, requests: Sequence[Request]) -> dict[str, str]:
    """Of finished clips, those whose files are not there any more, with that reason."""
    return {
        request.id: f"its files were removed from {job.outdir} while this run went on"
        for request in requests
        if not all(place(job.outdir, request.id, format).exists() for format in job.formats)
        or not job.record(request).exists()
    }


# ---- what is finished --------------------------------------------------------------------------------------


def is_finished(job: Run, request: Request) -> bool:
    """Whether the clip is there in every format, complete, and made with these settings.

    What only lacks formats is completed here where its frames lie there as png. Raises UsageError when it is
    there with other settings, unless the job overwrites.
    """
    record = outputs.read_record(job.record(request))
    there = outputs.intact(job.outdir, request.id, record)
    if not there:
        return False
    with suppress(BadFileError):  # an image that is gone now makes the clip fail later, with its reason
        settings = job.settings(request)
        if _is_of(job, record, settings):
            return set(job.formats) <= there.keys() or _completed(job, request, record, there)
        if not job.overwrite:
            difference = _difference(job, record, settings)
            raise UsageError(
                f"{place(job.outdir, request.id, next(iter(there)))} was made with other settings "
                f"({difference})",
                fix="use --overwrite to make it again, or another --savedir",
            )
    return False


def _is_of(job: Run, record: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """True if a record is of a clip with these settings, in today's form or in an earlier one."""
    then = record.get("settings_hash")
    if then == hash_value(settings):
        return True
    former = job.former(record)
    return bool(former) and then == hash_value({**settings, **former})


def _difference(job: Run, record: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Where the settings of a record differ; for parameter sets, whose hashes say little, also where their
    origins do."""
    found = first_difference(record.get("settings", {}), settings)
    if found.startswith("sets."):
        origins = first_difference(record.get("set_origins", {}), job.notes.get("set_origins", {}), "sets")
        found += f"; {origins}" if origins else ""
    return found


def _completed(job: Run, request: Request, record: dict[str, Any], there: dict[str, str]) -> bool:
    """Whether the missing formats could be made of the frames that lie there, exact, as png."""
    if "png" not in there:
        return False
    frames = outputs.frames_of(job.outdir, request.id, ["png"])
    missing = [format for format in job.formats if format not in there]
    try:
        there = there | outputs.write(job.outdir, request.id, missing, frames, job.settings(request))
        parts = outputs.described(job.outdir, request.id, job.formats[0], there, len(frames))
        write_json(job.record(request), record | parts)
    except UsageError:  # a size that this format cannot have: made again, it fails with its reason
        return False
    log(f"made {', '.join(missing)} of the frames in {place(job.outdir, request.id, 'png')}")
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


# ---- making ------------------------------------------------------------------------------------------------


def _make(
    job: Run,
    system: Any,
    load: Callable[[], Any],
    requests: list[Request],
    meter: Meter,
    check: Callable[[], None],
) -> dict[str, str]:
    """This rank's clips, a chunk at a time; returns the failed ones with their reasons. check: raises when
    the folder is not what it was, before anything is written there."""
    failed: dict[str, str] = {}
    model = None
    for start in range(0, len(requests), job.chunk):
        chunk = requests[start : start + job.chunk]
        began = time.monotonic()
        ready = []
        for request in chunk:
            check()
            try:
                ready.append(with_bytes(request))
            except BadFileError as error:
                failed[request.id] = _fail(job, request, str(error))
        if ready and model is None:
            meter.loading()
            model = load()
        meter.begin(start, [request.id for request in chunk])
        shown = {"watch": _previews(job)} if job.preview else {}
        if job.preview_decoder is not None:
            shown["preview_decoder"] = job.preview_decoder
        for result in system.generate(model, ready, meter, **shown) if ready else ():
            check()
            reason = _save(job, result, time.monotonic() - began, len(ready))
            if reason:
                failed[result.request.id] = _fail(job, result.request, reason)
        meter.close()
    check()
    return failed


def _previews(job: Run) -> Watch:
    """One sheet for each clip, a row for each moment; a sheet that cannot be written stops no clip."""
    import numpy as np

    from edg.core.sheet import contact_sheet
    from edg.core.video import write_image

    rows: dict[str, list[Any]] = {}

    def watch(request: Request, moment: str, frames: Any) -> None:
        width = min(max(frames.shape[2], PREVIEW[0]), PREVIEW[1])
        rows.setdefault(request.id, []).append(contact_sheet([(moment, frames)], width=width))
        with suppress(OSError, EdgError):
            write_image(job.outdir / f"{request.id}.preview.png", np.concatenate(rows[request.id]))

    return watch


def with_bytes(request: Request) -> Request:
    """The request with its images as they are now: whatever takes their place later, the clip is of these and
    its record says so. Raises BadFileError for one that is no picture."""
    from edg.core.video import picture_bytes, read_image

    read = {}
    for name, path in (("image_bytes", request.image), ("last_bytes", request.last)):
        if path is not None:
            read[name] = picture_bytes(path)
            read_image(path, read[name])
    return replace(request, **read)


def _save(job: Run, result: Result, seconds: float, together: int) -> str:
    """Write a result's video, then its record; returns the reason when that failed."""
    request = result.request
    if result.frames is None:
        return result.error or "the system gave no frames and no reason"
    warnings = warnings_of(result)
    former = outputs.read_record(job.record(request))
    others = outputs.intact(job.outdir, request.id, former)
    try:
        settings = job.settings(request)
        made = outputs.write(job.outdir, request.id, job.formats, result.frames, settings)
        record = record_of(job, request, "done", settings)
        if former.get("settings_hash") == record["settings_hash"]:
            made = others | made
        else:
            outputs.drop(job.outdir, request.id, [format for format in others if format not in made])
        record |= outputs.described(job.outdir, request.id, job.formats[0], made, len(result.frames)) | {
            "warnings": warnings,
            "info": dict(result.info),
            "seconds_since_chunk_start": round(seconds, 2),
            "clips_in_chunk": together,
        }
        write_json(job.record(request), record)
    except EdgError as error:
        return str(error)
    log(f"made {job.video(request)} ({seconds:.1f} s)")
    for warning in warnings:
        log(f"  warning: {warning}")
    return ""


def _fail(job: Run, request: Request, reason: str) -> str:
    """Record that a clip failed and hand the reason back. No half of it is left; a finished clip stays."""
    log(f"failed {request.id}: {reason}")
    if outputs.intact(job.outdir, request.id, outputs.read_record(job.record(request))):
        return reason
    try:
        settings = job.settings(request)
    except BadFileError:
        settings = None
    with suppress(OSError, EdgError):  # on a full disk the failure is only told
        outputs.drop(job.outdir, request.id, job.formats)
        write_json(job.record(request), record_of(job, request, "failed", settings) | {"error": reason})
    return reason


def record_of(job: Run, request: Request, status: str, settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is written about a clip, but for its files."""
    last = {} if request.last is None else {"last_image": str(request.last)}
    return {
        "id": request.id,
        "status": status,
        "settings_hash": hash_value(settings),
        "settings": settings,
        "image": str(request.image),
        **last,
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **job.notes,
    }


def warnings_of(result: Result) -> list[str]:
    """Warnings of a clip: the system's own lines, a still, what is special about its image."""
    from edg.core.video import picture_notes

    frames, told = result.frames, list(result.warnings)
    if frames.min() == frames.max():
        told.append("every pixel of the video has the same value")
    elif len(frames) > 1 and (frames == frames[0]).all():
        told.append("every frame of the video is the same picture")
    request = result.request
    for image, data in ((request.image, request.image_bytes), (request.last, request.last_bytes)):
        with suppress(BadFileError):  # it was read; should it be gone now, the clip is made all the same
            told += picture_notes(image, data) if image is not None else []
    return told


# ---- at the end --------------------------------------------------------------------------------------------


def _finish(job: Run, summary: Summary) -> None:
    """Rank 0, after everybody: the contact sheet of all finished clips, when there is something new."""
    from edg.core.sheet import contact_sheet
    from edg.core.video import write_image

    sheet = job.outdir / SHEET
    clips = list(islice(_finished_clips(job), SHEET_ROWS)) if summary.made or not sheet.exists() else []
    if clips:
        try:
            write_image(sheet, contact_sheet(clips))
        except MachineError as error:  # the clips are there, and who failed is told below
            log(f"no contact sheet: {error}")
    counts = f"{summary.made} made, {summary.skipped} finished before, {len(summary.failed)} failed"
    log(f"{counts}: {sheet if sheet.exists() else job.outdir}")


def _finished_clips(job: Run) -> Iterator[tuple[str, Any]]:
    for request in job.requests:
        there = outputs.intact(job.outdir, request.id, outputs.read_record(job.record(request)))
        if there:
            with suppress(BadFileError):
                yield (
                    f"{request.id}: {request.prompt}",
                    outputs.frames_of(job.outdir, request.id, list(there)),
                )
