"""Clips for the visitors of `edg demo`: requests in, clips with their records out, one at a time, in a
temporary folder."""

from __future__ import annotations

import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edg.core.errors import BadFileError, EdgError, require
from edg.core.files import write_json
from edg.core.formats import write_clip
from edg.core.video import read_image
from edg.demo.uploads import Uploads
from edg.runner import outputs
from edg.runner.progress import format_duration

MAX_BYTES = 20_000_000  # of an uploaded file; its pixels are bounded by core/video.py
MAX_PROMPT = 300  # characters
SEEDS = 2**31
THUMB = 160  # pixels
STOP_TIMEOUT = 1.5  # seconds to wait at the end for the current sampler step

#: (image, prompt, *, progress, watch, **settings) -> a clip with `frames` and `record`, see edg.api
Animate = Callable[..., Any]


@dataclass(frozen=True)
class Slider:
    """A setting of the model that visitors may change.

    name: keyword of `Animate`. low, high, step: its values, integers where step is one. start: the first
    value. help: what it does, as measured. shared: models for comparison get the setting, too. title: its
    name on the page.
    """

    name: str
    low: float
    high: float
    step: float
    start: float
    help: str = ""
    shared: bool = False
    title: str = ""

    @property
    def label(self) -> str:
        """Its name for visitors."""
        return self.title or self.name

    def convert(self, value: Any) -> float:
        """The value that a browser sent. Raises TypeError, ValueError, OverflowError."""
        return int(value) if isinstance(self.step, int) else float(value)


@dataclass(frozen=True)
class DemoModel:
    """All that the page shows and does of a model.

    animate: name -> Animate; the first is the model, the others are for comparison.
    examples: (image file, prompt).
    about: a sentence or two for visitors, Markdown.
    small: clips are enlarged without smoothing.
    warm_up: imports that take seconds, done while nobody waits.
    doubt: (image) -> why the model does not understand this picture, "" where it may.
    """

    name: str
    animate: Mapping[str, Animate]
    sliders: Sequence[Slider] = ()
    examples: Sequence[tuple[str, str]] = ()
    about: str = ""
    small: bool = False
    warm_up: Callable[[], None] = lambda: None
    doubt: Callable[[Path], str] = lambda image: ""


class Cancelled(Exception):
    """The visitor has stopped the job."""


@dataclass(frozen=True)
class DemoRequest:
    """A clip that a visitor asks for. image: an upload. settings: slider's name -> value."""

    image: Path
    prompt: str
    seed: int
    settings: Mapping[str, float] = field(default_factory=dict)
    compare: bool = False

    def check(self, sliders: Iterable[Slider]) -> None:
        """Raise UsageError for a value out of bounds."""
        length = len(self.prompt)
        require(length <= MAX_PROMPT, f"a prompt of {length} characters", f"at most {MAX_PROMPT}")
        require(0 <= self.seed < SEEDS, f"seed {self.seed}", f"0 to {SEEDS - 1}")
        for slider in sliders:
            value = self.settings.get(slider.name, slider.start)
            expected = f"{slider.low:g} to {slider.high:g}"
            require(slider.low <= value <= slider.high, f"{slider.label} {value:g}", expected)


@dataclass(frozen=True)
class DemoResult:
    """A finished request.

    clips: model's name -> its mp4.
    files: these and their records.
    thumb: a small picture of the clip.
    width: pixels.
    warnings: those of the records.
    """

    request: DemoRequest
    folder: Path
    clips: Mapping[str, Path]
    files: tuple[Path, ...]
    thumb: Path
    width: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Update:
    """Progress of a request. share: 0..1. frames: model's name -> uint8 (T, h, w, 3) as predicted so far. The
    last one has the result, or the error."""

    text: str
    share: float = 0.0
    frames: Mapping[str, np.ndarray] = field(default_factory=dict)
    result: DemoResult | None = None
    error: str = ""


class DemoBackend:
    """Carries out requests, one at a time. uploads: where all files lie, closed at the end; by default a new
    folder."""

    def __init__(self, model: DemoModel, uploads: Uploads | None = None):
        self.model = model
        self.uploads = uploads or Uploads()
        self._generating, self._decoding = threading.Lock(), threading.Lock()
        self._running: dict[threading.Thread, threading.Event] = {}

    def __enter__(self) -> DemoBackend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        return self.uploads.folder

    def close(self) -> None:
        """Stop all jobs, wait up to STOP_TIMEOUT for their sampler steps, and remove the folder."""
        running = list(self._running.items())
        for _, stop in running:
            stop.set()
        end = time.monotonic() + STOP_TIMEOUT
        for thread, _ in running:
            thread.join(max(0.0, end - time.monotonic()))
        self.uploads.close()

    def check_image(self, path: Path) -> str:
        """Why the model does not understand an upload, "" where it may. Raises BadFileError, with the name it
        was uploaded under, for a file that is no image or no upload."""
        if not self.uploads.is_upload(str(path)):
            raise BadFileError("the image is not one that was uploaded here")
        try:
            with self._decoding:  # one at a time is in memory
                read_image(path)
                return self.model.doubt(path)
        except BadFileError as error:
            raise BadFileError(str(error).replace(str(path), path.name)) from error

    def generate(self, request: DemoRequest, stop: threading.Event) -> Iterator[Update]:
        """Yield updates until the clip is finished, refused, failed, or stopped between two sampler steps
        (`stop` is set, or the iterator is closed)."""
        updates: queue.Queue[Update | None] = queue.Queue()
        thread = threading.Thread(target=self._work, args=(request, stop, updates.put), daemon=True)
        self._running[thread] = stop
        thread.start()
        try:
            while (update := updates.get()) is not None:
                while updates.qsize() > 1 and not update.frames:  # a slow reader gets the latest
                    update = updates.get()
                yield update
        finally:
            stop.set()

    def _work(
        self, request: DemoRequest, stop: threading.Event, send: Callable[[Update | None], None]
    ) -> None:
        names = list(self.model.animate)
        job = GenerationJob(stop, send, names if request.compare else names[:1])
        try:
            request.check(self.model.sliders)
            self.check_image(request.image)
            with self._generating:
                send(Update("made", 1.0, result=self._run(request, job)))
        except Cancelled:
            send(Update(f"stopped: {job.position}", job.share))
        except EdgError as error:
            send(Update("not made", error=str(error)))
        except Exception as error:  # the page goes on, and the terminal has the details
            traceback.print_exc(file=sys.stderr)
            line = next(iter(str(error).splitlines()), "")
            send(Update("not made", error=f"{type(error).__name__}: {line}"))
        finally:
            self._running.pop(threading.current_thread())
            send(None)

    def _run(self, request: DemoRequest, job: GenerationJob) -> DemoResult:
        videos = {}
        shared = {slider.name for slider in self.model.sliders if slider.shared}
        for name in job.names:
            job.begin(name)
            own = name == job.names[0]
            settings = {key: value for key, value in request.settings.items() if own or key in shared}
            videos[name] = self.model.animate[name](
                request.image, request.prompt, progress=job.progress, watch=job.watch,
                seed=request.seed, **settings,
            )  # fmt: skip
        return self._write(request, videos)

    def _write(self, request: DemoRequest, videos: Mapping[str, Any]) -> DemoResult:
        """Write the clips and their records as `edg sample` does; those of other models have their names in
        front."""
        folder = self.uploads.new_folder()
        clips, written = {}, []
        for name, video in videos.items():
            record = dict(video.record)
            stem = f"{name}-{record['id']}" if clips else str(record["id"])
            hashes = outputs.write_clips(folder, stem, ["mp4"], video.frames, record["settings"])
            record |= outputs.files_entry(folder, stem, "mp4", hashes, len(video.frames))
            write_json(folder / f"{stem}.json", record)
            clips[name] = folder / f"{stem}.mp4"
            written += [folder / f"{stem}.mp4", folder / f"{stem}.json"]
        frames = next(iter(videos.values())).frames
        step = -(-frames.shape[2] // THUMB)
        thumb = folder / "thumb.webp"
        write_clip(thumb, frames[:, ::step, ::step], "webp", fps=8, crf=0, tags={})
        lines = dict.fromkeys(line for video in videos.values() for line in video.record.get("warnings", ()))
        self.uploads.show([*written, thumb])
        return DemoResult(request, folder, clips, tuple(written), thumb, frames.shape[2], tuple(lines))

    def remove(self, result: DemoResult) -> None:
        """Remove the files of a result."""
        self.uploads.forget(result.folder)


class GenerationJob:
    """The run of one request: turns the progress of its models, one after the other, into updates, and raises
    Cancelled where it is stopped."""

    def __init__(self, stop: threading.Event, send: Callable[[Update], None], names: Sequence[str]):
        self.stop, self.send, self.names = stop, send, list(names)
        self.number, self.share, self.position = -1, 0.0, "before the first step"
        self.frames: dict[str, np.ndarray] = {}
        self.began: tuple[float, float] | None = None  # time and share after the first step

    def begin(self, name: str) -> None:
        """Start the next model's clip. Raises Cancelled."""
        self.number += 1
        self.name, self.text = name, f"{name}: preparing"
        self.send(Update(self.text, self.share))
        self._check()

    def progress(
        self, phase: str, done: int, total: int, *, request: object = None, share: float = 0
    ) -> None:
        """Called after every step, see `edg.api.Model.animate`. Raises Cancelled."""
        self.share = (self.number + share) / len(self.names)
        self.position = f"{self.name} after {phase} {done}/{total}"
        self._check()
        self.began = self.began or (time.monotonic(), self.share)
        self.text = f"{self.name}: {phase} {done}/{total}{self._left()}"
        self.send(Update(self.text, self.share))

    def watch(self, request: object, label: str, frames: np.ndarray) -> None:
        """Called with the clip as predicted so far."""
        self.frames[self.name] = frames
        self.send(Update(self.text, self.share, dict(self.frames)))

    def _left(self) -> str:
        when, share = self.began or (0.0, 1.0)
        if self.share <= share:
            return ""
        seconds = (time.monotonic() - when) / (self.share - share) * (1 - self.share)
        return f", {format_duration(seconds)} left"

    def _check(self) -> None:
        if self.stop.is_set():
            raise Cancelled
