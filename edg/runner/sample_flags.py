"""The flags of `edg sample` and scripts/infer_multi.py, in one table.

Every flag of the released sampler is here by its own name. Defaults are those of the published run.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from edg.core.arguments import Parser, add_switch, as_path, named_path, whole

if TYPE_CHECKING:
    from edg.systems.base import Spec

IGNORED = ("ckpt_path", "module", "local_rank")
LONGEST_SIDE, MOST_THREADS = 16_384, 4096  # pixels; threads of a process


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
        "--prompt_dir", type=as_path, metavar="DIR", help="images and their prompts (default: prompts/scenes)"
    )
    add_switch(group, "--follow_links", help="links in the prompt folder may lead out of it")
    group.add_argument("--n_samples", type=whole(1, 10**6), default=1, help="clips per prompt (1)")
    group.add_argument(
        "--seed",
        type=int,
        default=123,
        help="a clip's randomness is drawn from (seed, clip) (123)",
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
        "--video_length",
        "--frames",
        type=int,
        metavar="N",
        help="8 to 64 frames (the model's own number)",
    )
    add_switch(
        group, "--text_input", default=True, help="use the prompts (on; --no-text_input: images alone)"
    )


def _add_files(group) -> None:
    group.add_argument(
        "--savedir", type=as_path, default="output", metavar="DIR", help="results go to DIR/<M> (output)"
    )
    group.add_argument(
        "--format", default="mp4", metavar="NAMES", help="of mp4, gif, webp, png, mov; several: mp4,gif (mp4)"
    )
    group.add_argument("--fps", type=float, default=8, help="of the written files (8)")
    group.add_argument(
        "--crf",
        type=int,
        default=10,
        help="of the mp4: 0 best (as 1: few players play lossless), 51 worst (10)",
    )
    add_switch(group, "--preview", help="ID.preview.png: the clip as predicted so far, while it is made")
    group.add_argument(
        "--preview_decoder",
        type=as_path,
        metavar="FILE",
        help="--preview at the clip's size, by a tiny decoder: sprites, taesd (`edg fetch taesd`), or a file",
    )
    add_switch(group, "--overwrite", help="make clips again that were made with other settings")


def _add_weights(group) -> None:
    group.add_argument(
        "--config",
        "--spec",
        type=as_path,
        metavar="NAME|YAML",
        help="the model (default: told by the weights)",
    )
    group.add_argument(
        "--dynamic_path", type=as_path, metavar="FILE", help="used while t > T ($CKPT_PATH/merge/dyn.pt)"
    )
    group.add_argument(
        "--consistency_path", type=as_path, metavar="FILE", help="used from T on ($CKPT_PATH/merge/con.pt)"
    )
    group.add_argument(
        "--sets",
        type=named_path,
        nargs="+",
        metavar="NAME=FILE",
        help="any number of parameter sets instead, in their order of use",
    )
    group.add_argument(
        "--table",
        nargs="+",
        metavar="[NAME=]TABLE",
        help="of several tables in a file, e.g. ema_state_dict (the raw weights)",
    )
    group.add_argument("--T", type=int, help="the timestep at which con takes over, 0..1000 (500)")
    group.add_argument(
        "--switch_at",
        nargs="+",
        type=int,
        metavar="T",
        help="falling, one between each two --sets",
    )
    group.add_argument(
        "--blend", choices=("hard", "soft"), default="hard", help="soft: both, weighted by t (hard)"
    )


def _add_merging(group) -> None:
    group.add_argument(
        "--motion",
        type=float,
        metavar="0..1",
        help="from the least to the most motion that was measured",
    )
    group.add_argument(
        "--hold",
        type=float,
        metavar="0..1",
        help="how much of the run is con's: what is kept of the picture",
    )
    group.add_argument(
        "--base", type=as_path, metavar="FILE", help="(with --config sprites: the embedded one)"
    )
    group.add_argument("--tuned", type=as_path, metavar="FILE", help="the fine-tune of base (so is this)")
    group.add_argument(
        "--recipe", type=as_path, metavar="NAME|YAML", help="one of configs/merge (the dials', else edg)"
    )
    group.add_argument(
        "--strength", nargs="+", metavar="OUTPUT.SETTING=X", help="other numbers in it: dyn.alpha=1.2"
    )
    group.add_argument(
        "--dials", type=as_path, metavar="YAML", help="the measured curves (configs/dials/MODEL.yaml)"
    )


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
        "--cfg_img",
        type=float,
        help="image guidance scale; switches it on (default: the text's)",
    )
    group.add_argument(
        "--frame_stride", type=whole(1, 10_000), help="the fps or stride condition (default: the model's)"
    )
    group.add_argument("--M", type=int, default=1000, help="start at timestep M - 1, 1..1000 (1000)")
    add_switch(group, "--whether_analytic_init", help="start from --analytic_init_path (0)")
    group.add_argument("--analytic_init_path", type=as_path, metavar="FILE", help="published initial noise")
    add_switch(group, "--loop", help="the last frame is the first")
    add_switch(group, "--interp", help="first and last frame are given: two images for each prompt")
    add_switch(group, "--perframe_ae", default=None, help="decode frame by frame (default: the model's)")


def _add_approximations(group) -> None:
    group.add_argument(
        "--solver", choices=("ddim", "dpmpp", "unipc"), default="ddim",
        help="dpmpp: DPM-Solver++(2M), unipc: UniPC-2; deterministic, for few steps (ddim)",
    )  # fmt: skip
    group.add_argument(
        "--guidance_interval",
        nargs=2,
        type=int,
        metavar=("LO", "HI"),
        help="guide at LO <= t <= HI alone",
    )
    group.add_argument(
        "--reuse",
        type=whole(1, 1000),
        default=1,
        metavar="N",
        help="the deep levels of the network every N-th step (1)",
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
        type=whole(1, MOST_THREADS),
        help="CPU threads of each process; frames are bit-equal for equal ones (all cores)",
    )
    add_switch(group, "--resident", help="keep every parameter set on the device instead of swapping")
    add_switch(group, "--low-memory", help="layers visit the GPU one by one, branches and frames too: slower")
    group.add_argument(
        "--bs", type=whole(1, 10_000), default=1, help="clips per network call; 1 gives bit-equal frames (1)"
    )
    add_switch(group, "--compile", help="torch.compile: a minute or more to begin with, then faster steps")
    group.add_argument(
        "--chunk", type=whole(1, 10**6), default=8, help="clips that share one swap of parameters (8)"
    )


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
