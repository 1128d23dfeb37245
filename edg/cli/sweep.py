"""`edg sweep`: a grid over options of `edg sample`, a folder for each point, scores and a report at the end.

    out: output/sweeps/strength
    options: {config: sprites, recipe: edg_temporal_conv, T: 300}
    grid: {dyn: {alpha: [0, 0.5, 1]}, seed: [1, 2]}

A name with a dot, or nested as above, is an item of the system's `dotted` option, such as a number of a
recipe. To resume, run it again.
"""

from __future__ import annotations

import argparse
import itertools
import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edg import systems
from edg.core import config
from edg.core.arguments import Parser, as_path
from edg.core.config import PathText
from edg.core.dist import World
from edg.core.errors import EdgError, SomeFailedError, UsageError, nearest
from edg.core.files import lock_folder, remove_leftovers, write_json
from edg.core.log import log
from edg.core.options import Declared, NamedPath, declared, names
from edg.core.paths import check_name
from edg.core.process import stopping
from edg.core.shipped import listing, shipped
from edg.core.written import plain, text_of
from edg.runner.config import PARTS, SampleConfig
from edg.systems.base import System

FOLDER = shipped("configs", "sweeps")
MOST_POINTS = 10_000
OWN = ("savedir", "overwrite")  # set by the sweep itself
TEXTS = (str, PathText, NamedPath)
TROUBLE = (EdgError, OSError, MemoryError, RuntimeError)


def add_sweep_arguments(parser: Parser) -> None:
    parser.add_argument(
        "sweep",
        nargs="?",
        type=as_path,
        help="a YAML file, or the name of one in configs/sweeps; omit it to list them",
    )
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="KEY=VALUE",
        help="settings that override the file's: out=DIR grid.seed=[1,2] options.T=300",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the points, make nothing")


@dataclass(frozen=True)
class Sweep:
    """out: the folder of all points. options: those that all points share; grid: name -> values, the last
    name varies fastest. Names are flags of `edg sample`, or OUTPUT.SETTING of its recipe."""

    out: config.PathText
    grid: dict[str, Any]
    options: dict[str, Any]


@dataclass(frozen=True)
class SweepPoint:
    """One point of the grid: its folder, all its options, and the settings of `edg sample`."""

    folder: Path
    options: Mapping[str, Any]
    config: SampleConfig

    def __str__(self) -> str:
        return self.folder.name


def sweep(args: argparse.Namespace) -> int:
    """Run `edg sweep`; returns the exit code. Raises EdgError before anything is made for a flag that is
    wrong anywhere in the grid, SomeFailedError at the end when points failed."""
    if args.sweep is None:
        print(listing("configs", "sweeps"))
        return 0
    plan = read(args.sweep, args.settings)
    dotted = _system(plan.options).dotted
    found = points(plan)
    if args.dry_run:
        for point in found:
            print(
                f"{point}: edg sample {shlex.join(flags_of(point.options, dotted))} --savedir {point.folder}"
            )
        return 0
    with lock_folder(plan.out) as check:
        failed = run_all(found, check)
        late = end(plan, [point for point in found if str(point) not in failed])
    what = f"{len(failed)} of {len(found)} points failed"
    if failed or late:
        troubles = {**failed, **late}
        name, reason = next(iter(troubles.items()))
        raise SomeFailedError(
            f"{what if failed else 'all points are made'}, first failure {name}: {reason}",
            fix="remove the cause and run the same command again: finished clips are kept",
            failed=troubles,
        )
    return 0


# ---- what is to be made ------------------------------------------------------------------------------------


def read(name: str, settings: Sequence[str] = ()) -> Sweep:
    """A sweep from YAML: a path, or the name of one in configs/sweeps. Raises UsageError, BadFileError."""
    shipped = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
    path = shipped.get(name, Path(name))
    if not path.is_file():
        listed = ", ".join(shipped)
        raise UsageError(
            f"no sweep {name}", expected=f"a YAML file or one of {listed}", fix=nearest(name, shipped)
        )
    plan = config.build(Sweep, config.read_yaml(path, settings), str(path), settings)
    grid, options = (
        _flat(table, f"{path}: {what}") for what, table in (("grid", plan.grid), ("options", plan.options))
    )
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"{path}: grid.{key} is {values!r}", expected="a list of values")
        if key in options:
            raise UsageError(f"{path}: {key} both in grid and in options", expected="one of them")
    if not grid:
        raise UsageError(f"{path} has an empty grid", expected="grid: {NAME: [values]}")
    for key in (*grid, *options):
        if key.replace("-", "_") in (*OWN, _system(options).dotted):
            raise UsageError(
                f"{path}: {key}", expected="out for the folder, OUTPUT.SETTING for a setting of the recipe"
            )
    return Sweep(plan.out, grid, options)


def _flat(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Nested names joined by dots. Raises UsageError for one that is there twice."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        inner = _flat(value, where) if isinstance(value, Mapping) else {"": value}
        for rest, item in inner.items():
            name = f"{key}.{rest}".rstrip(".")
            if name in found:
                raise UsageError(f"{where}: {name} twice", expected="every name once")
            found[name] = item
    return found


def points(plan: Sweep) -> list[SweepPoint]:
    """The grid's points, their options checked. Raises EdgError naming the point."""
    from edg.runner.prepare import check

    kinds, dotted = _declared(plan), _system(plan.options).dotted
    _check_names(plan, kinds)
    if (count := math.prod(map(len, plan.grid.values()))) > MOST_POINTS:
        raise UsageError(f"a grid of {count:,} points", expected=f"at most {MOST_POINTS:,}")
    plan = _as_written(plan, kinds)
    found: dict[str, SweepPoint] = {}
    same: dict[str, str] = {}
    for values in itertools.product(*plan.grid.values()):
        chosen = dict(zip(plan.grid, values, strict=True))
        name = "_".join(_safe(f"{key}={_text(value)}") for key, value in chosen.items())
        options = {**plan.options, **chosen}
        if name in found:
            raise UsageError(f"two points are called {name}", expected="values that differ in their names")
        folder = Path(plan.out) / name
        try:
            check_name(name, "a point's name")
            settings = SampleConfig.from_values({**values_of(options, dotted), "savedir": str(folder)})
            check(settings)
        except EdgError as error:
            raise type(error)(f"{name}: {error.given}", expected=error.expected, fix=error.fix) from None
        other = same.setdefault(_meaning(settings, dotted), name)
        if other != name:
            raise UsageError(f"{other} and {name} are the same point", expected="every point once")
        found[name] = SweepPoint(folder, options, settings)
    return list(found.values())


def _system(options: Mapping[str, Any]) -> System:
    """The system that the options name."""
    given = {name.replace("-", "_"): str(text_of(v)) for name, v in options.items() if v is not None}
    return systems.of(given.get("system"), given.get("config", given.get("spec")))


def _declared(plan: Sweep) -> dict[str, Declared]:
    """Every name that an option of `edg sample` may have here -> its declaration."""
    own = _system(plan.options).part("options")
    return {
        name: declared(kind)[field] for kind in (*PARTS.values(), own) for name, field in names(kind).items()
    }


def _as_written(plan: Sweep, kinds: Mapping[str, Declared]) -> Sweep:
    """The plan with texts as they were written where an option takes text, numbers and truths elsewhere."""

    def meant(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [meant(name, one) for one in value]
        kind = kinds.get(name.replace("-", "_"))
        return text_of(value) if kind is not None and kind.item in TEXTS else plain(value)

    grid, options = (
        {name: meant(name, value) for name, value in table.items()} for table in (plan.grid, plan.options)
    )
    return Sweep(plan.out, grid, options)


def _check_names(plan: Sweep, kinds: Mapping[str, Declared]) -> None:
    """Raise UsageError for two names of one option: ddim-steps and ddim_steps, frames and video_length."""
    known: dict[str, str] = {}
    for name in (*plan.options, *plan.grid):
        plain = name.replace("-", "_")
        field = kinds[plain].name if plain in kinds else plain
        other = known.setdefault(field, name)
        if other != name:
            raise UsageError(f"{other} and {name} are the same flag", expected="one of them")


def _meaning(settings: SampleConfig, dotted: str | None) -> str:
    """A text that is equal for points with the same clips: all settings but the folder."""
    own = declared(settings.system.part("options"))
    given = {
        name: value
        for name, value in settings.given().items()
        if name != "savedir" and not (name in own and own[name].says_nothing(value))
    }
    parts = (text.partition("=") for text in given.get(dotted, ()))
    return repr({**given, dotted: sorted((place, float(value)) for place, _, value in parts)})


def values_of(options: Mapping[str, Any], dotted: str | None) -> dict[str, Any]:
    """Options of a point by name, those with a dot as values of the option `dotted`."""
    if dotted is None:
        return dict(options)
    values = {key: value for key, value in options.items() if "." not in key}
    items = [f"{key}={value}" for key, value in options.items() if "." in key and value is not None]
    return values | ({dotted: items} if items else {})


def _safe(text: str) -> str:
    return re.sub(r"[^\w.=+-]+", "-", text)[:80]


def _text(value: Any) -> str:
    return "-".join(map(_text, value)) if isinstance(value, list) else str(value)


def flags_of(options: Mapping[str, Any], dotted: str | None) -> list[str]:
    """Options as a command line: none is left out, a truth is a switch, a list is several arguments."""
    given = {key: value for key, value in options.items() if value is not None}
    flags = []
    for key, value in given.items():
        if "." in key:
            continue
        if isinstance(value, bool):
            flags.append(f"--{key}={int(value)}")
        elif isinstance(value, list):
            flags += [f"--{key}", *map(str, value)]
        else:
            flags.append(f"--{key}={value}")
    items = [f"{key}={value}" for key, value in given.items() if "." in key]
    return flags + ([f"--{dotted}", *items] if items else [])


# ---- making ------------------------------------------------------------------------------------------------


def run_all(found: Sequence[SweepPoint], check: Callable[[], None]) -> dict[str, str]:
    """Sample every point; what failed, with its reason. Points that follow each other with the same sets
    share one network. check: raises when the sweep's folder has been removed, which ends it."""
    failed: dict[str, str] = {}
    keep: dict[str, Any] = {}
    for number, point in enumerate(found, 1):
        stopping.check()
        check()
        log(f"[{number}/{len(found)}] {point}")
        with _named(str(point), failed):
            _make(point, keep)
    check()
    return failed


def _make(point: SweepPoint, keep: dict[str, Any]) -> None:
    """Sample a point. Its point.json stays what it was where the clips that lie there are of other settings.
    Raises EdgError."""
    from edg.runner.prepare import prepare
    from edg.runner.sample import run

    record, about = point.folder / "point.json", {"name": str(point), "options": dict(point.options)}
    remove_leftovers(point.folder)
    if not record.exists():
        write_json(record, about)
    try:
        run(prepare(point.config, World()), World(), keep)
    except UsageError as error:
        other = "another out=, or remove the point's folder" if "--overwrite" in error.fix else error.fix
        raise UsageError(error.given, expected=error.expected, fix=other) from None
    except SomeFailedError:
        write_json(record, about)
        raise
    write_json(record, about)


@contextmanager
def _named(what: str, failed: dict[str, str]) -> Iterator[None]:
    """Log trouble inside and note it as that of `what`; the rest goes on."""
    try:
        yield
    except TROUBLE as error:
        failed[what] = str(error) or type(error).__name__
        log(f"  {what} failed: {failed[what]}")


def end(plan: Sweep, made: Sequence[SweepPoint]) -> dict[str, str]:
    """Scores of every point, and the report over all of them in OUT/report; what failed, with its reason."""
    runs = {str(point): point.config.outdir for point in made}
    failed: dict[str, str] = {}
    if not runs:
        return failed
    from edg.report.page import write_report
    from edg.runner.score import score
    from edg.runner.score_models import ScoreConfig

    for name, run in runs.items():
        with _named(f"scores of {name}", failed):
            score(ScoreConfig(run))
    with _named("report", failed):
        log(f"report: {write_report(list(runs.values()), Path(plan.out) / 'report')}")
    return failed
