"""The UNet under the names of diffusers' layout: ModelScope, VideoCrafter's port, Stable Diffusion 1.x."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from edg.core.errors import BadFileError, UsageError, require
from edg.networks.latent_video.presets import MODELSCOPE, STABLE_DIFFUSION_1
from edg.networks.latent_video.spec import MotionSpec, UNetSpec
from edg.weights.family import Family

if TYPE_CHECKING:
    from torch import Tensor

    from edg.networks.latent_video.unet import UNet

ENDS = {
    "time_embed.0.": "time_embedding.linear_1.",
    "time_embed.2.": "time_embedding.linear_2.",
    "fps_embedding.0.": "fps_embedding.linear_1.",
    "fps_embedding.2.": "fps_embedding.linear_2.",
    "input_blocks.0.0.": "conv_in.",
    "init_attn.0.": "transformer_in.",
    "out.0.": "conv_norm_out.",
    "out.2.": "conv_out.",
}
RESBLOCK = {
    "in_layers.0.": "norm1.",
    "in_layers.2.": "conv1.",
    "emb_layers.1.": "time_emb_proj.",
    "out_layers.0.": "norm2.",
    "out_layers.3.": "conv2.",
    "skip_connection.": "conv_shortcut.",
}
MOTION_HEADS = 8  # of every published motion adapter; a file does not tell
#: First part of a name in diffusers' layout, and part of it -> module kinds (`keys.KINDS`).
ENDS_KINDS = {
    "conv_in": "in",
    "conv_out": "out",
    "conv_norm_out": "out",
    "transformer_in": "init_attn",
    "time_embedding": "time",
    "fps_embedding": "time",
}
PART_KINDS = {
    "temp_convs": ("resblock", "temporal_conv"),
    "resnets": ("resblock",),
    "temp_attentions": ("temporal",),
    "motion_modules": ("temporal",),
    "attentions": ("spatial",),
    "downsamplers": ("resample",),
    "upsamplers": ("resample",),
}


def diffusers_names(names: Iterable[str], spec: UNetSpec) -> dict[str, str]:
    """Name in the UNet -> name of the same tensor in diffusers' layout. Raises KeyError for a name that the
    layout has no place for (an adapter's)."""
    modules = _modules(spec)
    found = {}
    for name in names:
        start = next(start for start in modules if name.startswith(start))
        found[name] = modules[start] + name.removeprefix(start)
    return found


def _modules(spec: UNetSpec) -> dict[str, str]:
    """Start of a name in the UNet -> start in diffusers' layout."""
    levels, per_level = len(spec.channel_mult), spec.num_res_blocks
    attends = [2**level in spec.attention_resolutions for level in range(levels)]
    found, block = dict(ENDS), 1
    for level in range(levels):
        for index in range(per_level):
            ours = f"input_blocks.{block + index}"
            _add_layers(found, ours, f"down_blocks.{level}", index, spec, attends[level])
        block += per_level
        if level != levels - 1:
            found[f"input_blocks.{block}.0.op."] = f"down_blocks.{level}.downsamplers.0.conv."
            block += 1
    motion = spec.motion is not None and spec.motion.in_middle
    last = _add_layers(found, "middle_block", "mid_block", 0, spec, motion=motion)
    _add_resblock(found, f"middle_block.{last}", "mid_block", 1)
    for block in range(levels * (per_level + 1)):
        level, index = divmod(block, per_level + 1)
        attend = attends[levels - 1 - level]
        _add_layers(found, f"output_blocks.{block}", f"up_blocks.{level}", index, spec, attend)
        for position in (1, 2, 3):  # behind the attention, where the level has some
            found[f"output_blocks.{block}.{position}.conv."] = f"up_blocks.{level}.upsamplers.0.conv."
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def _add_layers(
    found: dict[str, str],
    ours: str,
    theirs: str,
    index: int,
    spec: UNetSpec,
    attend: bool = True,
    motion: bool = True,
) -> int:
    """Add a residual block and the layers behind it; returns the position after them."""
    _add_resblock(found, f"{ours}.0", theirs, index)
    kinds = ["attentions", *["temp_attentions"] * spec.temporal_attention] if attend else []
    kinds += ["motion_modules"] * (spec.motion is not None and motion)
    for position, kind in enumerate(kinds, 1):
        found[f"{ours}.{position}."] = f"{theirs}.{kind}.{index}."
    return 1 + len(kinds)


def _add_resblock(found: dict[str, str], ours: str, theirs: str, index: int) -> None:
    for start, name in RESBLOCK.items():
        found[f"{ours}.{start}"] = f"{theirs}.resnets.{index}.{name}"
    found[f"{ours}.temopral_conv."] = f"{theirs}.temp_convs.{index}."


def load_diffusers(unet: UNet, weights: Mapping[str, Tensor]) -> None:
    """Fill the UNet from a checkpoint in diffusers' layout, strictly. Raises BadFileError."""
    from edg.networks.latent_video.load import fill_strictly

    names = diffusers_names(targets := unet.state_dict(), unet.spec)
    stored = {names[name]: target for name, target in targets.items()}
    sources = {name: partial(weights.__getitem__, name) for name in weights}
    fill_strictly(
        stored, sources, str(getattr(weights, "path", "the UNet")), "this UNet in diffusers' layout"
    )


def unet_spec(config: Mapping[str, Any]) -> UNetSpec:
    """The UNet of a UNet2DConditionModel's or UNet3DConditionModel's config. Raises UsageError for levels
    that we cannot build."""
    from dataclasses import replace

    widths, blocks = list(config["block_out_channels"]), list(config["down_block_types"])
    attend = tuple(2**level for level, kind in enumerate(blocks) if kind.startswith("CrossAttn"))
    if any(width % widths[0] for width in widths) or config.get("norm_num_groups", 32) != 32:
        raise UsageError(f"block_out_channels {widths}", expected="multiples of the first, in 32 groups")
    video = blocks[0].endswith("3D")
    heads = {"num_head_channels": config["attention_head_dim"]} if video else _heads_2d(config, widths)
    return replace(
        MODELSCOPE.unet if video else STABLE_DIFFUSION_1,
        **heads,
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        model_channels=widths[0],
        channel_mult=tuple(width // widths[0] for width in widths),
        num_res_blocks=config["layers_per_block"],
        attention_resolutions=tuple(reversed(attend)),
        context_dim=config["cross_attention_dim"],
        **({} if video else {"use_linear": bool(config.get("use_linear_projection", False))}),
    )


def _heads_2d(config: Mapping[str, Any], widths: Sequence[int]) -> dict[str, int]:
    """Heads of an image UNet, whose config calls their number attention_head_dim: one for all levels (1.x),
    or one for each, of the same width (2.x)."""
    number = config["attention_head_dim"]
    if isinstance(number, int):
        return {"num_heads": number, "num_head_channels": -1}
    size = {width // heads for width, heads in zip(widths, number, strict=True)}
    require(len(size) == 1, f"heads {list(number)} at widths {list(widths)}", "heads of one width")
    return {"num_heads": -1, "num_head_channels": size.pop()}


def with_motion(spec: UNetSpec, adapter: Mapping[str, Any]) -> UNetSpec:
    """An image UNet with the motion modules of an adapter's weights (names and shapes in diffusers' layout).
    Raises BadFileError where they do not fit."""
    from dataclasses import replace

    tables = {name: tuple(adapter[name].shape) for name in adapter if name.endswith("pos_embed.pe")}
    if not tables or len({shape[1] for shape in tables.values()}) != 1:
        raise BadFileError(
            f"{getattr(adapter, 'path', 'the adapter')}: {len(tables)} tables of positions",
            expected="a motion adapter in diffusers' layout",
        )
    length = next(iter(tables.values()))[1]
    in_middle = any(name.startswith("mid_block.") for name in adapter)
    return replace(spec, motion=MotionSpec(MOTION_HEADS, length, in_middle))


def kinds(name: str) -> frozenset[str]:
    """The module kinds (`keys.KINDS`) that a name in diffusers' layout belongs to."""
    first, *rest = name.split(".")
    if first in ENDS_KINDS:
        return frozenset({"unet", ENDS_KINDS[first]})
    part = rest[1] if first != "mid_block" and len(rest) > 1 else rest[0] if rest else ""
    return frozenset({"unet", *PART_KINDS[part]}) if part in PART_KINDS else frozenset()


def title(names: Collection[str]) -> str:
    """A description of a UNet in diffusers' layout."""
    video = any(re.search(r"\.temp_(convs|attentions)\.", name) for name in names)
    return f"latent diffusion UNet of {'videos' if video else 'images'} in diffusers' layout"


FAMILY = Family(
    name="diffusers_unet",
    roots=dict.fromkeys(("down_blocks.", "mid_block.", "up_blocks.", *(f"{e}." for e in ENDS_KINDS)), "unet"),
    marks=("down_blocks.0.temp_convs.", "down_blocks.0.temp_attentions.", "down_blocks.0.motion_modules."),
    kinds=kinds,
    kind_help={
        kind: kind for kind in ("unet", *ENDS_KINDS.values(), *(k for ks in PART_KINDS.values() for k in ks))
    },
    title=title,
)
