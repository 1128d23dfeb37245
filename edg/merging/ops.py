"""The arithmetic of merging: pure functions of tensors. Masks, thresholds and signs come in as arguments.

P is the base, S a tuned model, S - P its task vector. `out` may be given to compute into existing memory
(merging runs over blocks of a million elements and allocates nothing per tensor); inputs are never changed.
Float32 rounding follows the order of the released EDG code, so results are bit-equal to it given the same
masks. Shapes are free: a whole tensor or a flattened block of it, except where a docstring says "whole
tensor".

Sources: task arithmetic, Ilharco et al. 2023; TIES, Yadav et al. 2023; DARE, Yu et al. 2024; EDG
(extrapolating and decoupling image-to-video models), CVPR 2025.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

#: All tensors of a call have one shape.
Values = Float[Tensor, "*shape"]
Mask = Bool[Tensor, "*shape"]


def keep_probability(drop_rate: float) -> float:
    return 1 - drop_rate


def needs_mask(ndim: int, keep: float, mask_scalars: bool = True) -> bool:
    """True if DARE masks a tensor of this many dimensions: never 1-d, 0-d only if mask_scalars."""
    return 0 < keep < 1 and ndim != 1 and (ndim != 0 or mask_scalars)


def dare(delta: Values, mask: Mask | None, keep: float, *, out: Values | None = None) -> Values:
    """Drop and rescale: (delta * mask) / keep. keep <= 0 gives zeros; keep >= 1 or no mask, delta."""
    if keep <= 0:
        return torch.zeros_like(delta) if out is None else out.zero_()
    if keep >= 1 or mask is None:
        return delta if out is None or out is delta else out.copy_(delta)
    return torch.mul(delta, mask, out=out).mul_(1 / keep)


def task_vector(tuned: Values, base: Values, *, out: Values | None = None) -> Values:
    """S - P."""
    return torch.sub(tuned, base, out=out)


def linear(tensors: Sequence[Values], weights: Sequence[float], *, out: Values | None = None) -> Values:
    """sum_i w_i x_i."""
    total = torch.mul(tensors[0], weights[0], out=out)
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total.add_(tensor * weight)
    return total


def average(tensors: Sequence[Values], *, out: Values | None = None) -> Values:
    """Arithmetic mean."""
    return linear(tensors, [1.0] * len(tensors), out=out).div_(len(tensors))


def extrapolate(base: Values, tuned: Values, alpha: float, *, out: Values | None = None) -> Values:
    """P + alpha (P - S): away from the tuned model for alpha > 0."""
    return torch.sub(base, tuned, out=out).mul_(alpha).add_(base)


def add_task_vectors(
    base: Values, deltas: Sequence[Values], scaling: float | Sequence[float], *, out: Values | None = None
) -> Values:
    """P + scaling * sum_i delta_i, or P + sum_i scaling_i delta_i when scaling is a sequence."""
    if isinstance(scaling, (int, float)):
        return linear(deltas, [1.0] * len(deltas), out=out).mul_(scaling).add_(base)
    return linear(deltas, list(scaling), out=out).add_(base)


def dynamic(
    base: Values,
    tuned: Values,
    mask: Mask | None,
    keep: float,
    alpha: float,
    beta: float,
    *,
    out: Values | None = None,
) -> Values:
    """EDG's dyn: P + beta * D(X - P) with X = P + alpha (P - S), D = DARE. Rounded through X as released."""
    degree = extrapolate(base, tuned, alpha, out=out).sub_(base)
    return dare(degree, mask, keep, out=degree).mul_(beta).add_(base)


def consistent(
    base: Values,
    tuned: Values,
    mask: Mask | None,
    keep: float,
    alpha: float,
    beta: float,
    *,
    anchored: bool = False,
    out: Values | None = None,
) -> Values:
    """EDG's con: alpha S + beta D(S - P) as released, or anchored: P + alpha (S - P) + beta D(S - P).

    Only when anchored is alpha a strength: as released it scales the whole network."""
    adapted = task_vector(tuned, base, out=out)
    adapted = dare(adapted, mask, keep, out=adapted).mul_(beta)
    if anchored:
        return adapted.add_((tuned - base).mul_(alpha)).add_(base)
    return adapted.add_(tuned if alpha == 1 else tuned * alpha)


def magnitude(tensor: Values, density: float) -> Values:
    """Keep the int(density * n) entries largest in size, without rescaling. Whole tensor; 1-d is unchanged.

    density >= 1 unchanged, <= 0 zeros. Memory: three copies of the tensor. Of equal sizes, the first are
    kept."""
    if density >= 1:
        return tensor
    if density <= 0:
        return torch.zeros_like(tensor)
    if tensor.ndim == 1:
        return tensor
    flat = tensor.reshape(-1)
    kept = flat.abs().sort(descending=True, stable=True).indices[: int(density * flat.numel())]
    return torch.zeros_like(flat).index_copy_(0, kept, flat[kept]).view(tensor.shape)


def svd_rank(tensor: Values, density: float | None = None, rank: int | None = None) -> Values:
    """Truncation to `rank`, or to rank int(density * min(shape)). Whole tensor; 0-d and 1-d are unchanged.

    density >= 1 unchanged, <= 0 zeros. More than two dimensions are taken as (first, all others). Costs a
    full singular value decomposition: minutes for the largest layers of a full-size model.
    """
    if rank is None and (density is None or density >= 1):
        return tensor
    if rank is None and density <= 0:
        return torch.zeros_like(tensor)
    if tensor.ndim < 2:
        return tensor
    matrix = tensor.reshape(tensor.shape[0], -1)
    rank = int(density * min(matrix.shape)) if rank is None else rank
    if rank >= min(matrix.shape):
        return tensor
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return ((u[:, :rank] * s[:rank]) @ v[:rank]).view(tensor.shape)


# --- TIES: trim, elect, merge. The threshold and the majority sign belong to the flattened model.
# ----------------


def ties_rank(total: int, drop_rate: float) -> int:
    """Rank of the threshold among `total` ascending |values|: total - int(total * K), K = 1 - drop_rate.

    As released, int(total * K) + 1 values survive, and K >= 1 is read as a percentage (drop_rate 0 keeps 1
    %)."""
    keep = 1 - drop_rate
    keep = keep / 100 if keep >= 1 else keep
    return min(total, max(1, total - int(total * keep)))


class KthSmallest:
    """The exact k-th smallest |value| of a stream of float32 blocks, in two passes over it and 256 KiB of
    memory.

    The bits of a non-negative float order like integers: pass one counts their upper halves, pass two the
    lower halves within the bin that holds the k-th. `update` each block, `next_pass()`, `update` each
    again, `value()`.
    """

    def __init__(self, k: int):
        self.k, self.upper, self.counts = k, None, torch.zeros(1 << 16, dtype=torch.int64)

    def update(self, block: Values) -> None:
        bits = block.detach().to(torch.float32).abs().reshape(-1).view(torch.int32)
        upper = bits >> 16
        if self.upper is None:
            self.counts += torch.bincount(upper, minlength=1 << 16)
        else:
            self.counts += torch.bincount((bits[upper == self.upper]) & 0xFFFF, minlength=1 << 16)

    def next_pass(self) -> None:
        self.upper, before = self._locate()
        self.k -= before
        self.counts = torch.zeros(1 << 16, dtype=torch.int64)

    def value(self) -> float:
        lower, _ = self._locate()
        return torch.tensor((self.upper << 16) | lower, dtype=torch.int32).view(torch.float32).item()

    def _locate(self) -> tuple[int, int]:
        running = self.counts.cumsum(0)
        index = int(torch.searchsorted(running, self.k))
        return index, int(running[index] - self.counts[index])


def ties_trim(delta: Values, threshold: float, *, out: Values | None = None) -> Values:
    """delta where |delta| >= threshold, else 0."""
    return torch.mul(delta, delta.abs() >= threshold, out=out)


def ties_sign_votes(trimmed: Sequence[Values]) -> int:
    """Sum of the elected signs of a block: over the whole model its sign settles exact ties."""
    return int(torch.sign(linear(trimmed, [1.0] * len(trimmed))).sum(dtype=torch.float64))


def ties_merge(trimmed: Sequence[Values], majority: float) -> Values:
    """Elect a sign per element (the sum's; `majority` where it is 0), average the values that agree."""
    sign = torch.sign(linear(trimmed, [1.0] * len(trimmed)))
    sign = torch.where(sign == 0, torch.full_like(sign, majority), sign)
    total, count = torch.zeros_like(sign), torch.zeros_like(sign)
    for values in trimmed:
        agree = torch.where(sign > 0, values > 0, values < 0)
        total += values * agree
        count += agree
    return total / count.clamp_(min=1)
