"""What a merged file says about itself: recipe, inputs with their hashes, and the base it refers to."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import edg
from edg.weights.hashing import combined
from edg.weights.recipe import Recipe, to_dict
from edg.weights.store import Weights


def provenance(
    recipe: Recipe,
    output: str,
    inputs: Mapping[str, Weights],
    hashes: Mapping[str, str],
    tensors: int,
    stored: int,
) -> dict:
    """Everything needed to repeat an output. hashes: path of an input's file -> SHA-256; tensors: names in
    the mapping; stored: how many of them are in the file."""
    return {
        "format": 1,
        "edg": edg.__version__,
        "output": output,
        "recipe": to_dict(recipe),
        "inputs": [input_record(name, weights, hashes) for name, weights in inputs.items()],
        "tensors": tensors,
        "stored": stored,
    }


def base_reference(
    inputs: Mapping[str, Weights], hashes: Mapping[str, str], out: Path, absent: Sequence[str]
) -> dict:
    """What a file of changes has on top: where its base is, and which of the base's names it drops."""
    name, base = next(iter(inputs.items()))
    relative = os.path.relpath(base.path.resolve(), out.parent.resolve())
    return {
        "base": {**input_record(name, base, hashes), "relative": relative},
        "absent": [n for n in absent if n in base],
    }


def input_record(name: str, weights: Weights, hashes: Mapping[str, str]) -> dict:
    sha = combined([(file.path.name, hashes[str(file.path)]) for file in weights.files])
    size = sum(file.size for file in weights.files)
    return {"name": name, "path": str(weights.path), "bytes": size, "sha256": sha}
