"""A merge as data: inputs, outputs, steps, seed. Written as YAML, and carried inside every file it made.

    inputs: {base: base.ckpt, tuned: tuned.ckpt}     # the first is the base
    seed: 123
    outputs:
      dyn: [{op: dynamic, alpha: 0.25, beta: 0.75, drop_rate: 0.7}]
      con: [{op: consistent, alpha: 1.0, beta: 0.25, where: [temporal, "*.bias"]}]

Of the steps of an output the first whose `where` matches a tensor is applied; what no step matches is the
base's. A step or a pattern that matches no tensor of the inputs is an error when they are opened (`plan`),
unless the step says `optional: true`, or names the patterns that may match none.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edg.core import config
from edg.core.errors import UsageError, nearest
from edg.core.paths import file_stem, user_path
from edg.core.shipped import shipped
from edg.core.written import plain, text_of
from edg.merging.masks import GENERATOR
from edg.merging.steps import Consistent, Copy, Dynamic, MergeStep, make_step
from edg.weights.family import UNKNOWN, Family, FamilyOf

if TYPE_CHECKING:
    from edg.weights.store import Weights

MISSING = ("identity", "error", "drop")
STRENGTHS, FAR = ("alpha", "beta", "scaling"), 100
DTYPES = ("", "float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True)
class Recipe:
    """A merge as data.

    inputs: name -> path, the base first.
    outputs: name -> steps.
    seed, generator: of the DARE masks.
    missing: for names that not all inputs have: `identity` (an input without any tensor of an optional group
        gets one that does nothing, everything else is an error), `error`, or `drop` (released).
    mask_scalars: DARE masks 0-d tensors too (released).
    dtype: of the outputs, '' for the base's.
    tables: input -> one of several tables in its file; without a name, the raw weights.
    """

    inputs: Mapping[str, str]
    outputs: Mapping[str, tuple[MergeStep, ...]]
    seed: int = 0
    generator: str = GENERATOR
    missing: str = "identity"
    mask_scalars: bool = True
    dtype: str = ""
    notes: str = field(default="", compare=False)
    tables: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        for name, table in self.tables.items():
            if name not in self.inputs or not isinstance(table, str) or not table:
                raise UsageError(
                    f"tables: {name}: {table!r}",
                    expected=f"INPUT: NAME, with INPUT one of {', '.join(self.inputs)}",
                    fix=nearest(name, self.inputs),
                )
        _choice("missing", self.missing, MISSING)
        _choice("dtype", self.dtype, DTYPES)
        _choice("generator", self.generator, (GENERATOR,))
        if type(self.seed) is not int or not 0 <= self.seed < 1 << 64:
            raise UsageError(f"seed: {self.seed!r}", expected="a whole number from 0 to 2^64 - 1")
        if not isinstance(self.mask_scalars, bool):
            raise UsageError(f"mask_scalars: {self.mask_scalars!r}", expected="true or false")
        if len(self.inputs) < 1:
            raise UsageError("a recipe without inputs", expected="inputs: {base: FILE, ...}")
        if not self.outputs:
            raise UsageError("a recipe without outputs", expected="outputs: {NAME: [steps]}")
        for output, steps in self.outputs.items():
            file_stem(output, "output name")
            for step in steps:
                _check_step(output, step, list(self.inputs))

    def step_for(self, output: str, name: str, family: Family) -> MergeStep:
        """The first step of the output whose `where` matches a tensor, else a copy of the base's."""
        for step in self.outputs[output]:
            if not step.where or family.matches(name, step.where):
                return step
        return Copy()

    def check_kinds(self, family: Family) -> None:
        """Raise UsageError for a misspelt module kind in a `where`."""
        for output, steps in self.outputs.items():
            for where in (where for step in steps for where in step.where):
                if (
                    where.isidentifier()
                    and where not in family.kind_help
                    and nearest(where, family.kind_help)
                ):
                    raise UsageError(
                        f"{output}: where: {where!r} is not a module kind",
                        expected="one of " + ", ".join(family.kind_help) + " or a pattern with * in it",
                        fix=nearest(where, family.kind_help),
                    )


def _choice(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        listed = ", ".join(repr(a) for a in allowed)
        raise UsageError(f"{what}: {value!r}", expected=f"one of {listed}", fix=nearest(str(value), allowed))


def _check_step(output: str, step: MergeStep, names: list[str]) -> None:
    for name in step.used(names):
        if name not in names:
            raise UsageError(
                f"{output}: no input {name!r}", expected=", ".join(names), fix=nearest(name, names)
            )
    weights = getattr(step, "weights", None)
    if weights is not None and len(weights) != len(names):
        raise UsageError(
            f"{output}: linear with {len(weights)} weights", expected=f"{len(names)}, one per input"
        )
    models = len(getattr(step, "of", ()) or names[1:])
    scaling = getattr(step, "scaling", 1.0)
    if isinstance(scaling, tuple) and len(scaling) != models:
        raise UsageError(
            f"{output}: {step.op} with {len(scaling)} scalings", expected=f"{models}, one per model"
        )
    if len(names) < 2 and step.op not in ("copy", "linear"):
        raise UsageError(f"{output}: {step.op} with one input", expected="a base and at least one more")


def edg_recipe(
    base: str,
    tuned: str,
    *,
    dyn_alpha: float = 0.25,
    dyn_beta: float = 0.75,
    con_alpha: float = 1.0,
    con_beta: float = 0.25,
    drop_rate: float = 0.7,
    con: str = "released",
    seed: int = 123,
    missing: str = "identity",
    dtype: str = "",
) -> Recipe:
    """The published pair of merges: outputs `dyn` and `con`. con: 'released' or 'anchored'
    (`ops.consistent`).

    0-d tensors are masked only with con='released', as the released code does."""
    return Recipe(
        inputs={"base": str(base), "tuned": str(tuned)},
        outputs={
            "dyn": (Dynamic(alpha=dyn_alpha, beta=dyn_beta, drop_rate=drop_rate),),
            "con": (Consistent(alpha=con_alpha, beta=con_beta, drop_rate=drop_rate, form=con),),
        },
        seed=seed,
        missing=missing,
        mask_scalars=con == "released",
        dtype=dtype,
    )


def remarks(recipe: Recipe) -> list[str]:
    """Remarks on a valid recipe that may not do what its numbers suggest."""
    steps = [(output, step) for output, steps in recipe.outputs.items() for step in steps]
    scaled = [
        f"{output}: alpha {step.alpha:g} scales the whole network, including the schedule buffers; "
        "--con anchored (form: anchored) makes it a strength instead"
        for output, step in steps
        if isinstance(step, Consistent) and step.form == "released" and step.alpha != 1 and not step.where
    ]
    return scaled + [
        f"{output}: {key} {value:g} is far beyond the strengths in use"
        for output, step in steps
        for key, value in vars(step).items()
        if key in STRENGTHS and isinstance(value, (int, float)) and abs(value) > FAR
    ]


def adjusted(recipe: Recipe, place: str, value: float) -> Recipe:
    """A recipe with one number changed: place is OUTPUT.SETTING, of the output's first step that has it.

    Raises UsageError where there is none, naming what there is."""
    output, _, setting = place.partition(".")
    known = {
        f"{name}.{key}": index
        for name, steps in recipe.outputs.items()
        for index, step in reversed(list(enumerate(steps)))
        for key, old in vars(step).items()
        if type(old) in (int, float)
    }
    if place not in known:
        raise UsageError(
            f"no {place} in the recipe", expected=", ".join(known) or "numbers", fix=nearest(place, known)
        )
    steps = list(recipe.outputs[output])
    step = steps[known[place]]
    whole = isinstance(getattr(step, setting), int) and value == int(value)
    steps[known[place]] = dataclasses.replace(step, **{setting: int(value) if whole else float(value)})
    return dataclasses.replace(recipe, outputs={**recipe.outputs, output: tuple(steps)})


def same_result(recipe: Mapping) -> dict:
    """A recipe's plain data without paths of inputs and `optional`, which change no number."""

    def plain(value: object) -> object:
        if isinstance(value, list):
            return [plain(item) for item in value]
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items() if key != "optional"}
        return value

    return {**recipe, "inputs": list(recipe.get("inputs") or {}), "outputs": plain(recipe.get("outputs"))}


def to_dict(recipe: Recipe) -> dict:
    """Plain data, ready for YAML or JSON; `from_dict` reads it back equal."""

    def plain(step: MergeStep) -> dict:
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(step).items()}
        return {"op": step.op} | {
            k: v for k, v in values.items() if v is not None and not (k in ("where", "optional") and not v)
        }

    table = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe)}
    table["inputs"], table["tables"] = dict(recipe.inputs), dict(recipe.tables)
    table["outputs"] = {name: [plain(s) for s in steps] for name, steps in recipe.outputs.items()}
    return {k: v for k, v in table.items() if k not in ("notes", "tables") or v}


def from_dict(data: object, place: str = "recipe") -> Recipe:
    """A recipe from plain data. Raises UsageError for anything unknown, naming the nearest."""
    if not isinstance(data, dict):
        raise UsageError(f"{place} is not a mapping", expected="inputs, outputs, seed, ...")
    known = {f.name: f for f in dataclasses.fields(Recipe)}
    for key in data:
        if key not in known:
            raise UsageError(
                f"{place} has no setting {key!r}", expected=", ".join(known), fix=nearest(str(key), known)
            )
    texts = {f.name for f in known.values() if f.type == "str"}
    values = {key: text_of(value) if key in texts else value for key, value in data.items()}
    values |= {key: plain(values[key]) for key in ("seed", "mask_scalars") if key in values}
    inputs, outputs = values.get("inputs") or {}, values.get("outputs") or {}
    if isinstance(inputs, dict):
        inputs = {name: text_of(path) for name, path in inputs.items()}
    if not isinstance(inputs, dict) or not all(isinstance(v, (str, type(None))) for v in inputs.values()):
        raise UsageError(f"{place}: inputs", expected="a mapping NAME: PATH")
    if not isinstance(outputs, dict):
        raise UsageError(f"{place}: outputs", expected="a mapping NAME: [steps]")
    values["inputs"] = {str(k): v or "" for k, v in inputs.items()}
    tables = values.get("tables") or {}
    if not isinstance(tables, dict):
        raise UsageError(f"{place}: tables", expected="a mapping INPUT: NAME")
    values["tables"] = {str(k): v for k, v in tables.items()}
    values["outputs"] = {
        str(name): tuple(
            make_step(step, f"{place}: {name}") for step in (steps if isinstance(steps, list) else [steps])
        )
        for name, steps in outputs.items()
    }
    return Recipe(**values)


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe from YAML: a path, or the name of one in configs/merge. Raises UsageError."""
    place = find_recipe(path)
    recipe = from_dict(config.read_yaml(place), str(place))
    inputs = {n: path and user_path(path, f"{place}: inputs.{n}") for n, path in recipe.inputs.items()}
    return dataclasses.replace(recipe, inputs=inputs)


def is_recipe(path: str | Path) -> bool:
    """True for a YAML file that is a recipe rather than a model's configuration."""
    return "model" not in config.read_yaml(find_recipe(path))


def find_recipe(path: str | Path) -> Path:
    folder = shipped("configs", "merge")
    known = {p.stem: p for p in sorted(folder.glob("*.yaml"))}
    if str(path) in known:
        return known[str(path)]
    if not os.path.isfile(path):
        raise UsageError(
            f"no recipe {path}",
            expected="a YAML file or one of " + ", ".join(known),
            fix=nearest(str(path), known),
        )
    return Path(path)


def open_inputs(recipe: Recipe, family: FamilyOf = UNKNOWN) -> dict[str, Weights]:
    """The inputs of a merge by name, each with the table that the recipe names."""
    from edg.weights.store import open_weights

    return {
        name: open_weights(path, table=recipe.tables.get(name, ""), family=family)
        for name, path in recipe.inputs.items()
    }
