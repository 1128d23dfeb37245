"""Parameter sets merged in memory: `--base`, `--tuned`, `--recipe`, `--strength` and the dials."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edg.core.errors import UsageError
from edg.core.hashing import cached_sha256
from edg.core.log import say
from edg.runner import sample_flags
from edg.systems.base import Spec
from edg.systems.edg import dials as measured
from edg.systems.edg.dials import WORDS, Dials

ASK = (*WORDS, "base", "tuned", "recipe", "strength", "dials")
FILES = ("sets", "dynamic_path", "consistency_path")


@dataclass(frozen=True)
class Merging:
    """recipe: a weights.recipe.Recipe with its files; paths: those files by input; note: for the records."""

    recipe: Any
    paths: Mapping[str, Path]
    note: Mapping[str, Any]


def asked(args: argparse.Namespace) -> bool:
    """Whether a flag wants its sets merged here."""
    return any(getattr(args, name) is not None for name in ASK)


def choose(args: argparse.Namespace, spec_of: Callable[[Mapping[str, Path]], Spec]) -> Merging:
    """What the flags stand for; sets args.T where a dial or its file tells it. Raises UsageError.

    spec_of: the model of parameter sets by path.
    """
    from edg.weights.tables import by_input

    _check_together(args)
    paths = _inputs(args, spec_of)
    spec = spec_of(paths)
    dials = _dials(args, spec.name, paths)
    name, recipe, strengths = _adjusted(args, dials)
    if dials and name == dials.recipe and args.T is None and args.switch_at is None and args.blend == "hard":
        args.T = strengths.get("T", dials.T)
    files = _files_of(recipe, paths)
    recipe = replace(recipe, inputs=files, tables={**recipe.tables, **by_input(args.table or (), files)})
    note = {"merged_in_memory": {"recipe": str(name), **{key: str(path) for key, path in paths.items()}}}
    turned = {word: getattr(args, word) for word in WORDS if getattr(args, word) is not None}
    if turned:
        note["dials"] = {**turned, "stand_for": strengths, "recipe": str(name), "measured_by": dials.command}
    return Merging(recipe, paths, note)


def check(args: argparse.Namespace, model: str | None) -> int:
    """How many sets the flags stand for, as far as that can be told without opening a file. model: None where
    a file would tell it. Raises UsageError."""
    _check_together(args)
    if model is None and not args.recipe:
        return 2
    dials = _dials(args, model, {}) if model else None
    return len(_adjusted(args, dials)[1].outputs)


def _adjusted(args: argparse.Namespace, dials: Dials | None) -> tuple[str, Any, dict[str, float]]:
    """(the recipe's name, the recipe with the numbers of dials and --strength, what the dials stand for).
    Raises UsageError."""
    from edg.merging import recipe as recipes

    name = args.recipe or (dials.recipe if dials else "edg")
    recipe = recipes.load_recipe(name)
    strengths = dials.strengths(args.motion, args.hold) if dials else {}
    given = _strengths(args.strength or ())
    if twice := sorted(strengths.keys() & given.keys()):
        raise UsageError(f"--strength {twice[0]} beside the dial that moves it", expected="one of them")
    for place, value in {**strengths, **given}.items():
        recipe = recipe if place == "T" else recipes.adjusted(recipe, place, value)
    return name, recipe, strengths


def open_sets(merging: Merging, args: argparse.Namespace, spec: Spec, aloud: bool) -> dict[str, Any]:
    """The recipe's outputs, not yet read, as parameter sets by name."""
    from edg.merging.lazy import merged

    if aloud:
        tell(merging, args, spec)
    return dict(merged(merging.recipe, warn=say if aloud else lambda text: None))


def tell(merging: Merging, args: argparse.Namespace, spec: Spec) -> None:
    """A line about what is merged, one about what the dials stand for, and how far to trust them."""
    parts = dict(merging.note["merged_in_memory"])
    say(f"merges {parts.pop('recipe')} in memory, of {' and '.join(parts.values())}")
    turned = merging.note.get("dials")
    if not turned:
        return
    words = ", ".join(f"--{word} {turned[word]:g}" for word in WORDS if word in turned)
    say(f"  {words}: {', '.join(f'{name} = {value:g}' for name, value in turned['stand_for'].items())}")
    dials = measured.find_dials(args.dials, spec.name)
    known = sample_flags.of_a_clip(spec) | dials.sampling
    if "T" not in turned["stand_for"]:
        known["T"] = dials.T
    if other := _differing(args, known):
        say(f"  the curve was measured with {' '.join(other)}")
    if args.T is not None and known["M"] > args.M <= args.T + 1:
        say(f"  con alone makes the clip: the start M = {args.M} is not above T = {args.T}: no step is dyn's")


def _differing(args: argparse.Namespace, known: Mapping[str, Any]) -> list[str]:
    """The flags as `known`, of those that are given otherwise. None: as the model has it, but for T."""
    found = []
    for name, value in known.items():
        given = getattr(args, name)
        if (given is None and name != "T") or given == value or not (given or value):
            continue
        if value is None or value is False or value == "":
            found.append(f"no --{name}")
        else:
            found.append(f"--{name} {value:g}" if isinstance(value, (int, float)) else f"--{name} {value}")
    return found


def _check_together(args: argparse.Namespace) -> None:
    """Raise UsageError for flags that say the same thing twice, or what they cannot say."""
    asking = next(f"--{name}" for name in ASK if getattr(args, name) is not None)
    turned = [f"--{word}" for word in WORDS if getattr(args, word) is not None]
    _strengths(args.strength or ())
    for word in WORDS:
        if getattr(args, word) is not None:
            measured.check_range(word, getattr(args, word))
    for name in FILES:
        if getattr(args, name):
            raise UsageError(f"{asking} with --{name}", expected="sets merged in memory, or files of them")
    if turned and args.recipe:
        raise UsageError(
            f"{turned[0]} with --recipe", expected="a dial turns the recipe it was measured with"
        )
    if args.hold is not None:
        for name in ("T", "switch_at"):
            if getattr(args, name) is not None:
                raise UsageError(f"--hold with --{name}", expected="one of them: hold chooses the switch")
        if args.blend == "soft":
            raise UsageError("--hold with --blend soft, which has no switch", expected="one or the other")


def _inputs(args: argparse.Namespace, spec_of: Callable[[Mapping[str, Path]], Spec]) -> dict[str, Path]:
    """base and tuned as given, else the embedded ones where the model is theirs."""
    from edg.sprites import WEIGHTS

    if args.base and args.tuned:
        return {"base": Path(args.base), "tuned": Path(args.tuned)}
    embedded = {name: WEIGHTS / f"{name}.safetensors" for name in ("base", "tuned")}
    alone = next((name for name in ("base", "tuned") if getattr(args, name)), None)
    if alone:
        raise UsageError(f"--{alone} alone", expected="--base FILE --tuned FILE")
    model = spec_of(embedded).name
    if model != "sprites":
        _dials(args, model, {})  # a dial without a curve is told first
        raise UsageError(f"no files to merge for {model}", expected="--base FILE --tuned FILE")
    return embedded


def _dials(args: argparse.Namespace, model: str, paths: Mapping[str, Path]) -> Dials | None:
    """The model's dials; None where nobody measured any and none is turned. Raises UsageError for a dial
    without a curve, or with one of other files."""
    dials = measured.find_dials(args.dials, model)
    for word in WORDS:
        if getattr(args, word) is None:
            continue
        if dials is None:
            raise measured.unmeasured(word, model, f"no curve was measured for {model}", **paths)
        for name, path in paths.items():
            if not path.is_file() or cached_sha256(path) != dials.inputs.get(name):
                why = f"the curve was measured with another {name} than {path}"
                raise measured.unmeasured(word, model, why, **paths)
    return dials


def _strengths(texts: Sequence[str]) -> dict[str, float]:
    """OUTPUT.SETTING=NUMBER as a table."""
    found: dict[str, float] = {}
    for text in texts:
        place, equals, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = None
        if not equals or number is None or place in found:
            raise UsageError(f"--strength {text}", expected="OUTPUT.SETTING=NUMBER, every place once")
        found[place] = number
    return found


def _files_of(recipe: Any, paths: Mapping[str, Path]) -> dict[str, str]:
    """The recipe's inputs with base and tuned filled in. Raises UsageError where another has no file."""
    inputs = {name: str(paths.get(name, path)) for name, path in recipe.inputs.items()}
    if empty := [name for name, path in inputs.items() if not path]:
        raise UsageError(f"the recipe wants {empty[0]}", expected="a recipe of base and tuned")
    return inputs
