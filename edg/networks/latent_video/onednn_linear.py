"""Linear layers of the denoiser, by oneDNN on a CPU.

PyTorch multiplies float32 matrices with MKL, which on AMD's processors is slower than oneDNN: that comes
with PyTorch too, and uses AVX-512 there (`python bench/step.py`; not measured on Intel's). With gradients,
MKL stays.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, library, nn
from torch.utils.flop_counter import flop_registry, register_flop_formula

ONEDNN = torch.backends.mkl.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
MIN_ELEMENTS = 2**14  # of a weight; below, a call costs more than it saves


def linear(
    x: Float[Tensor, "... d_in"], weight: Float[Tensor, "d d_in"], bias: Float[Tensor, " d"] | None = None
) -> Float[Tensor, "... d"]:
    """W x + b."""
    if not goes_to_onednn(x, weight):
        return F.linear(x, weight, bias)
    multiply = by_onednn_compiled if torch.compiler.is_compiling() else by_onednn
    return multiply(x, weight, bias)


def goes_to_onednn(x: Tensor, weight: Tensor) -> bool:
    on_cpu = x.device.type == weight.device.type == "cpu"
    full = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    wanted = ONEDNN and torch.backends.mkldnn.enabled and weight.numel() >= MIN_ELEMENTS
    return on_cpu and full and wanted and not torch.is_grad_enabled()


def by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    bias = None if bias is None else bias.contiguous()  # its strides are not looked at
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@library.custom_op("edg::linear", mutates_args=(), device_types="cpu")
def by_onednn_compiled(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Linear layer that torch.compile does not look into: it would take the weight for a constant."""
    return by_onednn(x, weight, bias)


@by_onednn_compiled.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


if ONEDNN and torch.ops.mkldnn._linear_pointwise not in flop_registry:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _(x_shape: torch.Size, weight_shape: torch.Size, *_: object, **__: object) -> int:
        return 2 * x_shape.numel() * weight_shape[0]


class Linear(nn.Linear):
    """W x + b."""

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d"]:
        return linear(x, self.weight, self.bias)


class SplitLinear(Linear):
    """W x + b; with `parts`, the features divided among so many tensors."""

    def forward(self, x: Float[Tensor, "... d_in"], parts: int = 1) -> Tensor | tuple[Tensor, ...]:
        if parts == 1:
            return super().forward(x)
        cut = zip(self.weight.chunk(parts), self.bias.chunk(parts), strict=True)
        return tuple(linear(x, weight, bias) for weight, bias in cut)


class JoinedLinear(Linear):
    """W concat(y, embedding) + b, where W's first out_features columns are y's. part "y" is without b,
    "adapter" with it: both add up to the whole."""

    def forward(self, x: Float[Tensor, "... d_in"], part: str = "both") -> Float[Tensor, "... d"]:
        if part == "both":
            return super().forward(x)
        of_y, of_embedding = self.weight.tensor_split([self.out_features], dim=1)
        return linear(x, of_y) if part == "y" else linear(x.to(self.weight.dtype), of_embedding, self.bias)
