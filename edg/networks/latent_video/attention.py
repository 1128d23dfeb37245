"""Attention over space (with text and image tokens) and over time (with the text adapter's projection).

Layouts: spatial blocks see (N, L, D) with N = B*T and L = h*w; temporal blocks see (B*h*w, T, D).
Sources: DynamiCrafter (Xing et al. 2023, section 3.2, dual-stream image injection), EDG for `cc_projection`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from edg.networks.latent_video.onednn_linear import JoinedLinear, Linear, SplitLinear
from edg.networks.latent_video.spec import UNetSpec
from edg.networks.latent_video.vae import HALVES, GroupNorm

CUDA_MAX_BATCH = 65_535
MAX_SHORT_KV = 16  # keys, and numbers in a head
SHORT_KV_DTYPES = (torch.float32, torch.bfloat16)


def split_heads(x: Float[Tensor, "b l hd"], heads: int) -> Float[Tensor, "b heads l d"]:
    return rearrange(x, "b l (h d) -> b h l d", h=heads)


def attend(
    q: Float[Tensor, "b heads l d"],
    k: Float[Tensor, "b heads m d"],
    v: Float[Tensor, "b heads m d"],
    causal: bool = False,
) -> Float[Tensor, "b heads l d"]:
    """Attention softmax(q k^T / sqrt d) v, all (b, heads, L, d), in parts of b that CUDA's 16-bit grid
    allows."""
    if (
        q.device.type == "cpu"
        and q.dtype in SHORT_KV_DTYPES
        and not causal
        and max(k.shape[2:]) <= MAX_SHORT_KV
    ):
        return attention_short_kv(q, k, v)
    parts = zip(*(part.split(CUDA_MAX_BATCH) for part in (q, k, v)), strict=True)
    done = [F.scaled_dot_product_attention(*part, is_causal=causal) for part in parts]
    return done[0] if len(done) == 1 else torch.cat(done)


def attention_short_kv(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention to few keys, with a row of scores for each key: along short rows a CPU's softmax goes number
    by number. In 16 bits scores and weights are rounded, which the fused kernel does not do."""
    scores = (k * k.shape[-1] ** -0.5) @ q.transpose(-1, -2)
    return scores.softmax(-2).transpose(-1, -2) @ v


def merge_heads(x: Float[Tensor, "b heads l d"]) -> Float[Tensor, "b l hd"]:
    return rearrange(x, "b h l d -> b l (h d)")


@dataclass(frozen=True)
class Context:
    """The tokens that B clips attend to.

    frames: of a clip.
    text: (B, L, D), the same for every frame.
    image: image tokens, (B, L', D) the same for every frame or (B T, L', D); None without cross-attention.
    adapter_embedding: (B, T, adapter_width) for the temporal layers; None without adapter.
    kv_cache: layer -> its keys and values, for as long as tokens and weights stay (`UNet.prepare_context`).
    """

    frames: int
    text: Float[Tensor, "b l d"]
    image: Float[Tensor, "groups m d"] | None = None
    adapter_embedding: Float[Tensor, "b t d_adapter"] | None = None
    kv_cache: dict[nn.Module, tuple[Tensor, ...]] = field(default_factory=dict)

    @staticmethod
    def split(
        context: Float[Tensor, "b l d"],
        frames: int,
        spec: UNetSpec,
        adapter_embedding: Float[Tensor, "b t d_adapter"] | None = None,
    ) -> Context:
        """The first text_tokens of context (B, L, D) are text. The rest are image tokens: image_tokens per
        frame where the length is exactly text_tokens + image_tokens * frames, else the same tokens for every
        frame."""
        text, image = context[:, : spec.text_tokens], context[:, spec.text_tokens :]
        if not spec.image_cross_attention or image.shape[1] == 0:
            return Context(frames, text, None, adapter_embedding)
        if image.shape[1] == spec.image_tokens * frames:
            image = rearrange(image, "b (t l) d -> (b t) l d", t=frames)
        return Context(frames, text, image, adapter_embedding)

    def repeat_for_branches(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n_all ..."]:
        """Repeat a stream that the branches of guidance share so far, once for each: (B * frames, ...)."""
        times = len(self.text) * self.frames // len(x)
        return x if times == 1 else x.repeat(times, *[1] * (x.ndim - 1))


class SpatialAttention(nn.Module):
    """Attention within a frame: to itself (context_dim None) or to text and, with `image`, to image tokens.

    out = to_out(softmax(q k^T / sqrt d) v + s softmax(q k_ip^T / sqrt d) v_ip), s = 1 or tanh(alpha) + 1.
    """

    def __init__(
        self, width: int, context_dim: int | None, heads: int, dim_head: int, dropout: float, image="none"
    ):
        super().__init__()
        inner, source = heads * dim_head, context_dim or width
        self.heads, self.is_cross_attention = heads, context_dim is not None
        self.to_q = Linear(width, inner, bias=False)
        self.to_k = Linear(source, inner, bias=False)
        self.to_v = Linear(source, inner, bias=False)
        self.to_out = nn.Sequential(Linear(inner, width), nn.Dropout(dropout))
        self.image = image
        if image != "none":
            self.to_k_ip = Linear(source, inner, bias=False)
            self.to_v_ip = Linear(source, inner, bias=False)
        if image == "learned":
            self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x: Float[Tensor, "n l d"], context: Context | None = None) -> Float[Tensor, "n l d"]:
        q = self.to_q(x)
        if context is None:
            return self.to_out(self._attend(q, self.to_k(x), self.to_v(x)))
        keys = context.kv_cache.get(self) or self.prepare(context)
        out = self._attend(q, *keys[:2])
        if len(keys) > 2:
            from_image = self._attend(q, *keys[2:])
            out = out + (from_image * (torch.tanh(self.alpha) + 1) if self.image == "learned" else from_image)
        return self.to_out(out)

    def prepare(self, context: Context) -> tuple[Tensor, ...]:
        """Keys and values of the text, then of the image tokens."""
        keys = (self.to_k(context.text), self.to_v(context.text))
        if context.image is None:
            return keys
        return *keys, self.to_k_ip(context.image), self.to_v_ip(context.image)

    def _attend(
        self, q: Float[Tensor, "n l hd"], k: Float[Tensor, "g m hd"], v: Float[Tensor, "g m hd"]
    ) -> Float[Tensor, "n l hd"]:
        """Attention in which the frames of a clip share k and v where these have fewer entries than q."""
        shape = q.shape
        q = split_heads(q.reshape(len(k), -1, shape[-1]), self.heads)
        k, v = split_heads(k, self.heads), split_heads(v, self.heads)
        return merge_heads(attend(q, k, v)).reshape(shape)


class RelativePosition(nn.Module):
    """A vector per distance j - i (key index minus query index), clipped to +-reach (Shaw et al. 2018)."""

    def __init__(self, dim_head: int, reach: int):
        super().__init__()
        self.reach = reach
        self.embeddings_table = nn.Parameter(torch.empty(2 * reach + 1, dim_head))
        if not self.embeddings_table.is_meta:
            nn.init.xavier_uniform_(self.embeddings_table)

    def forward(self, frames: int) -> Float[Tensor, "t t d"]:
        """(frames, frames, dim_head)."""
        index = torch.arange(frames, device=self.embeddings_table.device)
        distance = (index[None, :] - index[:, None]).clamp(-self.reach, self.reach)
        return self.embeddings_table[distance + self.reach]


class TemporalAttention(nn.Module):
    """Self-attention over the frames of one cell, x (B*h*w, T, D); optionally causal, optionally with
    relative positions.

    scores_ij = (q_i k_j + q_i r^k_(j-i)) / sqrt d;  out_i = sum_j softmax_j (v_j + r^v_(j-i)).
    """

    def __init__(
        self, width: int, heads: int, dim_head: int, dropout: float, causal: bool, reach: int | None
    ):
        super().__init__()
        inner = heads * dim_head
        self.heads, self.causal = heads, causal
        self.to_q = Linear(width, inner, bias=False)
        self.to_k = Linear(width, inner, bias=False)
        self.to_v = Linear(width, inner, bias=False)
        self.to_out = nn.Sequential(Linear(inner, width), nn.Dropout(dropout))
        self.relative = reach is not None
        if reach is not None:
            self.relative_position_k = RelativePosition(dim_head, reach)
            self.relative_position_v = RelativePosition(dim_head, reach)

    def forward(self, x: Float[Tensor, "m t d"], context: None = None) -> Float[Tensor, "m t d"]:
        q, k, v = (split_heads(part(x), self.heads) for part in (self.to_q, self.to_k, self.to_v))
        out = self._relative(q, k, v) if self.relative else attend(q, k, v, self.causal)
        return self.to_out(merge_heads(out))

    def _relative(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        frames, scale = q.shape[2], q.shape[3] ** -0.5
        by_key = torch.einsum("bhid,bhjd->bhij", q, k)
        by_distance = torch.einsum("bhid,ijd->bhij", q, self.relative_position_k(frames))
        scores = (by_key + by_distance).float() * scale
        if self.causal:
            future = torch.ones(frames, frames, dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(future, -torch.finfo(scores.dtype).max)
        p = scores.softmax(-1).to(v.dtype)
        return p @ v + torch.einsum("bhij,ijd->bhid", p, self.relative_position_v(frames))


class GEGLU(nn.Module):
    """Gated linear unit value * gelu(gate), where `proj` makes both. In place without gradients: these are
    the largest tensors of a step."""

    def __init__(self, width_in: int, width_out: int):
        super().__init__()
        self.proj = SplitLinear(width_in, 2 * width_out)

    def forward(self, x: Float[Tensor, "b l d_in"]) -> Float[Tensor, "b l d_out"]:
        if torch.is_grad_enabled() or not isinstance(self.proj, SplitLinear):  # LoRA may stand in its place
            value, gate = self.proj(x).chunk(2, dim=-1)
            return F.gelu(gate).mul_(value)
        value, gate = self.proj(x, parts=2)
        return torch.ops.aten.gelu_(gate).mul_(value)


class FeedForward(nn.Module):
    """GEGLU, dropout, Linear; four times as wide inside."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.net = nn.Sequential(GEGLU(width, 4 * width), nn.Dropout(dropout), Linear(4 * width, width))

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        return self.net(x)


class LayerNorm(nn.LayerNorm):
    """Statistics in x's precision; the result in the parameters' where that is 16 bits."""

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        if self.weight.dtype not in HALVES:
            return super().forward(x)
        y = F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return y.to(self.weight.dtype)


class Block(nn.Module):
    """Pre-norm: x + attn1(x), x + attn2(x, context), x + ff(x)."""

    def __init__(self, width: int, attn1: nn.Module, attn2: nn.Module, dropout: float):
        super().__init__()
        self.attn1, self.attn2 = attn1, attn2
        self.ff = FeedForward(width, dropout)
        self.norm1, self.norm2, self.norm3 = (LayerNorm(width) for _ in range(3))

    def forward(self, x: Float[Tensor, "b l d"], context: Context | None = None) -> Float[Tensor, "b l d"]:
        x = x + self.attn1(self.norm1(x))
        x = x if context is None else context.repeat_for_branches(x)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class PositionTable(nn.Module):
    """x (N, T, D) + pe[:T], pe[p] = sin and cos of p / 10000^(2 i / D), interleaved; checkpoints store it."""

    def __init__(self, length: int, width: int):
        super().__init__()
        position = torch.arange(length)[:, None]
        rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
        waves = torch.stack([torch.sin(position * rate), torch.cos(position * rate)], dim=-1)
        self.register_buffer("pe", waves.flatten(1)[None])

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        return x + self.pe[:, : x.shape[1]].to(x.dtype)


class MotionBlock(Block):
    """A Block over frames with positions: x + attn1(norm1 x + pe), x + attn2(norm2 x + pe), x + ff."""

    def __init__(self, width: int, attn1: nn.Module, attn2: nn.Module, dropout: float, length: int):
        super().__init__(width, attn1, attn2, dropout)
        self.pos_embed = PositionTable(length, width)

    def forward(self, x: Float[Tensor, "n t d"], context: None = None) -> Float[Tensor, "n t d"]:
        x = x + self.attn1(self.pos_embed(self.norm1(x)))
        x = x + self.attn2(self.pos_embed(self.norm2(x)))
        return x + self.ff(self.norm3(x))


def zeroed(module: nn.Module) -> nn.Module:
    """Set the parameters to zero, so that a residual branch which ends here begins as zero; returns the
    module."""
    for parameter in module.parameters():
        if not parameter.is_meta:
            nn.init.zeros_(parameter)
    return module


def _project(use_linear: bool, convolution: type[nn.Module], width_in: int, width_out: int) -> nn.Module:
    return Linear(width_in, width_out) if use_linear else convolution(width_in, width_out, 1)


class SpatialTransformer(nn.Module):
    """x (N, C, h, w) + proj_out(blocks(proj_in(norm x))), each frame by itself, with text and image
    tokens."""

    def __init__(self, spec: UNetSpec, width: int):
        super().__init__()
        heads, dim_head = spec.heads(width)
        inner, drop = heads * dim_head, 0.0  # the released transformers never receive the dropout rate
        image = "none"
        if spec.image_cross_attention:
            image = "learned" if spec.image_cross_attention_scale_learnable else "fixed"
        self.use_linear = spec.use_linear
        self.norm = GroupNorm(width, eps=1e-6)
        self.proj_in = _project(spec.use_linear, nn.Conv2d, width, inner)
        self.transformer_blocks = nn.ModuleList(
            Block(
                inner,
                SpatialAttention(inner, None, heads, dim_head, drop),
                SpatialAttention(inner, spec.context_dim, heads, dim_head, drop, image),
                drop,
            )
            for _ in range(spec.transformer_depth)
        )
        self.proj_out = zeroed(_project(spec.use_linear, nn.Conv2d, inner, width))

    def forward(self, x: Float[Tensor, "n c h w"], context: Context) -> Float[Tensor, "n c h w"]:
        height, y = x.shape[2], self.norm(x)
        y = y if self.use_linear else self.proj_in(y)
        y = rearrange(y, "n c h w -> n (h w) c")
        y = (self.proj_in(y) if self.use_linear else y).to(x.dtype)
        for block in self.transformer_blocks:
            y = block(y, context)
        y = y.to(self.proj_out.weight.dtype)
        y = self.proj_out(y) if self.use_linear else y
        y = rearrange(y, "n (h w) c -> n c h w", h=height)
        return context.repeat_for_branches(x) + (y if self.use_linear else self.proj_out(y))


class TemporalTransformer(nn.Module):
    """x (B, C, T, h, w) + proj_out(blocks(proj_in(norm x))), each cell by itself, over its frames.

    With the adapter, after proj_in and before the blocks: y <- cc_projection(concat(y, adapter_embedding)),
    where frame t of every cell meets vector t of the context's embedding (B, T, adapter_width).
    positions: length of a table of positions, for a motion module.
    """

    def __init__(
        self,
        spec: UNetSpec,
        width: int,
        heads: int,
        dim_head: int,
        use_linear: bool,
        causal: bool,
        positions: int | None = None,
    ):
        super().__init__()
        inner, drop = heads * dim_head, 0.0
        reach = spec.temporal_length if spec.use_relative_position else None
        block = Block if positions is None else partial(MotionBlock, length=positions)
        self.use_linear, self.has_adapter = use_linear, not spec.temporal_selfatt_only
        self.norm = GroupNorm(width, eps=1e-6)
        self.proj_in = _project(use_linear, nn.Conv1d, width, inner)
        if self.has_adapter:
            self.cc_projection = JoinedLinear(spec.adapter_width + inner, inner)
        self.transformer_blocks = nn.ModuleList(
            block(
                inner,
                TemporalAttention(inner, heads, dim_head, drop, causal, reach),
                TemporalAttention(inner, heads, dim_head, drop, causal, reach),
                drop,
            )
            for _ in range(spec.transformer_depth)
        )
        self.proj_out = zeroed(_project(use_linear, nn.Conv1d, inner, width))

    def forward(
        self, x: Float[Tensor, "b c t h w"], context: Context | None = None
    ) -> Float[Tensor, "b c t h w"]:
        b, _, _, h, w = x.shape
        y = rearrange(self.norm(x), "b c t h w -> (b h w) t c")
        y = self._project(self.proj_in, y)
        if self.has_adapter:
            y = self._with_adapter(y, context, h, w)
        y = y.to(x.dtype)
        for block in self.transformer_blocks:
            y = block(y)
        y = self._project(self.proj_out, y.to(self.proj_out.weight.dtype))
        return x + rearrange(y, "(b h w) t c -> b c t h w", b=b, h=h, w=w)

    def _project(self, layer: nn.Module, y: Float[Tensor, "m t c"]) -> Float[Tensor, "m t d"]:
        return layer(y) if self.use_linear else layer(y.transpose(1, 2)).transpose(1, 2)

    def prepare(self, context: Context) -> tuple[Tensor, ...]:
        """The adapter's part of cc_projection, (B, 1, T, inner); () where that layer is not a plain one."""
        if not isinstance(self.cc_projection, JoinedLinear):
            return ()
        return (self.cc_projection(context.adapter_embedding, part="adapter")[:, None],)

    def _with_adapter(
        self, y: Float[Tensor, "m t c"], context: Context, h: int, w: int
    ) -> Float[Tensor, "m t c"]:
        if cached := context.kv_cache.get(self):
            y = self.cc_projection(y, part="y")
            return (y.unflatten(0, (-1, h * w)) + cached[0]).flatten(0, 1)
        embedding = repeat(context.adapter_embedding, "b t d -> (b h w) t d", h=h, w=w)
        return self.cc_projection(torch.cat([y, embedding.to(y.dtype)], dim=-1))
