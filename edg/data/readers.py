"""Frames of a video file by their number: decord where it can be trusted, PyAV for the rest.

PyAV lists the packets of a file (nothing is decoded), which tells a broken file, and one that decord 0.6 is
known to read wrongly:
- a cut made without encoding hides frames before or after it (an edit list); decord counts hidden ones too,
  and repeats a picture, or never returns, when asked for one of the last (dmlc/decord#373);
- frames that follow a keyframe in the file but are shown before it (open groups of pictures, usual for HEVC):
  after a jump, decord gives later frames than the ones asked for;
- containers other than mp4, mov, mkv and webm: jumps in a transport or program stream miss, and an avi now
  and then gives another frame (dmlc/decord#195).
For some sizes, and for turned phone videos, its frames come with four channels and get_batch fails.
"""

from __future__ import annotations

import functools
import math
import os
import stat
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import numpy as np

from edg.core.errors import BadFileError, MachineError
from edg.core.video import MAX_PIXELS, open_container

Backend = Literal["auto", "decord", "pyav"]
T = TypeVar("T", bound=Sequence[int])
_SEEKS_EXACTLY = ("mp4", "matroska")  # in FFmpeg's names of the container formats


class Reader(Protocol):
    """frames: how many can be had. fps: frames per second, mean. size: (H, W) as shown, turned upright.
    name: "decord" or "pyav"."""

    name: str
    frames: int
    fps: float
    size: tuple[int, int]

    def get(self, indices: Sequence[int]) -> np.ndarray:
        """Frames (0 <= index < frames, any order) as uint8 (T, H, W, 3). Raises BadFileError."""
        ...


def open_video(path: str | Path, backend: Backend = "auto") -> Reader:
    """A reader of a video file, its first frame decoded as a trial.

    auto: decord where it can be trusted, else PyAV. Raises BadFileError when the file cannot be read,
    MachineError when decord is demanded and not installed.
    """
    path = Path(path)
    _need_content(path)
    if backend == "decord":
        return _checked(DecordReader(path))
    reader = PyAvReader(path)
    if backend == "auto" and reader.plain and _decord():
        with suppress(BadFileError):
            faster = DecordReader(path)
            if faster.frames == reader.frames:
                return _checked(faster)
    return _checked(reader)


def read_frames_at(
    path: str | Path, choose: Callable[[Reader], T], backend: Backend = "auto"
) -> tuple[Reader, np.ndarray, T]:
    """The reader, the frames that choose(reader) asks for, and what it chose. Where decord opens a file and
    then fails, PyAV reads it, for a choice made anew. Raises BadFileError."""
    reader = open_video(path, backend)
    try:
        chosen = choose(reader)
        return reader, reader.get(chosen), chosen
    except BadFileError:
        if backend != "auto" or reader.name == "pyav":
            raise
    reader = open_video(path, "pyav")
    chosen = choose(reader)
    return reader, reader.get(chosen), chosen


def _need_content(path: Path) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise BadFileError(f"cannot open {path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise BadFileError(f"{path} is not a file")
    if status.st_size == 0:
        raise BadFileError(f"{path} is empty (0 bytes)")


def _checked(reader: DecordReader | PyAvReader) -> Reader:
    if not (math.isfinite(reader.fps) and reader.fps > 0):
        raise BadFileError(f"{reader.path} has no frame rate")
    if reader.size[0] * reader.size[1] > MAX_PIXELS:
        raise BadFileError(f"{reader.path} is too large ({reader.size[1]}x{reader.size[0]})")
    return reader


# ---- decord ------------------------------------------------------------------------------------------------


@functools.cache
def _decord():
    """The module, or None where it is not installed or does not load."""
    try:
        import decord
    except (ImportError, OSError):
        return None
    decord.logging.set_level(decord.logging.QUIET)
    return decord


class DecordReader:
    """Reader over decord, one thread. Raises BadFileError for everything it does not read faithfully."""

    name = "decord"

    def __init__(self, path: Path):
        decord = _decord()
        if decord is None:
            raise MachineError("decord is not installed", fix="pip install decord, or take the reader pyav")
        self.path = path
        self._video = self._call(lambda: decord.VideoReader(os.path.abspath(path), num_threads=1))
        self.frames = len(self._video)
        self.fps = float(self._video.get_avg_fps())
        self.size = self.get([0]).shape[1:3]

    def _call(self, function):
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


# ---- PyAV --------------------------------------------------------------------------------------------------


class PyAvReader:
    """Reader over PyAV, one thread: the packets are listed once, then decoded from the keyframe before.

    plain: a container that seeks exactly, every frame is shown, each after the keyframe that it follows.
    """

    name = "pyav"

    def __init__(self, path: Path):
        self.path = path
        self._call(self._index)
        if not self.frames:
            raise BadFileError(f"{path} holds no frame")

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        return self.get([0]).shape[1:3]

    def _call(self, function, *args):
        import av

        try:
            return function(*args)
        except BadFileError:
            raise
        except (av.FFmpegError, OSError, IndexError, ValueError, MemoryError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise BadFileError(f"cannot read {self.path}: {reason}") from error

    def _open(self, **options: str):
        container = open_container(self.path, **options)
        if not container.streams.video:
            container.close()
            raise BadFileError(f"{self.path} has no video stream")
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        return container, stream

    def _index(self) -> None:
        """Times of all visible frames and of the keyframes, in units of the stream, without decoding."""
        container, stream = self._open()
        with container:
            packets = [
                (packet.pts, packet.is_keyframe, packet.is_discard)
                for packet in container.demux(stream)
                if packet.size
            ]
            if "mp4" in container.format.name and len(packets) < stream.frames:
                self._need_all(stream.frames)
            shown = [time for time, _, hidden in packets if not hidden]
            self.frames = len(shown)
            numbered = None in shown or len(set(shown)) < len(shown)  # no usable times: count while decoding
            self._times = None if numbered else sorted(shown)
            self._keys = sorted(time for time, key, _ in packets if key and time is not None)
            whole = len(shown) == max(len(packets), stream.frames) and not numbered
            exact = any(name in container.format.name for name in _SEEKS_EXACTLY)
            self.plain = whole and exact and not _leads(packets)
            self.fps = self._rate(stream)

    def _need_all(self, told: int) -> None:
        """Packets may be missing because an edit list hides them. Raises BadFileError when they are gone."""
        container, stream = self._open(ignore_editlist="1")
        with container:
            there = sum(packet.size > 0 and not packet.is_corrupt for packet in container.demux(stream))
        if there < told:
            raise BadFileError(f"{self.path} is cut short: {there} of {told} frames")

    def _rate(self, stream) -> float:
        rate = float(stream.average_rate or 0)
        if 0.1 <= rate <= 1000 or not self._times or self.frames < 2:
            return rate
        return (self.frames - 1) / float((self._times[-1] - self._times[0]) * stream.time_base)

    def get(self, indices: Sequence[int]) -> np.ndarray:
        assert all(0 <= index < self.frames for index in indices), "the caller asks for frames that exist"
        wanted = {index if self._times is None else self._times[index] for index in indices}
        found = self._call(self._decode, wanted, self._times is not None)
        if len(found) < len(wanted) and self._times is not None:  # the container cannot seek exactly
            found = self._call(self._decode, wanted, False)
        lost = [i for i in indices if (i if self._times is None else self._times[i]) not in found]
        if lost:
            raise BadFileError(f"cannot read {self.path}: frame {lost[0]} of {self.frames} does not decode")
        frames = [found[index if self._times is None else self._times[index]] for index in indices]
        if len({frame.shape for frame in frames}) > 1:
            raise BadFileError(f"{self.path} changes its size on the way")
        return np.stack(frames)

    def _decode(self, wanted: set[int], seek: bool) -> dict[int, np.ndarray]:
        container, stream = self._open()
        found, last = {}, max(wanted)
        with container:
            before = bisect_right(self._keys, min(wanted)) - 1
            if seek and before > 0:
                container.seek(self._keys[before], stream=stream)
            for number, frame in enumerate(container.decode(stream)):
                time = number if self._times is None else frame.pts
                if time in wanted:
                    if frame.is_corrupt:
                        raise BadFileError(f"cannot read {self.path}: a damaged frame")
                    found[time] = _upright(frame)
                if time is not None and time >= last:
                    break
        return found


def _leads(packets: Sequence[tuple[int, bool, bool]]) -> bool:
    """Whether a frame is shown before the keyframe that it follows in the file; packets as in _index."""
    begin = -math.inf
    for time, key, _ in packets:
        begin = time if key else begin
        if time < begin:
            return True
    return False


def _upright(frame) -> np.ndarray:
    """uint8 (H, W, 3) as a player shows it; the display matrix says by how much, in degrees to the left."""
    picture = frame.to_ndarray(format="rgb24")
    return np.rot90(picture, round(frame.rotation / 90) % 4)
