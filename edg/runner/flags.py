"""The one table of sampling flags, for `edg sample` and scripts/infer_multi.py, and what they mean.

Every flag of the released sampler is here by its own name. Defaults are those of the published run.
"""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edg.core.arguments import Parser, add_switch
from edg.core.errors import UsageError

if TYPE_CHECKING:
    from edg.systems.base import Spec, System

IGNORED = ("ckpt_path", "module", "local_rank")
SEED_LIMIT = 2**63
MIN_FRAMES, MAX_FRAMES = 8, 64


def add_sample_arguments(parser: Parser) -> None:
    _add_inputs(parser.add_argument_group("what to make"))
    _add_weights(parser.add_argument_group("model and parameter sets"))
    _add_merging(parser.add_argument_group("or sets merged in memory, nothing written (docs/dials.md)"))
    _add_sampling(parser.add_argument_group("sampling"))
    _add_approximations(parser.add_argument_group("approximations: faster, not the same (docs/speed.md)"))
    _add_behaviour(parser.add_argument_group("defects of the release, as options"))
    _add_files(parser.add_argument_group("files"))
    _add_machine(parser.add_argument_group("machine"))
    for name in IGNORED:
        parser.add_argument(f"--{name}", default=None, help=argparse.SUPPRESS)


def _add_inputs(group) -> None:
    group.add_argument(
        "--prompt_dir", metavar="DIR", help="images and their prompts (default: prompts/scenes)"
    )
    add_switch(group, "--follow_links", help="links in the prompt folder may lead out of it")
    group.add_argument("--n_samples", type=int, default=1, help="clips per prompt (1)")
    group.add_argument(
        "--seed", type=int, default=123, help="a clip's randomness is drawn from (seed, clip) (123)"
    )
    group.add_argument("--height", type=int, help="pixels (default: the model's)")
    group.add_argument("--width", type=int, help="pixels (default: the model's)")
    group.add_argument(
        "--size", metavar="auto|HxW", help="auto: the model's size, upright or lying as each image is"
    )
    group.add_argument(
        "--fit",
        choices=("stretch", "crop", "pad"),
        help="images of another shape: stretched as released, cut, on black (stretch; --size auto: crop)",
    )
    add_switch(group, "--img_crop", help="the released name of --fit crop")
    group.add_argument(
        "--video_length", "--frames", type=int, metavar="N", help="8 to 64 frames (the model's own number)"
    )
    add_switch(
        group, "--text_input", default=True, help="use the prompts (on; --no-text_input: images alone)"
    )


def _add_files(group) -> None:
    group.add_argument("--savedir", default="output", metavar="DIR", help="results go to DIR/<M> (output)")
    group.add_argument(
        "--format", default="mp4", metavar="NAMES", help="of mp4, gif, webp, png, mov; several: mp4,gif (mp4)"
    )
    group.add_argument("--fps", type=float, default=8, help="of the written files (8)")
    group.add_argument("--crf", type=int, default=10, help="of the mp4: 0 best, 51 worst (10)")
    add_switch(group, "--preview", help="ID.preview.png: the clip as predicted so far, while it is made")
    group.add_argument(
        "--preview_decoder",
        metavar="FILE",
        help="--preview at the clip's size, by a tiny decoder: sprites, taesd (`edg fetch taesd`), or a file",
    )
    add_switch(group, "--overwrite", help="make clips again that were made with other settings")


def _add_weights(group) -> None:
    group.add_argument(
        "--config", "--spec", metavar="NAME|YAML", help="the model (default: told by the weights)"
    )
    group.add_argument("--dynamic_path", metavar="FILE", help="used while t > T ($CKPT_PATH/merge/dyn.pt)")
    group.add_argument("--consistency_path", metavar="FILE", help="used from T on ($CKPT_PATH/merge/con.pt)")
    group.add_argument(
        "--sets",
        nargs="+",
        metavar="NAME=FILE",
        help="any number of parameter sets instead, in their order of use",
    )
    group.add_argument("--T", type=int, help="the timestep at which con takes over, 0..1000 (500)")
    group.add_argument(
        "--switch_at", nargs="+", type=int, metavar="T", help="falling, one between each two --sets"
    )
    group.add_argument(
        "--blend", choices=("hard", "soft"), default="hard", help="soft: both, weighted by t (hard)"
    )


def _add_merging(group) -> None:
    group.add_argument(
        "--motion", type=float, metavar="0..1", help="from the least to the most motion that was measured"
    )
    group.add_argument(
        "--hold", type=float, metavar="0..1", help="how much of the run is con's: what is kept of the picture"
    )
    group.add_argument("--base", metavar="FILE", help="(with --config sprites: the embedded one)")
    group.add_argument("--tuned", metavar="FILE", help="the fine-tune of base (so is this)")
    group.add_argument("--recipe", metavar="NAME|YAML", help="one of configs/merge (the dials', else edg)")
    group.add_argument(
        "--strength", nargs="+", metavar="OUTPUT.SETTING=X", help="other numbers in it: dyn.alpha=1.2"
    )
    group.add_argument("--dials", metavar="YAML", help="the measured curves (configs/dials/MODEL.yaml)")


def _add_sampling(group) -> None:
    group.add_argument("--ddim_steps", type=int, default=50, help="(50)")
    group.add_argument("--ddim_eta", type=float, default=1.0, help="0 is deterministic (1.0)")
    group.add_argument(
        "--timestep_spacing", choices=("uniform", "uniform_trailing", "quad"), default="uniform_trailing",
        help="(uniform_trailing)",
    )  # fmt: skip
    group.add_argument("--unconditional_guidance_scale", type=float, default=7.5, help="(7.5)")
    group.add_argument("--guidance_rescale", type=float, default=0.7, help="0..1 (0.7)")
    group.add_argument(
        "--negative_prompt", nargs="?", const="", default="", metavar="TEXT", help="instead of the empty one"
    )
    add_switch(group, "--multiple_cond_cfg", default=None, help="guide by image and text separately (off)")
    group.add_argument(
        "--cfg_img", type=float, help="image guidance scale; switches it on (default: the text's)"
    )
    group.add_argument("--frame_stride", type=int, help="the fps or stride condition (default: the model's)")
    group.add_argument("--M", type=int, default=1000, help="start at timestep M - 1, 1..1000 (1000)")
    add_switch(group, "--whether_analytic_init", help="start from --analytic_init_path (0)")
    group.add_argument("--analytic_init_path", metavar="FILE", help="published initial noise")
    add_switch(group, "--loop", help="the last frame is the first")
    add_switch(group, "--interp", help="first and last frame are given: two images for each prompt")
    add_switch(group, "--perframe_ae", default=None, help="decode frame by frame (default: the model's)")


def _add_approximations(group) -> None:
    group.add_argument(
        "--solver", choices=("ddim", "dpmpp", "unipc"), default="ddim",
        help="dpmpp: DPM-Solver++(2M), unipc: UniPC-2; deterministic, for few steps (ddim)",
    )  # fmt: skip
    group.add_argument(
        "--guidance_interval", nargs=2, type=int, metavar=("LO", "HI"), help="guide at LO <= t <= HI alone"
    )
    group.add_argument(
        "--reuse", type=int, default=1, metavar="N", help="the deep levels of the network every N-th step (1)"
    )


def _add_behaviour(group) -> None:
    group.add_argument("--released", action="store_true", help="the published behaviour for all of these")
    group.add_argument(
        "--con_prompt", choices=("prompt", "empty"), help="what con reads (prompt; released: empty)"
    )
    group.add_argument(
        "--image_latent", choices=("mode", "shared_sample", "sample_per_set"),
        help="the image's latent (shared_sample; released: sample_per_set)",
    )  # fmt: skip
    group.add_argument("--timesteps", choices=("clean", "released"), help="(clean; released can visit -1)")


def _add_machine(group) -> None:
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    group.add_argument("--dtype", default="auto", help="auto (fp32 on cpu, fp16 on cuda), fp32, fp16, bf16")
    group.add_argument(
        "--threads",
        type=int,
        help="CPU threads of each process; frames are bit-equal for equal ones (all cores)",
    )
    add_switch(group, "--resident", help="keep every parameter set on the device instead of swapping")
    add_switch(group, "--low-memory", help="layers visit the GPU one by one, branches and frames too: slower")
    group.add_argument(
        "--bs", type=int, default=1, help="clips per network call; 1 gives bit-equal frames (1)"
    )
    add_switch(group, "--compile", help="torch.compile: a minute or more to begin with, then faster steps")
    group.add_argument("--chunk", type=int, default=8, help="clips that share one swap of parameters (8)")


# ---- what they mean ----------------------------------------------------------------------------------------


def of_a_clip(spec: Spec) -> dict[str, Any]:
    """The flags that change what is in a clip, beside prompt, image, seed and parameter sets, and what they
    are while nobody gives them."""
    parser = Parser()
    for add in (_add_sampling, _add_approximations, _add_behaviour):
        add(parser)
    whole = {"height": spec.height, "width": spec.width, "video_length": spec.frames, "text_input": True}
    return (
        vars(parser.parse_args([])) | whole | {"size": None, "fit": None, "img_crop": False, "blend": "hard"}
    )


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
        analytic_init=_analytic_init(args),
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
    if not math.isfinite(scale):
        raise UsageError(f"--cfg_img is {scale}", expected="a finite number")
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
        sizes = int(found[1]), int(found[2])
    for name, size in zip(("height", "width"), sizes, strict=True):
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


def checkpoints() -> Path:
    """Where checkpoints are looked for: $CKPT_PATH, else ./ckpt."""
    return Path(os.environ.get("CKPT_PATH") or "ckpt")


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
