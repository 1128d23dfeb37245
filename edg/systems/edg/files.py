"""Files of this system: published ones, prompts and decoders that come with the package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edg.core.errors import UsageError
from edg.sprites import WEIGHTS
from edg.systems.base import RemoteFile

FILES = {
    "dynamicrafter-512": RemoteFile("Doubiiu/DynamiCrafter_512", "model.ckpt", "dynamicrafter_512_v1"),
    "dynamicrafter-1024": RemoteFile("Doubiiu/DynamiCrafter_1024", "model.ckpt", "dynamicrafter_1024_v1"),
    "dynamicrafter-256": RemoteFile("Doubiiu/DynamiCrafter", "model.ckpt", "dynamicrafter_256_v1"),
    "interp-512": RemoteFile("Doubiiu/DynamiCrafter_512_Interp", "model.ckpt", "dynamicrafter_512_interp_v1"),
    "cil-512": RemoteFile("GraceZhao/DynamiCrafter-CIL-512", "timenoise.ckpt", "dynamicrafter_cil_512_v1"),
    "analytic-init": RemoteFile(
        "GraceZhao/DynamiCrafter-Analytic-Init", "initial_noise_512.pt", "dynamicrafter_analytic_init"
    ),
    "taesd": RemoteFile("madebyollin/taesd", "taesd_decoder.safetensors", "taesd"),
}


#: The settings of run.sh for the embedded model: docs/sprites.md found them best.
SPRITES_DEFAULTS = {"recipe": "edg_temporal_conv", "T": 300, "guidance_scale": 1.0}
OWN_SETS = ("dynamic_path", "consistency_path", "sets", "recipe")
DIALS = ("motion", "hold")
BY_DIALS = ("recipe", "T")  # options that a dial chooses where nobody else did


def prompt_folder(model: str) -> str:
    """The folder of prompts/ that fits a model."""
    return "sprites" if model == "sprites" else "scenes"


def load_defaults(model: str, loaded: Mapping[str, Any], clip: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `load(model)` that nobody gave; none where `loaded` names parameter sets. clip: all options
    of a clip; a dial among them takes the place of those that it chooses."""
    if model != "sprites" or any(name in loaded for name in OWN_SETS):
        return {}
    turned = any(clip.get(name) is not None for name in DIALS)
    return {name: value for name, value in SPRITES_DEFAULTS.items() if not (turned and name in BY_DIALS)}


def decoder_file(name: str | None) -> str | None:
    """The file of a preview decoder by name (sprites, taesd) or path. Raises UsageError for one that is to be
    fetched first."""
    taesd = FILES["taesd"].path
    if name == "taesd" and not taesd.exists():
        raise UsageError(f"--preview_decoder taesd, and no {taesd}", fix="run edg fetch taesd")
    if name == "":
        raise UsageError("--preview_decoder is empty", expected="sprites, taesd or a file")
    known = {"sprites": str(WEIGHTS / "tiny_decoder.safetensors"), "taesd": str(taesd)}
    return known.get(name, name) if name is not None else None
