"""From a video to a training clip: choice of frames, resizing, and the frame rate condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from edg.core.errors import BadFileError, require
from edg.core.films import frames_at
from edg.core.video import fit_image
from edg.data.readers import Reader


@dataclass(frozen=True)
class ClipSettings:
    """Settings of a training clip.

    frames, height, width: its size.
    stride: smallest and largest distance of two frames in the video, drawn uniformly (published: 1 to 6). In
        a video whose rate changes, frames are chosen by their times, see `choose_frames`.
    fixed_fps: strides are counted at this rate instead of the video's own (a stride of 1 is then the nearest
        whole number to video fps / fixed_fps, at least 1).
    random_start: the clip begins anywhere, else at frame 0.
    fps_max: upper limit of the condition "fps".
    condition: the network's frame rate condition: "fps" (frames per second of the clip, rounded down; 512 and
        1024 models) or "fs" (the stride; 256).
    flip: half of the clips are mirrored (wrong where captions say left and right).
    """

    frames: int
    height: int
    width: int
    stride: tuple[int, int] = (1, 6)
    fixed_fps: float | None = None
    random_start: bool = True
    fps_max: int | None = None
    condition: Literal["fps", "fs"] = "fps"
    flip: bool = False

    def __post_init__(self) -> None:
        for name, most in (("frames", 10_000), ("height", 16_384), ("width", 16_384)):
            value = getattr(self, name)
            require(1 <= value <= most, f"a clip with {name} {value}", f"1 to {most:,}")
        low, high = self.stride
        in_range = 1 <= low <= high <= 10**6
        require(in_range, f"strides from {low} to {high}", "1 <= smallest <= largest <= 10^6")
        rate, most = self.fixed_fps, self.fps_max
        require(rate is None or 0 < rate <= 10_000, f"fixed_fps {rate}", "above 0, at most 10,000")
        require(most is None or 1 <= most <= 10_000, f"fps_max {most}", "1 to 10,000")
        require(self.condition in ("fps", "fs"), f"the condition {self.condition!r}", "fps or fs")


def choose_times(count: int, fps: float, clip: ClipSettings, generator: torch.Generator) -> range:
    """Draw the frames of a clip from a video of `count` frames at `fps` frames per second, a range with the
    stride as its step.

    A video too short for the stride drawn gets the largest that fits. Always two numbers are drawn. Raises
    BadFileError when the video has fewer frames than the clip.
    """
    stride = _draw(clip.stride[0], clip.stride[1], generator)
    if clip.fixed_fps is not None:
        stride = max(1, round(stride * fps / clip.fixed_fps))
    if count < clip.frames:
        raise BadFileError(f"too short: {count} frames, a clip has {clip.frames}")
    gaps = clip.frames - 1
    if gaps:
        stride = min(stride, (count - 1) // gaps)
    start = _draw(0, count - 1 - stride * gaps, generator)
    start = start if clip.random_start else 0
    return range(start, start + stride * clip.frames, stride)


@dataclass(frozen=True)
class FrameChoice(Sequence[int]):
    """Numbers of the frames of a video that make a clip. fps: of the clip. stride: their mean distance in the
    video. start: number of the first."""

    indices: Sequence[int]
    fps: float
    stride: int
    start: int

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int | slice) -> int | Sequence[int]:
        return self.indices[place]


def choose_frames(video: Reader, clip: ClipSettings, generator: torch.Generator) -> FrameChoice:
    """Draw the frames of a clip, evenly spaced in time.

    At a steady rate those of `choose_times`. Where the rate changes, the clip shows what a player shows at
    even times: every `stride` steps of the mean rate, or of fixed_fps where this is less; a frame that lasts
    longer is there more than once. Always two numbers are drawn. Raises BadFileError when the video has fewer
    frames than the clip.
    """
    if video.steady:
        chosen = choose_times(video.frames, video.fps, clip, generator)
        return FrameChoice(chosen, video.fps / chosen.step, chosen.step, chosen.start)
    stride = _draw(clip.stride[0], clip.stride[1], generator)
    if video.frames < clip.frames:
        raise BadFileError(f"too short: {video.frames} frames, a clip has {clip.frames}")
    gaps, length = max(1, clip.frames - 1), float(video.times[-1])
    step = stride / min(clip.fixed_fps or video.fps, video.fps)
    step = min(step, length / gaps)
    latest = int(np.searchsorted(video.times, length - step * gaps + 1e-6, side="right")) - 1
    start = _draw(0, max(0, latest), generator)
    start = start if clip.random_start else 0
    at = float(video.times[start]) + step * np.arange(clip.frames)
    return FrameChoice(frames_at(video.times, at).tolist(), 1 / step, max(1, round(step * video.fps)), start)


def _draw(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (1,), generator=generator))


def rate_condition(fps: float, stride: int, clip: ClipSettings) -> int:
    """The network's frame rate condition: floor(fps / stride) in [1, fps_max], or the stride."""
    if clip.condition == "fs":
        return stride
    rate = max(1, int(fps / stride + 1e-6))
    return rate if clip.fps_max is None else min(rate, clip.fps_max)


def fit_clip(frames: np.ndarray, height: int, width: int, mirror: bool = False) -> Tensor:
    """Resize and crop frames, uint8 (T, H, W, 3), to float32 (3, T, height, width) in [-1, 1].

    They are scaled (up, if need be) to cover the size and cut in the centre, without black bars, as in
    sampling with `crop`.
    """
    clip = torch.stack([fit_image(np.ascontiguousarray(x), height, width, crop=True) for x in frames], dim=1)
    return clip.flip(-1) if mirror else clip
