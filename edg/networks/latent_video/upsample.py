"""Upsampling by two and a 3x3 convolution, as one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

MIN_CELLS = 1024  # of the input in all; below, fewer operations save no time
MIN_SIDE = 4  # cells of an edge of the input; below, the operations are not much fewer


class UpsampleConv2d(nn.Conv2d):
    """A 3x3 convolution after nearest-neighbour upsampling by two, in the dtype of its weight.

    In float32 on a CPU without gradients: 2x2 convolutions over the input as it is, with 4/9 (1 + 1/h) (1 +
    1/w) of the operations, the same but for rounding.
    """

    def __init__(self, width: int):
        super().__init__(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c 2*h 2*w"]:
        full = x.dtype == self.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        enough = min(x.shape[2:]) >= MIN_SIDE and x[:, 0].numel() >= MIN_CELLS
        if full and enough and x.device.type == "cpu" and not torch.is_grad_enabled():
            return self._by_phase(x)
        larger = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return super().forward(larger.to(self.weight.dtype))

    def _by_phase(self, x: Tensor) -> Tensor:
        """The four phases, even and odd rows and columns: of three neighbours at the larger size two were one
        cell, and the phase decides which two."""
        weights = _in_pairs(_in_pairs(self.weight, 2), 4)  # (column, row, d, c, 2, 2)
        y = F.conv2d(x, weights.flatten(0, 2), self.bias.repeat(4), padding=1).unflatten(1, (2, 2, -1))
        n, c, h, w = x.shape
        out = x.new_empty(n, c, h, 2, w, 2)
        for row in (0, 1):
            for column in (0, 1):
                out[:, :, :, row, :, column] = y[:, column, row, :, row : row + h, column : column + w]
        return out.view(n, c, 2 * h, 2 * w)


def _in_pairs(weight: Tensor, dim: int) -> Tensor:
    """The weights of three neighbours in `dim` as those of two cells: (2, ...), even and odd."""
    before, here, after = weight.unbind(dim)
    return torch.stack([torch.stack(two, dim) for two in ((before, here + after), (before + here, after))])
