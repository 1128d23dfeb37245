"""The one registry of systems: a name, and where its object lives."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from edg.core.errors import UsageError, nearest

if TYPE_CHECKING:
    from edg.systems.base import System

REGISTRY = {"edg": "edg.systems.edg:EdgSystem"}
DEFAULT = "edg"  # what the commands sample with


def get(name: str = DEFAULT) -> System:
    """The system of that name. Raises UsageError with the nearest name."""
    if name not in REGISTRY:
        raise UsageError(f"no system {name!r}", expected=" or ".join(REGISTRY), fix=nearest(name, REGISTRY))
    module, attribute = REGISTRY[name].split(":")
    return getattr(import_module(module), attribute)()
