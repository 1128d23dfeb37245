"""Sines and cosines of positions (Vaswani et al. 2017; rotary: Su et al. 2021), and tables over a grid."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def angles(place: Float[Tensor, " n"], width: int) -> Float[Tensor, "n half"]:
    """place x 10000^(-2 i / width), i < width / 2, in float64."""
    rates = 10_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    return place.double()[:, None] * rates


def waves(place: Float[Tensor, " n"], width: int) -> Float[Tensor, "n width"]:
    """The sines of `angles`, then the cosines, in float64."""
    of_place = angles(place, width)
    return torch.cat([of_place.sin(), of_place.cos()], dim=-1)


def over_grid(*axes: Float[Tensor, "n d"]) -> Float[Tensor, "places d_all"]:
    """One row for every place of a grid, the last axis running fastest: what the axes have for it, joined."""
    shape, parts = [len(axis) for axis in axes], []
    for number, axis in enumerate(axes):
        ones = [len(axis) if number == k else 1 for k in range(len(axes))]
        parts.append(axis.reshape(*ones, -1).expand(*shape, -1))
    return torch.cat(parts, dim=-1).flatten(0, -2)
