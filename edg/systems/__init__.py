"""The one registry of systems: a name, and where its object lives."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from edg.core.errors import UsageError, nearest

REGISTRY = {"edg": "edg.systems.edg:EdgSystem"}


def get(name: str) -> Any:
    """The system of that name. Raises UsageError with the nearest name."""
    if name not in REGISTRY:
        raise UsageError(f"no system {name!r}", expected=" or ".join(REGISTRY), fix=nearest(name, REGISTRY))
    module, attribute = REGISTRY[name].split(":")
    return getattr(import_module(module), attribute)()
