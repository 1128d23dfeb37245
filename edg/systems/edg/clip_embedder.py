"""Texts and pictures in the space that CLIP's two towers share: for metrics, no part of sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from edg.networks.latent_video.clip_encoders import ImageEncoder, TextEncoder, cut_remarks
from edg.networks.latent_video.load import build, canonical, check, tower_tensor, with_adapter_of
from edg.networks.latent_video.spec import ModelSpec

AT_ONCE = 16


class Towers(nn.Module):
    """The text and image towers of a checkpoint. note: why cosines of a text and a picture mean nothing here,
    "" where they do."""

    def __init__(self, text: TextEncoder, image: ImageEncoder, note: str = ""):
        super().__init__()
        self.cond_stage_model, self.embedder, self.note = text, image, note

    @torch.inference_mode()
    def embed_text(self, prompts: Sequence[str]) -> np.ndarray:
        """(B, D) float32 of length 1: CLIP's text feature, from all blocks, whichever of them the model's
        context takes."""
        clip = self.cond_stage_model.model
        tokens = self.cond_stage_model.tokenize(prompts).to(clip.positional_embedding.device)
        x = clip.token_embedding(tokens) + clip.positional_embedding
        causal = torch.full((x.shape[1],) * 2, -torch.inf, device=x.device, dtype=x.dtype).triu(1)
        for block in clip.transformer.resblocks:
            x = block(x, attn_mask=causal)
        ends = clip.ln_final(x)[torch.arange(len(x)), tokens.argmax(dim=-1)]
        return _unit(ends @ clip.text_projection)

    def text_remarks(self, prompts: Sequence[str]) -> list[str]:
        """A line on how many prompts are longer than the text tower reads."""
        return cut_remarks(prompts, self.cond_stage_model.spec, "prompts")

    @torch.inference_mode()
    def embed_image(self, frames: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, 3) -> (B, D) float32 of length 1: CLIP's image feature; pictures are squeezed to a
        square as the model's own context has them."""
        visual, found = self.embedder.model.visual, []
        for part in torch.from_numpy(np.ascontiguousarray(frames)).split(AT_ONCE):
            pixels = rearrange(part, "b h w c -> b c h w").to(visual.proj.device).float() / 127.5 - 1
            found.append(visual.ln_post(self.embedder(pixels)[:, 0]) @ visual.proj)
        return _unit(torch.cat(found))


def _unit(x: Tensor) -> np.ndarray:
    return F.normalize(x.float(), dim=-1).cpu().numpy()


@torch.no_grad()
def load_towers(spec: ModelSpec, weights: Mapping[str, Any], device: Any = "cpu") -> Towers:
    """The towers alone, float32; no other tensor is read. Raises BadFileError when `weights` is not a
    complete parameter set of the spec."""
    model = build(with_adapter_of(spec, [weights]))
    check(model, weights)
    names = canonical(weights)
    drawn = spec.towers_seed is not None and not any(n.startswith("cond_stage_model.") for n in names)
    towers = Towers(
        model.cond_stage_model, model.embedder, "the towers of this model are random" if drawn else ""
    )
    towers.to_empty(device=device).requires_grad_(False)
    for name, target in towers.state_dict().items():
        stored = tower_tensor(spec.towers_seed, name, tuple(target.shape)) if drawn else weights[names[name]]
        target.copy_(stored)
    return towers.eval()
