"""Read the published YAML layout (`target:` and `params:`) as a ModelSpec.

Only the last word of a dotted `target` is looked at; nothing named there is ever imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edg.core.config import build
from edg.core.errors import UsageError, nearest
from edg.diffusion.schedule_spec import ScheduleSpec
from edg.networks.latent_video.presets import PRESETS, VIT_H_14
from edg.networks.latent_video.spec import (
    AdapterSpec,
    ClipModelSpec,
    ClipTextSpec,
    ClipVisionSpec,
    ImageSpec,
    ModelSpec,
    ResamplerSpec,
    TextSpec,
    UNetSpec,
    VAESpec,
)

# The published classes' numbers that no file can set.
ADAPTER_WIDTH, ADAPTER_QUERIES, ADAPTER_HEADS, ADAPTER_DIM_HEAD = 1024, 16, 8, 128
IMAGE_TOKENS, INIT_HEADS = 16, 8

# Constructor defaults: what a file means when it does not say.
UNET_DEFAULTS: dict[str, Any] = {
    "dropout": 0.0,
    "channel_mult": (1, 2, 4, 8),
    "conv_resample": True,
    "use_scale_shift_norm": False,
    "resblock_updown": False,
    "num_heads": -1,
    "num_head_channels": -1,
    "transformer_depth": 1,
    "use_linear": False,
    "temporal_conv": False,
    "tempspatial_aware": False,
    "temporal_attention": True,
    "use_relative_position": True,
    "use_causal_attention": False,
    "temporal_length": None,
    "addition_attention": False,
    "temporal_selfatt_only": True,
    "image_cross_attention": False,
    "image_cross_attention_scale_learnable": False,
    "default_fs": 4,
    "fs_condition": False,
}
MODEL_DEFAULTS: dict[str, Any] = {
    "timesteps": 1000,
    "linear_start": 1e-4,
    "linear_end": 2e-2,
    "parameterization": "eps",
    "scale_factor": 1.0,
    "rescale_betas_zero_snr": False,
    "use_dynamic_rescale": False,
    "base_scale": 0.7,
    "turning_step": 400,
    "fps_condition_type": "fs",
    "perframe_ae": False,
}
RESAMPLER_DEFAULTS: dict[str, Any] = {
    "dim": 1024,
    "depth": 8,
    "dim_head": 64,
    "heads": 16,
    "num_queries": 8,
    "embedding_dim": 768,
    "output_dim": 1024,
    "ff_mult": 4,
    "video_length": None,
}

# Keys without effect on the function a checkpoint computes, or with one value that we implement.
MODEL_IGNORED = [
    "num_timesteps_cond",
    "first_stage_key",
    "cond_stage_key",
    "cond_stage_trainable",
    "use_ema",
    "uncond_type",
    "uncond_prob",
    "log_every_t",
    "loss_type",
    "monitor",
    "ckpt_path",
    "ignore_keys",
    "load_only_unet",
    "scheduler_config",
    "l_simple_weight",
    "elbo_weight",
    "original_elbo_weight",
    "v_posterior",
    "logvar_init",
    "clip_denoised",
    "cond_stage_forward",
    "rand_cond_frame",
    "image_proj_model_trainable",
    "fix_scale_bool",
    "logdir",
    "empty_params_only",
    "fps_cond",
    "interp_mode",
    "clip_type",
    "en_and_decode_n_samples_a_time",
    "noise_strength",
    "loop",
    "trainable_params",
    "freeze_embedder",
    "only_model",
]
MODEL_FIXED = {
    "conditioning_key": "hybrid",
    "channels": 4,
    "beta_schedule": "linear",
    "scale_by_std": False,
    "learn_logvar": False,
    "given_betas": None,
    "use_positional_encodings": False,
}
MODEL_PARTS = [
    "unet_config",
    "first_stage_config",
    "cond_stage_config",
    "img_cond_stage_config",
    "image_proj_stage_config",
]
UNET_IGNORED = ("use_checkpoint", "use_fp16")
CLIP_IGNORED = [
    "freeze",
    "device",
    "arch",
    "version",
    "max_length",
    "always_return_pooled",
    "antialias",
    "ucg_rate",
]
VAE_IGNORED = [
    "monitor",
    "lossconfig",
    "image_key",
    "ckpt_path",
    "ignore_keys",
    "colorize_nlabels",
    "input_dim",
    "test",
    "test_args",
]


def from_published(
    config: Mapping[str, Any], clip: Mapping[str, Any] | None = None, name: str = "published"
) -> ModelSpec:
    """The spec that a published YAML file describes; a preset's name where it equals one.

    clip: open_clip's description of both towers (embed_dim, vision_cfg, text_cfg); None is ViT-H-14.
    Raises UsageError for a key or target nobody knows (naming the nearest) and for options that are not
    implemented.
    """
    params = _params(config.get("model"), "model", "LatentVisualDiffusion")
    known = [*MODEL_DEFAULTS, *MODEL_FIXED, *MODEL_IGNORED, *MODEL_PARTS, "image_size"]
    _only(params, known, "model.params")
    _fixed(params, MODEL_FIXED, "model.params")
    values = {**MODEL_DEFAULTS, **{key: params[key] for key in MODEL_DEFAULTS if key in params}}
    tower = VIT_H_14 if clip is None else clip_spec(clip)
    unet = unet_spec(
        _params(params.get("unet_config"), "unet_config", "UNetModel"), text_tokens=tower.text.context_length
    )
    vae = vae_spec(_params(params.get("first_stage_config"), "first_stage_config", "AutoencoderKL"))
    text = _params(params.get("cond_stage_config"), "cond_stage_config", "FrozenOpenCLIPEmbedder")
    image = _params(
        params.get("img_cond_stage_config"), "img_cond_stage_config", "FrozenOpenCLIPImageEmbedderV2"
    )
    _only(text, [*CLIP_IGNORED, "layer"], "cond_stage_config")
    _only(image, CLIP_IGNORED, "img_cond_stage_config")
    for part in (text, image):
        _fixed(part, {"arch": "ViT-H-14"} if clip is None else {}, "the CLIP tower")
    resampler = resampler_spec(
        _params(params.get("image_proj_stage_config"), "image_proj_stage_config", "Resampler")
    )
    height, width = _image_size(params)
    spec = ModelSpec(
        name=name,
        unet=unet,
        vae=vae,
        text=build(TextSpec, {"clip": tower, "layer": text.get("layer", "last")}, "cond_stage_config"),
        image=ImageSpec(clip=tower),
        resampler=resampler,
        adapter_design=AdapterSpec(
            num_queries=ADAPTER_QUERIES,
            width=unet.adapter_width,
            context_dim=tower.text.width,
            heads=ADAPTER_HEADS,
            dim_head=ADAPTER_DIM_HEAD,
        ),
        schedule=schedule_spec(values),
        parameterization=_one_of(values["parameterization"], ("v", "eps"), "parameterization"),
        scale_factor=float(values["scale_factor"]),
        fps_condition_type=_one_of(values["fps_condition_type"], ("fps", "fs"), "fps_condition_type"),
        perframe_ae=bool(values["perframe_ae"]),
        height=height * vae.factor,
        width=width * vae.factor,
        frames=resampler.video_length or unet.temporal_length or 16,
        towers_seed=None,
    )
    for preset in PRESETS.values():
        if replace(spec, name=preset.name) == preset:
            return preset
    return spec


def schedule_spec(values: Mapping[str, Any]) -> ScheduleSpec:
    """The noise schedule of a published model's params, defaults filled in."""
    values = {**MODEL_DEFAULTS, **values}
    return build(
        ScheduleSpec,
        {
            "timesteps": values["timesteps"],
            "linear_start": values["linear_start"],
            "linear_end": values["linear_end"],
            "zero_terminal_snr": values["rescale_betas_zero_snr"],
            "base_scale": values["base_scale"] if values["use_dynamic_rescale"] else None,
            "turning_step": values["turning_step"],
        },
        "model.params",
    )


def unet_spec(params: Mapping[str, Any], text_tokens: int = 77) -> UNetSpec:
    """The denoiser of a published `unet_config.params`."""
    given = {key: value for key, value in params.items() if key not in UNET_IGNORED}
    _fixed(given, {"dims": 2}, "unet_config")
    given.pop("dims", None)
    if "fps_cond" in given:  # VideoCrafter's name, where 16 stands for a rate that is not given
        given |= {"fs_condition": given.pop("fps_cond"), "default_fs": given.get("default_fs", 16)}
    ours = {
        "text_tokens": text_tokens,
        "image_tokens": IMAGE_TOKENS,
        "init_heads": INIT_HEADS,
        "adapter_width": ADAPTER_WIDTH,
    }
    taken = [key for key in ours if key in given]
    if taken:
        raise UsageError(
            f"unknown key unet_config.{taken[0]}", expected="an argument of the published constructor"
        )
    if given.get("context_dim", 0) is None:
        raise UsageError("unet_config.context_dim is null", expected="the width of the context tokens")
    return build(UNetSpec, {**UNET_DEFAULTS, **ours, **given}, "unet_config")


def vae_spec(params: Mapping[str, Any]) -> VAESpec:
    """The autoencoder of a published `first_stage_config.params` (embed_dim, ddconfig)."""
    _only(params, [*VAE_IGNORED, "embed_dim", "ddconfig", "scale_factor"], "first_stage_config")
    given = dict(params.get("ddconfig") or {})
    fixed = {
        "double_z": True,
        "attn_type": "vanilla",
        "use_linear_attn": False,
        "resamp_with_conv": True,
        "tanh_out": False,
        "give_pre_end": False,
    }
    _fixed(given, fixed, "ddconfig")
    given = {key: value for key, value in given.items() if key not in fixed}
    if "out_ch" in given:
        given["out_channels"] = given.pop("out_ch")
    values = {"dropout": 0.0, **given, "embed_dim": params.get("embed_dim")}
    return build(VAESpec, values, "ddconfig")


def clip_spec(config: Mapping[str, Any]) -> ClipModelSpec:
    """Both towers from open_clip's layout: embed_dim, vision_cfg, text_cfg."""
    _only(config, ["embed_dim", "vision_cfg", "text_cfg", "quick_gelu"], "clip")
    _fixed(config, {"quick_gelu": False}, "clip")
    vision = {"image_size": 224, "patch_size": 16, "head_width": 64, "mlp_ratio": 4.0, **config["vision_cfg"]}
    text = {
        "context_length": 77,
        "vocab_size": 49408,
        "heads": 8,
        "mlp_ratio": 4.0,
        **config["text_cfg"],
    }
    return ClipModelSpec(
        embed_dim=config["embed_dim"],
        vision=build(ClipVisionSpec, vision, "clip.vision_cfg"),
        text=build(ClipTextSpec, text, "clip.text_cfg"),
    )


def resampler_spec(params: Mapping[str, Any]) -> ResamplerSpec:
    """The image projection of a published `image_proj_stage_config.params`."""
    return build(ResamplerSpec, {**RESAMPLER_DEFAULTS, **params}, "image_proj_stage_config")


def _params(node: Any, where: str, target: str) -> Mapping[str, Any]:
    """`params` of a {target, params} node, its target checked."""
    if not isinstance(node, Mapping):
        raise UsageError(f"{where} is {node!r}", expected=f"a mapping with target ...{target} and params")
    given = str(node.get("target", target)).rsplit(".", 1)[-1]
    if given != target:
        raise UsageError(f"{where} has target {given!r}", expected=target, fix=nearest(given, [target]))
    params = node.get("params") or {}
    if not isinstance(params, Mapping):
        raise UsageError(f"{where}.params is {params!r}", expected="a mapping")
    return params


def _only(values: Mapping[str, Any], known: list[str], where: str) -> None:
    for key in values:
        if key not in known:
            raise UsageError(f"unknown key {where}.{key}", fix=nearest(key, known))


def _fixed(values: Mapping[str, Any], fixed: Mapping[str, Any], where: str) -> None:
    """Raise UsageError for an option with another value than the one that is implemented."""
    for key, value in fixed.items():
        if key in values and values[key] != value:
            raise UsageError(
                f"{where}.{key} is {values[key]!r}", expected=f"{value!r}, the only one implemented"
            )


def _one_of(value: Any, choices: tuple[str, ...], where: str) -> Any:
    if value not in choices:
        raise UsageError(f"{where} is {value!r}", expected=" or ".join(choices))
    return value


def _image_size(params: Mapping[str, Any]) -> tuple[int, int]:
    """Latent height and width; one number is a square."""
    size = params.get("image_size", 32)
    size = (size, size) if isinstance(size, int) else tuple(size)
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise UsageError(f"image_size is {params.get('image_size')!r}", expected="latent height and width")
    return size
