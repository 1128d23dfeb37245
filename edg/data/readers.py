"""Video frames by number, for training: read by `core.films` (PyAV), or by decord if asked for.

decord is an optional package: its colours are not those of the other readers. It converts them with swscale's
fast path, up to 3 of 255 levels too dark, which its interface cannot change (docs/training.md has figures).
DecordReader refuses films that decord 0.6 would show otherwise in any other way: it knows no display matrix,
no pixels that are not square, no tagged default stream and no BT.709 for films without a tag, and it misreads
- edit lists, which hide frames before or after a cut: decord counts hidden frames too, and repeats a picture,
  or never returns, when asked for one of the last (dmlc/decord#373);
- open groups of pictures, usual for HEVC: after a seek it gives later frames than the ones asked for;
- containers other than mp4, mov, mkv and webm: seeks in a transport or program stream miss, and an avi
  sometimes gives another frame (dmlc/decord#195).
For some sizes its frames come with four channels and get_batch fails.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Literal, Protocol, TypeVar

import numpy as np

from edg.core.errors import BadFileError, MachineError
from edg.core.films import Film
from edg.core.video import MAX_PIXELS, open_film

Backend = Literal["auto", "decord", "pyav"]
T = TypeVar("T", bound=Sequence[int])
R = TypeVar("R")


class Reader(Protocol):
    """An opened video file.

    name: "decord" or "pyav".
    frames: number of frames.
    fps: mean frames per second.
    times: float64 (frames,), seconds from the first frame on.
    steady: True if the frames come at one rate.
    size: (H, W) as shown.
    warnings: remarks for the user.
    """

    name: str
    frames: int
    fps: float
    times: np.ndarray
    steady: bool
    size: tuple[int, int]
    warnings: Sequence[str]

    def get(self, indices: Sequence[int]) -> np.ndarray:
        """Frames (0 <= index < frames, any order) as uint8 (T, H, W, 3). Raises BadFileError."""
        ...


def open_video(path: str | Path, backend: Backend = "auto") -> Reader:
    """Open a video file and decode its first frame as a trial. auto: PyAV.

    Raises BadFileError when the file cannot be read (by decord: faithfully), MachineError when decord is
    asked for and not installed.
    """
    if backend == "decord" and _decord() is None:
        raise MachineError("decord is not installed", fix="pip install decord, or use the reader pyav")
    film = open_film(path)
    if not (math.isfinite(film.fps) and film.fps > 0):
        raise BadFileError(f"{path} does not state its frame rate")
    if film.size[0] * film.size[1] > MAX_PIXELS:
        raise BadFileError(f"{path} is too large ({film.size[1]}x{film.size[0]})")
    return DecordReader(film) if backend == "decord" else film


def read_frames_at(
    path: str | Path, choose: Callable[[Reader], T], backend: Backend = "auto"
) -> tuple[Reader, np.ndarray, T]:
    """Read the frames whose numbers choose(reader) returns; with the reader and these numbers. Raises
    BadFileError."""
    reader = open_video(path, backend)
    chosen = choose(reader)
    return reader, reader.get(chosen), chosen


# ---- decord ------------------------------------------------------------------------------------------------


@functools.cache
def _decord() -> ModuleType | None:
    """The module decord, None if it is not installed or does not load."""
    try:
        import decord
    except (ImportError, OSError):
        return None
    decord.logging.set_level(decord.logging.QUIET)
    return decord


class DecordReader:
    """Reader by decord, one thread. Raises BadFileError for films that decord does not read faithfully."""

    name = "decord"

    def __init__(self, film: Film):
        self.path, self.frames, self.fps = film.path, film.frames, film.fps
        self.times, self.steady, self.size, self.warnings = film.times, film.steady, film.size, film.warnings
        if not film.plain:
            raise BadFileError(
                f"decord does not read {self.path} as players show it", fix="use the reader auto"
            )
        decord = _decord()
        self._video = self._call(lambda: decord.VideoReader(os.path.abspath(self.path), num_threads=1))
        shape = self.get([0]).shape[1:3]
        if (len(self._video), shape) != (self.frames, self.size):
            raise BadFileError(f"decord cannot read {self.path}: {len(self._video)} frames of {shape}")

    def _call(self, function: Callable[[], R]) -> R:
        try:
            return function()
        except Exception as error:  # DECORDError is a bare Exception
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise BadFileError(f"decord cannot read {self.path}: {reason}") from error

    def get(self, indices: Sequence[int]) -> np.ndarray:
        frames = self._call(lambda: self._video.get_batch(list(indices)).asnumpy())
        if frames.ndim != 4 or frames.shape[-1] != 3:
            raise BadFileError(f"decord cannot read {self.path}: frames of shape {frames.shape[1:]}")
        return frames
