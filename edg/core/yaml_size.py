"""How much a YAML text stands for, found without making it: aliases, and `${names}` of names, multiply.

Thirty lines `a2: ${a1}${a1}` are a text of gigabytes; ten aliases of ten aliases, nine times, 10^9 values.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from edg.core.errors import UsageError

NAME = re.compile(r"\$\{\s*(\.*)([\w-]+(?:\.[\w-]+|\[[\w-]+\])*)\s*\}")  # ${name}, ${a.b[0]}, ${.beside}
OTHER = re.compile(r"\$\{[^}]*\}")  # what is left of ${oc.env:HOME}: settings depend on nothing outside
MOST_VALUES = 100_000  # aliases followed
MOST_TEXT = 4 << 20  # characters, aliases and names followed

Place = tuple[str, ...]  # ("model", "layers", "0")


def check(text: str, overrides: Sequence[str], path: Any) -> None:
    """Raise UsageError where `text` of the file `path` stands for too much, or asks for more than names of
    its own values. overrides: `dotted.key=value`. Raises YAMLError and RecursionError, too."""
    import yaml

    for override in overrides:
        _check_names(override, path)
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return
        if (count := _values(root, {})) > MOST_VALUES:
            raise UsageError(f"{path} stands for {count:.3g} values", expected=f"at most {MOST_VALUES}")
        places: dict[Place, Any] = {}
        _find_places(loader, root, (), places)
    finally:
        loader.dispose()
    _Sizes(places, [tuple(_parts(override.partition("=")[0])) for override in overrides], path).of(())


def _values(node: Any, known: dict[int, int]) -> int:
    """How many values there are in a node, every alias counted as what it is an alias of."""
    if id(node) not in known:
        parts = node.value if isinstance(node.value, list) else ()
        pairs = (part if isinstance(part, tuple) else (part,) for part in parts)
        known[id(node)] = 1 + sum(_values(inner, known) for pair in pairs for inner in pair)
    return known[id(node)]


def _find_places(loader: Any, node: Any, place: Place, places: dict[Place, Any]) -> None:
    places[place] = node
    if node.id == "mapping":
        loader.flatten_mapping(node)  # `<<: *other` becomes what it stands for
        for key, value in node.value:
            _find_places(loader, value, (*place, str(key.value)), places)
    elif node.id == "sequence":
        for index, value in enumerate(node.value):
            _find_places(loader, value, (*place, str(index)), places)


def _check_names(text: str, path: Any) -> None:
    if found := OTHER.search(NAME.sub("", text)):
        raise UsageError(f"{path} asks for {found[0]}", expected="values, and ${names} of other values")


def _parts(name: str) -> list[str]:
    return re.findall(r"[^.\[\]\s]+", name)


class _Sizes:
    """Characters that each place stands for, its names followed."""

    def __init__(self, places: dict[Place, Any], given: Sequence[Place], path: Any):
        self.places, self.given, self.path = places, given, path
        self.known: dict[Place, int | None] = {}

    def of(self, place: Place) -> int:
        if place in self.known:
            if (size := self.known[place]) is None:
                raise UsageError(f"{self.path}: {'.'.join(place)} stands for itself", expected="a value")
            return size
        self.known[place] = None
        node = self.places[place]
        if node.id == "scalar":
            _check_names(node.value, self.path)
            targets = [self._target(place, *found.groups()) for found in NAME.finditer(node.value)]
            size = len(node.value) + sum(self.of(target) for target in targets if target is not None)
        else:
            numbers = range(len(node.value))
            keys = [str(key.value) for key, _ in node.value] if node.id == "mapping" else map(str, numbers)
            size = sum(1 + len(key) + self.of((*place, key)) for key in keys)
        if size > MOST_TEXT:
            raise UsageError(f"{self.path} stands for more than {MOST_TEXT} characters", expected="settings")
        self.known[place] = size
        return size

    def _target(self, place: Place, dots: str, name: str) -> Place | None:
        """The place of a name, None where an override gives it."""
        target = (*(place[: -len(dots)] if dots else ()), *_parts(name))
        if target in self.places:
            return target
        if any(target[: len(g)] == g or g[: len(target)] == target for g in self.given):
            return None
        raise UsageError(f"{self.path} asks for ${{{dots}{name}}}", expected="the name of another value")
