"""Plan of a merge, with all checks before a value is read: names, shapes, paths, disk space."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edg.core.atomic_file import check_writable
from edg.core.errors import MachineError, UsageError
from edg.merging.align import Aligned, align
from edg.merging.masks import BLOCK
from edg.merging.recipe import Recipe, open_inputs, remarks
from edg.merging.steps import MergeStep
from edg.weights.family import UNKNOWN, Family, FamilyOf, resolve
from edg.weights.keys import near_names
from edg.weights.store import Weights
from edg.weights.tensors import FLOATS, ITEMSIZE, TensorInfo
from edg.weights.writers import FORMATS


@dataclass(frozen=True)
class Output:
    """One file to make. steps, infos: the step and the stored form of each aligned tensor."""

    name: str
    path: Path
    steps: Sequence[MergeStep]
    infos: Sequence[TensorInfo]


@dataclass(frozen=True)
class MergePlan:
    """A merge with its inputs open; recipe, format, full and block as in `merge.run`.

    aligned: the tensors in the order of the pass.
    absent: names left out.
    family: of the inputs.
    """

    recipe: Recipe
    inputs: Mapping[str, Weights]
    aligned: Sequence[Aligned]
    absent: Sequence[str]
    outputs: Sequence[Output]
    format: str
    full: bool
    block: int
    family: Family

    def is_float(self, index: int) -> bool:
        return self.aligned[index].info.dtype in FLOATS

    def whole(self, index: int) -> bool:
        """True if some output needs this tensor in one piece."""
        return any(output.steps[index].whole for output in self.outputs)


def make_plan(
    recipe: Recipe,
    out: Path | None,
    full: bool,
    format: str,
    block: int,
    warn: Callable[[str], None],
    family: FamilyOf = UNKNOWN,
) -> MergePlan:
    """Open the inputs and plan every output; out: None if nothing is written; warn: called with remarks.
    Raises as `merge.run` does."""
    if format not in FORMATS:
        raise UsageError(f"format {format!r}", expected="one of " + ", ".join(FORMATS))
    if block % BLOCK or block <= 0:
        raise UsageError(f"block {block}", expected=f"a multiple of {BLOCK}")
    inputs = open_inputs(recipe, family)
    family = resolve(family, [name for weights in inputs.values() for name in weights])
    recipe.check_kinds(family)
    aligned, absent, notes = align(inputs, recipe.missing, family)
    if format == "safetensors":  # wide dtypes first: every tensor stays aligned
        aligned.sort(key=lambda tensor: -ITEMSIZE[_stored(tensor, recipe).dtype])
    infos = [_stored(tensor, recipe) for tensor in aligned]
    outputs = [
        Output(
            name,
            (out or Path()) / f"{name}.{format}",
            [recipe.step_for(name, tensor.name, family) for tensor in aligned],
            infos,
        )
        for name in recipe.outputs
    ]
    plan = MergePlan(recipe, inputs, aligned, absent, outputs, format, full, block, family)
    notes += _idle_steps(plan)
    if out is not None:
        _check_paths(plan)
    for note in notes + _remarks(plan):
        warn(f"note: {note}")
    if out is not None:
        _check_space(plan, out, warn)
    return plan


def _stored(tensor: Aligned, recipe: Recipe) -> TensorInfo:
    keep = tensor.info.dtype not in FLOATS or not recipe.dtype
    return TensorInfo(tensor.info.shape, tensor.info.dtype if keep else recipe.dtype)


def _idle_steps(plan: MergePlan) -> list[str]:
    """A note for every optional step that has no effect. Raises UsageError for a step, or a pattern of its
    `where`, that matches no tensor and is not optional: a slip in a name would leave the output as it was."""
    names = [tensor.name for index, tensor in enumerate(plan.aligned) if plan.is_float(index)]
    notes = []
    for output in plan.outputs:
        reached = {id(step) for index, step in enumerate(output.steps) if plan.is_float(index)}
        for number, step in enumerate(plan.recipe.outputs[output.name], 1):
            place = f"{output.name}: step {number} ({step.op})"
            unmet = [p for p in step.where if not any(plan.family.matches(name, [p]) for name in names)]
            if lost := [pattern for pattern in unmet if not step.may_lack(pattern)]:
                raise _meets_nothing(plan, place, lost, names)
            if unmet:
                notes.append(f"{place}: {_listed(unmet)} matches no tensor, which the step allows")
            if id(step) in reached or len(unmet) == len(step.where) > 0 or step.optional is True:
                continue
            raise UsageError(
                f"{place} matches no tensor" + (f" of where {list(step.where)}" if step.where else ""),
                expected="a tensor that no earlier step changes",
                fix="put it before the others, or remove it; set optional: true if it may match none",
            )
    return notes


def _listed(patterns: Sequence[str]) -> str:
    return ", ".join(map(repr, patterns[:5])) + (f" and {len(patterns) - 5} more" if patterns[5:] else "")


def _meets_nothing(plan: MergePlan, place: str, patterns: list[str], names: list[str]) -> UsageError:
    listed = _listed(patterns)
    others = [tensor.name for tensor in plan.aligned if plan.family.matches(tensor.name, patterns)]
    if others:
        return UsageError(
            f"{place}: where {listed} matches only tensors that are not floating-point, such as {others[0]}",
            expected="floating-point tensors: the others are copied from the base",
            fix="remove it; set optional: true if this is intended",
        )
    near = next(filter(None, (near_names(pattern, names, plan.family) for pattern in patterns)), "")
    return UsageError(
        f"{place}: where {listed} matches no tensor of the inputs",
        expected="a kind of modules, or a pattern that matches names (edg info FILE --names)",
        fix="; ".join(filter(None, [near, "set optional: true if it may match none"])),
    )


def _check_paths(plan: MergePlan) -> None:
    for output in plan.outputs:
        for weights in plan.inputs.values():
            for file in weights.files:
                if os.path.exists(output.path) and os.path.samefile(output.path, file.path):
                    raise UsageError(
                        f"the output {output.path} is the input {file.path}",
                        fix="choose another folder or name",
                    )


def _remarks(plan: MergePlan) -> list[str]:
    found = [f"{name}: {note}" for name, weights in plan.inputs.items() for note in weights.notes]
    seen: dict[tuple[int, int], str] = {}
    for name, weights in plan.inputs.items():
        for file in weights.files[:1]:
            first = seen.setdefault((file.stat.st_dev, file.stat.st_ino), name)
            if first != name:
                found.append(f"{first} and {name} are the same file: there is nothing to extrapolate")
    found += remarks(plan.recipe)
    if all(plan.family.component(tensor.name) in ("other", "buffers") for tensor in plan.aligned):
        found.append("unknown model family: merging by name only")
    return found


def _check_space(plan: MergePlan, out: Path, warn: Callable[[str], None]) -> None:
    """Check the disk space for complete files; warn if files of changes could take more."""
    if os.path.isfile(out):
        raise UsageError(f"{out} is a file", expected="a folder to write to")
    folder = check_writable(out)
    needed = sum(info.nbytes for output in plan.outputs for info in output.infos)
    free = shutil.disk_usage(folder).free
    if needed > free and plan.full:
        raise MachineError(
            f"the outputs need {needed / 1e9:.2f} GB, {folder} has {free / 1e9:.2f} GB left",
            fix="free some disk space or choose another folder",
        )
    if needed > free:
        warn(
            f"note: {free / 1e9:.2f} GB of disk space left, the outputs may need up to {needed / 1e9:.2f} GB"
        )
