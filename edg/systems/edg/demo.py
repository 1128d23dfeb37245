"""Models of `edg demo`: the published one where its weights lie as for run.sh, and the embedded one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edg.core.errors import MachineError
from edg.core.files import checkpoints
from edg.core.video import read_image
from edg.networks.latent_video.presets import SPRITES
from edg.sprites import WEIGHTS
from edg.sprites.tracker import MIN_OVERLAP, look
from edg.sprites.world import RADIUS
from edg.systems.base import DemoSetup, DemoSlider
from edg.systems.edg.dials import Dials, find_dials
from edg.systems.edg.files import SPRITES_DEFAULTS

OWN_PICTURES = "For your own pictures, get the published weights: `edg fetch dynamicrafter-512 cil-512`."
ABOUT_SPRITES = (
    "It comes with `edg` and was trained on synthetic clips only: one coloured shape on grey, "
    f"{SPRITES.height}x{SPRITES.width}, with prompts "
    f"like *a red circle moves left*. {OWN_PICTURES}"
)
PUBLISHED = {
    "base": "dynamicrafter_512_v1/model.ckpt",
    "tuned": "dynamicrafter_cil_512_v1/timenoise.ckpt",
}
STARTS = {"motion": 0.7, "hold": 0.85}  # first values of the dials
WORDS = {  # title of a dial, what its figure says
    "motion": ("More motion", "how fast things move"),
    "hold": ("Keep the picture", "error of the first frame against the picture; lower is better"),
}
STEPS = 50


def published_setup() -> DemoSetup:
    """The published model, one network at a time in memory, beside its base. Raises MachineError."""
    paths = published()
    if not paths:
        raise MachineError(
            "no weights of dynamicrafter-512 under $CKPT_PATH", fix="edg fetch dynamicrafter-512 cil-512"
        )
    base = {"frame_stride": 24, "perframe_ae": True}
    options = base | sets_of(paths)
    dials = find_dials(None, "dynamicrafter-512") if "recipe" in options else None
    return DemoSetup(
        "dynamicrafter-512",
        options,
        {"base": {**base, "sets": [f"base={paths['base']}"]}},
        one_network=True,
        sliders=dial_sliders(dials),
        steps=steps_of(dials),
        warm_up=warm_up,
    )


def sprites_setup() -> DemoSetup:
    """The embedded model, with its defaults, beside its base."""
    shown = {"preview_decoder": "sprites"}
    base = {"guidance": SPRITES_DEFAULTS["guidance_scale"], "sets": [f"base={WEIGHTS / 'base.safetensors'}"]}
    dials = find_dials(None, "sprites")
    return DemoSetup(
        "sprites",
        shown,
        {"base": shown | base},
        one_network=False,
        sliders=dial_sliders(dials),
        steps=steps_of(dials),
        about=ABOUT_SPRITES,
        small=True,
        warm_up=warm_up,
        doubt=doubt_of_sprites,
    )


DEMOS = {"dynamicrafter-512": published_setup, "sprites": sprites_setup}


def published() -> dict[str, Path]:
    """The published weights, {} where they are not there."""
    paths = {name: checkpoints() / path for name, path in PUBLISHED.items()}
    return paths if all(path.is_file() for path in paths.values()) else {}


def sets_of(paths: dict[str, Path]) -> dict[str, Any]:
    """The parameter sets that run.sh has merged where they are there, else those to be merged in memory."""
    merged = {name: checkpoints() / "merge" / f"{name}.pt" for name in ("dyn", "con")}
    if all(path.is_file() for path in merged.values()):
        return merged
    return {**paths, "recipe": "edg"}


def steps_of(dials: Dials | None) -> int:
    """The number of steps that the curves were measured with."""
    return dials.sampling.get("ddim_steps", STEPS) if dials else STEPS


def dial_sliders(dials: Dials | None) -> dict[str, DemoSlider]:
    """A slider for each dial that has a measured curve."""
    found = {}
    for name, start in STARTS.items() if dials else ():
        dial = getattr(dials, name)
        if stretch := dial.range():
            ends = sorted((stretch[0].mean, stretch[-1].mean), reverse=dial.wants == "less")
            title, meaning = WORDS[name]
            text = f"{meaning} ({dial.figure}): {ends[0]:.2f} at 0, {ends[1]:.2f} at 1"
            found[name] = DemoSlider(0, 1, 0.05, start, title, text)
    return found


def doubt_of_sprites(image: Path) -> str:
    """Why the embedded model does not understand a picture: it shows no shape of its world."""
    size = (SPRITES.width, SPRITES.height)
    pixels = np.asarray(Image.fromarray(read_image(image)).resize(size, Image.Resampling.BILINEAR)) / 255
    seen = [look(pixels, radius) for radius in RADIUS]
    if any(sight and max(sight.overlap.values()) > MIN_OVERLAP for sight in seen):
        return ""
    return (
        "This model was trained only on one coloured shape on grey. The clip will not resemble this picture. "
        f"{OWN_PICTURES}"
    )


def warm_up() -> None:
    """Import the package of the towers."""
    from edg.networks.latent_video.clip_encoders import open_clip

    open_clip()
