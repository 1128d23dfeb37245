"""Losses that compare the motion of two clips by a network's own features: Attention Motion Flow (DiTFlow,
Pondaven et al. 2025), motion features (MOFT, Xiao et al. 2024), space-time features (SMM, Yatim et al. 2024).

Sites are the S = H W tokens of a frame, row by row; displacements are (dx, dy) in tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

#: Displacement of every site s of frame i in frame j, at index i F + j.
MotionFlow = Float[Tensor, "pairs sites 2"]
#: Hidden states of the video tokens after a block.
Features = Float[Tensor, "f d h w"]
SMALLEST = 1e-8  # length of a vector in a cosine


@dataclass(frozen=True)
class Grid:
    """Video tokens: frames of height x width sites."""

    frames: int
    height: int
    width: int

    @property
    def sites(self) -> int:
        return self.height * self.width

    def positions(self, like: Tensor) -> Float[Tensor, "sites 2"]:
        """(x, y) of every site, in the dtype and on the device of `like`."""
        site = torch.arange(self.sites, device=like.device)
        return torch.stack([site % self.width, site // self.width], dim=-1).to(like.dtype)


def mean_logits(q: Float[Tensor, "heads n d"], k: Float[Tensor, "heads n d"]) -> Float[Tensor, "n n"]:
    """Mean over heads of q k^T / sqrt(d), in float32, as one matrix product over all heads' channels."""
    heads, _, d = q.shape
    joined_q, joined_k = (rearrange(x.float(), "heads n d -> n (heads d)") for x in (q, k))
    return joined_q @ joined_k.T / (heads * d**0.5)


def soft_flow(
    q: Float[Tensor, "heads n d"], k: Float[Tensor, "heads n d"], grid: Grid, temperature: float = 2.0
) -> MotionFlow:
    """Expected displacement under softmax(temperature x logits) over the sites of the other frame.

    q, k: of the video tokens, after norms and rotation. Differentiable; one query frame at a time.
    """
    return torch.cat([_soft_rows(q, k, grid, temperature, frame) for frame in range(grid.frames)])


def _soft_rows(q: Tensor, k: Tensor, grid: Grid, temperature: float, frame: int) -> MotionFlow:
    logits, at = _frame_logits(q, k, grid, frame), grid.positions(q.float())
    return (temperature * logits).softmax(dim=-1) @ at - at


def hard_flow(q: Float[Tensor, "heads n d"], k: Float[Tensor, "heads n d"], grid: Grid) -> MotionFlow:
    """Displacement to the site of the other frame with the largest logit, the first of equal ones."""
    at = grid.positions(q.float())
    best = [_frame_logits(q, k, grid, frame).argmax(dim=-1) for frame in range(grid.frames)]
    return at[torch.cat(best)] - at


def _frame_logits(q: Tensor, k: Tensor, grid: Grid, frame: int) -> Float[Tensor, "f sites sites"]:
    """Logits of the sites of one frame with those of every frame."""
    own = q[:, frame * grid.sites : (frame + 1) * grid.sites]
    return rearrange(mean_logits(own, k), "s (f other) -> f s other", f=grid.frames)


def moving(flow: MotionFlow) -> Bool[Tensor, "pairs sites"]:
    """True where a displacement is not 0."""
    return flow.norm(dim=-1) > 0


def flow_loss(generated: MotionFlow, reference: MotionFlow, masked: bool = True) -> Float[Tensor, ""]:
    """Mean squared difference over both components; masked: only where the reference moves, 0 where nothing
    does."""
    difference = (generated - reference) ** 2
    if masked:
        mask = moving(reference)
        return difference[mask].mean() if mask.any() else generated.sum() * 0
    return difference.mean()


# ---- MOFT --------------------------------------------------------------------------------------------------


def centred(features: Features) -> Features:
    """Features minus their mean over time."""
    return features - features.mean(dim=0, keepdim=True)


def first_direction(reference: Features) -> Float[Tensor, " d"]:
    """|v1|, v1 the first right singular vector of the centred reference, rows (frame, site)."""
    rows = rearrange(centred(reference), "f d h w -> (f h w) d")
    return torch.linalg.svd(rows, full_matrices=False).Vh[0].abs()


def motion_channels(reference: Features, share: float = 0.04) -> Int[Tensor, " channels"]:
    """The int(share D) channels, at least one, in which the reference moves most, ascending."""
    count = max(int(share * reference.shape[1]), 1)
    return first_direction(reference).topk(count).indices.sort().values


def moft_loss(
    generated: Features, reference: Features, channels: Int[Tensor, " channels"]
) -> Float[Tensor, ""]:
    """Mean over frames of 1 - mean over sites of the cosine over `channels` of both centred features."""
    ours, theirs = (centred(x)[:, channels] for x in (generated, reference))
    return (1 - F.cosine_similarity(ours, theirs, dim=1, eps=SMALLEST).mean(dim=(1, 2))).mean()


# ---- SMM ---------------------------------------------------------------------------------------------------


def smm_loss(
    generated: Features,
    reference: Features,
    variant: Literal["upstream", "released"] = "upstream",
    with_self: bool = False,
) -> Float[Tensor, ""]:
    """Compare how the mean over space changes between frames.

    upstream: mean over anchor frames a of 1 - mean over b of the cosine over channels of (m_gen[b] -
    m_gen[a], m_ref[b] - m_ref[a]); with_self: b = a too, which adds the constant 1 / F. released: the
    generated side is anchored at m_ref[a], and the cosine is over time, for each channel.
    """
    ours, theirs = (x.mean(dim=(2, 3)) for x in (generated, reference))  # (F, D)
    change = theirs[None] - theirs[:, None]  # (anchor, frame, D)
    if variant == "released":
        moved = ours[None] - theirs[:, None]
        return (1 - F.cosine_similarity(moved, change, dim=1, eps=SMALLEST).mean(dim=1)).mean()
    alike = F.cosine_similarity(ours[None] - ours[:, None], change, dim=2, eps=SMALLEST)
    if with_self:
        return (1 - alike.mean(dim=1)).mean()
    others = ~torch.eye(len(ours), dtype=torch.bool, device=ours.device)
    return 1 - alike[others].mean()
