"""Random numbers that depend on an item, never on a process: every generator is named by its purpose."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(seed: int, *parts: str | int) -> int:
    """A 63-bit seed for (seed, *parts): the same on every machine, rank and order."""
    text = json.dumps([seed, *parts], ensure_ascii=True, separators=(",", ":"))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, *parts: str | int) -> torch.Generator:
    """A CPU generator started from derive(seed, *parts). Draw on the CPU, then move."""
    import torch

    return torch.Generator("cpu").manual_seed(derive(seed, *parts))
