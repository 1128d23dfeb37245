"""Clips of the sprites world as tensors for training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from edg.core.errors import require
from edg.data.batches import TensorTable
from edg.data.kinds import OpenCache, SampleType, TrainingRun, TrainingSpec
from edg.sprites.world import FPS, Motion, SpriteClip, caption, clips, draw_sprite, render, words_of

MAX_CLIPS = 10**7  # they are drawn into memory


@dataclass(frozen=True)
class SpritesData:
    """Training data of the sprites world, drawn from the run's seed.

    split: clips of a split of world.SPEEDS, or single frames ("stills").
    count: number of clips or frames.
    focus: weight of the error on the shape (or on its way).
    """

    kind: str
    split: Literal["base", "tuned", "tuned_equal", "tuned_fast", "stills"]
    count: int
    focus: float = 1.0

    changes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(1 <= self.count <= MAX_CLIPS, f"data.count is {self.count}", f"1 to {MAX_CLIPS:,}")
        require(0 < self.focus <= 1e6, f"data.focus is {self.focus}", "above 0, at most 1e6")

    @property
    def sample_type(self) -> SampleType:
        return "frames" if self.split == "stills" else "clips"

    def open(self, run: TrainingRun, spec: TrainingSpec, open_cache: OpenCache) -> TensorTable:
        if self.split == "stills":
            return TensorTable(stills(run.seed, self.count, self.focus))
        drawn = clip_tensors(list(clips(self.split, run.seed, self.count)), self.split)
        weight = latent_weight(drawn.pop("cover"), spec.latent_factor, self.focus)
        return TensorTable({**drawn, "weight": weight, "fps": torch.full((self.count,), FPS)})


def stills(seed: int, count: int, shape_weight: float = 1.0) -> dict[str, Tensor]:
    """Single frames for the autoencoder: frames (N, 3, H, W) in [-1, 1] and weight (N, 1, H, W), which is
    `shape_weight` on the shape and 1 on the background."""
    frames, weights = [], []
    for k in range(count):
        sprite = draw_sprite(np.random.default_rng([seed, 4, k]))
        pixels, cover = render(SpriteClip(sprite, Motion("left", 0.0), 1))
        frames.append(pixels[0])
        weights.append(1 + (shape_weight - 1) * cover[0])
    x = torch.from_numpy(np.stack(frames)) * 2 - 1
    return {
        "frames": rearrange(x, "n h w c -> n c h w").contiguous(),
        "weight": torch.from_numpy(np.stack(weights))[:, None],
    }


def clip_tensors(clips: Sequence[SpriteClip], split: str) -> dict[str, Tensor | list[str]]:
    """frames (N, 3, T, H, W) in [-1, 1], cover (N, T, H, W) in [0, 1], caption: N strings."""
    drawn = [render(clip) for clip in clips]
    frames = torch.from_numpy(np.stack([f for f, _ in drawn])) * 2 - 1
    return {
        "frames": rearrange(frames, "n t h w c -> n c t h w").contiguous(),
        "cover": torch.from_numpy(np.stack([c for _, c in drawn])),
        "caption": [caption(words_of(clip, split)) for clip in clips],
    }


def latent_weight(cover: Tensor, factor: int, focus: float) -> Tensor:
    """Weight of every latent cell's error: 1, and `focus` where the shape is on any frame of the clip; its
    mean is 1.

    cover (N, T, H, W) in [0, 1] -> (N, 1, T, H/factor, W/factor).
    """
    touched = torch.nn.functional.max_pool2d(cover.amax(dim=1, keepdim=True), factor)
    weight = 1 + (focus - 1) * touched
    weight = weight / weight.mean(dim=(1, 2, 3), keepdim=True)
    return weight[:, :, None].expand(-1, -1, cover.shape[1], -1, -1).contiguous()


def psnr_on_shape(decoded: Tensor, frames: Tensor, cover: Tensor) -> float:
    """PSNR in dB (peak 1, values in [0, 1]) over the pixels the shape covers at least half.

    decoded, frames: (N, 3, H, W) in [-1, 1]; cover (N, H, W).
    """
    inside = (cover >= 0.5)[:, None].expand_as(frames)
    error = ((decoded.clamp(-1, 1) - frames) / 2)[inside]
    return float(-10 * torch.log10(error.square().mean()))
