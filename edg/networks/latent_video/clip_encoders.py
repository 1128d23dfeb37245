"""Text and image towers (OpenCLIP) and the projection of image tokens. The only module that imports
open_clip.

The towers are built from open_clip's classes without any download: their weights are part of the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from types import ModuleType

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from edg.core.errors import MachineError
from edg.core.process import stopping
from edg.networks.latent_video.attention import attend, merge_heads, split_heads
from edg.networks.latent_video.spec import ClipModelSpec, ImageSpec, ResamplerSpec, TextSpec

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
TOKENISED = 3072  # characters of a prompt: more than 75 of the longest tokens have


@cache
def open_clip() -> ModuleType:
    """The open_clip package. Raises MachineError when it is absent or torch and torchvision do not belong
    together."""
    try:
        with stopping.at_once():
            import open_clip as package
    except ImportError as error:
        raise MachineError(
            f"open_clip cannot be imported ({error})", fix="pip install open_clip_torch"
        ) from error
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        raise MachineError(
            "torch and torchvision come from different indexes (operator torchvision::nms does not exist)",
            expected="both from PyPI, or both from PyTorch's own index",
            fix="pip uninstall -y torch torchvision\npip install torch torchvision",
        ) from error
    return package


def _clip(spec: ClipModelSpec) -> nn.Module:
    vision, text = spec.vision, spec.text
    model = open_clip().CLIP(
        embed_dim=spec.embed_dim,
        vision_cfg={
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "width": vision.width,
            "layers": vision.layers,
            "head_width": vision.head_width,
            "mlp_ratio": vision.mlp_ratio,
        },
        text_cfg={
            "context_length": text.context_length,
            "vocab_size": text.vocab_size,
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
            "mlp_ratio": text.mlp_ratio,
        },
        quick_gelu=spec.quick_gelu,
    )
    assert model.visual.transformer.batch_first, "blocks are called with (batch, tokens, width)"
    del model.attn_mask  # made anew in every call: a buffer that no checkpoint holds would stay on meta
    return model


class TextEncoder(nn.Module):
    """Prompts -> (B, L, D) token features of CLIP's text tower, after ln_final, without pooling or
    projection."""

    def __init__(self, spec: TextSpec):
        super().__init__()
        self.spec = spec
        self.model = _clip(spec.clip)
        del self.model.visual

    def tokenize(self, prompts: Sequence[str]) -> Int[Tensor, "b l"]:
        """(B, context_length) int64, padded as the spec says; longer prompts are cut and end with the end
        token, see `lost_text`."""
        tokens = open_clip().tokenizer.SimpleTokenizer.__call__(
            _tokenizer(),
            [_head(prompt)[0] for prompt in prompts],
            context_length=self.spec.clip.text.context_length,
        )
        if self.spec.pad == "zero":
            return tokens
        length = (tokens == _tokenizer().eot_token_id).int().argmax(dim=1, keepdim=True)
        behind = torch.arange(tokens.shape[1]) > length
        return tokens.masked_fill(behind, _tokenizer().eot_token_id)

    def forward(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        """tokens (B, L) -> features (B, L, width)."""
        clip = self.model
        x = clip.token_embedding(tokens) + clip.positional_embedding
        length = tokens.shape[1]
        causal = torch.full((length, length), -math.inf, device=x.device, dtype=x.dtype).triu(1)
        blocks = clip.transformer.resblocks
        for block in blocks[: len(blocks) - (self.spec.layer == "penultimate")]:
            x = block(x, attn_mask=causal)
        return clip.ln_final(x)

    def encode(self, prompts: Sequence[str]) -> Float[Tensor, "b l d"]:
        return self(self.tokenize(prompts).to(self.model.positional_embedding.device))


@cache
def _tokenizer():
    return open_clip().tokenizer.SimpleTokenizer()


def _head(prompt: str) -> tuple[str, str]:
    """(what is tokenised of a prompt, the rest): all of it and nothing, unless it is longer than any context.
    The time that a word takes grows with the square of its length."""
    if len(prompt) <= TOKENISED:
        return prompt, ""
    text = " ".join(prompt.split())
    head = text[:TOKENISED].rstrip()
    return head, text[len(head) :]


def lost_text(prompt: str, spec: TextSpec) -> str:
    """The end of a prompt that `tokenize` cuts off, as its tokens spell it; "" where all of it is read.

    A start and an end token stand around the prompt's: 75 fit into CLIP's context of 77.
    """
    room = spec.clip.text.context_length - 2
    if len(prompt) <= room and prompt.isascii() and "&" not in prompt:  # a letter is one token at most
        return ""
    head, rest = _head(prompt)
    lost = _tokenizer().encode(head)[room:]
    return _tokenizer().decode(lost).strip() + rest if lost or rest else ""


def cut_warning(what: str, lost: str, spec: TextSpec) -> str:
    """A warning that the end of a text is cut off, "" if nothing is. what: the kind of text, "the prompt"."""
    if not lost:
        return ""
    return f"{what} is longer than {spec.clip.text.context_length} tokens; lost: {_shown(lost)}"


def cut_remarks(texts: Sequence[str], spec: TextSpec, what: str) -> list[str]:
    """A warning with the number of texts that are cut off and an example; empty if none is. what: the kind
    of texts, in the plural ("captions"). Equal texts count each."""
    lost = [lost_text(text, spec) for text in texts]
    cut = [place for place, text in enumerate(lost) if text]
    if not cut:
        return []
    first, length = cut[0], spec.clip.text.context_length
    return [
        f"{len(cut)} of {len(texts)} {what} are longer than {length} tokens, so the end is not used; first "
        f"{_shown(texts[first], 60)}; lost: {_shown(lost[first])}"
    ]


def _shown(text: str, most: int = 200) -> str:
    """A text in quotes, of a longer one its beginning and its end."""
    half = most // 2
    return repr(text if len(text) <= most else f"{text[:half]} ... {text[-half:]}")


def blur_before_shrinking(
    image: Float[Tensor, "b c h w"], height: int, width: int
) -> Float[Tensor, "b c h w"]:
    """The Gaussian that precedes a resize of (B, C, H, W) to (height, width): none unless some side shrinks.

    Per side: factor f = size / new size, sigma = max((f - 1) / 2, 0.001), an odd kernel of about 4 sigma, at
    least 3.
    """
    factors = (image.shape[2] / height, image.shape[3] / width)
    if max(factors) <= 1:
        return image
    for axis, factor in zip((2, 3), factors, strict=True):
        sigma = max((factor - 1) / 2, 0.001)
        size = int(max(4 * sigma, 3)) | 1
        offset = torch.arange(size, device=image.device, dtype=image.dtype) - size // 2
        kernel = torch.exp(-(offset**2) / (2 * sigma**2))
        kernel = (kernel / kernel.sum()).view(1, 1, *((size, 1) if axis == 2 else (1, size)))
        side = size // 2
        padded = F.pad(image, (0, 0, side, side) if axis == 2 else (side, side, 0, 0), mode="reflect")
        channels = image.shape[1]
        image = F.conv2d(padded, kernel.expand(channels, 1, -1, -1), groups=channels)
    return image


class ImageEncoder(nn.Module):
    """Images -> (B, 1 + grid^2, width) tokens of CLIP's image tower, class token first, no ln_post, no
    projection."""

    def __init__(self, spec: ImageSpec):
        super().__init__()
        self.spec = spec
        self.model = _clip(spec.clip)
        del self.model.transformer

    def preprocess(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 size size"]:
        """(B, 3, H, W) in [-1, 1] -> CLIP's input (B, 3, S, S), float32: squeezed to a square, normalised."""
        size = self.spec.clip.vision.image_size
        x = blur_before_shrinking(image.float(), size, size)
        x = F.interpolate(x, (size, size), mode="bicubic", align_corners=True)
        mean, std = (x.new_tensor(values).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
        return ((x + 1) / 2 - mean) / std

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b l d"]:
        """image (B, 3, H, W) in [-1, 1]."""
        visual = self.model.visual
        patches = visual.conv1(self.preprocess(image).to(visual.conv1.weight.dtype))
        tokens = rearrange(patches, "b d h w -> b (h w) d")
        first = visual.class_embedding.expand(len(tokens), 1, -1)
        x = visual.ln_pre(torch.cat([first, tokens], dim=1) + visual.positional_embedding)
        for block in visual.transformer.resblocks:
            x = block(x)
        return x


class PerceiverAttention(nn.Module):
    """Latents (B, Q, D) attend to the image tokens and to themselves."""

    def __init__(self, dim: int, heads: int, dim_head: int):
        super().__init__()
        inner = heads * dim_head
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Float[Tensor, "b l d"], latents: Float[Tensor, "b q d"]) -> Float[Tensor, "b q d"]:
        x, latents = self.norm1(x), self.norm2(latents)
        k, v = self.to_kv(torch.cat([x, latents], dim=1)).chunk(2, dim=-1)
        q, k, v = (split_heads(part, self.heads) for part in (self.to_q(latents), k, v))
        return self.to_out(merge_heads(attend(q, k, v)))


class ImageProjector(nn.Module):
    """Image tokens (B, L, embedding_dim) -> context tokens (B, num_queries * video_length, output_dim).

    A Perceiver resampler (Alayrac et al. 2022): learned latents, `depth` x (attention, feed-forward), each
    residual.
    """

    def __init__(self, spec: ResamplerSpec):
        super().__init__()
        self.spec = spec
        dim, hidden = spec.dim, int(spec.dim * spec.ff_mult)
        self.latents = nn.Parameter(
            torch.randn(1, spec.num_queries * (spec.video_length or 1), dim) / dim**0.5
        )
        self.proj_in = nn.Linear(spec.embedding_dim, dim)
        self.proj_out = nn.Linear(dim, spec.output_dim)
        self.norm_out = nn.LayerNorm(spec.output_dim)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PerceiverAttention(dim, spec.heads, spec.dim_head),
                    nn.Sequential(
                        nn.LayerNorm(dim),
                        nn.Linear(dim, hidden, bias=False),
                        nn.GELU(),
                        nn.Linear(hidden, dim, bias=False),
                    ),
                ]
            )
            for _ in range(spec.depth)
        )

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b q d_out"]:
        x = self.proj_in(x)
        latents = self.latents.expand(len(x), -1, -1)
        for attention, feed_forward in self.layers:
            latents = latents + attention(x, latents)
            latents = latents + feed_forward(latents)
        return self.norm_out(self.proj_out(latents))
