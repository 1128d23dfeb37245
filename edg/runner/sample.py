"""Requests x ranks -> clips in a folder. To resume, run the same command again.

Files appear complete or not at all, the record last: nothing half-written counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from edg.core.dist import World
from edg.core.errors import BadFileError, EdgError, MachineError, SomeFailedError
from edg.core.files import lock_folder, same_folder, write_json
from edg.core.formats import clip_path, read_clip
from edg.core.log import log
from edg.core.paths import file_stem
from edg.runner import outputs
from edg.runner.clip_folder import ClipFolder, is_finished, record_of, warnings_of, with_contents
from edg.runner.prepare import Job, check_bases, identify_parameters
from edg.runner.progress import Meter
from edg.systems.base import Observer, Request, Result

SHEET = "contact_sheet.png"
SHEET_ROWS = 64
PREVIEW = 160, 512  # pixels: between these a preview's frames are as wide as they come
Generate = Callable[[Any, Sequence[Request], Observer], Iterator[Result]]
Show = Callable[[Request, str, np.ndarray], None]


@dataclass(frozen=True)
class Summary:
    """Counts of a run at its end, over all ranks."""

    made: int
    skipped: int
    failed: Mapping[str, str]  # request id -> reason


def run(job: Job, world: World, keep: dict[str, Any] | None = None) -> Summary:
    """Make the clips of a job that are not finished yet, this rank's share of them, see `make_clips`.

    keep: the model of the run before, used again where it is the same, and replaced where not.
    """
    identities, origins = world.first(lambda: identify_parameters(job.parameters, job.outdir))
    if not world.is_first:
        check_bases(job.parameters)
    note = log if world.is_first else None
    return make_clips(
        job.folder(identities, world, origins),
        job.system.part("generate"),
        lambda: job.load(identities, keep, note),
        world,
    )


def make_clips(
    folder: ClipFolder, generate: Generate, load: Callable[[], Any], world: World | None = None
) -> Summary:
    """Make the clips of a folder that are not finished yet, this rank's share of them.

    generate: (model, requests, observer) -> results. load: gives the model, called only when there is work.
    Raises UsageError when a finished clip has other settings, MachineError when the folder cannot be had or
    written, or is removed meanwhile, SomeFailedError (at the end) when clips failed or are gone; the other
    ranks leave with its code.
    """
    world = world or World()
    with ExitStack() as stack:
        pending = world.first(lambda: _prepare(folder, stack))
        check = stack.enter_context(same_folder(folder.outdir))  # on every rank
        mine = world.shard(pending)
        meter = Meter(not world.is_first, len(mine), world.rank, world.size)
        requests = [folder.requests[index] for index in mine]
        failed = _make(folder, generate, load, requests, meter, check)
        before = [folder.requests[index] for index in range(len(folder.requests)) if index not in pending]
        failed |= _gone(folder, [r for r in (*requests, *before * world.is_first) if r.id not in failed])
        everyone = world.gather((len(mine), failed))
        failures = {key: reason for _, part in everyone for key, reason in part.items()}
        skipped = sum(request.id not in failures for request in before)
        summary = Summary(len(folder.requests) - skipped - len(failures), skipped, failures)
        world.first(lambda: _finish(folder, summary))
    if failures and not world.is_first:
        raise SystemExit(SomeFailedError.exit_code)
    if failures:
        name, reason = next(iter(failures.items()))
        raise SomeFailedError(
            f"{len(failures)} of {len(folder.requests)} clips failed, first {name}: {reason}",
            fix="remove the cause and run the same command again: only these clips are made again",
            failed=failures,
        )
    return summary


def _prepare(folder: ClipFolder, stack: ExitStack) -> list[int]:
    """Rank 0, before anything is made: take the folder and decide what is left to do."""
    ids = [request.id for request in folder.requests]
    assert len(set(ids)) == len(ids), "request ids must be unique"
    for id in ids:
        file_stem(id, "a clip's name")
    stack.enter_context(lock_folder(folder.outdir, folder.patience))
    pending = [i for i, request in enumerate(folder.requests) if not is_finished(folder, request)]
    if len(pending) < len(ids):
        log(f"{len(ids) - len(pending)} of {len(ids)} clips are already finished in {folder.outdir}")
    return pending


def _gone(folder: ClipFolder, requests: Sequence[Request]) -> dict[str, str]:
    """Finished clips whose files are not there any more, with that reason."""
    return {
        request.id: f"its files were removed from {folder.outdir} during this run"
        for request in requests
        if not all(clip_path(folder.outdir, request.id, format).exists() for format in folder.formats)
        or not folder.record(request).exists()
    }


# ---- making ------------------------------------------------------------------------------------------------


def _make(
    folder: ClipFolder,
    generate: Generate,
    load: Callable[[], Any],
    requests: list[Request],
    meter: Meter,
    check: Callable[[], None],
) -> dict[str, str]:
    """This rank's clips, a chunk at a time; returns the failed ones with their reasons. check: raises when
    the folder is not what it was, before anything is written there."""
    failed: dict[str, str] = {}
    model = None
    for start in range(0, len(requests), folder.chunk):
        chunk = requests[start : start + folder.chunk]
        began = time.monotonic()
        ready = []
        for request in chunk:
            check()
            try:
                ready.append(with_contents(request))
            except BadFileError as error:
                failed[request.id] = _fail(folder, request, str(error))
        if ready and model is None:
            meter.loading()
            model = load()
        meter.begin(start, [request.id for request in chunk])
        observer = Watcher(meter, _previews(folder) if folder.preview else None)
        for result in generate(model, ready, observer) if ready else ():
            check()
            reason = _save(folder, result, time.monotonic() - began, len(ready))
            if reason:
                failed[result.request.id] = _fail(folder, result.request, reason)
        meter.close()
    check()
    return failed


@dataclass(frozen=True)
class Watcher:
    """An observer that draws a progress bar, and shows previews where somebody wants them."""

    meter: Callable[..., None]
    show: Show | None = None

    @property
    def wants_preview(self) -> bool:
        return self.show is not None

    def step(self, phase: str, done: int, total: int, request: Request, share: float) -> None:
        self.meter(phase, done, total, request=request, share=share)

    def preview(self, request: Request, label: str, frames: np.ndarray) -> None:
        if self.show is not None:
            self.show(request, label, frames)


def _previews(folder: ClipFolder) -> Show:
    """One sheet for each clip, a row for each moment; a sheet that cannot be written stops no clip."""
    from edg.core.sheet import contact_sheet, stacked
    from edg.core.video import write_image

    rows: dict[str, list[Any]] = {}

    def watch(request: Request, moment: str, frames: Any) -> None:
        width = min(max(frames.shape[2], PREVIEW[0]), PREVIEW[1])
        rows.setdefault(request.id, []).append(contact_sheet([(moment, frames)], width=width))
        with suppress(OSError, EdgError):
            write_image(folder.outdir / f"{request.id}.preview.png", stacked(rows[request.id]))

    return watch


def _save(folder: ClipFolder, result: Result, seconds: float, together: int) -> str:
    """Write a result's video, then its record; returns the reason when that failed."""
    request = result.request
    if result.frames is None:
        return result.error or "the system returned neither frames nor a reason"
    warnings = warnings_of(result)
    former = outputs.read_record(folder.record(request))
    others = outputs.verified_files(folder.outdir, request.id, former)
    try:
        settings = folder.settings(request)
        made = outputs.write_clips(folder.outdir, request.id, folder.formats, result.frames, settings)
        record = record_of(folder, request, "done", settings)
        if former.get("settings_hash") == record["settings_hash"]:
            made = others | made
        else:
            old = [format for format in others if format not in made]
            outputs.remove_files(folder.outdir, request.id, old)
        record |= outputs.files_entry(
            folder.outdir, request.id, folder.formats[0], made, len(result.frames)
        ) | {
            "warnings": warnings,
            "info": dict(result.info),
            **outputs.write_artifacts(folder.outdir, request.id, result.artifacts, former),
            "seconds_since_chunk_start": round(seconds, 2),
            "clips_in_chunk": together,
        }
        write_json(folder.record(request), record)
    except EdgError as error:
        return str(error)
    log(f"made {folder.video(request)} ({seconds:.1f} s)")
    for warning in warnings:
        log(f"  warning: {warning}")
    return ""


def _fail(folder: ClipFolder, request: Request, reason: str) -> str:
    """Record that a clip failed and hand the reason back. No half of it is left; a finished clip stays."""
    log(f"failed {request.id}: {reason}")
    if outputs.verified_files(folder.outdir, request.id, outputs.read_record(folder.record(request))):
        return reason
    try:
        settings = folder.settings(request)
    except BadFileError:
        settings = None
    with suppress(OSError, EdgError):  # on a full disk the failure is only logged
        outputs.remove_files(folder.outdir, request.id, folder.formats)
        write_json(folder.record(request), record_of(folder, request, "failed", settings) | {"error": reason})
    return reason


# ---- at the end --------------------------------------------------------------------------------------------


def _finish(folder: ClipFolder, summary: Summary) -> None:
    """Rank 0, after everybody: the contact sheet of all finished clips, when there is something new."""
    from edg.core.sheet import contact_sheet
    from edg.core.video import write_image

    sheet = folder.outdir / SHEET
    clips = list(islice(_finished_clips(folder), SHEET_ROWS)) if summary.made or not sheet.exists() else []
    if clips:
        try:
            write_image(sheet, contact_sheet(clips))
        except MachineError as error:  # the clips are there, and failures are reported below
            log(f"no contact sheet: {error}")
    counts = f"{summary.made} made, {summary.skipped} finished before, {len(summary.failed)} failed"
    log(f"{counts}: {sheet if sheet.exists() else folder.outdir}")


def _finished_clips(folder: ClipFolder) -> Iterator[tuple[str, Any]]:
    for request in folder.requests:
        there = outputs.verified_files(folder.outdir, request.id, outputs.read_record(folder.record(request)))
        if there:
            with suppress(BadFileError):
                yield (
                    f"{request.id}: {request.prompt}",
                    read_clip(clip_path(folder.outdir, request.id, next(iter(there)))),
                )
