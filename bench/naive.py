"""The sampling loop as the release has it, written straightforwardly: what `bench/step.py` compares with.

Same weights as the network it is given, outputs equal within rounding. Two guided calls one after the other,
attention through its full matrix, every token repeated for every frame, keys and values at every step, a real
three-dimensional convolution over time.
"""

from __future__ import annotations

from collections.abc import Sequence
from unittest.mock import patch

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from edg.networks.latent_video import onednn_linear
from edg.networks.latent_video.attention import SpatialTransformer, TemporalTransformer
from edg.networks.latent_video.unet import ResBlock, UNet, Upsample, sinusoid
from edg.systems.edg.condition import Condition


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt d) v over (B, L, heads d), the scores of all heads in memory."""
    q, k, v = (rearrange(x, "b n (h d) -> (b h) n d", h=heads) for x in (q, k, v))
    scores = torch.einsum("b i d, b j d -> b i j", q, k) * q.shape[-1] ** -0.5
    out = torch.einsum("b i j, b j d -> b i d", scores.softmax(dim=-1), v)
    return rearrange(out, "(b h) n d -> b n (h d)", h=heads)


def attend(layer: nn.Module, x: Tensor, text: Tensor | None = None, image: Tensor | None = None) -> Tensor:
    source = x if text is None else text
    q = layer.to_q(x)
    out = attention(q, layer.to_k(source), layer.to_v(source), layer.heads)
    if image is not None:
        from_image = attention(q, layer.to_k_ip(image), layer.to_v_ip(image), layer.heads)
        scale = torch.tanh(layer.alpha) + 1 if layer.image == "learned" else 1
        out = out + scale * from_image
    return layer.to_out(out)


def transformer_block(block: nn.Module, x: Tensor, *tokens: Tensor) -> Tensor:
    x = attend(block.attn1, block.norm1(x)) + x
    x = attend(block.attn2, block.norm2(x), *tokens) + x
    gate_in = block.ff.net[0].proj(block.norm3(x))
    value, gate = gate_in.chunk(2, dim=-1)
    return block.ff.net[2](value * F.gelu(gate)) + x


def spatial(layer: SpatialTransformer, x: Tensor, text: Tensor, image: Tensor | None) -> Tensor:
    h, y = x.shape[2], layer.norm(x)
    y = y if layer.use_linear else layer.proj_in(y)
    y = rearrange(y, "b c h w -> b (h w) c").contiguous()
    y = layer.proj_in(y) if layer.use_linear else y
    for block in layer.transformer_blocks:
        y = transformer_block(block, y, text, image)
    y = layer.proj_out(y) if layer.use_linear else y
    y = rearrange(y, "b (h w) c -> b c h w", h=h).contiguous()
    return (y if layer.use_linear else layer.proj_out(y)) + x


def temporal(layer: TemporalTransformer, x: Tensor, words: Tensor | None) -> Tensor:
    b, _, _, h, w = x.shape
    y = rearrange(layer.norm(x), "b c t h w -> (b h w) c t").contiguous()
    y = y if layer.use_linear else layer.proj_in(y)
    y = rearrange(y, "m c t -> m t c").contiguous()
    y = layer.proj_in(y) if layer.use_linear else y
    if words is not None:
        y = layer.cc_projection(torch.cat([y, repeat(words, "b t d -> (b h w) t d", h=h, w=w)], dim=-1))
    for block in layer.transformer_blocks:
        y = transformer_block(block, y)
    y = layer.proj_out(y) if layer.use_linear else y
    y = rearrange(y, "m t c -> m c t").contiguous()
    y = y if layer.use_linear else layer.proj_out(y)
    return rearrange(y, "(b h w) c t -> b c t h w", b=b, h=h, w=w).contiguous() + x


def convolution_over_time(layer: nn.Sequential, x: Tensor) -> Tensor:
    conv = layer[-1]
    x = F.silu(layer[0](x))
    return F.conv3d(x, conv.weight, conv.bias, padding=conv.padding)


def residual(layer: ResBlock, x: Tensor, emb: Tensor, batch: int) -> Tensor:
    h = layer.in_layers(x) + layer.emb_layers(emb)[:, :, None, None]
    h = layer.skip_connection(x) + layer.out_layers(h)
    if hasattr(layer, "temopral_conv"):
        clip = y = rearrange(h, "(b t) c h w -> b c t h w", b=batch).contiguous()
        for i in (1, 2, 3, 4):
            y = convolution_over_time(getattr(layer.temopral_conv, f"conv{i}"), y)
        h = rearrange(clip + y, "b c t h w -> (b t) c h w").contiguous()
    return h


def twice(layer: Upsample, x: Tensor) -> Tensor:
    x = F.interpolate(x, scale_factor=2.0, mode="nearest")
    return F.conv2d(x, layer.conv.weight, layer.conv.bias, padding=1)


def stage(layers: nn.Module, x: Tensor, emb: Tensor, text, image, words, batch: int) -> Tensor:
    for layer in layers:
        if isinstance(layer, ResBlock):
            x = residual(layer, x, emb, batch)
        elif isinstance(layer, SpatialTransformer):
            x = spatial(layer, x, text, image)
        elif isinstance(layer, TemporalTransformer):
            clip = rearrange(x, "(b t) c h w -> b c t h w", b=batch).contiguous()
            x = rearrange(temporal(layer, clip, words), "b c t h w -> (b t) c h w").contiguous()
        elif isinstance(layer, Upsample):
            x = twice(layer, x)
        else:
            x = layer(x)
    return x


def unet(network: UNet, x: Tensor, t: Tensor, context: Tensor, words: Tensor | None = None) -> Tensor:
    """The raw prediction of a network whose blocks have no scale and shift, as the published ones."""
    spec = network.spec
    assert not spec.use_scale_shift_norm and not spec.resblock_updown and not spec.use_relative_position
    assert spec.conv_resample
    batch, _, frames, _, _ = x.shape
    emb = network.time_embed(sinusoid(t, spec.model_channels))
    if spec.fs_condition:
        fs = torch.full_like(t, spec.default_fs)
        emb = emb + network.fps_embedding(sinusoid(fs, spec.model_channels))
    emb = emb.repeat_interleave(frames, dim=0)
    text = context[:, : spec.text_tokens].repeat_interleave(frames, dim=0)
    image = context[:, spec.text_tokens :]
    per_frame = image.shape[1] == spec.image_tokens * frames
    image = (
        rearrange(image, "b (t l) d -> (b t) l d", t=frames)
        if per_frame
        else image.repeat_interleave(frames, 0)
    )
    told = (emb, text, image if spec.image_cross_attention else None, words, batch)
    h, skips = rearrange(x, "b c t h w -> (b t) c h w").contiguous(), []
    for i, layers in enumerate(network.input_blocks):
        h = stage(layers, h, *told)
        if i == 0 and spec.addition_attention:
            h = stage(network.init_attn, h, *told)
        skips.append(h)
    h = stage(network.middle_block, h, *told)
    for layers in network.output_blocks:
        h = stage(layers, torch.cat([h, skips.pop()], dim=1), *told)
    return rearrange(network.out(h), "(b t) c h w -> b c t h w", b=batch)


def guided(
    network: UNet, x: Tensor, t: Tensor, branches: Sequence[Condition], scale: float, rescale: float
) -> Tensor:
    """Classifier-free guidance with two calls; branches: fully told, and told nothing. Every product of
    matrices by the library that PyTorch takes by itself."""
    with patch.object(onednn_linear, "ONEDNN", False):
        cond, uncond = (
            unet(network, torch.cat([x, told.concat_BCTHW], dim=1), t, told.context_BLD, told.temporal_BTD)
            for told in branches
        )
    out = uncond + scale * (cond - uncond)
    if rescale > 0:
        over = list(range(1, out.ndim))
        factor = cond.std(dim=over, keepdim=True) / out.std(dim=over, keepdim=True)
        out = rescale * (out * factor) + (1 - rescale) * out
    return out
