"""The denoiser: a UNet over frames, with attention and convolution over time in between.

Inside, tensors are (N, C, h, w) with N = B*T, frames of a clip next to each other. The residual stream is
float32 whatever the dtype of the parameters: norms narrow it for the branches, which are added to it again.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edg.core.errors import UsageError
from edg.networks.latent_video.attention import (
    Context,
    SpatialAttention,
    SpatialTransformer,
    TemporalTransformer,
    zeroed,
)
from edg.networks.latent_video.deepcache import DeepFeature
from edg.networks.latent_video.spec import UNetSpec
from edg.networks.latent_video.upsample import UpsampleConv2d
from edg.networks.latent_video.vae import GroupNorm


def sinusoid(position_B: Tensor, width: int) -> Tensor:
    """[cos(p w_i) | sin(p w_i)], w_i = exp(-ln(1e4) i / (width/2)), in float32: (B, width)."""
    half = width // 2
    index = torch.arange(half, dtype=torch.float32, device=position_B.device)
    angles = position_B.float()[:, None] * torch.exp(-math.log(10_000.0) * index / half)
    waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(waves, (0, width % 2))


def layout(device: torch.device) -> torch.memory_format:
    """Memory format of the activations: channels last on a GPU, where convolutions are faster. On a CPU group
    norms are several times slower that way, and convolutions no faster."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def apply_in_weight_dtype(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a layer to x cast to the dtype of its weight; the result has x's dtype."""
    dtype = getattr(layer, "weight", x).dtype
    return layer(x) if dtype == x.dtype else layer(x.to(dtype)).to(x.dtype)


class Downsample(nn.Module):
    """Half the size: a 3x3 convolution of stride 2, or the mean of 2x2 cells."""

    def __init__(self, width: int, learned: bool):
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1) if learned else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return apply_in_weight_dtype(self.op, x)


class Upsample(nn.Module):
    """Twice the size: nearest neighbour, then, if learned, a 3x3 convolution."""

    def __init__(self, width: int, learned: bool):
        super().__init__()
        self.conv = UpsampleConv2d(width) if learned else nn.Upsample(scale_factor=2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).to(x.dtype)


class ConvOverTime(nn.Conv3d):
    """Convolution (B, C, T, h, w) over frames alone, computed over (T, h*w): the same numbers, several times
    as fast on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel_size[1:] != (1, 1):
            return super().forward(x)
        y = F.conv2d(x.flatten(3), self.weight.flatten(3), self.bias, padding=self.padding[:2])
        return y.unflatten(3, x.shape[3:])


class TemporalConv(nn.Module):
    """x (B, C, T, h, w) + four (GroupNorm over the whole clip, SiLU, convolution over three frames)."""

    def __init__(self, width: int, dropout: float, spatial_aware: bool):
        super().__init__()
        high, wide = ((3, 3, 1), (3, 1, 3)) if spatial_aware else ((3, 1, 1), (3, 1, 1))
        for i, kernel in enumerate((high, wide, high, wide), start=1):
            convolution = ConvOverTime(width, width, kernel, padding=tuple(k // 2 for k in kernel))
            drop = [nn.Dropout(dropout)] if i > 1 else []
            steps = [GroupNorm(width, eps=1e-5), nn.SiLU(), *drop, convolution]
            setattr(self, f"conv{i}", nn.Sequential(*steps))
        zeroed(self.conv4[-1])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv4(self.conv3(self.conv2(self.conv1(x))))


class ResBlock(nn.Module):
    """Residual block with the time embedding added; resample is "none", "up" or "down", in both branches."""

    def __init__(self, spec: UNetSpec, width_in: int, width_out: int, resample: str = "none"):
        super().__init__()
        self.scale_shift, self.resample = spec.use_scale_shift_norm, resample
        emb_out = 2 * width_out if self.scale_shift else width_out
        self.in_layers = nn.Sequential(
            GroupNorm(width_in, eps=1e-5), nn.SiLU(), nn.Conv2d(width_in, width_out, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * spec.model_channels, emb_out))
        self.out_layers = nn.Sequential(
            GroupNorm(width_out, eps=1e-5),
            nn.SiLU(),
            nn.Dropout(spec.dropout),
            zeroed(nn.Conv2d(width_out, width_out, 3, padding=1)),
        )
        same = width_in == width_out
        self.skip_connection = nn.Identity() if same else nn.Conv2d(width_in, width_out, 1)
        if spec.temporal_conv and resample == "none":
            self.temopral_conv = TemporalConv(width_out, spec.dropout, spec.tempspatial_aware)

    def forward(self, x: Tensor, emb: Tensor, batch: int) -> Tensor:
        h = self._resized(self.in_layers[:-1](x))
        h = self.in_layers[-1](h)
        shift_BC = self.emb_layers(emb)
        if self.scale_shift:
            scale_BC, shift_BC = shift_BC.chunk(2, dim=1)
            h = _per_clip(torch.mul, self.out_layers[0](h), 1 + scale_BC)
            h = self.out_layers[1:](_per_clip(torch.add, h, shift_BC))
        else:
            h = self.out_layers(_per_clip(torch.add, h, shift_BC))
        h = apply_in_weight_dtype(self.skip_connection, self._resized(x)) + h
        if not hasattr(self, "temopral_conv"):
            return h
        h = self.temopral_conv(rearrange(h, "(b t) c h w -> b c t h w", b=batch))
        return rearrange(h, "b c t h w -> (b t) c h w")

    def _resized(self, x: Tensor) -> Tensor:
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        return F.avg_pool2d(x, 2) if self.resample == "down" else x


def _per_clip(operation: Callable, h_NCHW: Tensor, value_BC: Tensor) -> Tensor:
    """Apply operation(h, value) with each clip's value on all its frames and cells."""
    h = h_NCHW.unflatten(0, (len(value_BC), -1))
    return operation(h, value_BC[:, None, :, None, None]).flatten(0, 1)


class Stage(nn.Sequential):
    """Layers in a row. checkpointing: keep only the input of each layer for the backward pass, which computes
    the layer once more (Chen et al. 2016)."""

    def forward(
        self,
        x: Tensor,
        emb: Tensor,
        context: Context,
        checkpointing: bool = False,
    ) -> Tensor:
        for layer in self:
            args = (layer, x, emb, context)
            x = checkpoint(_apply, *args, use_reentrant=False) if checkpointing else _apply(*args)
        return x


def _takes_context(layer: nn.Module) -> bool:
    if isinstance(layer, SpatialAttention):
        return layer.is_cross_attention
    return isinstance(layer, TemporalTransformer) and layer.has_adapter


def _apply(layer: nn.Module, x: Tensor, emb: Tensor, context: Context) -> Tensor:
    """Apply a layer with the inputs that its kind takes."""
    if isinstance(layer, TemporalTransformer) and layer.has_adapter:
        x = context.repeat_for_branches(x)
    batch = len(x) // context.frames
    if isinstance(layer, ResBlock):
        return layer(x, emb[:batch], batch)
    if isinstance(layer, SpatialTransformer):
        return layer(x, context)
    if isinstance(layer, TemporalTransformer):
        y = layer(rearrange(x, "(b t) c h w -> b c t h w", b=batch), context)
        return rearrange(y, "b c t h w -> (b t) c h w")
    return apply_in_weight_dtype(layer, x)


def _attention(spec: UNetSpec, width: int, attend: bool = True, motion: bool = True) -> list[nn.Module]:
    """The layers behind a residual block: attention, if this level attends, and a motion module."""
    layers: list[nn.Module] = []
    if attend:
        heads, dim_head = spec.heads(width)
        layers.append(SpatialTransformer(spec, width))
        if spec.temporal_attention:
            causal = spec.use_causal_attention
            layers.append(TemporalTransformer(spec, width, heads, dim_head, spec.use_linear, causal))
    if spec.motion is not None and motion:
        heads = spec.motion.heads
        layers.append(
            TemporalTransformer(spec, width, heads, width // heads, True, False, spec.motion.max_frames)
        )
    return layers


def _embedding(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))


class UNet(nn.Module):
    """The denoiser y = UNet(x, t, context, fs); x is the noisy latent, in image-to-video models with the
    image latent behind it on the channels.

    `checkpointing = True` trades time for memory: where gradients are taken in train mode, the backward pass
    computes every layer once more; the gradients are the same.
    """

    def __init__(self, spec: UNetSpec):
        super().__init__()
        self.spec = spec
        self.checkpointing = False
        self.layout: torch.memory_format | None = None  # None: what suits the input's device
        width = spec.model_channels
        self.time_embed = _embedding(width)
        if spec.fs_condition:
            self.fps_embedding = _embedding(width)
            zeroed(self.fps_embedding[-1])
        self.input_blocks = nn.ModuleList([Stage(nn.Conv2d(spec.in_channels, width, 3, padding=1))])
        if spec.addition_attention:
            first = TemporalTransformer(spec, width, spec.init_heads, spec.num_head_channels, False, False)
            self.init_attn = Stage(first)
        skips = self._build_down()
        deepest = width * spec.channel_mult[-1]
        self.middle_block = Stage(
            ResBlock(spec, deepest, deepest),
            *_attention(spec, deepest, motion=spec.motion is not None and spec.motion.in_middle),
            ResBlock(spec, deepest, deepest),
        )
        self._build_up(skips)
        self.out = nn.Sequential(
            GroupNorm(width * spec.channel_mult[0], eps=1e-5),
            nn.SiLU(),
            zeroed(nn.Conv2d(width * spec.channel_mult[0], spec.out_channels, 3, padding=1)),
        )

    def _build_down(self) -> list[int]:
        """Append the stages of the way down; returns the widths of the skip connections."""
        spec = self.spec
        skips = [spec.model_channels]
        for level, mult in enumerate(spec.channel_mult):
            width = spec.model_channels * mult
            attend = 2**level in spec.attention_resolutions
            for _ in range(spec.num_res_blocks):
                layers = [ResBlock(spec, skips[-1], width), *_attention(spec, width, attend)]
                self.input_blocks.append(Stage(*layers))
                skips.append(width)
            if level != len(spec.channel_mult) - 1:
                down = ResBlock(spec, width, width, "down") if spec.resblock_updown else None
                self.input_blocks.append(Stage(down or Downsample(width, spec.conv_resample)))
                skips.append(width)
        return skips

    def _build_up(self, skips: list[int]) -> None:
        spec, skips = self.spec, list(skips)
        self.output_blocks = nn.ModuleList()
        current = skips[-1]
        for level, mult in reversed(list(enumerate(spec.channel_mult))):
            width = spec.model_channels * mult
            attend = 2**level in spec.attention_resolutions
            for i in range(spec.num_res_blocks + 1):
                layers = [
                    ResBlock(spec, current + skips.pop(), width),
                    *_attention(spec, width, attend),
                ]
                current = width
                if level and i == spec.num_res_blocks:
                    up = ResBlock(spec, width, width, "up") if spec.resblock_updown else None
                    layers.append(up or Upsample(width, spec.conv_resample))
                self.output_blocks.append(Stage(*layers))

    def embed(self, t_B: Tensor, fs_B: Tensor | None, dtype: torch.dtype) -> Tensor:
        """MLP(sinusoid(t)) + MLP_fps(sinusoid(fs)), (B, 4 model_channels); fs None is the spec's
        default_fs."""
        width = self.spec.model_channels
        emb = self.time_embed(sinusoid(t_B, width).to(dtype))
        if self.spec.fs_condition:
            fs_B = torch.full_like(t_B, self.spec.default_fs) if fs_B is None else fs_B
            emb = emb + self.fps_embedding(sinusoid(fs_B, width).to(dtype))
        return emb

    def prepare_context(
        self, context_BLD: Tensor, frames: int, temporal_context: Tensor | None = None, keep: bool = True
    ) -> Context:
        """The context as `forward` takes it. keep: with the keys and values of all layers, for many steps of
        one parameter set (no gradients flow into them)."""
        context = Context.split(context_BLD.to(self.dtype), frames, self.spec, temporal_context)
        self._check_context(context_BLD, context.adapter_embedding, frames)
        if keep:
            with torch.no_grad():
                context.kv_cache.update({m: m.prepare(context) for m in self.modules() if _takes_context(m)})
        return context

    def forward(
        self,
        x_BCTHW: Tensor,
        t_B: Tensor,
        context_BLD: Tensor | Context,
        fs_B: Tensor | None = None,
        temporal_context: Tensor | None = None,
        reuse: DeepFeature | None = None,
    ) -> Tensor:
        """The raw prediction (B, out_channels, T, h, w), in x's dtype.

        x_BCTHW: (B, in_channels, T, h, w). t_B: timesteps 0..999. context_BLD: text then image tokens, or
        what `prepare_context` made of them; of k B clips for k branches of guidance with the same x:
        predictions (k B, ...), and the layers before the first attention to tokens run once. fs_B: frames
        per second or frame stride, as the checkpoint was trained. temporal_context: (B, T, adapter_width).
        reuse: with a value only the outermost level runs, on top of that value; without one it is given the
        value of this pass. Raises UsageError where size, context or adapter input do not fit the spec.
        """
        self._check_size(x_BCTHW)
        frames = x_BCTHW.shape[2]
        context = context_BLD
        if not isinstance(context, Context):
            context = self.prepare_context(context_BLD, frames, temporal_context, keep=False)
        emb = self.embed(t_B, fs_B, self.dtype).repeat(len(context.text) // len(x_BCTHW), 1)
        again = self.checkpointing and self.training and torch.is_grad_enabled()
        rest = (emb, context, again)
        stream = x_BCTHW.to(torch.promote_types(self.dtype, torch.float32))
        cells = self.layout or layout(stream.device)
        h = rearrange(stream, "b c t h w -> (b t) c h w").contiguous(memory_format=cells)
        skips, outer = [], self.spec.num_res_blocks + 1  # stages of the outermost level, down and up
        down, up, short = self.input_blocks, self.output_blocks, reuse is not None and reuse.value is not None
        if short:
            down, up = down[:outer], up[-outer:]
        for i, stage in enumerate(down):
            h = stage(h, *rest)
            if i == 0 and self.spec.addition_attention:
                h = self.init_attn(h, *rest)
            skips.append(h)
        h = reuse.value if short else self.middle_block(h, *rest)
        for stage in up:
            if reuse is not None and len(skips) == outer:
                reuse.value = h
            h = stage(torch.cat([h, context.repeat_for_branches(skips.pop())], dim=1), *rest)
        return rearrange(self.out(h), "(b t) c h w -> b c t h w", t=frames).to(x_BCTHW.dtype)

    @property
    def dtype(self) -> torch.dtype:
        return self.out[-1].weight.dtype

    def _check_size(self, x: Tensor) -> None:
        unit, frames, most = self.spec.size_multiple, x.shape[2], self.spec.temporal_length
        if x.shape[3] % unit or x.shape[4] % unit:
            raise UsageError(f"a latent of {x.shape[3]}x{x.shape[4]}", expected=f"multiples of {unit}")
        if self.spec.use_causal_attention and frames > most:
            raise UsageError(f"{frames} frames", expected=f"at most temporal_length {most}")
        motion = self.spec.motion
        if motion is not None and frames > motion.max_frames:
            raise UsageError(
                f"{frames} frames",
                expected=f"at most {motion.max_frames}, the positions of the motion modules",
            )

    def _check_context(self, context: Tensor, embedding: Tensor | None, frames: int) -> None:
        spec = self.spec
        if spec.image_cross_attention and context.shape[1] < spec.text_tokens:
            raise UsageError(
                f"a context of {context.shape[1]} tokens", expected=f"{spec.text_tokens} text tokens + image"
            )
        if spec.temporal_selfatt_only:
            return
        wanted = (len(context), frames, spec.adapter_width)
        if embedding is None or tuple(embedding.shape) != wanted:
            given = "none" if embedding is None else tuple(embedding.shape)
            raise UsageError(f"temporal_context {given} for a UNet with text adapter", expected=str(wanted))
