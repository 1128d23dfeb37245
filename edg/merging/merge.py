"""Merge: plan and check a recipe (`plan`), then carry it out in one pass for all outputs (`streaming`).

Reading, computing and writing overlap; a fourth thread hashes the inputs behind the reader. Where all inputs
are bit-equal the base's bytes are copied.

Dtypes: float inputs are computed in float32 (float64 where an input is), written in the base's dtype or the
recipe's; tensors that are not float (counters, flags) are copied from the base.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from edg.core.atomic_file import write_atomically
from edg.core.errors import BadFileError
from edg.core.log import log
from edg.core.process import stopping
from edg.merging.masks import BLOCK
from edg.merging.plan import MergePlan, Output, make_plan
from edg.merging.provenance import base_reference, provenance, remember_written
from edg.merging.recipe import Recipe
from edg.merging.steps import MergeStep, Ties, TiesStatistics, ties_statistics
from edg.merging.streaming import Pass, Progress, Target
from edg.weights.family import UNKNOWN, FamilyOf
from edg.weights.hashing import HashFollower
from edg.weights.writers import open_writer


@dataclass(frozen=True)
class MergedFile:
    """A finished output: its path, number of tensors in the mapping, number stored, bytes of the file."""

    output: str
    path: Path
    tensors: int
    stored: int
    nbytes: int


def run(
    recipe: Recipe,
    out: str | os.PathLike,
    *,
    full: bool = False,
    format: str = "safetensors",
    block: int = BLOCK,
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
    strict: bool = False,
    family: FamilyOf = UNKNOWN,
) -> list[MergedFile]:
    """Carry out a recipe; writes {out}/{output}.{format} and {out}/{output}.{format}.json for every output.

    full: complete files; else only tensors that differ from the base, with a reference to it. block: elements
    at a time, a multiple of 2^20 (the result does not depend on it). strict: NaN or Inf in an input is an
    error. family: whose names the inputs have, or a function that finds it (`store.open_weights`). Raises
    UsageError (names, shapes, paths), BadFileError (inputs), MachineError (disk).
    """
    warn = warn or log
    plan = make_plan(recipe, Path(out), full, format, block, warn, family)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the cores are for reading, computing and writing at once
    try:
        with stopping.postponed():  # also where this is called from Python
            ties = {output.name: ties_of(plan, output) for output in plan.outputs}
            return _write_all(plan, ties, progress, warn, strict)
    finally:
        torch.set_num_threads(threads)


def ties_of(plan: MergePlan, output: Output) -> dict[MergeStep, TiesStatistics]:
    """Statistics of the whole model that `ties` steps use."""
    found = {}
    for step in dict.fromkeys(s for s in output.steps if isinstance(s, Ties)):
        chosen = [i for i, s in enumerate(output.steps) if s == step and plan.is_float(i)]
        numel = sum(plan.aligned[i].info.numel for i in chosen)
        found[step] = ties_statistics(step, numel, lambda chosen=chosen: Pass(plan).blocks(chosen))
    return found


def _write_all(
    plan: MergePlan,
    ties: Mapping[str, Mapping[MergeStep, TiesStatistics]],
    progress: Progress | None,
    warn: Callable[[str], None],
    strict: bool,
) -> list[MergedFile]:
    """Make every output, or leave none of them half-written."""
    files = {str(f.path): f for weights in plan.inputs.values() for f in weights.files}
    draft = dict.fromkeys(files, "0" * 64)
    hashes, targets, work = HashFollower(list(files.values())), [], Pass(plan)
    try:
        for output in plan.outputs:
            tensors = {tensor.name: info for tensor, info in zip(plan.aligned, output.infos, strict=True)}
            size = len(json.dumps(_metadata(_record(plan, output, draft, len(plan.aligned)))))
            writer = open_writer(output.path, plan.format, tensors, size, reserve=plan.full)
            targets.append(Target(output, writer, ties[output.name]))
        work.run(targets, hashes, progress)
        return _finish(plan, targets, hashes, work.bad_values, warn, strict)
    except BaseException:
        hashes.stop()
        raise
    finally:
        for target in targets:
            target.writer.abort()


def _finish(
    plan: MergePlan,
    targets: Sequence[Target],
    follower: HashFollower,
    bad_values: Mapping[str, int],
    warn: Callable[[str], None],
    strict: bool,
) -> list[MergedFile]:
    hashes = follower.result()
    for weights in plan.inputs.values():
        weights.check_unchanged()
    follower.remember()
    _report_bad_values(bad_values, warn, strict)
    made = []
    for target in targets:
        output, stored = target.output, len(target.writer.written)
        record = _record(plan, output, hashes, stored)
        target.writer.finish(_metadata(record))
        sidecar = output.path.with_name(output.path.name + ".json")
        remember_written(output.path)
        write_atomically(sidecar, (json.dumps(record, indent=1) + "\n").encode())
        size = output.path.stat().st_size
        made.append(MergedFile(output.name, output.path, len(plan.aligned), stored, size))
    return made


def _report_bad_values(found: Mapping[str, int], warn: Callable[[str], None], strict: bool) -> None:
    for what, count in list(found.items())[:10]:
        warn(f"warning: {what} holds {count} values that are NaN or infinite")
    if len(found) > 10:
        warn(f"warning: {len(found) - 10} more tensors hold such values")
    if found and strict:
        raise BadFileError(
            f"{len(found)} tensors hold NaN or Inf, first {next(iter(found))}",
            expected="finite weights",
            fix="leave out --strict to merge anyway",
        )


def _record(plan: MergePlan, output: Output, hashes: Mapping[str, str], stored: int) -> dict:
    """The record in the file; stored: how many tensors it holds."""
    record = provenance(plan.recipe, output.name, plan.inputs, hashes, len(plan.aligned), stored)
    return record if plan.full else record | base_reference(plan.inputs, hashes, output.path, plan.absent)


def _metadata(record: dict) -> dict[str, str]:
    return {"edg": json.dumps(record)}
