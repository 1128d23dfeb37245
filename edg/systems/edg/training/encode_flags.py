"""Flags of `edg encode` and `edg analytic-init`. Nothing heavy is imported, so that `--help` is instant."""

from __future__ import annotations

import argparse

from edg.core.arguments import add_switch, as_path, number, whole
from edg.core.errors import require

MAX_STRIDE = 10**6  # frames between two of a clip


def add_encode_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument(
        "--out", type=as_path, required=True, help="folder of the cache; the same command continues it"
    )
    add_clip_arguments(parser)
    parser.add_argument(
        "--passes", type=whole(1, 10**6), default=1, help="clips of every video, each another one (1)"
    )
    add_switch(parser, "--every-frame", help="image tokens of all frames, for training on random ones")
    add_switch(
        parser, "--require_captions", "--require-captions", help="end with exit code 3 if a video has none"
    )
    parser.add_argument("--dtype", default="fp16", help="of what is stored: fp16, bf16 or float32 (fp16)")
    parser.add_argument("--shard", type=whole(1, 10**6), default=64, help="clips in one file (64)")


def add_analytic_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser, weights_required=False)
    parser.add_argument("--out", type=as_path, required=True, help="the file to write, e.g. initial_noise.pt")
    add_clip_arguments(parser)
    parser.add_argument(
        "--count", type=whole(2, 10**9), help="clips (default: one of every video; a cache: all of it)"
    )


def add_model_arguments(parser: argparse.ArgumentParser, weights_required: bool = True) -> None:
    parser.add_argument("--spec", type=as_path, required=True, help="dynamicrafter-512, ... or a YAML file")
    parser.add_argument(
        "--weights", type=as_path, required=weights_required, help="the parameter set whose encoders work"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (auto)")
    parser.add_argument("--compute", default="auto", help="precision of the networks: auto, fp32, fp16, bf16")
    parser.add_argument("--chunk", type=whole(1, 10_000), default=8, help="frames encoded at once (8)")


def add_clip_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=as_path, required=True, help="a folder of videos, or a csv")
    parser.add_argument(
        "--root", type=as_path, help="folder that the names in the csv are in (default: the csv's)"
    )
    parser.add_argument(
        "--columns", default="auto", help="layout of the csv's files: auto, dynamicrafter, cil, path, ..."
    )
    parser.add_argument("--height", type=whole(1, 16_384), help="of the clips, pixels (the model's)")
    parser.add_argument("--width", type=whole(1, 16_384), help="of the clips, pixels (the model's)")
    parser.add_argument("--frames", type=whole(1, 10_000), help="of a clip (the model's)")
    parser.add_argument("--stride", help="frames from one to the next: N, or a range A:B to draw from (1:6)")
    parser.add_argument(
        "--fixed-fps", type=number(0.001, 10_000), help="count --stride at this rate, not at each video's own"
    )
    parser.add_argument("--fps-max", type=whole(1, 10_000), help="upper limit of the frame rate condition")
    add_switch(
        parser, "--flip", help="mirror half of the clips (captions that say left or right are wrong then)"
    )
    parser.add_argument(
        "--seed", type=whole(-(2**63), 2**63 - 1), default=0, help="of the choice of clips (0)"
    )
    parser.add_argument(
        "--workers", type=whole(0, 1024), help="processes that read videos (with a GPU 4, else none)"
    )


def stride_range(text: str) -> tuple[int, int]:
    """Read a stride or a range of strides: '2' -> (2, 2), '1:6' -> (1, 6). Raises UsageError."""
    low, _, high = text.replace(",", ":").partition(":")
    numbers = [int(n) if n.isdecimal() and len(n) < 10 else 0 for n in (low, high or low)]
    expected = f"a number of frames, at most {MAX_STRIDE}, or a range such as 1:6"
    require(1 <= numbers[0] <= numbers[1] <= MAX_STRIDE, f"--stride {text}", expected)
    return int(low), int(high or low)
