"""Record of a merged file: recipe, inputs with their hashes, and the base it refers to."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import edg
from edg.core.errors import BadFileError, EdgError
from edg.core.hashing import cached_sha256, kept_state, recall, remember
from edg.merging.recipe import Recipe, from_dict, open_inputs, same_result, to_dict
from edg.weights.base_file import candidates, sha256_weights
from edg.weights.family import UNKNOWN, FamilyOf
from edg.weights.hashing import combined, numbers_sha256
from edg.weights.store import DAMAGED, Weights, open_weights

WRITTEN = "merged"  # kind of the notes in the user's cache


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
    """Further fields of a file of changes: where its base is, and which of the base's names it drops."""
    name, base = next(iter(inputs.items()))
    relative = os.path.relpath(base.path.resolve(), out.parent.resolve())
    return {
        "base": {**input_record(name, base, hashes), "relative": relative},
        "absent": [n for n in absent if n in base],
    }


def input_record(name: str, weights: Weights, hashes: Mapping[str, str]) -> dict:
    sha = combined([(file.path.name, hashes[str(file.path)]) for file in weights.files])
    size = sum(file.size for file in weights.files)
    record = {"name": name, "path": str(weights.path), "bytes": size, "sha256": sha}
    return record | ({"table": weights.table} if weights.table else {})


def is_made(recipe: Recipe, out: Path, full: bool, format: str, family: FamilyOf = UNKNOWN) -> bool:
    """True if every output lies in `out` already, made by this recipe from inputs of the same content.

    A record alone is no proof: an output must be the very file that a merge has written here, untouched
    since, or hold the numbers that the recipe gives, which takes as long as to merge again."""
    paths = {name: out / f"{name}.{format}" for name in recipe.outputs}
    if not all(map(os.path.isfile, paths.values())):
        return False
    try:
        records = {name: open_weights(path, check_base=False).provenance for name, path in paths.items()}
        inputs = open_inputs(recipe, family)
    except BadFileError:
        return False
    files = {str(file.path): file.path for weights in inputs.values() for file in weights.files}
    sizes = {name: sum(file.size for file in weights.files) for name, weights in inputs.items()}
    for name, record in records.items():
        if not _is_ours(record):
            return False
        known = {item["name"]: item for item in record["inputs"]}
        same = record.get("output") == name and ("base" not in record) == full
        same = same and same_result(record["recipe"]) == same_result(to_dict(recipe))
        if not same or {n: item["bytes"] for n, item in known.items()} != sizes:
            return False
    hashes = {path: cached_sha256(file) for path, file in files.items()}
    now = {name: input_record(name, weights, hashes)["sha256"] for name, weights in inputs.items()}
    if any(now != {i["name"]: i["sha256"] for i in record["inputs"]} for record in records.values()):
        return False
    return all(recall(WRITTEN, _state(path)) for path in paths.values()) or _holds(recipe, paths, family)


def remember_written(path: Path) -> None:
    """Note that a merge has just written this output, for `is_made`."""
    remember(WRITTEN, _state(path), "1")


def _state(path: Path) -> list:
    return [str(path.resolve()), *kept_state(path.stat())]


def _holds(recipe: Recipe, paths: Mapping[str, Path], family: FamilyOf) -> bool:
    """True if each file holds the numbers that the recipe gives, merged again in memory."""
    from edg.merging.lazy import merged

    try:
        wanted = merged(recipe, warn=lambda text: None, family=family)
        return all(
            numbers_sha256(open_weights(path, family=family)) == numbers_sha256(wanted[name])
            for name, path in paths.items()
        )
    except BadFileError:
        return False


def is_as_recorded(weights: Weights) -> bool:
    """True if a set's numbers are those that its own record says: its inputs are looked for and merged again
    in memory. False where they are gone."""
    record = weights.provenance
    if not _is_ours(record):
        return False
    try:
        paths = {item["name"]: _find_input(weights.path, item) for item in record["inputs"]}
        if not all(paths.values()):
            return False
        recipe = from_dict({**record["recipe"], "inputs": {n: str(path) for n, path in paths.items()}})
        output = str(record.get("output"))
        return output in recipe.outputs and _holds(
            replace(recipe, outputs={output: recipe.outputs[output]}), {output: weights.path}, weights.family
        )
    except (EdgError, *DAMAGED):  # the record may say anything
        return False


def _find_input(owner: Path, item: dict) -> Path | None:
    if not isinstance(item.get("path"), str):
        return None
    for path in candidates(owner, item):
        if path.exists():
            found = open_weights(path, table=str(item.get("table", "")))
            same_size = sum(file.size for file in found.files) == item["bytes"]
            if same_size and sha256_weights(found) == item["sha256"]:
                return path
    return None


def _is_ours(record: dict) -> bool:
    """True for a record of the shape that a merge writes, whatever its fields say."""
    recipe, inputs = record.get("recipe"), record.get("inputs")
    return (
        isinstance(recipe, dict)
        and isinstance(recipe.get("inputs"), dict)
        and isinstance(inputs, list)
        and all(isinstance(item, dict) and {"name", "bytes", "sha256"} <= item.keys() for item in inputs)
        and all(isinstance(item["name"], str) for item in inputs)
    )
