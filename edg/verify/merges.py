"""Reference group `merge`: hands the stored inputs to the very steps that `edg merge` runs."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from edg.core.errors import UsageError
from edg.merging import ops
from edg.merging.steps import (
    Average,
    Consistent,
    Dynamic,
    MergeBlock,
    MergeStep,
    TaskArithmetic,
    Ties,
    ties_statistics,
)
from edg.verify.cases import Case


def merge(case: Case) -> dict[str, Tensor]:
    """Output name -> tensor of one merge case; which merge it is follows from its config and name."""
    if "dyn_alpha" in case.config:
        return _edg(case)
    return _sparsify(case) if "magnitude_density" in case.config else _library(case)


def _edg(case: Case) -> dict[str, Tensor]:
    c = case.config
    steps = {
        "dyn": Dynamic(alpha=c["dyn_alpha"], beta=c["dyn_beta"], drop_rate=c["mask_rate"]),
        "con": Consistent(alpha=c["con_alpha"], beta=c["con_beta"], drop_rate=c["mask_rate"]),
    }
    blocks = {name: block for name, block in _blocks(case, ("pre", "sft"))}
    return {f"{out}/{name}": step.run(block) for out, step in steps.items() for name, block in blocks.items()}


def _library(case: Case) -> dict[str, Tensor]:
    blocks = dict(_blocks(case, ("base", *(f"m{i}" for i in range(case.config["models"])))))
    step = _library_step(case)
    if isinstance(step, Ties):
        numel = sum(block.base.numel() for block in blocks.values())
        statistics = ties_statistics(step, numel, blocks.values)
        for block in blocks.values():
            block.ties = statistics
    return {name: step.run(block) for name, block in blocks.items()}


def _library_step(case: Case) -> MergeStep:
    c = case.config
    scaling = tuple(c["scaling"]) if isinstance(c.get("scaling"), list) else c.get("scaling", 1.0)
    dare = (
        {"drop_rate": c["mask_rate"], "dare_scale": c.get("mask_scale", 1.0)} if "dare" in case.name else {}
    )
    if "average" in case.name:
        return Average()
    if "task_arithmetic" in case.name:
        return TaskArithmetic(scaling=scaling, **dare)
    if "ties" in case.name:
        rate = c.get("ties_mask_rate", c["mask_rate"])
        thinned = {"dare_drop_rate": dare["drop_rate"], "dare_scale": dare["dare_scale"]} if dare else {}
        return Ties(scaling=scaling, drop_rate=rate, **thinned)
    raise UsageError(
        f"no merge is called {case.name!r}", expected="average, task_arithmetic or ties in the name"
    )


def _blocks(case: Case, models: tuple[str, ...]) -> Iterator[tuple[str, MergeBlock]]:
    """Whole tensors of the names that all models have, with the fixtures' masks."""
    listed = [name.partition("/") for name in case.input_names]
    first = [name for model, _, name in listed if model == models[0]]
    shared = set.intersection(*({n for m, _, n in listed if m == model} for model in models))
    for name in (name for name in first if name in shared):
        tensors = {model: case.input(f"{model}/{name}") for model in models}
        shape = tensors[models[0]].shape

        def mask(stream: str, keep: float, name: str = name, shape: torch.Size = shape) -> Tensor:
            key = zlib.crc32(f"{case.seed}:mask:{stream}:{name}".encode())
            return torch.from_numpy(np.asarray(np.random.RandomState(key).random_sample(tuple(shape)) < keep))

        yield name, MergeBlock(tensors, len(shape), mask)


def _sparsify(case: Case) -> dict[str, Tensor]:
    """Output names tell the setting: magnitude/d0.5/KEY, svd/d0.25/KEY, svd/rank3/KEY."""
    results = {}
    for output in case.raw["outputs"]:
        method, setting, name = output.split("/", 2)
        tensor = case.input(name)
        if method == "magnitude":
            results[output] = ops.magnitude(tensor, float(setting.removeprefix("d")))
        elif setting.startswith("rank"):
            results[output] = ops.svd_rank(tensor, rank=int(setting.removeprefix("rank")))
        else:
            results[output] = ops.svd_rank(tensor, density=float(setting.removeprefix("d")))
    return results
