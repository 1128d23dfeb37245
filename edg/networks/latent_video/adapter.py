"""The text-to-temporal adapter (EDG, stage 1): one vector per frame from the prompt, for the temporal blocks.

Three parts in a checkpoint: `queries` (Q, width), `qformer.*` (one cross-attention), and a
`cc_projection` in every temporal transformer, which `attention.py` applies to concat(x, temporal_context).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from edg.networks.latent_video.attention import attend, merge_heads, split_heads
from edg.networks.latent_video.spec import AdapterSpec


class QFormer(nn.Module):
    """Cross-attention of the queries to the text: no norm, no residual."""

    def __init__(self, spec: AdapterSpec):
        super().__init__()
        self.heads = spec.heads
        inner = spec.heads * spec.dim_head
        self.to_q = nn.Linear(spec.width, inner, bias=False)
        self.to_k = nn.Linear(spec.context_dim, inner, bias=False)
        self.to_v = nn.Linear(spec.context_dim, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, spec.width), nn.Dropout(0.0))

    def forward(self, queries: Tensor, text_BLD: Tensor) -> Tensor:
        """queries (Q, width), text (B, L, context_dim) -> (B, Q, width)."""
        q = self.to_q(queries).expand(len(text_BLD), -1, -1)
        q, k, v = (split_heads(part, self.heads) for part in (q, self.to_k(text_BLD), self.to_v(text_BLD)))
        return self.to_out(merge_heads(attend(q, k, v)))


def over_frames(context_BQD: Tensor, frames: int) -> Tensor:
    """One vector per frame: the queries if there are as many, else linear between them (first frame the first
    query, last frame the last)."""
    if context_BQD.shape[1] == frames:
        return context_BQD
    by_channel = rearrange(context_BQD, "b q d -> b d q")
    return rearrange(
        F.interpolate(by_channel, size=frames, mode="linear", align_corners=True), "b d t -> b t d"
    )


@torch.no_grad()
def make_identity(cc_projection: nn.Linear) -> None:
    """Set the projection to [I | 0] without bias: x passes unchanged, the text has no effect."""
    weight = cc_projection.weight
    weight.zero_()
    weight[:, : len(weight)].fill_diagonal_(1.0)
    cc_projection.bias.zero_()


@torch.no_grad()
def begin(model: nn.Module, generator: torch.Generator) -> None:
    """Initialise the adapter for training: every cc_projection the identity, queries N(0, 1), the
    cross-attention random with scale fan_in^-1/2. The output is that of the model without adapter, and the
    columns of the text receive gradients."""
    for module in model.modules():
        if hasattr(module, "cc_projection"):
            make_identity(module.cc_projection)
    model.queries.copy_(torch.randn(model.queries.shape, generator=generator))
    for name, parameter in model.qformer.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        else:
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn / parameter.shape[1] ** 0.5)


@torch.no_grad()
def begin_released(model: nn.Module, generator: torch.Generator) -> None:
    """Initialise the adapter as the published code does: every linear layer, cc_projection too, with torch's
    default U(-b, b), b = fan_in^-1/2, and queries N(0, 1). The base model's output is lost at the first
    step."""
    model.queries.copy_(torch.randn(model.queries.shape, generator=generator))
    projections = [module.cc_projection for module in model.modules() if hasattr(module, "cc_projection")]
    linears = [module for module in model.qformer.modules() if isinstance(module, nn.Linear)]
    for layer in (*linears, *projections):
        bound = layer.in_features**-0.5
        for parameter in layer.parameters():
            parameter.copy_((2 * torch.rand(parameter.shape, generator=generator) - 1) * bound)
