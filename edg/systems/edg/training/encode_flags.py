"""Settings of `edg encode` and `edg analytic-init`, without heavy imports, so that `--help` is instant."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial

from edg.core.config import PathText
from edg.core.errors import require
from edg.core.options import add_flags, from_values, option, typed_values

MAX_STRIDE = 10**6  # frames between two of a clip

_model = partial(option, group="model")
_clips = partial(option, group="clips")


@dataclass(frozen=True)
class ClipEncoding:
    """The videos, the clips that are cut from them, and the networks that encode these."""

    spec: PathText = _model("", "dynamicrafter-512, ... or a YAML file", metavar="NAME|YAML", required=True)
    device: str = _model("auto", "auto, cpu, cuda or cuda:N")
    compute: str = _model("auto", "precision of the networks: auto, fp32, fp16, bf16")
    chunk: int = _model(8, "frames encoded at once", low=1, high=10_000)
    data: PathText = _clips("", "a folder of videos, or a csv", metavar="DIR|CSV", required=True)
    root: PathText | None = _clips(
        None, "folder of the videos named in the csv (default: that of the csv)", metavar="DIR"
    )
    columns: str = _clips(
        "auto", "which columns of the csv give the path: auto, dynamicrafter, cil, path, ..."
    )
    height: int | None = _clips(None, "pixels (default: the model's)", low=1, high=16_384)
    width: int | None = _clips(None, "pixels (default: the model's)", low=1, high=16_384)
    frames: int | None = _clips(None, "frames per clip (default: the model's)", low=1, high=10_000)
    stride: str | None = _clips(
        None, "step from one frame to the next: N, or a range A:B to draw from (1:6)", metavar="N|A:B"
    )
    fixed_fps: float | None = _clips(
        None,
        "count --stride at this frame rate instead of that of each video",
        flags=("--fixed-fps",),
        low=0.001,
        high=10_000,
    )
    fps_max: int | None = _clips(
        None, "upper limit of the frame-rate condition", flags=("--fps-max",), low=1, high=10_000
    )
    flip: bool = _clips(False, "mirror half of the clips (makes captions with left or right wrong)")
    seed: int = _clips(0, "random seed for the choice of clips", low=-(2**63), high=2**63 - 1)
    workers: int | None = _clips(
        None, "processes that read videos (default: 4 with a GPU, else none)", low=0, high=1024
    )


@dataclass(frozen=True)
class EncodeConfig(ClipEncoding):
    """Settings of `edg encode`."""

    weights: PathText = _model("", "the parameter set whose encoders are used", metavar="FILE", required=True)
    out: PathText = option(
        "", "folder of the cache; the same command resumes it", group="cache", metavar="DIR", required=True
    )
    passes: int = option(1, "different clips per video", group="cache", low=1, high=10**6)
    every_frame: bool = option(
        False,
        "image tokens of every frame, for training on random frames",
        group="cache",
        flags=("--every-frame",),
    )
    require_captions: bool = _clips(
        False,
        "exit with code 3 if a video has no caption",
        flags=("--require_captions", "--require-captions"),
    )
    dtype: str = option("fp16", "precision of the stored tensors: fp16, bf16 or float32", group="cache")
    shard: int = option(64, "clips per file", group="cache", low=1, high=10**6)


@dataclass(frozen=True)
class AnalyticInitConfig(ClipEncoding):
    """Settings of `edg analytic-init`."""

    weights: PathText | None = _model(None, "the parameter set whose encoders are used", metavar="FILE")
    out: PathText = option(
        "", "the file to write, e.g. initial_noise.pt", group="output", metavar="FILE", required=True
    )
    count: int | None = _clips(
        None, "number of clips (default: one per video; from a cache, all)", low=2, high=10**9
    )


def add_encode_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser, EncodeConfig)


def add_analytic_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser, AnalyticInitConfig)


def run_encode(args: argparse.Namespace) -> int:
    """Run `edg encode`. Raises EdgError."""
    from edg.systems.edg.training.encode import encode

    encode(from_values(EncodeConfig, typed_values(args, EncodeConfig)))
    return 0


def run_analytic_init(args: argparse.Namespace) -> int:
    """Run `edg analytic-init`. Raises EdgError."""
    from edg.systems.edg.training.analytic_init import analytic_init_file

    analytic_init_file(from_values(AnalyticInitConfig, typed_values(args, AnalyticInitConfig)))
    return 0


def stride_range(text: str) -> tuple[int, int]:
    """Read a stride or a range of strides: '2' -> (2, 2), '1:6' -> (1, 6). Raises UsageError."""
    low, _, high = text.replace(",", ":").partition(":")
    numbers = [int(n) if n.isdecimal() and len(n) < 10 else 0 for n in (low, high or low)]
    expected = f"a number of frames, at most {MAX_STRIDE}, or a range such as 1:6"
    require(1 <= numbers[0] <= numbers[1] <= MAX_STRIDE, f"--stride {text}", expected)
    return int(low), int(high or low)
