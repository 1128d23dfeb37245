"""`edg demo`: a page on this machine where images are made to move.

It shows the published model where its weights lie under CKPT_PATH as run.sh looks for them, else the embedded
one.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edg.core.arguments import Parser, whole
from edg.core.errors import EdgError, MachineError
from edg.demo.jobs import DemoModel, Slider

EXAMPLES = 8
LOOPBACK = "127.0.0.1"
ABOUT_SPRITES = (
    "It ships with `edg` and knows nothing but its own small world: one shape on grey, 32x32, told to move "
    "like *a red circle moves left*. Pictures of your own need the published weights: "
    "`edg fetch dynamicrafter-512 cil-512`."
)
PUBLISHED = {
    "base": "dynamicrafter_512_v1/model.ckpt",
    "tuned": "dynamicrafter_cil_512_v1/timenoise.ckpt",
}
STARTS = {"motion": 0.7, "hold": 0.85}  # first values of the dials
MAX_STEPS = 100


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--host", default=LOOPBACK, help=f"the address that it listens on ({LOOPBACK})")
    parser.add_argument("--port", type=whole(0, 65535), default=7860, help="0: any that is free (7860)")
    parser.add_argument(
        "--model", choices=("auto", "sprites", "dynamicrafter-512"), default="auto",
        help="auto: the published one where it lies under $CKPT_PATH, else sprites (auto)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="auto", help="auto (fp32 on cpu, fp16 on cuda), fp32, fp16, bf16")
    parser.add_argument("--threads", type=whole(1, 4096), help="CPU threads (all cores)")
    parser.add_argument("--low-memory", action="store_true", help="for small GPUs, see edg sample")


def run(args: argparse.Namespace) -> int:
    """Serve the page until a signal. Raises MachineError."""
    if find_spec("gradio") is None:
        raise MachineError("edg demo needs the package gradio", fix="pip install 'edg[demo]'")
    from edg.demo.process import serve

    serve(lambda: demo_model(args), args.host, args.port, ready)
    return 0


def ready(model: DemoModel, address: str) -> None:
    print(f"edg demo: {model.name} at {address}  (Ctrl-C ends it)", flush=True)


# ---- the model ---------------------------------------------------------------------------------------------


def demo_model(args: argparse.Namespace) -> DemoModel:
    """The model, and the base for comparison. Of published weights one network at a time is in memory. Raises
    MachineError."""
    from edg.api import Model
    from edg.systems.edg.dials import find_dials
    from edg.systems.edg.files import SPRITES_DEFAULTS

    machine = {name: getattr(args, name) for name in ("device", "dtype", "threads", "low_memory")}
    paths = published() if args.model != "sprites" else {}
    if args.model not in ("auto", "sprites") and not paths:
        raise MachineError(
            f"no weights of {args.model} under $CKPT_PATH", fix="edg fetch dynamicrafter-512 cil-512"
        )
    if not paths:
        from edg.sprites import WEIGHTS

        name, flags = "sprites", {**SPRITES_DEFAULTS, "preview_decoder": "sprites"}
        base = {"guidance": SPRITES_DEFAULTS["guidance_scale"], "preview_decoder": "sprites"}
        base_file, kept = WEIGHTS / "base.safetensors", None
    else:
        name, base, kept = "dynamicrafter-512", {"frame_stride": 24, "perframe_ae": True}, {}
        flags = {**base, **sets_of(paths)}
        base_file = paths["base"]
    own = flags if paths else {"preview_decoder": "sprites"}  # the others are its defaults
    model = Model(name, {**own, **machine}, kept)
    beside = Model(None, {**base, **machine, "sets": [f"base={base_file}"]}, kept)
    dials = find_dials(None, name) if "recipe" in flags else None
    steps = dials.sampling.get("ddim_steps", 50) if dials else 50
    return DemoModel(
        name,
        {"edg": model.animate, "base": beside.animate},
        (*dial_sliders(dials), Slider("steps", 1, MAX_STEPS, 1, steps, shared=True)),
        examples(name),
        about="" if paths else ABOUT_SPRITES,
        small=not paths,
        warm_up=warm_up,
    )


def published() -> dict[str, Path]:
    """The published weights, {} where they are not there."""
    from edg.core.files import checkpoints

    paths = {name: checkpoints() / path for name, path in PUBLISHED.items()}
    return paths if all(path.is_file() for path in paths.values()) else {}


def sets_of(paths: dict[str, Path]) -> dict[str, Any]:
    """The parameter sets that run.sh has merged where they are there, else those to be merged in memory."""
    from edg.core.files import checkpoints

    merged = {name: checkpoints() / "merge" / f"{name}.pt" for name in ("dyn", "con")}
    if all(path.is_file() for path in merged.values()):
        return merged
    return {**paths, "recipe": "edg"}


def dial_sliders(dials: Any) -> list[Slider]:
    """A slider for each dial that has a measured curve."""
    found = []
    for name, start in STARTS.items() if dials else ():
        dial = getattr(dials, name)
        if stretch := dial.range():
            ends = sorted((stretch[0].mean, stretch[-1].mean), reverse=dial.wants == "less")
            text = f"{dial.figure}: {ends[0]:.2f} at 0, {ends[1]:.2f} at 1 (measured)"
            found.append(Slider(name, 0, 1, 0.05, start, text))
    return found


def examples(name: str) -> list[tuple[str, str]]:
    """(image, prompt) of the prompts that come with the model."""
    from edg import systems
    from edg.data.prompts import read_folder
    from edg.runner.prepare import default_prompts

    try:
        pairs = read_folder(default_prompts(*systems.find(name)))
    except EdgError:  # an installation without them
        return []
    return [(str(pair.image.resolve()), pair.prompt) for pair in pairs[:EXAMPLES]]


def warm_up() -> None:
    """Import the package of the towers."""
    from edg.networks.latent_video.clip_encoders import open_clip

    open_clip()
