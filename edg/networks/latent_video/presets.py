"""The models known by name: the published ones, and the small one that comes with the package."""

from __future__ import annotations

from dataclasses import replace

from edg.diffusion.schedule_spec import ScheduleSpec
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

VIT_H_14 = ClipModelSpec(
    embed_dim=1024,
    vision=ClipVisionSpec(image_size=224, patch_size=14, width=1280, layers=32, head_width=80, mlp_ratio=4.0),
    text=ClipTextSpec(context_length=77, vocab_size=49408, width=1024, heads=16, layers=24, mlp_ratio=4.0),
)

VIT_L_14 = ClipModelSpec(
    embed_dim=768,
    vision=ClipVisionSpec(image_size=224, patch_size=14, width=1024, layers=24, head_width=64, mlp_ratio=4.0),
    text=ClipTextSpec(context_length=77, vocab_size=49408, width=768, heads=12, layers=12, mlp_ratio=4.0),
    quick_gelu=True,
)

DYNAMICRAFTER_512 = ModelSpec(
    name="dynamicrafter-512",
    unet=UNetSpec(
        in_channels=8,
        out_channels=4,
        model_channels=320,
        channel_mult=(1, 2, 4, 4),
        num_res_blocks=2,
        attention_resolutions=(4, 2, 1),
        num_heads=-1,
        num_head_channels=64,
        transformer_depth=1,
        context_dim=1024,
        text_tokens=77,
        image_tokens=16,
        temporal_length=16,
        dropout=0.1,
        use_linear=True,
        conv_resample=True,
        resblock_updown=False,
        use_scale_shift_norm=False,
        temporal_conv=True,
        tempspatial_aware=False,
        temporal_attention=True,
        addition_attention=True,
        init_heads=8,
        temporal_selfatt_only=True,
        adapter_width=1024,
        use_relative_position=False,
        use_causal_attention=False,
        image_cross_attention=True,
        image_cross_attention_scale_learnable=False,
        fs_condition=True,
        default_fs=24,
    ),
    vae=VAESpec(
        in_channels=3,
        out_channels=3,
        ch=128,
        ch_mult=(1, 2, 4, 4),
        num_res_blocks=2,
        attn_resolutions=(),
        resolution=256,
        z_channels=4,
        embed_dim=4,
        dropout=0.0,
    ),
    text=TextSpec(clip=VIT_H_14, layer="penultimate"),
    image=ImageSpec(clip=VIT_H_14),
    resampler=ResamplerSpec(
        dim=1024,
        depth=4,
        dim_head=64,
        heads=12,
        num_queries=16,
        embedding_dim=1280,
        output_dim=1024,
        ff_mult=4.0,
        video_length=16,
    ),
    adapter_design=AdapterSpec(num_queries=16, width=1024, context_dim=1024, heads=8, dim_head=128),
    schedule=ScheduleSpec(
        timesteps=1000,
        linear_start=0.00085,
        linear_end=0.012,
        zero_terminal_snr=True,
        base_scale=0.7,
        turning_step=400,
    ),
    parameterization="v",
    scale_factor=0.18215,
    fps_condition_type="fps",
    perframe_ae=True,
    height=320,
    width=512,
    frames=16,
    towers_seed=None,
)

DYNAMICRAFTER_1024 = replace(
    DYNAMICRAFTER_512,
    name="dynamicrafter-1024",
    unet=replace(DYNAMICRAFTER_512.unet, default_fs=10),
    schedule=replace(DYNAMICRAFTER_512.schedule, base_scale=0.3),
    height=576,
    width=1024,
)

DYNAMICRAFTER_256 = replace(
    DYNAMICRAFTER_512,
    name="dynamicrafter-256",
    unet=replace(DYNAMICRAFTER_512.unet, default_fs=3, image_cross_attention_scale_learnable=True),
    schedule=replace(DYNAMICRAFTER_512.schedule, zero_terminal_snr=False, base_scale=None),
    parameterization="eps",
    fps_condition_type="fs",
    perframe_ae=False,
    height=256,
    width=256,
)

SPRITES_CLIP = ClipModelSpec(
    embed_dim=64,
    vision=ClipVisionSpec(image_size=32, patch_size=8, width=64, layers=2, head_width=32, mlp_ratio=2.0),
    text=ClipTextSpec(context_length=8, vocab_size=49408, width=64, heads=2, layers=2, mlp_ratio=2.0),
)

SPRITES = ModelSpec(
    name="sprites",
    unet=replace(
        DYNAMICRAFTER_512.unet,
        model_channels=32,
        channel_mult=(2, 3),
        num_res_blocks=1,
        attention_resolutions=(2, 1),
        num_head_channels=16,
        context_dim=64,
        text_tokens=8,
        image_tokens=4,
        temporal_length=8,
        dropout=0.0,
        init_heads=4,
        adapter_width=64,
        default_fs=8,
    ),
    vae=replace(DYNAMICRAFTER_512.vae, ch=32, ch_mult=(1, 2, 2), num_res_blocks=1, resolution=32),
    text=TextSpec(clip=SPRITES_CLIP, layer="penultimate"),
    image=ImageSpec(clip=SPRITES_CLIP),
    resampler=ResamplerSpec(
        dim=64,
        depth=2,
        dim_head=32,
        heads=2,
        num_queries=4,
        embedding_dim=64,
        output_dim=64,
        ff_mult=2.0,
        video_length=8,
    ),
    adapter_design=AdapterSpec(num_queries=8, width=64, context_dim=64, heads=2, dim_head=32),
    schedule=replace(DYNAMICRAFTER_512.schedule, base_scale=None),
    parameterization="v",
    scale_factor=1.0,
    fps_condition_type="fps",
    perframe_ae=True,
    height=32,
    width=32,
    frames=8,
    towers_seed=123,
)

#: Text to video: no image latent beside the noise, and text alone in the context.
VIDEOCRAFTER_2 = replace(
    DYNAMICRAFTER_512,
    name="videocrafter-2",
    unet=replace(
        DYNAMICRAFTER_512.unet, in_channels=4, image_tokens=0, image_cross_attention=False, default_fs=16
    ),
    vae=replace(DYNAMICRAFTER_512.vae, resolution=512),
    image=None,
    resampler=None,
    schedule=replace(DYNAMICRAFTER_512.schedule, zero_terminal_snr=False),
    parameterization="eps",
)

VIDEOCRAFTER_1_512 = replace(
    VIDEOCRAFTER_2,
    name="videocrafter-1-512",
    unet=replace(
        VIDEOCRAFTER_2.unet, temporal_conv=False, use_relative_position=True, fs_condition=False, dropout=0.0
    ),
    schedule=replace(VIDEOCRAFTER_2.schedule, base_scale=None),
)

VIDEOCRAFTER_1_1024 = replace(
    VIDEOCRAFTER_1_512,
    name="videocrafter-1-1024",
    unet=replace(VIDEOCRAFTER_1_512.unet, fs_condition=True),
    schedule=replace(VIDEOCRAFTER_2.schedule, base_scale=0.3),
    height=576,
    width=1024,
)

#: Published in diffusers' layout (`diffusers_names`).
MODELSCOPE = replace(
    VIDEOCRAFTER_2,
    name="modelscope-1.7b",
    unet=replace(VIDEOCRAFTER_2.unet, fs_condition=False),
    schedule=replace(VIDEOCRAFTER_2.schedule, base_scale=None),
    height=256,
    width=256,
)

#: Image models, on the same network with its temporal layers left out and frames as a batch.
STABLE_DIFFUSION_1 = replace(
    MODELSCOPE.unet,
    num_heads=8,
    num_head_channels=-1,
    context_dim=768,
    temporal_length=None,
    use_linear=False,
    temporal_conv=False,
    temporal_attention=False,
    addition_attention=False,
)
STABLE_DIFFUSION_2 = replace(
    STABLE_DIFFUSION_1, num_heads=-1, num_head_channels=64, context_dim=1024, use_linear=True
)

#: Image to video.
PRESETS = {spec.name: spec for spec in (DYNAMICRAFTER_512, DYNAMICRAFTER_1024, DYNAMICRAFTER_256, SPRITES)}
TEXT_TO_VIDEO = {
    spec.name: spec for spec in (VIDEOCRAFTER_2, VIDEOCRAFTER_1_512, VIDEOCRAFTER_1_1024, MODELSCOPE)
}
