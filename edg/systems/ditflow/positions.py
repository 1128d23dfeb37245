"""Position tables of CogVideoX: rotary (the large model) and additive (the small one)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from edg.diffusion.positions import angles, over_grid, waves
from edg.systems.ditflow.motion_losses import Grid

BASE = (30, 45)  # patches that the models were trained with
SPATIAL_SCALE = 1.875  # of the additive table


def rotary_table(grid: Grid, head_dim: int) -> Float[Tensor, "2 tokens head_dim"]:
    """(cos, sin) for every video token: a quarter of the channels by frame, 3/8 each by row and column.

    Rows and columns are placed where the grid fits, centred with its aspect kept, into BASE.
    """
    top, left, rows, columns = fitted(grid)
    at = [
        torch.arange(grid.frames, dtype=torch.float64),
        _places(top, top + rows, grid.height),
        _places(left, left + columns, grid.width),
    ]
    widths = (head_dim // 4, head_dim // 8 * 3, head_dim // 8 * 3)
    whole = over_grid(*(angles(place, width) for place, width in zip(at, widths, strict=True)))
    whole = whole.repeat_interleave(2, dim=-1)
    return torch.stack([whole.cos(), whole.sin()]).float()


def fitted(grid: Grid) -> tuple[int, int, int, int]:
    """(top, left, rows, columns) of the region of BASE that a grid of this aspect fills."""
    base_rows, base_columns = BASE
    if grid.height / grid.width > base_rows / base_columns:
        rows, columns = base_rows, round(base_rows / grid.height * grid.width)
    else:
        rows, columns = round(base_columns / grid.width * grid.height), base_columns
    return round((base_rows - rows) / 2), round((base_columns - columns) / 2), rows, columns


def _places(start: float, stop: float, count: int) -> Float[Tensor, " count"]:
    """`count` places from start on, equally spaced, stop left out."""
    return start + (stop - start) * torch.arange(count, dtype=torch.float64) / count


def rotate(
    x: Float[Tensor, "*batch tokens d"], cos: Float[Tensor, "tokens d"], sin: Float[Tensor, "tokens d"]
) -> Float[Tensor, "*batch tokens d"]:
    """Rotate neighbouring pairs of channels: (a, b) -> (a cos - b sin, b cos + a sin)."""
    turned = torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)
    return x * cos + turned * sin


def additive_table(grid: Grid, width: int) -> Float[Tensor, "tokens width"]:
    """Sines, then cosines: a quarter of the channels by frame, 3/8 by column, 3/8 by row."""
    frames = torch.arange(grid.frames, dtype=torch.float64)
    rows, columns = (torch.arange(n, dtype=torch.float64) / SPATIAL_SCALE for n in (grid.height, grid.width))
    spatial = width // 8 * 3
    t, y, x = waves(frames, width // 4), waves(rows, spatial), waves(columns, spatial)
    grids = over_grid(t, y, x).split([width // 4, spatial, spatial], dim=-1)
    return torch.cat([grids[0], grids[2], grids[1]], dim=-1).float()
