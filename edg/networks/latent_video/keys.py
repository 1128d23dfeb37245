"""Names of the tensors of DynamiCrafter's and VideoCrafter's checkpoints.

Published form: `model.diffusion_model.*`, `first_stage_model.*`, `cond_stage_model.model.*`,
`embedder.model.*`, `image_proj_model.*`, schedule buffers without a dot, and for the text adapter
`queries`, `qformer.*`, `*.cc_projection.{weight,bias}`.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from edg.weights.family import Family

UNET = "model.diffusion_model."
ROOTS = {
    UNET: "unet",
    "first_stage_model.": "vae",
    "cond_stage_model.": "text",
    "embedder.": "image",
    "image_proj_model.": "image_proj",
}
BUFFERS = frozenset(
    [
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
        "scale_arr",
        "scale_factor",
    ]
)
KINDS = {
    "temporal": "temporal transformers of the blocks (with their adapter projections)",
    "spatial": "spatial transformers",
    "resblock": "residual blocks, with the temporal convolutions inside them",
    "temporal_conv": "the temporal convolutions only",
    "init_attn": "the temporal transformer after the first convolution",
    "in": "first convolution",
    "out": "last normalisation and convolution",
    "resample": "down- and upsampling convolutions",
    "time": "time and frame-rate embeddings",
    "image_proj": "image projector",
    "adapter": "text adapter: queries, qformer, cc_projection",
    "unet": "the whole denoising network",
    "vae": "autoencoder",
    "text": "text tower",
    "image": "image tower",
    "buffer": "schedule buffers",
}
BLOCK = re.compile(
    r"model\.diffusion_model\.(input_blocks|middle_block|output_blocks)\.(?:(\d+)\.)?(\d+)\.(.*)$"
)
RESBLOCK = re.compile(r"(in_layers|out_layers|emb_layers|skip_connection|temopral_conv|h_upd|x_upd)\b")


def is_adapter(name: str) -> bool:
    """True for tensors of the text-to-temporal adapter."""
    return name == "queries" or name.startswith("qformer.") or is_projection(name)


def is_projection(name: str) -> bool:
    """True for the adapter's projections in the UNet, which are [I | 0] in a model without adapter."""
    return ".cc_projection." in name


def kinds(name: str) -> frozenset[str]:
    """All module kinds (KINDS) a tensor belongs to; empty for foreign names."""
    part = FAMILY.component(name)
    found = {{"buffers": "buffer"}.get(part, part)} - {"other"}
    if name.startswith(UNET):
        found |= {"unet"} | _unet_kinds(name)
    return frozenset(found)


def _unet_kinds(name: str) -> set[str]:
    top = name.removeprefix(UNET).split(".", 1)[0]
    if top in ("init_attn", "out"):
        return {top}
    if top in ("time_embed", "fps_embedding", "label_emb"):
        return {"time"}
    match = BLOCK.match(name)
    if not match:
        return set()
    section, block, index, rest = match.groups()
    if section == "input_blocks" and block == "0":
        return {"in"}
    if rest.startswith(("op.", "conv.")):
        return {"resample"}
    if RESBLOCK.match(rest):
        return {"resblock", "temporal_conv"} if rest.startswith("temopral_conv") else {"resblock"}
    if is_projection(f".{rest}"):
        return {"temporal"}
    return {"spatial"} if index == "1" else {"temporal"}


def title(names: Collection[str]) -> str:
    """A description of a checkpoint, guessed from its names."""
    found = {FAMILY.component(name) for name in names}
    if "unet" in found and any(".temopral_conv." in name or ".init_attn." in name for name in names):
        if {"vae", "text"} <= found and not found & {"image", "image_proj"}:
            return "VideoCrafter text-to-video"
        whole = {"vae", "image_proj"} <= found
        return "DynamiCrafter / EDG image-to-video" + ("" if whole else " (parts of it)")
    if "unet" in found:
        return "latent diffusion (another family)"
    return "unknown" if found <= {"other", "buffers"} else "parts of a latent diffusion model"


FAMILY = Family(
    name="latent_video",
    roots=ROOTS,
    marks=tuple(root for root in ROOTS if root != "embedder."),  # a word that other models use too
    renames={"framestride_embed": "fps_embedding"},
    optional={"adapter": is_adapter},
    identities=is_projection,
    buffers=BUFFERS,
    kinds=kinds,
    kind_help=KINDS,
    title=title,
)
