"""Stable Diffusion 1.x and 2.x on the UNet of this family, as denoisers of single frames.

With its temporal layers left out and frames as they lie in a clip, the video UNet is Stable Diffusion's. The
original single file and a folder in diffusers' layout are both read, strictly, without diffusers; the
autoencoder is the video model's and is not read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from edg.core.errors import BadFileError, UsageError, require
from edg.diffusion.prediction import Denoiser
from edg.diffusion.schedule import Schedule, make_schedule
from edg.diffusion.schedule_spec import SCALED_LINEAR, ScheduleSpec
from edg.networks.latent_video import diffusers_names
from edg.networks.latent_video.clip_encoders import TextEncoder
from edg.networks.latent_video.load import fill_strictly, shape_of
from edg.networks.latent_video.presets import (
    STABLE_DIFFUSION_1,
    STABLE_DIFFUSION_2,
    VIT_H_14,
    VIT_L_14,
)
from edg.networks.latent_video.spec import TextSpec, UNetSpec
from edg.networks.latent_video.unet import UNet

UNET, TEXT = "model.diffusion_model.", "cond_stage_model.model."
HF_TEXT = "cond_stage_model.transformer."  # of Stable Diffusion 1.x' text tower in the original file
#: Start of a name in the original file that no denoiser needs.
UNUSED = ("first_stage_model.", "model_ema.", "cond_stage_model.logit_scale")
UNUSED_TEXT = (
    "text_model.embeddings.position_ids",
    "text_projection",
    "logit_scale",
    "text_projection.weight",
)
UNUSED_CLIP = ("text_projection", "logit_scale")  # of OpenCLIP's tower
FILES = ("diffusion_pytorch_model", "diffusion_pytorch_model.fp16", "model", "model.fp16")


@dataclass(frozen=True)
class ImageModelSpec:
    """An image diffusion model.

    scale_factor, latent_channels, latent_factor: of the latent space, which a video model must share.
    """

    name: str
    unet: UNetSpec
    text: TextSpec
    schedule: ScheduleSpec = SCALED_LINEAR
    parameterization: Literal["v", "eps"] = "eps"
    scale_factor: float = 0.18215
    latent_factor: int = 8

    @property
    def latent_channels(self) -> int:
        return self.unet.in_channels


SD_1 = ImageModelSpec("sd-1.5", STABLE_DIFFUSION_1, TextSpec(VIT_L_14, "last", pad="end"))
SD_2 = ImageModelSpec("sd-2.1", STABLE_DIFFUSION_2, TextSpec(VIT_H_14, "penultimate"), parameterization="v")
SD_2_BASE = replace(SD_2, name="sd-2.1-base", parameterization="eps")
IMAGE_MODELS = {spec.name: spec for spec in (SD_1, SD_2, SD_2_BASE)}


class ImageModel(nn.Module):
    """Denoiser and text tower under the names of the original single file (the tower under OpenCLIP's).

    Every frame is computed by itself; all frames of a clip have its text.
    """

    def __init__(self, spec: ImageModelSpec):
        super().__init__()
        self.spec = spec
        self.model = nn.ModuleDict({"diffusion_model": UNet(spec.unet)})
        self.cond_stage_model = TextEncoder(spec.text)
        for name in UNUSED_CLIP:
            delattr(self.cond_stage_model.model, name)

    @property
    def unet(self) -> UNet:
        return self.model["diffusion_model"]

    @property
    def schedule(self) -> Schedule:
        return make_schedule(self.spec.schedule, self.spec.parameterization)

    def encode_text(self, prompts: Sequence[str]) -> Float[Tensor, "b l d"]:
        """(B, text_tokens, D)."""
        return self.cond_stage_model.encode(prompts)

    def denoiser(self, text_BLD: Float[Tensor, "b l d"], chunk: int | None = None) -> Denoiser:
        """(x_BCTHW, t_B) -> raw prediction of each frame by itself, float32. chunk: frames of a clip in one
        call, None: all. t may lie between two timesteps."""

        def denoise(
            x_BCTHW: Float[Tensor, "b c t h w"], t_B: Float[Tensor, " b"] | Int[Tensor, " b"]
        ) -> Float[Tensor, "b c t h w"]:
            parts = x_BCTHW.split(chunk or x_BCTHW.shape[2], dim=2)
            return torch.cat([self.unet(part, t_B, text_BLD).float() for part in parts], dim=2)

        return denoise


# ---- files -------------------------------------------------------------------------------------------------

#: Name in the model -> its tensor, read when called.
Sources = Mapping[str, Callable[[], Tensor]]


def load_image_model(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    spec: ImageModelSpec | None = None,
) -> ImageModel:
    """A model from the original single file or a folder in diffusers' layout, in eval mode, no gradients.

    spec: None finds it by shapes and the folder's own settings. Raises BadFileError for names or shapes that
    are not the model's.
    """
    path = Path(path)
    found, sources = from_folder(path, spec) if path.is_dir() else from_file(path, spec)
    with torch.device("meta"):
        model = ImageModel(found)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
        parameter.requires_grad_(False)
    model.to_empty(device=device)
    fill_strictly(model.state_dict(), sources, str(path), found.name)
    return model.eval()


def from_file(path: Path, spec: ImageModelSpec | None) -> tuple[ImageModelSpec, Sources]:
    """The model of an original single file, and its tensors."""
    from edg.weights.store import open_weights

    weights = open_weights(path)
    names = [name for name in weights if not name.startswith(UNUSED)]
    unet = [name for name in names if name.startswith(UNET)]
    require(bool(unet), f"{path} has no image model", f"a Stable Diffusion file with {UNET}*")
    found = spec or identify(weights)
    hf = {name.removeprefix(HF_TEXT): name for name in names if name.startswith(HF_TEXT)}
    read = partial(_reader, weights)
    sources = {name: read([name]) for name in unet}
    if hf:
        found, text = _hf_text(found, hf)
        sources |= {name: read([hf[part] for part in parts]) for name, parts in text.items()}
    else:
        sources |= {name: read([name]) for name in names if name.startswith(TEXT) and not _is_unused(name)}
    return found, sources


def from_folder(folder: Path, spec: ImageModelSpec | None) -> tuple[ImageModelSpec, Sources]:
    """The model of a folder in diffusers' layout (unet, text_encoder, scheduler), and its tensors."""
    from edg.weights.store import open_weights

    unet, text = (open_weights(_weights_file(folder / part)) for part in ("unet", "text_encoder"))
    found = spec or _spec_of_folder(folder)
    with torch.device("meta"):
        names = diffusers_names.diffusers_names(UNet(found.unet).state_dict(), found.unet)
    known = {stored: name for name, stored in names.items()}
    sources = {UNET + known.get(stored, stored): _reader(unet, [stored]) for stored in unet}
    found, towers = _hf_text(found, {name: name for name in text})
    return found, sources | {name: _reader(text, parts) for name, parts in towers.items()}


def _reader(weights: Mapping[str, Tensor], names: Sequence[str]) -> Callable[[], Tensor]:
    """Reads the tensors of these names, joined one after the other."""
    return lambda: weights[names[0]] if len(names) == 1 else torch.cat([weights[name] for name in names])


def identify(weights: Mapping[str, Tensor]) -> ImageModelSpec:
    """The model by the width of the text that its denoiser attends to. Version 2 has two prediction types
    with equal names and shapes; the one for 768 pixels (v) is assumed. Raises UsageError."""
    name = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    widths = {spec.unet.context_dim: spec for spec in (SD_2, SD_1)}
    width = shape_of(weights, name)[1] if name in weights else None
    require(
        width in widths,
        f"{getattr(weights, 'path', 'the file')}, an image model with text of width {width}",
        "Stable Diffusion 1.x (768) or 2.x (1024)",
    )
    return widths[width]


def _is_unused(name: str) -> bool:
    return name.removeprefix(TEXT) in (*UNUSED_CLIP, "attn_mask")


def _weights_file(folder: Path) -> Path:
    for name in FILES:
        for suffix in (".safetensors", ".bin"):
            if (path := folder / (name + suffix)).is_file():
                return path
    raise UsageError(f"no weights in {folder}", expected="a folder in diffusers' layout")


def _spec_of_folder(folder: Path) -> ImageModelSpec:
    """The model by its own settings: unet/config.json, scheduler/scheduler_config.json."""
    unet = diffusers_names.unet_spec(_json(folder / "unet/config.json"))
    scheduler = _json(folder / "scheduler/scheduler_config.json")
    known = SD_1 if unet.context_dim == SD_1.unet.context_dim else SD_2
    kinds = {"epsilon": "eps", "v_prediction": "v"}
    given = scheduler.get("prediction_type", "epsilon")
    require(given in kinds, f"prediction_type {given!r} in {folder}", " or ".join(kinds))
    betas = scheduler.get("beta_schedule", "scaled_linear")
    require(betas == "scaled_linear", f"beta_schedule {betas!r} in {folder}", "scaled_linear")
    schedule = ScheduleSpec(
        scheduler.get("beta_start", 0.00085),
        scheduler.get("beta_end", 0.012),
        bool(scheduler.get("rescale_betas_zero_snr", False)),
        None,
    )
    text_tokens = known.unet.text_tokens
    return replace(
        known, unet=replace(unet, text_tokens=text_tokens), schedule=schedule, parameterization=kinds[given]
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadFileError(
            f"cannot read {path}: {error}", expected="settings in diffusers' layout"
        ) from error
    if not isinstance(found, dict):
        raise BadFileError(f"{path} is no mapping", expected="settings in diffusers' layout")
    return found


# ---- names of the text tower -------------------------------------------------------------------------------


def _hf_text(spec: ImageModelSpec, names: Mapping[str, str]) -> tuple[ImageModelSpec, dict[str, list[str]]]:
    """The model with as many text layers as there are, all of them used, and name in the model -> names in
    transformers' layout that it is joined from. Unknown names stay what they are, and are reported."""
    used = [name for name in names if name not in UNUSED_TEXT]
    layers = 1 + max(
        (int(name.split(".")[3]) for name in used if name.startswith("text_model.encoder.layers.")),
        default=-1,
    )
    clip = spec.text.clip
    text = replace(spec.text, clip=replace(clip, text=replace(clip.text, layers=layers)), layer="last")
    if layers == clip.text.layers:
        text = replace(text, layer=spec.text.layer)
    wanted = hf_names(layers)
    known = {name for parts in wanted.values() for name in parts}
    found = {
        TEXT + name: list(parts) for name, parts in wanted.items() if all(part in names for part in parts)
    }
    return replace(spec, text=text), found | {name: [name] for name in used if name not in known}


def hf_names(layers: int) -> dict[str, tuple[str, ...]]:
    """Name in OpenCLIP's text tower -> the names in transformers' CLIPTextModel that it is joined from."""
    found = {
        "token_embedding.weight": ("text_model.embeddings.token_embedding.weight",),
        "positional_embedding": ("text_model.embeddings.position_embedding.weight",),
        "ln_final.weight": ("text_model.final_layer_norm.weight",),
        "ln_final.bias": ("text_model.final_layer_norm.bias",),
    }
    parts = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    parts |= {"attn.out_proj": "self_attn.out_proj"}
    for layer in range(layers):
        ours, theirs = f"transformer.resblocks.{layer}", f"text_model.encoder.layers.{layer}"
        for kind in ("weight", "bias"):
            found |= {f"{ours}.{a}.{kind}": (f"{theirs}.{b}.{kind}",) for a, b in parts.items()}
            joined = tuple(f"{theirs}.self_attn.{part}_proj.{kind}" for part in "qkv")
            found[f"{ours}.attn.in_proj_{kind}"] = joined
    return found
