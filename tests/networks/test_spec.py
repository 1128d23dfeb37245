"""Specs from names, from our YAML and from the published YAML."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from edg.core.config import build, to_dict
from edg.core.errors import UsageError
from edg.core.hashing import hash_value
from edg.networks.latent_video.models import load_spec
from edg.networks.latent_video.presets import PRESETS
from edg.networks.latent_video.published_yaml import from_published
from edg.networks.latent_video.spec import MotionSpec, UNetSpec

CONFIGS = Path(__file__).parents[2] / "configs" / "models"
OF_SIZE = {
    "256": {
        "image_size": [32, 32],
        "parameterization": "eps",
        "rescale_betas_zero_snr": False,
        "perframe_ae": False,
    }
    | {"use_dynamic_rescale": False, "fps_condition_type": "fs"},
    "512": {
        "image_size": [40, 64],
        "parameterization": "v",
        "rescale_betas_zero_snr": True,
        "perframe_ae": True,
    }
    | {"use_dynamic_rescale": True, "base_scale": 0.7, "fps_condition_type": "fps"},
    "1024": {
        "image_size": [72, 128],
        "parameterization": "v",
        "rescale_betas_zero_snr": True,
        "perframe_ae": True,
    }
    | {"use_dynamic_rescale": True, "base_scale": 0.3, "fps_condition_type": "fps"},
}
DEFAULT_FS = {"256": 3, "512": 24, "1024": 10}


def published(size: str) -> dict:
    """The values of a published YAML file."""
    unet = {
        "in_channels": 8,
        "out_channels": 4,
        "model_channels": 320,
        "attention_resolutions": [4, 2, 1],
        "num_res_blocks": 2,
        "channel_mult": [1, 2, 4, 4],
        "dropout": 0.1,
        "num_head_channels": 64,
        "transformer_depth": 1,
        "context_dim": 1024,
        "use_linear": True,
        "use_checkpoint": False,
        "temporal_conv": True,
        "temporal_attention": True,
        "temporal_selfatt_only": True,
        "use_relative_position": False,
        "use_causal_attention": False,
        "temporal_length": 16,
        "addition_attention": True,
        "image_cross_attention": True,
        "default_fs": DEFAULT_FS[size],
        "fs_condition": True,
    }
    if size == "256":
        unet["image_cross_attention_scale_learnable"] = True
    autoencoder = {
        "embed_dim": 4,
        "monitor": "val/rec_loss",
        "ddconfig": {
            "double_z": True,
            "z_channels": 4,
            "resolution": 256,
            "in_channels": 3,
            "out_ch": 3,
            "ch": 128,
            "ch_mult": [1, 2, 4, 4],
            "num_res_blocks": 2,
            "attn_resolutions": [],
            "dropout": 0.0,
        },
        "lossconfig": {"target": "torch.nn.Identity"},
    }
    resampler = {
        "dim": 1024,
        "depth": 4,
        "dim_head": 64,
        "heads": 12,
        "num_queries": 16,
        "embedding_dim": 1280,
    }
    resampler |= {"output_dim": 1024, "ff_mult": 4, "video_length": 16}
    module = "lvdm.modules.encoders"
    params = {
        "linear_start": 0.00085,
        "linear_end": 0.012,
        "num_timesteps_cond": 1,
        "timesteps": 1000,
        "first_stage_key": "video",
        "cond_stage_key": "caption",
        "cond_stage_trainable": False,
        "conditioning_key": "hybrid",
        "channels": 4,
        "scale_by_std": False,
        "scale_factor": 0.18215,
        "use_ema": False,
        "uncond_type": "empty_seq",
        "unet_config": {"target": "lvdm.modules.networks.openaimodel3d.UNetModel", "params": unet},
        "first_stage_config": {"target": "lvdm.models.autoencoder.AutoencoderKL", "params": autoencoder},
        "cond_stage_config": {
            "target": f"{module}.condition.FrozenOpenCLIPEmbedder",
            "params": {"freeze": True, "layer": "penultimate"},
        },
        "img_cond_stage_config": {
            "target": f"{module}.condition.FrozenOpenCLIPImageEmbedderV2",
            "params": {"freeze": True},
        },
        "image_proj_stage_config": {"target": f"{module}.resampler.Resampler", "params": resampler},
        **OF_SIZE[size],
    }
    return {"model": {"target": "lvdm.models.ddpm3d.LatentVisualDiffusion", "params": params}}


@pytest.mark.parametrize("size", OF_SIZE)
def test_published_files_are_the_presets(size, tmp_path):
    path = tmp_path / "inference.yaml"
    path.write_text(yaml.safe_dump(published(size)))
    assert load_spec(path) == PRESETS[f"dynamicrafter-{size}"]


def test_adapter_switch_of_a_published_file():
    config = published("512")
    config["model"]["params"]["unet_config"]["params"]["temporal_selfatt_only"] = False
    spec = from_published(config, name="mine")
    assert spec == replace(PRESETS["dynamicrafter-512"].with_adapter(), name="mine")
    assert spec.adapter.num_queries == 16 and PRESETS["dynamicrafter-512"].adapter is None


@pytest.mark.parametrize(
    ("where", "key", "said"),
    [
        ((), "parametrization", "parameterization"),
        (("unet_config", "params"), "num_head_chanels", "num_head_channels"),
        (("image_proj_stage_config", "params"), "num_querys", "num_queries"),
        (("first_stage_config", "params", "ddconfig"), "ch_mul", "ch_mult"),
        (("cond_stage_config", "params"), "layers", "layer"),
    ],
)
def test_unknown_keys_name_the_nearest(where, key, said):
    config = published("512")
    node = config["model"]["params"]
    for part in where:
        node = node[part]
    node[key] = 1
    with pytest.raises(UsageError, match=f"{key}.*did you mean '{said}'"):
        from_published(config)


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        ((), "conditioning_key", "crossattn"),
        ((), "scale_by_std", True),
        ((), "parameterization", "x0"),
        (("unet_config",), "target", "ldm.modules.UNetModelXL"),
        (("first_stage_config", "params", "ddconfig"), "double_z", False),
        (("unet_config", "params"), "use_relative_position", "yes"),
        (("unet_config", "params"), "num_head_channels", 48),
    ],
)
def test_what_is_not_implemented_is_an_error(where, key, value):
    config = copy.deepcopy(published("512"))
    node = config["model"]["params"]
    for part in where:
        node = node[part]
    node[key] = value
    with pytest.raises(UsageError):
        from_published(config)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("dynamicrafter_*.yaml")), ids=lambda path: path.stem)
def test_our_files_are_the_presets(path):
    assert load_spec(path) == PRESETS[path.stem.replace("_", "-")]


def test_names():
    assert load_spec("dynamicrafter-1024").unet.default_fs == 10
    assert load_spec("dynamicrafter_256").parameterization == "eps"
    with pytest.raises(UsageError, match="dynamicrafter-512"):
        load_spec("dynamicrafter-51")


def test_sizes():
    spec = load_spec("dynamicrafter-512")
    assert (spec.size_multiple, spec.latent_factor, spec.height, spec.width) == (64, 8, 320, 512)
    with pytest.raises(UsageError):
        replace(spec, height=300)


def test_parts_that_do_not_meet_are_errors():
    spec = load_spec("dynamicrafter-512")
    with pytest.raises(UsageError, match="context_dim"):
        replace(spec, unet=replace(spec.unet, context_dim=768))
    with pytest.raises(UsageError, match="num_heads"):
        replace(spec.unet, num_head_channels=-1)


@pytest.mark.parametrize(
    "name, digest",
    [
        ("dynamicrafter-512", "c3e5c6dd6c9e99b1471bf16ffca195417f3bd91d23cb9b9a964e333628b1e4a7"),
        ("dynamicrafter-1024", "900e3cb527ec89ebc7c83a876e085e399485b1f56688c60d371ef9a3f61ee5d7"),
        ("dynamicrafter-256", "d2ea985faabdd1612127ec700d9541f64778cc3ab16111c7fe7715f15805b926"),
    ],
)
def test_records_of_published_models_keep_their_hash(name, digest):
    """A new field of a spec must not make finished clips be made again."""
    assert hash_value(to_dict(PRESETS[name])) == digest
    moving = replace(PRESETS[name].unet, motion=MotionSpec(8, 32, False))
    assert to_dict(moving)["motion"] == {"heads": 8, "max_frames": 32, "in_middle": False}
    assert build(UNetSpec, to_dict(moving), "unet") == moving
    assert build(UNetSpec, to_dict(PRESETS[name].unet), "unet") == PRESETS[name].unet
