"""Parameter sets merged in memory: `--base`, `--tuned`, `--recipe`, `--strength` and the dials."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edg.core.errors import UsageError, require
from edg.core.hashing import cached_sha256
from edg.core.options import converted, declared
from edg.networks.latent_video.spec import ModelSpec
from edg.systems.base import Request, WeightFiles
from edg.systems.edg import dials as measured
from edg.systems.edg.dials import WORDS, Dials
from edg.systems.edg.options import SamplingOptions

if TYPE_CHECKING:
    from edg.merging.recipe import Recipe

ASK = (*WORDS, "base", "tuned", "recipe", "strength", "dials")
FILES = ("dynamic_path", "consistency_path")
Settle = Callable[[Mapping[str, Any]], SamplingOptions]
SpecOf = Callable[[Mapping[str, Path]], ModelSpec]


@dataclass(frozen=True)
class Merging:
    """A merge in memory. recipe: with its files; paths: these files by input; given: the options, with T
    where a dial or its file chooses it; dials: the model's; notes: for the records."""

    spec: ModelSpec
    recipe: Recipe
    paths: Mapping[str, Path]
    given: Mapping[str, Any]
    dials: Dials | None
    notes: Mapping[str, Any]


def is_asked(given: Mapping[str, Any]) -> bool:
    """True if an option asks for parameter sets merged in memory."""
    return any(name in given for name in ASK)


def choose(
    typed: SamplingOptions, given: Mapping[str, Any], weights: WeightFiles, spec_of: SpecOf
) -> Merging:
    """The merge that the options ask for. Raises UsageError. spec_of: the model of parameter sets by path."""
    from edg.weights.tables import by_input

    _check_together(typed, given, weights)
    paths = _inputs(typed, spec_of)
    spec = spec_of(paths)
    dials = _dials(typed, spec.name, paths)
    name, recipe, strengths = _adjusted(typed, dials)
    free = "T" not in given and "switch_at" not in given and typed.blend == "hard"
    if dials and name == dials.recipe and free:
        given = {**given, "T": strengths.get("T", dials.T)}
    files = _files_of(recipe, paths)
    recipe = replace(recipe, inputs=files, tables={**recipe.tables, **by_input(weights.tables, files)})
    notes = {"merged_in_memory": {"recipe": str(name), **{key: str(path) for key, path in paths.items()}}}
    turned = {word: getattr(typed, word) for word in WORDS if getattr(typed, word) is not None}
    if turned:
        command = dials.command
        notes["dials"] = {**turned, "stand_for": strengths, "recipe": str(name), "measured_by": command}
    return Merging(spec, recipe, paths, given, dials, notes)


def check(typed: SamplingOptions, given: Mapping[str, Any], weights: WeightFiles, model: str | None) -> int:
    """The number of sets that the options stand for, as far as no file has to be opened for it. model: None
    where only a file identifies it. Raises UsageError."""
    _check_together(typed, given, weights)
    if model is None and not typed.recipe:
        return 2
    dials = _dials(typed, model, {}) if model else None
    return len(_adjusted(typed, dials)[1].outputs)


def _adjusted(typed: SamplingOptions, dials: Dials | None) -> tuple[str, Recipe, dict[str, float]]:
    """(the recipe's name, the recipe with the numbers of dials and --strength, what the dials stand for).
    Raises UsageError."""
    from edg.merging import recipe as recipes

    name = typed.recipe or (dials.recipe if dials else "edg")
    recipe = recipes.load_recipe(name)
    strengths = dials.strengths(typed.motion, typed.hold) if dials else {}
    given = _strengths(typed.strength)
    if twice := sorted(strengths.keys() & given.keys()):
        raise UsageError(f"--strength {twice[0]} together with the dial that sets it", expected="one of them")
    for place, value in {**strengths, **given}.items():
        recipe = recipe if place == "T" else recipes.adjusted(recipe, place, value)
    return name, recipe, strengths


def open_sets(merging: Merging, note: Callable[[str], None]) -> dict[str, Any]:
    """The recipe's outputs as parameter sets by name, computed when they are read. note: called with a line
    on the merge, and one on the dials."""
    from edg.merging.lazy import merged
    from edg.networks import family_of

    parts = dict(merging.notes["merged_in_memory"])
    note(f"merging {parts.pop('recipe')} in memory, from {' and '.join(parts.values())}")
    if turned := merging.notes.get("dials"):
        words = ", ".join(f"--{word} {turned[word]:g}" for word in WORDS if word in turned)
        note(f"  {words}: {', '.join(f'{name} = {value:g}' for name, value in turned['stand_for'].items())}")
    return dict(merged(merging.recipe, warn=note, family=family_of))


def remarks(merging: Merging, settle: Settle, request: Request) -> list[str]:
    """Lines on how far to trust the dials for clips like this one. settle: the options of given ones."""
    turned, dials, lines = merging.notes.get("dials"), merging.dials, []
    if not turned or dials is None:
        return lines
    measured = dict(converted(SamplingOptions, dials.sampling))
    if "T" not in turned["stand_for"]:
        measured.setdefault("T", dials.T)
    if other := _differing(merging.spec, settle(measured), "T" in measured, request):
        lines.append(f"  the curve was measured with other settings: {' '.join(other)}")
    T, start = merging.given.get("T"), request.options.start
    if T is not None and 1000 > start <= T + 1:
        lines.append(f"  dyn is not used: sampling starts at M = {start}, and con takes over at T = {T}")
    return lines


def _differing(spec: ModelSpec, measured: SamplingOptions, with_switch: bool, request: Request) -> list[str]:
    """The settings of the measured clips that are others now, as flags."""
    sizes = {"height": spec.height, "width": spec.width, "video_length": spec.frames}
    now = {"height": request.height, "width": request.width, "video_length": request.frames}
    found = [f"--{name} {size}" for name, size in sizes.items() if size != now[name]]
    fits = [
        ("crop" if options.crop else "pad" if options.pad else "stretch")
        for options in (measured, request.options)
    ]
    if fits[0] != fits[1]:
        found.append(f"--fit {fits[0]}")
    for name, field in declared(SamplingOptions).items():
        then = getattr(measured, name)
        same = then == getattr(request.options, name)
        if same or not field.option.pixels or field.option.flags is None or name == "switch_at":
            continue
        shown = f"{then:g}" if isinstance(then, (int, float)) else then
        found.append(f"{field.flags[0]} {shown}" if then else f"no {field.flags[0]}")
    if with_switch and measured.switch_at != request.options.switch_at:
        found.append(f"--T {measured.switch_at[0]}")
    return found


def _check_together(typed: SamplingOptions, given: Mapping[str, Any], weights: WeightFiles) -> None:
    """Raise UsageError for options that say the same thing twice, or exclude each other."""
    asking = next(f"--{name}" for name in ASK if name in given)
    turned = [f"--{word}" for word in WORDS if word in given]
    _strengths(typed.strength)
    for name in ("sets", *FILES):
        here = weights.files if name == "sets" else getattr(typed, name)
        require(not here, f"{asking} with --{name}", "sets merged in memory, or files of sets, not both")
    require(
        not (turned and typed.recipe), f"{next(iter(turned), '')} with --recipe",
        "one of them: a dial uses the recipe that it was measured with",
    )  # fmt: skip
    if typed.hold is not None:
        for name in ("T", "switch_at"):
            require(
                name not in given, f"--hold with --{name}", "one of them: --hold sets the switch timestep"
            )
        require(typed.blend != "soft", "--hold with --blend soft, which has no switch", "one or the other")


def _inputs(typed: SamplingOptions, spec_of: SpecOf) -> dict[str, Path]:
    """base and tuned as given, else the embedded ones where the model is theirs."""
    from edg.sprites import WEIGHTS

    if typed.base and typed.tuned:
        return {"base": Path(typed.base), "tuned": Path(typed.tuned)}
    embedded = {name: WEIGHTS / f"{name}.safetensors" for name in ("base", "tuned")}
    alone = next((name for name in ("base", "tuned") if getattr(typed, name)), None)
    if alone:
        raise UsageError(f"--{alone} alone", expected="--base FILE --tuned FILE")
    model = spec_of(embedded).name
    if model != "sprites":
        _dials(typed, model, {})  # raises for a dial without a curve
        raise UsageError(f"no files to merge for {model}", expected="--base FILE --tuned FILE")
    return embedded


def _dials(typed: SamplingOptions, model: str, paths: Mapping[str, Path]) -> Dials | None:
    """The model's dials; None where nobody measured any and none is turned. Raises UsageError for a dial
    without a curve, or with one of other files."""
    dials = measured.find_dials(typed.dials, model)
    for word in WORDS:
        if getattr(typed, word) is None:
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
            raise UsageError(f"--strength {text}", expected="OUTPUT.SETTING=NUMBER, each OUTPUT.SETTING once")
        found[place] = number
    return found


def _files_of(recipe: Recipe, paths: Mapping[str, Path]) -> dict[str, str]:
    """The recipe's inputs with base and tuned filled in. Raises UsageError where another has no file."""
    inputs = {name: str(paths.get(name, path)) for name, path in recipe.inputs.items()}
    if empty := [name for name, path in inputs.items() if not path]:
        raise UsageError(
            f"the recipe needs the input {empty[0]}", expected="a recipe with no inputs but base and tuned"
        )
    return inputs
