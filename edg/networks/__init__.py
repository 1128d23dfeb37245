"""The families of published checkpoints by name; each is imported when it is first needed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from edg.weights.family import UNKNOWN, Family

if TYPE_CHECKING:
    from edg.weights.store import Weights

FAMILIES = {
    "latent_video": "edg.networks.latent_video.keys:FAMILY",
    "diffusers_unet": "edg.networks.latent_video.diffusers_names:FAMILY",
}


@cache
def family(name: str) -> Family:
    """The family registered as `name`."""
    module, _, attribute = FAMILIES[name].partition(":")
    return getattr(import_module(module), attribute)


def family_of(names: Iterable[str]) -> Family:
    """The family that knows most of the names, with or without wrappers of training frameworks around them;
    UNKNOWN where none knows any."""
    from edg.weights.keys import without_wrapper_parts

    bare = [without_wrapper_parts(name) for name in names]
    counts = {name: sum(map(family(name).knows, bare)) for name in FAMILIES}
    best = max(counts, key=counts.__getitem__)
    return family(best) if counts[best] else UNKNOWN


def open_weights(
    path: str | os.PathLike, *, check_base: bool = True, join_base: bool = True, table: str = ""
) -> Weights:
    """Open a checkpoint as `weights.store.open_weights` does, with the family that its names belong to."""
    from edg.weights.store import open_weights

    return open_weights(path, check_base=check_base, join_base=join_base, table=table, family=family_of)
