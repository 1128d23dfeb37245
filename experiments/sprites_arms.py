"""Arms of scripts/sprites_experiment.py: every row as parameter sets in their order of use.

A point on the line through base and fine-tune is base + s (fine-tune - base): s = 0 is the base, 1 the
fine-tune, below 0 extrapolates away from it (as in the paper), above 1 goes past it. With modules, the rest
stays the fine-tune's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edg.merging.recipe import Recipe, load_recipe
from edg.merging.steps import Average, Copy, LinearCombination, MergeStep, TaskArithmetic, Ties

TUNES = {"slow": "slower than the base's", "equal": "as fast", "fast": "faster"}  # clips of the fine-tune
AWAY = (-2.0, -1.0, -0.5, -0.19)  # the release's dyn is at -0.19 on average
PAST = (0.5, 1.5)
SWITCHES = (900, 700, 500, 300, 100)
STARTS = (960, 920)
TEXT_LAYERS = ("adapter", "*.attn2.to_k.*", "*.attn2.to_v.*")  # layers that the text enters by
MODULES: dict[str, tuple[str, tuple[str, ...]]] = {
    "mute": ("everything except the text layers", ("unet", "image_proj")),
    "temporal": ("the temporal transformers", ("temporal", "init_attn")),
    "conv": ("the temporal convolutions", ("temporal_conv",)),
    "spatial": ("the spatial transformers", ("spatial",)),
    "resblock": ("the residual blocks, temporal convolutions among them", ("resblock",)),
}


@dataclass(frozen=True)
class MergedSet:
    """A parameter set merged from others: inputs by name, the base first; a plain name is a file."""

    name: str
    inputs: tuple[tuple[str, str | MergedSet], ...]
    steps: tuple[MergeStep, ...]


@dataclass(frozen=True)
class Arm:
    """One row. group: what it is plotted with; at: its place on the group's axis, the s or T. options: of
    sampling. with_motion: the caption names the motion."""

    title: str
    sets: tuple[str | MergedSet, ...]
    group: str
    at: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    with_motion: bool = True


def point(tune: str, s: float, modules: str = "") -> MergedSet:
    """The point s of the line, in all the network or in some MODULES."""
    move = LinearCombination(weights=(1 - s, s), where=MODULES[modules][1] if modules else ())
    stay = Copy(of="tuned")
    steps = (Copy(of="tuned", where=TEXT_LAYERS), move, stay) if modules else (move,)
    return MergedSet(f"{tune}_{modules}{s:+g}", (("base", "base"), ("tuned", tune)), steps)


def released(tune: str) -> tuple[MergedSet, MergedSet]:
    """dyn and con by the release's recipe."""
    dyn, con = (
        MergedSet(f"{tune}_{name}", (("base", "base"), ("tuned", tune)), load_recipe("edg").outputs[name])
        for name in ("dyn", "con")
    )
    return dyn, con


def arms(tunes: Collection[str], noise: str) -> dict[str, Arm]:
    """Every row by name. tunes: of TUNES, `slow` first, and "naive"; noise: the file for runs from M."""
    naive, (dyn, con) = "naive" in tunes, released("slow")
    tunes = [tune for tune in tunes if tune != "naive"]
    rows = {
        "base": Arm("base, caption without motion", ("base",), "base", with_motion=False),
        "base_told": Arm("base", ("base",), "base"),
    }
    if naive:
        rows["naive"] = Arm(
            "fine-tune without adapter, clips slower than the base's", ("naive",), "fine-tune"
        )
    rows |= {tune: Arm(f"fine-tune, clips {TUNES[tune]}", (tune,), "fine-tune") for tune in tunes}
    for tune in tunes:
        for s in (*AWAY, *PAST):
            rows[f"{tune}{s:+g}"] = Arm(f"{tune}, s = {s:g}", (point(tune, s),), f"line {tune}", s)
    rows |= one_for_two(dyn, con)
    for M in STARTS:
        options = {"start": M, "analytic_init": noise}
        rows[f"start_{M}"] = Arm(f"slow, sampled from M = {M} (CIL)", ("slow",), "start M", M, options)
    rows["dyn"] = Arm("dyn alone", (dyn,), "switch", 0)
    rows["con"] = Arm("con alone", (con,), "switch", 1000)
    for T in SWITCHES:
        rows[f"decoupled_{T}"] = switched(f"decoupled: dyn above T = {T}, con below", T, dyn, con, "switch")
    for tune in tunes[1:]:
        title = f"decoupled: dyn above T = 500, con below, of {tune}"
        rows[f"decoupled_{tune}"] = switched(title, 500, *released(tune))
    rows["blend"] = Arm(
        "dyn and con blended by t / 1000",
        (dyn, con),
        "decoupled",
        None,
        {"blend": "soft", "switch_at": (500,)},
    )
    title = "reverse order: con above T = 500, dyn below"
    rows["reversed"] = switched(title, 500, con, dyn)
    return rows | by_module(tunes)


def one_for_two(dyn: MergedSet, con: MergedSet) -> dict[str, Arm]:
    """dyn and con merged into one network, used at all timesteps."""
    both = (("base", "base"), ("dyn", dyn), ("con", con))
    steps = {
        "average": ("average", Average(of=("dyn", "con"))),
        "task_arithmetic": ("task arithmetic", TaskArithmetic(of=("dyn", "con"))),
        "ties": ("TIES, 20 % kept", Ties(of=("dyn", "con"), drop_rate=0.8)),
        "dare": ("DARE, 70 % dropped", TaskArithmetic(of=("dyn", "con"), drop_rate=0.7)),
    }
    return {
        name: Arm(f"dyn and con merged: {title}", (MergedSet(name, both, (step,)),), "merge")
        for name, (title, step) in steps.items()
    }


def by_module(tunes: list[str]) -> dict[str, Arm]:
    """The line walked in some modules only, at all timesteps or at high noise."""
    rows = {}
    for modules, (what, _) in MODULES.items():
        for s in (-1.0,) if modules != "conv" else (-0.5, -1.0, -1.5, -2.0):
            title = f"slow, s = {s:g} in {what}"
            rows[f"{modules}{s:+g}"] = Arm(title, (point("slow", s, modules),), "modules", s)
    rows["mute-1_500"] = switched(
        "s = -1 in everything except the text layers above T = 500, slow below",
        500,
        point("slow", -1.0, "mute"),
        "slow",
    )
    for s, T in ((-1.0, 500), (-1.0, 300), (-1.5, 700), (-1.5, 500), (-1.5, 300), (-2.0, 500), (-2.0, 300)):
        title = f"s = {s:g} in the temporal convolutions above T = {T}, slow below"
        rows[f"conv{s:+g}_{T}"] = switched(title, T, point("slow", s, "conv"), "slow", "modules, switched")
    title = "three sets: slow above T = 800, s = -2 in the temporal convolutions down to 300, slow below"
    middle = ("slow", point("slow", -2.0, "conv"), "slow")
    rows["three_sets"] = Arm(title, middle, "modules, switched", options={"switch_at": (800, 300)})
    for tune in tunes[1:]:
        title = f"s = -1.5 in the temporal convolutions above T = 300, {tune} below"
        rows[f"{tune}_conv-1.5_300"] = switched(
            title, 300, point(tune, -1.5, "conv"), tune, "modules, switched"
        )
    return rows


def switched(
    title: str, T: int, first: str | MergedSet, then: str | MergedSet, group: str = "decoupled"
) -> Arm:
    """The first set while t > T, then the other."""
    return Arm(title, (first, then), group, T if group == "switch" else None, {"switch_at": (T,)})


def recipes(rows: Iterable[Arm], path_of: Callable[[str], Path]) -> list[Recipe]:
    """The merges that the rows need, in an order in which they can be made; path_of: a set's file by its
    name. One recipe for all sets of the same inputs."""
    wanted: dict[tuple[tuple[str, str], ...], dict[str, tuple[MergeStep, ...]]] = {}

    def want(what: str | MergedSet) -> str:
        if isinstance(what, str):
            return what
        inputs = tuple((name, want(source)) for name, source in what.inputs)
        wanted.setdefault(inputs, {})[what.name] = what.steps
        return what.name

    for row in rows:
        for what in row.sets:
            want(what)
    return [
        Recipe(inputs={name: str(path_of(source)) for name, source in inputs}, outputs=outputs, seed=123)
        for inputs, outputs in wanted.items()
    ]


def files_of(rows: Iterable[Arm]) -> set[str]:
    """The plain sets that the rows are made from: base and fine-tunes."""

    def plain(what: str | MergedSet) -> set[str]:
        if isinstance(what, str):
            return {what}
        return {name for _, source in what.inputs for name in plain(source)}

    return {name for row in rows for what in row.sets for name in plain(what)}


def made_of(what: str | MergedSet, sha_of: Callable[[str], str]) -> Any:
    """The content of a set: the hash of a plain one, the inputs and steps of a merged one."""
    if isinstance(what, str):
        return sha_of(what)
    inputs = {name: made_of(source, sha_of) for name, source in what.inputs}
    return {"inputs": inputs, "steps": [{"op": step.op, **dataclasses.asdict(step)} for step in what.steps]}


def name_of(what: str | MergedSet) -> str:
    return what.name if isinstance(what, MergedSet) else what
