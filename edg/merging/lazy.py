"""Outputs of a recipe without files: lazy mappings, of which a tensor is merged when it is read.

Bit for bit what `merge.run` writes, because the blocks of both come from `Pass`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch

import edg
from edg.core.hashing import cached_sha256
from edg.core.log import log
from edg.merging.masks import BLOCK
from edg.merging.merge import ties_of
from edg.merging.plan import MergePlan, Output, make_plan
from edg.merging.provenance import provenance
from edg.merging.recipe import Recipe, same_result, to_dict
from edg.merging.steps import Ties
from edg.merging.streaming import Pass, Target
from edg.weights.family import UNKNOWN, FamilyOf
from edg.weights.hashing import tensor_digests
from edg.weights.store import Weights
from edg.weights.tensors import StoredTensor


class MergedTensor(StoredTensor):
    """One tensor of an output; every read computes the blocks that it needs."""

    def __init__(self, merged: MergedWeights, index: int):
        self.merged, self.index = merged, index
        self.info = merged.output.infos[index]

    def _read(self, start, out):
        stop, source = start + out.numel(), self._copied()
        if source is not None:
            source.read_into(start, out)
            return
        for first, values in Pass(self.merged.plan).values(self.merged.target, self.index, start, stop):
            begin, end = max(first, start), min(first + values.numel(), stop)
            out[begin - start : end - start].copy_(values[begin - first : end - first])

    def blocks(self):
        source, whole = self._copied(), self.info.numel
        if source is not None:
            yield from source.blocks()
            return
        for _, values in Pass(self.merged.plan).values(self.merged.target, self.index, 0, whole):
            yield values

    def digest(self):
        source = self._copied()
        if source is None:
            return super().digest()
        name = self.merged.plan.aligned[self.index].name
        for weights in self.merged.plan.inputs.values():  # hashed once for all strengths of a recipe
            if weights.tensors.get(name) is source:
                return tensor_digests(weights)[name]
        return source.digest()

    def _copied(self) -> StoredTensor | None:
        """The input's tensor that is taken as it is stored, where the step says so."""
        tensor = self.merged.plan.aligned[self.index]
        name = self.merged.output.steps[self.index].copies(list(self.merged.plan.recipe.inputs))
        source = tensor.sources.get(name) if self.merged.plan.is_float(self.index) else None
        return source if source is not None and source.info.dtype == self.info.dtype else None


class MergedWeights(Weights):
    """One output of a plan. Its numbers are those of a file by the same recipe, so that clips of both count
    as made with the same set; `provenance`, computed and not read, hashes the inputs when first asked for."""

    def __init__(self, plan: MergePlan, output: Output):
        self.plan, self.output = plan, output
        tensors = {tensor.name: MergedTensor(self, index) for index, tensor in enumerate(plan.aligned)}
        files = [file for weights in plan.inputs.values() for file in weights.files]
        super().__init__(Path(output.name), "memory", tensors, files=files, family=plan.family)

    @cached_property
    def target(self) -> Target:
        """Target of the blocks; a `ties` step reads the whole model for it, once."""
        with_ties = any(isinstance(step, Ties) for step in self.output.steps)
        return Target(self.output, None, ties_of(self.plan, self.output) if with_ties else {})

    def content_key(self):
        inputs = [weights.content_key() for weights in self.plan.inputs.values()]
        if not all(inputs):
            return None
        versions = [edg.__version__, torch.__version__]
        return ["merged", versions, same_result(to_dict(self.plan.recipe)), self.output.name, inputs]

    @cached_property
    def provenance(self) -> dict:
        hashes = {str(file.path): cached_sha256(file.path) for file in self.files}
        self.check_unchanged()
        count = len(self.plan.aligned)
        return provenance(self.plan.recipe, self.output.name, self.plan.inputs, hashes, count, count)


def merged(
    recipe: Recipe, warn: Callable[[str], None] = log, family: FamilyOf = UNKNOWN
) -> dict[str, MergedWeights]:
    """Every output of a recipe by name, in its order. Raises UsageError (names, shapes), BadFileError."""
    plan = make_plan(recipe, None, True, "safetensors", BLOCK, warn, family)
    return {output.name: MergedWeights(plan, output) for output in plan.outputs}
