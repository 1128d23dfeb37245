"""Identify a checkpoint by the names and shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edg.networks.latent_video.presets import PRESETS
from edg.networks.latent_video.spec import ModelSpec
from edg.weights.keys import is_lora

if TYPE_CHECKING:
    from torch import Tensor

UNET = "model.diffusion_model."


def identify(weights: Mapping[str, Tensor]) -> tuple[str | None, str]:
    """(name of a known spec or None, the reason in words). weights: a mapping with `.info(name).shape`, or of
    tensors.

    dynamicrafter-512 and -1024 have the same names and shapes; the end of `scale_arr` (0.7 or 0.3) tells them
    apart.
    """
    fitting = [spec for spec in PRESETS.values() if _fits(spec, weights)]
    if not fitting:
        return None, guess(weights) or "no known model has these names and shapes"
    if len(fitting) == 1:
        return fitting[0].name, "its names and shapes"
    if "scale_arr" in weights:
        last = getattr(weights, "last", None)
        end = last("scale_arr") if last else float(weights["scale_arr"][-1])
        for spec in fitting:
            if abs((spec.schedule.base_scale or 1.0) - end) < 0.01:
                return spec.name, f"its names, its shapes and the end of scale_arr ({end:.1f})"
    names = " or ".join(spec.name for spec in fitting)
    return fitting[0].name, f"its names and shapes, which {names} share"


def _fits(spec: ModelSpec, weights: Mapping[str, Tensor]) -> bool:
    expected = landmarks(spec)
    if not all(name in weights and _shape(weights, name) == shape for name, shape in expected.items()):
        return False
    learned = any(name.endswith(".attn2.alpha") for name in weights)
    return learned == spec.unet.image_cross_attention_scale_learnable


def landmarks(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """A few tensors whose shapes differ between the specs."""
    unet, vae, resampler = spec.unet, spec.vae, spec.resampler
    width = unet.model_channels
    deepest = width * unet.channel_mult[-1]
    top = len(vae.ch_mult) - 1
    return {
        f"{UNET}input_blocks.0.0.weight": (width, unet.in_channels, 3, 3),
        f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k_ip.weight": (deepest, unet.context_dim),
        f"{UNET}out.2.bias": (unet.out_channels,),
        f"first_stage_model.encoder.down.{top}.block.0.conv2.bias": (vae.ch * vae.ch_mult[-1],),
        "image_proj_model.latents": (1, resampler.num_queries * (resampler.video_length or 1), resampler.dim),
    }


def _shape(weights: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    info = getattr(weights, "info", None)
    return tuple(info(name).shape if info else weights[name].shape)


def guess(weights: Mapping[str, Tensor]) -> str:
    """A guess at the kind of file, as a sentence for an error; "" without one."""
    names = list(weights)

    def any_with(*parts: str) -> bool:
        return any(part in name for name in names for part in parts)

    def all_with(*starts: str) -> bool:
        return bool(names) and all(name.startswith(starts) for name in names)

    if not names:
        return "it holds no tensors"
    if is_lora(names) or any_with("lora_up.", "lora_down.", ".lora_A.", ".lora_B.", "lora_unet_"):
        return "it looks like a LoRA, which is a change to a model and not a model"
    if any_with("time_stack.", "time_mixer.", "temporal_transformer_blocks."):
        return "it looks like Stable Video Diffusion, another family"
    if any_with("conditioner.embedders."):
        return "it looks like Stable Diffusion XL, another family"
    if any_with("down_blocks.", "up_blocks.") and not any_with("input_blocks."):
        return "it looks like a diffusers file; convert it to the published layout first"
    if any_with("transformer_blocks.") and not any_with("input_blocks."):
        return "it looks like a diffusion transformer, another family"
    if all_with("text_model.", "transformer.text_model.", "cond_stage_model."):
        return "it looks like a text encoder only"
    if all_with("visual.", "vision_model.", "embedder.") or any_with("vision_model."):
        return "it looks like an image encoder only"
    if all_with("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "first_stage_model."):
        return "it looks like an autoencoder only"
    if all_with(
        "input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "out.", "init_attn.", "fps_"
    ):
        return "it looks like the denoising UNet only, without its prefix"
    if all_with(UNET):
        return "it looks like the denoising UNet only; the autoencoder and the encoders are missing"
    if any_with("input_blocks.") and not any_with("temopral_conv"):
        return "it looks like Stable Diffusion (images), another family"
    if any_with("temopral_conv") and not any_with("image_proj_model."):
        return "it looks like a text-to-video model of VideoCrafter's kind, without image conditioning"
    return _nearest_spec(weights)


def _nearest_spec(weights: Mapping[str, Tensor]) -> str:
    for spec in PRESETS.values():
        if _fits(spec, weights):
            return f"it has the main shapes of {spec.name}"
    if f"{UNET}input_blocks.0.0.weight" in weights:
        width = _shape(weights, f"{UNET}input_blocks.0.0.weight")[0]
        return (
            f"it is of this family, with {width} channels; give the configuration with which it was trained"
        )
    return ""
