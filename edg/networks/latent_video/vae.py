"""KL autoencoder: pixels <-> latents, one frame at a time (Rombach et al. 2022, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from edg.networks.latent_video.spec import GROUPS, VAESpec
from edg.networks.latent_video.upsample import UpsampleConv2d

HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Posterior:
    """q(z|x) = N(mean, exp(logvar)), both (N, C, h, w); logvar is clamped to [-30, 20]."""

    mean: Float[Tensor, "n c h w"]
    logvar: Float[Tensor, "n c h w"]

    def mode(self) -> Float[Tensor, "n c h w"]:
        return self.mean

    def sample(self, noise: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """z = mean + std * noise, with noise ~ N(0, 1) of the mean's shape."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def kl(self) -> Float[Tensor, " n"]:
        """KL(q || N(0, 1)) per sample (N,), in nats: 1/2 sum(mean^2 + var - 1 - logvar)."""
        terms = self.mean**2 + self.logvar.exp() - 1 - self.logvar
        return 0.5 * terms.flatten(1).sum(1)


class GroupNorm(nn.GroupNorm):
    """32 groups. Where x or the parameters are in 16 bits, statistics and affine map are float32 all the
    same; the result is 16 bits again."""

    def __init__(self, channels: int, eps: float):
        super().__init__(GROUPS, channels, eps=eps)

    def forward(self, x: Float[Tensor, "b c ..."]) -> Float[Tensor, "b c *shape"]:
        narrow = next((t.dtype for t in (self.weight, x) if t.dtype in HALVES), None)
        if narrow is None:
            return super().forward(x)
        y = F.group_norm(x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps)
        return y.to(narrow)


class Resnet(nn.Module):
    """x + conv2(silu(norm2(conv1(silu(norm1 x))))), with a 1x1 convolution on x where the width changes."""

    def __init__(self, width_in: int, width_out: int, dropout: float):
        super().__init__()
        self.norm1 = GroupNorm(width_in, eps=1e-6)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm2 = GroupNorm(width_out, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        if width_in != width_out:
            self.nin_shortcut = nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c_out h w"]:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    """Single-head self-attention over all cells of a frame, scale width^-1/2, with a residual.

    Channels are laid next to each other, as fused kernels ask for; without them (hw)^2 weights are stored.
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm = GroupNorm(width, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        h = self.norm(x)
        q, k, v = (rearrange(part(h), "n c h w -> n 1 (h w) c") for part in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q.contiguous(), k.contiguous(), v.contiguous())
        out = rearrange(out, "n 1 (h w) c -> n c h w", h=x.shape[2])
        return x + self.proj_out(out)


class Downsample(nn.Module):
    """Half the size: one row and column of zeros at the bottom and right, then a 3x3 convolution of stride
    2."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h//2 w//2"]:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the size: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = UpsampleConv2d(width)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c 2*h 2*w"]:
        return self.conv(x)


class Middle(nn.Module):
    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.block_1 = Resnet(width, width, dropout)
        self.attn_1 = Attention(width)
        self.block_2 = Resnet(width, width, dropout)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention where the level has it, then the
    resampling."""

    def __init__(self, width_in: int, width: int, blocks: int, attend: bool, dropout: float):
        super().__init__()
        widths = [width_in] + [width] * blocks
        self.block = nn.ModuleList(Resnet(a, b, dropout) for a, b in zip(widths, widths[1:], strict=False))
        self.attn = nn.ModuleList(Attention(width) for _ in range(blocks if attend else 0))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c_out h_out w_out"]:
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        for resample in ("downsample", "upsample"):
            if hasattr(self, resample):
                x = getattr(self, resample)(x)
        return x


def _attends(spec: VAESpec, level: int) -> bool:
    return spec.resolution // 2**level in spec.attn_resolutions


class Encoder(nn.Module):
    """Pixels (N, 3, H, W) -> features (N, 2 z_channels, H/f, W/f)."""

    def __init__(self, spec: VAESpec):
        super().__init__()
        widths = [spec.ch, *(spec.ch * m for m in spec.ch_mult)]
        self.conv_in = nn.Conv2d(spec.in_channels, spec.ch, 3, padding=1)
        self.down = nn.ModuleList()
        for i in range(len(spec.ch_mult)):
            level = Level(widths[i], widths[i + 1], spec.num_res_blocks, _attends(spec, i), spec.dropout)
            if i != len(spec.ch_mult) - 1:
                level.downsample = Downsample(widths[i + 1])
            self.down.append(level)
        self.mid = Middle(widths[-1], spec.dropout)
        self.norm_out = GroupNorm(widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 2 * spec.z_channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c_out h_out w_out"]:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Latents (N, z_channels, h, w) -> pixels (N, 3, f h, f w). `up` is stored from the finest level to the
    coarsest."""

    def __init__(self, spec: VAESpec):
        super().__init__()
        widths = [spec.ch * m for m in spec.ch_mult]
        top = len(widths) - 1
        self.conv_in = nn.Conv2d(spec.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], spec.dropout)
        self.up = nn.ModuleList()
        for i, width in enumerate(widths):
            coarser = widths[min(i + 1, top)]
            level = Level(coarser, width, spec.num_res_blocks + 1, _attends(spec, i), spec.dropout)
            if i != 0:
                level.upsample = Upsample(width)
            self.up.append(level)
        self.norm_out = GroupNorm(widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], spec.out_channels, 3, padding=1)

    def forward(self, z: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c_out h_out w_out"]:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class AutoencoderKL(nn.Module):
    """Encoder and decoder with the 1x1 convolutions around the latent. Knows nothing of the latent's scale
    factor."""

    def __init__(self, spec: VAESpec):
        super().__init__()
        self.spec = spec
        self.encoder = Encoder(spec)
        self.decoder = Decoder(spec)
        self.quant_conv = nn.Conv2d(2 * spec.z_channels, 2 * spec.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(spec.embed_dim, spec.z_channels, 1)

    def moments(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c_out h_out w_out"]:
        """Mean and unclamped log variance, stacked on the channels: (N, 2 embed_dim, H/f, W/f)."""
        return self.quant_conv(self.encoder(x))

    def encode(self, x: Float[Tensor, "n c h w"]) -> Posterior:
        """The posterior of frames x (N, 3, H, W) in [-1, 1]; H and W are multiples of spec.factor."""
        mean, logvar = self.moments(x).chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(-30.0, 20.0))

    def decode(self, z: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c_out h_out w_out"]:
        """Frames (N, 3, H, W), about in [-1, 1], of unscaled latents z (N, embed_dim, H/f, W/f)."""
        return self.decoder(self.post_quant_conv(z))
