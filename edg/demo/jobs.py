"""What is behind the page of `edg demo`: wishes -> clips with their records, one at a time, in a folder that
goes with it."""

from __future__ import annotations

import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edg.core.errors import BadFileError, EdgError, UsageError
from edg.core.files import write_json
from edg.core.formats import write_clip
from edg.core.video import read_image
from edg.demo.uploads import Uploads
from edg.runner import outputs
from edg.runner.progress import clock

MAX_BYTES = 20_000_000  # of an uploaded file; its pixels are bounded by core/video.py
MAX_PROMPT = 300  # characters
MAX_STEPS = 100
SEEDS = 2**31
THUMB = 160  # pixels
PATIENCE = 1.5  # seconds at the end for the step that is being made

#: (image, prompt, *, progress, watch, **flags) -> a clip with `frames` and `record`, see edg.api
Animate = Callable[..., Any]


class Stopped(Exception):
    """The wish was taken back."""


@dataclass(frozen=True)
class Wish:
    """What somebody asks for. image: one that was uploaded. dials: word -> 0..1."""

    image: Path
    prompt: str
    seed: int
    steps: int
    dials: Mapping[str, float] = field(default_factory=dict)
    compare: bool = False

    def check(self) -> None:
        """Raise UsageError for what is not within bounds."""
        if len(self.prompt) > MAX_PROMPT:
            raise UsageError(f"a prompt of {len(self.prompt)} characters", expected=f"at most {MAX_PROMPT}")
        if not 0 <= self.seed < SEEDS:
            raise UsageError(f"seed {self.seed}", expected=f"0 to {SEEDS - 1}")
        if not 1 <= self.steps <= MAX_STEPS:
            raise UsageError(f"{self.steps} steps", expected=f"1 to {MAX_STEPS}")
        for word, turned in self.dials.items():
            if not 0 <= turned <= 1:
                raise UsageError(f"{word} {turned:g}", expected="0 to 1")


@dataclass(frozen=True)
class Made:
    """A wish that came true. clips: who made it -> its mp4; files: these and their records.
    width: pixels. warnings: what its records warn of."""

    wish: Wish
    folder: Path
    clips: Mapping[str, Path]
    files: tuple[Path, ...]
    thumb: Path
    width: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Moment:
    """How far a wish is: words, a share of 0..1, frames uint8 (T, h, w, 3) as predicted so far, by who makes
    them; at the end what was made, or why not."""

    words: str
    share: float = 0.0
    frames: Mapping[str, np.ndarray] = field(default_factory=dict)
    made: Made | None = None
    error: str = ""


class Studio:
    """makers: name -> Animate, the first is the model, the others are for comparison. steps: to begin with.
    dials: word -> what it turns, in words, for those that have a measured curve. small: whether its clips are
    to be enlarged. about: what a visitor should know of the model. uploads: where files lie, closed at the
    end; by default a new folder."""

    def __init__(
        self, name: str, makers: Mapping[str, Animate], steps: int = 50,
        dials: Mapping[str, str] | None = None, small: bool = False, about: str = "",
        uploads: Uploads | None = None,
    ):  # fmt: skip
        self.name, self.makers, self.steps, self.small = name, dict(makers), steps, small
        self.dials, self.about = dict(dials or {}), about
        self.uploads = uploads or Uploads()
        self._one, self._looking = threading.Lock(), threading.Lock()
        self._at_work: dict[threading.Thread, threading.Event] = {}

    def __enter__(self) -> Studio:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        return self.uploads.folder

    def close(self) -> None:
        """Stop what is being made, where a step ends within `PATIENCE`, and remove the folder."""
        working = list(self._at_work.items())
        for _, stop in working:
            stop.set()
        end = time.monotonic() + PATIENCE
        for thread, _ in working:
            thread.join(max(0.0, end - time.monotonic()))
        self.uploads.close()

    def check_image(self, path: Path) -> None:
        """Raise BadFileError, by the name that it was uploaded with, for what is no image to be had here."""
        if not self.uploads.is_upload(str(path)):
            raise BadFileError("the image is not one that was uploaded here")
        try:
            with self._looking:  # one at a time is in memory
                read_image(path)
        except BadFileError as error:
            raise BadFileError(str(error).replace(str(path), path.name)) from error

    def make(self, wish: Wish, stop: threading.Event) -> Iterator[Moment]:
        """Moments until the wish is made, refused, failed, or stopped (`stop` set): between two steps. Who
        closes the iterator stops it too."""
        told: queue.Queue[Moment | None] = queue.Queue()
        thread = threading.Thread(target=self._work, args=(wish, stop, told.put), daemon=True)
        self._at_work[thread] = stop
        thread.start()
        try:
            while (moment := told.get()) is not None:
                while told.qsize() > 1 and not moment.frames:  # who is slow to show it sees the latest
                    moment = told.get()
                yield moment
        finally:
            stop.set()

    def _work(self, wish: Wish, stop: threading.Event, tell: Callable[[Moment | None], None]) -> None:
        turn = Turn(wish, stop, tell, self.makers if wish.compare else list(self.makers)[:1])
        try:
            wish.check()
            self.check_image(wish.image)
            with self._one:
                tell(Moment("made", 1.0, made=self._make(wish, turn)))
        except Stopped:
            tell(Moment(f"stopped: {turn.where}", turn.share))
        except EdgError as error:
            tell(Moment("not made", error=str(error)))
        except Exception as error:  # whatever happens, the page lives on and the terminal has the details
            traceback.print_exc(file=sys.stderr)
            line = next(iter(str(error).splitlines()), "")
            tell(Moment("not made", error=f"{type(error).__name__}: {line}"))
        finally:
            self._at_work.pop(threading.current_thread())
            tell(None)

    def _make(self, wish: Wish, turn: Turn) -> Made:
        videos = {}
        for name in turn.names:
            turn.begin(name)
            flags = wish.dials if name == turn.names[0] else {}
            how = {"seed": wish.seed, "steps": wish.steps, **flags}
            videos[name] = self.makers[name](
                wish.image, wish.prompt, progress=turn.progress, watch=turn.watch, **how
            )
        return self._keep(wish, videos)

    def _keep(self, wish: Wish, videos: Mapping[str, Any]) -> Made:
        """Write the clips and their records, as `edg sample` writes them; other makers' have their name in
        front."""
        folder = self.uploads.new_folder()
        clips, written = {}, []
        for name, video in videos.items():
            record = dict(video.record)
            stem = f"{name}-{record['id']}" if clips else str(record["id"])
            digests = outputs.write_clips(folder, stem, ["mp4"], video.frames, record["settings"])
            record |= outputs.files_entry(folder, stem, "mp4", digests, len(video.frames))
            write_json(folder / f"{stem}.json", record)
            clips[name] = folder / f"{stem}.mp4"
            written += [folder / f"{stem}.mp4", folder / f"{stem}.json"]
        frames = next(iter(videos.values())).frames
        step = -(-frames.shape[2] // THUMB)
        thumb = folder / "thumb.webp"
        write_clip(thumb, frames[:, ::step, ::step], "webp", fps=8, crf=0, tags={})
        lines = [line for video in videos.values() for line in video.record.get("warnings", ())]
        self.uploads.show([*written, thumb])
        return Made(wish, folder, clips, tuple(written), thumb, frames.shape[2], tuple(dict.fromkeys(lines)))

    def forget(self, made: Made) -> None:
        self.uploads.forget(made.folder)


class Turn:
    """One wish on its way: what the models tell of it, as moments; where it is stopped."""

    def __init__(self, wish: Wish, stop: threading.Event, tell: Callable[[Moment], None], names: Any):
        self.wish, self.stop, self.tell, self.names = wish, stop, tell, list(names)
        self.number, self.share, self.where = -1, 0.0, "before the first step"
        self.frames: dict[str, np.ndarray] = {}
        self.began: tuple[float, float] | None = None  # when and at which share the first step was done

    def begin(self, name: str) -> None:
        """The next model's clip. Raises Stopped."""
        self.number += 1
        self.name, self.words = name, f"{name}: getting ready"
        self.tell(Moment(self.words, self.share))
        self._look()

    def progress(self, phase: str, done: int, total: int, *, request: Any = None, share: float = 0) -> None:
        """See base.Progress. Raises Stopped."""
        self.share = (self.number + share) / len(self.names)
        self.where = f"{self.name} after {phase} {done}/{total}"
        self._look()
        self.began = self.began or (time.monotonic(), self.share)
        self.words = f"{self.name}: {phase} {done}/{total}{self._left()}"
        self.tell(Moment(self.words, self.share))

    def watch(self, request: Any, moment: str, frames: np.ndarray) -> None:
        self.frames[self.name] = frames
        self.tell(Moment(self.words, self.share, dict(self.frames)))

    def _left(self) -> str:
        when, share = self.began or (0.0, 1.0)
        if self.share <= share:
            return ""
        return f", {clock((time.monotonic() - when) / (self.share - share) * (1 - self.share))} left"

    def _look(self) -> None:
        if self.stop.is_set():
            raise Stopped
