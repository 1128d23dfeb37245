"""The rules by which a reference folder's weights and inputs are made, so that they need not be stored.

Every tensor follows from a seed and a name, so that a wrong checkpoint key gives a wrong output.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn


def _standard_normal(text: str, shape: Iterable[int]) -> np.ndarray:
    """Float64 N(0,1) draws of `shape` from the Mersenne Twister seeded with crc32(text)."""
    return np.asarray(np.random.RandomState(zlib.crc32(text.encode())).standard_normal(tuple(shape)))


def weight(seed: int, name: str, shape: Iterable[int]) -> Tensor:
    """The float32 parameter `name` (full checkpoint key, prefix included) of the given shape.

    x ~ N(0,1): two or more dimensions x / sqrt(fan in); else 1 + 0.1 x for `*.weight`, 0.05 x for the rest.
    """
    shape = tuple(shape)
    x = _standard_normal(f"{seed}:{name}", shape)
    if len(shape) >= 2:
        x = x / math.sqrt(math.prod(shape[1:]))
    elif name.endswith(".weight"):
        x = 1 + 0.1 * x
    else:
        x = 0.05 * x
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32).reshape(shape))


def input_tensor(seed: int, name: str, shape: Iterable[int]) -> Tensor:
    """The float32 input `name` of the given shape: plain N(0,1) draws."""
    shape = tuple(shape)
    x = _standard_normal(f"{seed}:input:{name}", shape)
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32).reshape(shape))


def fill(
    target: nn.Module,
    seed: int,
    prefix: str = "",
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Fill every floating parameter of the target by the weight rule, one by one; returns it. Buffers keep
    their computed values.

    prefix: of a key of `target` in a checkpoint. A module on the meta device gets real storage on `device`
    (default CPU); with `dtype` the stored tensors are cast to it.
    """
    for key, old in list(target.state_dict(keep_vars=True).items()):
        name = prefix + key
        if not isinstance(old, nn.Parameter) or not old.is_floating_point():
            continue
        where = device or ("cpu" if old.is_meta else old.device)
        new = weight(seed, name, old.shape).to(device=where, dtype=dtype or old.dtype)
        owner_name, _, leaf = key.rpartition(".")
        owner = target.get_submodule(owner_name)
        owner._parameters[leaf] = nn.Parameter(new, requires_grad=old.requires_grad)
    return target
