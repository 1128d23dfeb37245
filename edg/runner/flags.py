"""What the flags of `edg sample` mean: options, sizes, frames, parameter sets, and the checks of them."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edg.core.errors import UsageError
from edg.core.files import checkpoints
from edg.core.hashing import cached_sha256
from edg.runner.sample_flags import IGNORED, LONGEST_SIDE

if TYPE_CHECKING:
    from edg.systems.base import Spec, System

SEED_LIMIT = 2**63
MIN_FRAMES, MAX_FRAMES = 8, 64


def ignored(args: argparse.Namespace) -> list[str]:
    """The flags given that the release knows and that mean nothing here."""
    return [f"--{name}" for name in IGNORED if getattr(args, name) is not None]


def remarks(args: argparse.Namespace) -> list[str]:
    """What is worth a line about the flags given."""
    lines = [f"ignored, without meaning here: {' '.join(ignored(args))}"] if ignored(args) else []
    if args.cfg_img is not None and args.multiple_cond_cfg is None:
        lines.append(f"--cfg_img {args.cfg_img:g} switches image guidance on, as --multiple_cond_cfg does")
    return lines


def sampling_options(args: argparse.Namespace, system: System, spec: Spec, sets: int) -> Any:
    """The flags as the system's checked options, for `sets` parameter sets. Raises UsageError."""
    settings = dict(
        steps=args.ddim_steps,
        eta=args.ddim_eta,
        spacing=args.timestep_spacing,
        guidance_scale=args.unconditional_guidance_scale,
        guidance_rescale=args.guidance_rescale,
        image_guidance_scale=_image_guidance(args),
        negative_prompt=args.negative_prompt,
        start=args.M,
        switch_at=_switch_at(args, sets),
        blend=args.blend,
        frame_stride=args.frame_stride,
        text_input=args.text_input,
        loop=args.loop,
        interp=args.interp,
        crop=fit_of(args) == "crop",
        pad=fit_of(args) == "pad",
        perframe_ae=args.perframe_ae,
        analytic_init=(noise := _analytic_init(args)),
        analytic_init_sha256=noise and cached_sha256(noise),
        con_prompt=args.con_prompt,
        image_latent=args.image_latent,
        timesteps=args.timesteps,
        solver=args.solver,
        guidance_interval=tuple(args.guidance_interval) if args.guidance_interval else None,
        reuse=args.reuse,
    )
    return system.options(spec, settings, released=args.released)


def _image_guidance(args: argparse.Namespace) -> float | None:
    if args.multiple_cond_cfg is False and args.cfg_img is not None:
        raise UsageError("--cfg_img with --multiple_cond_cfg off", expected="one or the other")
    if not args.multiple_cond_cfg and args.cfg_img is None:
        return None
    scale = args.unconditional_guidance_scale if args.cfg_img is None else args.cfg_img
    if not abs(scale) <= 10_000:
        raise UsageError(f"--cfg_img is {scale}", expected="a finite number, at most 10,000")
    return scale


def _switch_at(args: argparse.Namespace, sets: int) -> tuple[int, ...]:
    given = [f"--{name}" for name in ("T", "switch_at") if getattr(args, name) is not None]
    if len(given) == 2:
        raise UsageError("both --T and --switch_at", expected="one of them")
    if args.blend == "soft" and sets != 2:
        raise UsageError(f"--blend soft with {sets} parameter sets", expected="exactly two sets")
    if given and args.blend == "soft":
        raise UsageError(f"{given[0]} with --blend soft, which has no switch", expected="one or the other")
    if given and sets == 1:
        raise UsageError(f"{given[0]} with one parameter set", expected="at least two sets to switch between")
    if args.switch_at is None and sets <= 2:
        points = () if sets == 1 else (500 if args.T is None else args.T,)
    else:
        points = tuple(args.switch_at or ())
    if len(points) != sets - 1:
        raise UsageError(
            f"{sets} parameter sets and {len(points)} switch timesteps",
            expected=f"--switch_at with {sets - 1} values",
        )
    return points


def _analytic_init(args: argparse.Namespace) -> str | None:
    if not args.whether_analytic_init:
        return None
    path = args.analytic_init_path or checkpoints() / "dynamicrafter_analytic_init/initial_noise_512.pt"
    if not Path(path).exists():
        raise UsageError(
            f"no initial noise at {path}", expected="--analytic_init_path", fix="edg fetch analytic-init"
        )
    return str(path)


def fit_of(args: argparse.Namespace) -> str:
    """stretch, crop or pad. Raises UsageError."""
    if args.img_crop and args.fit not in (None, "crop"):
        raise UsageError(f"--img_crop with --fit {args.fit}", expected="one of them")
    return args.fit or ("crop" if args.img_crop or args.size == "auto" else "stretch")


def frame_size(
    args: argparse.Namespace, spec: Spec, image: Callable[[], tuple[int, int]] | None = None
) -> tuple[int, int]:
    """Height and width in pixels. image: gives (height, width) of a picture, read for --size auto alone.
    Raises UsageError, with the nearest sizes, for others."""
    if args.size is None:
        sizes = (
            args.height or spec.height if args.height != 0 else 0,
            args.width or spec.width if args.width != 0 else 0,
        )
    elif args.height is not None or args.width is not None:
        raise UsageError("--size with --height or --width", expected="one way")
    elif args.size == "auto":
        return bucket(spec, *image()) if image else (spec.height, spec.width)
    else:
        found = re.fullmatch(r"(\d+)x(\d+)", args.size)
        if not found:
            raise UsageError(f"--size {args.size}", expected="auto or HEIGHTxWIDTH, such as 320x512")
        sizes = int(found[1][:9]), int(found[2][:9])
    for name, size in zip(("height", "width"), sizes, strict=True):
        if size > LONGEST_SIDE:
            raise UsageError(f"--{name} {size}", expected=f"at most {LONGEST_SIDE}")
        step = spec.size_multiple
        if size < step or size % step:
            below = max(step, size // step * step)
            choices = f"{below} or {below + step}" if size > step else f"{step}"
            raise UsageError(
                f"--{name} {size}", expected=f"a multiple of {step} for {spec.name}, such as {choices}"
            )
    return sizes


def bucket(spec: Spec, height: int, width: int) -> tuple[int, int]:
    """Of the size that the model was made for and the same turned, the one nearer in shape to an image."""
    sizes = ((spec.height, spec.width), (spec.width, spec.height))
    return min(sizes, key=lambda size: abs(math.log(size[0] / size[1]) - math.log(height / width)))


def frame_count(args: argparse.Namespace, spec: Spec) -> int:
    """Frames of a clip. Raises UsageError."""
    frames = spec.frames if args.video_length is None else args.video_length
    if frames != spec.frames and not MIN_FRAMES <= frames <= MAX_FRAMES:
        raise UsageError(
            f"--video_length {frames}",
            expected=f"{MIN_FRAMES} to {MAX_FRAMES}; {spec.name} was made for {spec.frames}",
        )
    return frames


def check_numbers(args: argparse.Namespace, spec: Spec) -> None:
    """Raise UsageError for the first number out of its range that is not one of the sampling options, and for
    flags that exclude each other."""
    from edg.core.formats import check_speed, parse_formats

    frame_count(args, spec)
    if not 0 <= args.seed < SEED_LIMIT:
        raise UsageError(f"--seed {args.seed}", expected="0 <= seed < 2^63")
    check_speed(parse_formats(args.format), args.fps, args.crf)
    for name in ("n_samples", "bs", "chunk", "frame_stride", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} {value}", expected="at least 1")
    if args.compile and args.low_memory:
        raise UsageError(
            "--compile with --low-memory", expected="one of them: layers that move stay as they are"
        )


def set_paths(args: argparse.Namespace) -> dict[str, Path]:
    """Parameter sets by name, in their order of use. Raises UsageError."""
    if args.sets:
        if args.dynamic_path or args.consistency_path:
            raise UsageError("--sets together with --dynamic_path or --consistency_path", expected="one way")
        return _named_sets(args.sets)
    if bool(args.dynamic_path) != bool(args.consistency_path):
        given = "--dynamic_path" if args.dynamic_path else "--consistency_path"
        raise UsageError(f"{given} alone", expected="both, or one set as --sets NAME=FILE")
    if args.dynamic_path:
        return {"dyn": Path(args.dynamic_path), "con": Path(args.consistency_path)}
    return {name: _merged(name) for name in ("dyn", "con")}


def _named_sets(texts: list[str]) -> dict[str, Path]:
    sets: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not (name and equals and path) or name in sets:
            raise UsageError(f"--sets {text}", expected="NAME=FILE, every name once")
        sets[name] = Path(path)
    return sets


def _merged(name: str) -> Path:
    for suffix in (".pt", ".safetensors"):
        path = checkpoints() / "merge" / (name + suffix)
        if path.exists():
            return path
    raise UsageError(
        f"no {name}.pt under {checkpoints() / 'merge'}",
        expected="--dynamic_path and --consistency_path",
        fix="make them with run_merge.py, or run `bash run.sh`",
    )
