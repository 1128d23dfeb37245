"""What a merged file says about itself: recipe, inputs with their hashes, and the base it refers to."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import edg
from edg.core.errors import BadFileError
from edg.core.records import cached_sha256
from edg.weights.hashing import combined
from edg.weights.recipe import Recipe, to_dict
from edg.weights.store import Weights, open_weights


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


def is_made(recipe: Recipe, out: Path, full: bool, format: str) -> bool:
    """Whether every output lies in `out` already, made by this recipe from inputs of the same content."""
    paths = {name: out / f"{name}.{format}" for name in recipe.outputs}
    if not all(map(os.path.isfile, paths.values())):
        return False
    try:
        records = {name: open_weights(path, check_base=False).provenance for name, path in paths.items()}
        inputs = {name: open_weights(path) for name, path in recipe.inputs.items()}
    except BadFileError:
        return False
    files = {str(file.path): file.path for weights in inputs.values() for file in weights.files}
    sizes = {name: sum(file.size for file in weights.files) for name, weights in inputs.items()}
    for name, record in records.items():
        if not _is_ours(record):
            return False
        known = {item["name"]: item for item in record["inputs"]}
        same = record.get("output") == name and ("base" not in record) == full
        same = same and _without_paths(record["recipe"]) == _without_paths(to_dict(recipe))
        if not same or {n: item["bytes"] for n, item in known.items()} != sizes:
            return False
    hashes = {path: cached_sha256(file) for path, file in files.items()}
    now = {name: input_record(name, weights, hashes)["sha256"] for name, weights in inputs.items()}
    return all(now == {i["name"]: i["sha256"] for i in record["inputs"]} for record in records.values())


def _is_ours(record: dict) -> bool:
    """Whether a record has the shape that a merge writes; what its fields say is another question."""
    recipe, inputs = record.get("recipe"), record.get("inputs")
    return (
        isinstance(recipe, dict)
        and isinstance(recipe.get("inputs"), dict)
        and isinstance(inputs, list)
        and all(isinstance(item, dict) and {"name", "bytes", "sha256"} <= item.keys() for item in inputs)
        and all(isinstance(item["name"], str) for item in inputs)
    )


def _without_paths(recipe: Mapping) -> dict:
    return {**recipe, "inputs": list(recipe.get("inputs", {}))}
