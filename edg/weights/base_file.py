"""Files of changes that a merge made: find, check and join the base they refer to."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edg.core.errors import BadFileError
from edg.core.files import checkpoints
from edg.core.hashing import cached_sha256
from edg.core.shipped import CHECKOUT
from edg.weights.hashing import combined

if TYPE_CHECKING:
    from edg.weights.store import Weights


def candidates(owner: Path, base: dict) -> list[Path]:
    """Paths to look for the base: beside the file, under CKPT_PATH, then where it was when the merge ran,
    also relative to the checkout, where the embedded weights are."""
    recorded = Path(base["path"])
    found = [owner.parent / recorded.name]
    if base.get("relative"):
        found.append(owner.parent / base["relative"])
    root = checkpoints()
    parts = [p for p in recorded.parts if p not in ("/", "..", ".")]
    found += [root.joinpath(*parts[-n:]) for n in range(min(3, len(parts)), 0, -1)]
    return list(dict.fromkeys([*found, recorded, CHECKOUT / recorded]))


def complete(
    weights: Weights,
    known: Mapping[tuple[str, str], Weights | None],
    open_weights: Callable[[Path, str], Weights],
    check: bool,
) -> Weights:
    """Join `weights` with the base it names. known: files that are open already, None for those that wait for
    their own base. Raises BadFileError when the base is missing or another one."""
    from edg.weights.store import Weights

    base = weights.provenance["base"]
    if not isinstance(base, dict) or not all(
        isinstance(base.get(k, ""), str) and (k in base or k == "table") for k in ("path", "sha256", "table")
    ):
        raise BadFileError(f"{weights.path}: its reference to a base is malformed")
    tried, table = [], base.get("table", "")
    for path in candidates(weights.path, base):
        place = os.path.realpath(path), table
        if not path.exists() or (place in known and known[place] is None):
            continue
        found = known[place] if place in known else open_weights(path, table)
        if check and sha256_weights(found) != base["sha256"]:
            tried.append(str(path))
            continue
        if not check and sum(file.size for file in found.files) != base.get("bytes"):
            tried.append(str(path))
            continue
        absent = set(weights.provenance.get("absent", ()))
        tensors = {n: t for n, t in found.tensors.items() if n not in absent} | weights.tensors
        joined = Weights(
            weights.path,
            weights.container,
            tensors,
            metadata=weights.metadata,
            notes=[*weights.notes, f"{len(weights.tensors)} tensors over the base {path}"],
            files=[*weights.files, *found.files],
            family=found.family,
        )
        joined.records = [*weights.records, *found.records]
        return joined
    what = f"its base {tried[0]} has changed" if tried else f"its base {base['path']} does not exist"
    raise BadFileError(
        f"{weights.path} holds only what a merge changed, and {what}",
        expected=f"the base with SHA-256 {base['sha256'][:16]}...",
        fix="put it beside this file or under CKPT_PATH, or merge again with --full",
    )


def sha256_weights(weights: Weights) -> str:
    return combined([(file.path.name, cached_sha256(file.path)) for file in weights.files])
