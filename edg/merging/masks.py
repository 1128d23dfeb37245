"""Random masks of a tensor, derived from (seed, name, stream, block of 2^20 elements) and nothing else.

The result is therefore the same for any block size of reading, number of threads, order of tensors, or subset
of them. The bits are numpy's SFC64 stream, whose values numpy promises not to change (NEP 19).
"""

from __future__ import annotations

import numpy as np
import torch

from edg.core.seeding import derive

GENERATOR = "sfc64-u32-block20"  # written into every recipe: a file names what made its masks
BLOCK = 1 << 20


def keep_mask(
    seed: int, name: str, stream: str, keep: float, start: int, count: int, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Boolean mask for elements start .. start+count of a flattened tensor, True with probability keep.

    stream distinguishes masks of one tensor ('adt', 'deg', 'dare0', ...). An element is kept when its 32-bit
    number is below keep * 2^32. Raises ValueError for a start that is no multiple of 2^20.
    """
    if start % BLOCK:
        raise ValueError(f"masks start at multiples of {BLOCK}, not at {start}")
    out = torch.empty(count, dtype=torch.bool) if out is None else out[:count]
    array, below = out.numpy(), np.uint32(min(round(keep * 2.0**32), 2**32 - 1))
    for at in range(0, count, BLOCK):
        size = min(BLOCK, count - at)
        bits = np.random.SFC64(derive(seed, "mask", stream, name, (start + at) // BLOCK))
        numbers = bits.random_raw((size + 1) // 2).astype("<u8", copy=False).view("<u4")
        np.less(numbers[:size], below, out=array[at : at + size])
    return out
