"""The one registry of systems: a name, and where its description lives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edg.core import config
from edg.core.errors import UsageError, nearest, require
from edg.systems.base import Spec, System, load_part

SYSTEMS = {"edg": "edg.systems.edg.system:SYSTEM"}
DEFAULT = "edg"  # where neither a system nor a model is named
DEFAULT_MODEL = "sprites"  # comes with the package
YAML = (".yaml", ".yml")


def get(name: str = DEFAULT) -> System:
    """The system of that name. Raises UsageError with the nearest name."""
    require(name in SYSTEMS, f"no system {name!r}", " or ".join(SYSTEMS), nearest(name, SYSTEMS))
    return load_part(SYSTEMS[name])


def all_systems() -> Iterator[System]:
    return (get(name) for name in SYSTEMS)


def known_specs() -> dict[str, System]:
    """Every known model's name -> its system."""
    return {name: system for system in all_systems() for name in system.known_specs}


def of(system: str | None, model: str | None) -> System:
    """The system that is named, else the one that a model belongs to, else the default. Raises UsageError for
    an unknown system; an unknown model is left to `find`."""
    if system is not None:
        return get(system)
    if model is None:
        return get()
    known = known_specs()
    if found := known.get(_plain(model)):
        return found
    if Path(model).suffix in YAML and Path(model).is_file():
        named = config.read_yaml(model).get("system")
        return get(str(named)) if named is not None else get()
    return get()


def find(model: str, system: str | None = None) -> tuple[System, Spec]:
    """A system and its model by name, or by a YAML file that may have a key `system`. Raises UsageError with
    the nearest name, BadFileError for a file that cannot be read."""
    chosen = of(system, model)
    if _plain(model) in chosen.known_specs:
        return chosen, chosen.known_specs[_plain(model)]
    if other := known_specs().get(_plain(model)):
        given = f"{model} is a model of the system {other.name}, not of {chosen.name}"
        raise UsageError(given, expected=", ".join(chosen.known_specs), fix=f"--system {other.name}")
    if Path(model).suffix not in YAML:
        known = [*chosen.known_specs, *(name for name in known_specs() if name not in chosen.known_specs)]
        fix = nearest(_plain(model), known)
        raise UsageError(
            f"no model is called {str(model)!r}", expected=f"{', '.join(known)} or a .yaml", fix=fix
        )
    return chosen, chosen.part("read_spec")(model)


def identify(weights: Mapping[str, Any]) -> tuple[System | None, str | None, str]:
    """(system, model's name or None, reason) of a parameter set, from names and shapes."""
    reason = "no system recognises it"
    for system in all_systems():
        if system.identify is None:
            continue
        name, reason = system.part("identify")(weights)
        if name is not None:
            return system, name, reason
    return None, None, reason


def _plain(model: str | Path) -> str:
    return str(model).replace("_", "-")
