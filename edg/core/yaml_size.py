"""The size of a YAML text's content, found without building it: aliases, and `${names}` of names, multiply.

Thirty lines `a2: ${a1}${a1}` are a text of gigabytes; ten aliases of ten aliases, nine times, 10^9 values.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from edg.core.errors import UsageError

NAME = re.compile(r"\$\{\s*(\.*)([\w-]+(?:\.[\w-]+|\[[\w-]+\])*)\s*\}")  # ${name}, ${a.b[0]}, ${.beside}
MOST_BYTES = 256 << 10  # of a file
MOST_VALUES = 10_000  # aliases and names followed
MOST_TEXT = 4 << 20  # characters, likewise
TAGS = (
    "tag:yaml.org,2002:pairs",
    "tag:yaml.org,2002:omap",
    "tag:yaml.org,2002:set",
)  # keys that become values

Place = tuple[str, ...]  # ("model", "layers", "0")


def check(text: str, overrides: Sequence[str], path: str | Path) -> None:
    """Raise UsageError where `text` of the file `path` expands to too much, or asks for more than names
    of its own values. overrides: `dotted.key=value`. Raises YAMLError, ValueError and RecursionError,
    too."""
    import yaml

    given = []
    for override in overrides:
        key, _, value = override.partition("=")
        given.append(_parts(key))
        _check_names(value, path)
        with suppress(yaml.YAMLError):  # reported where it is assigned
            for event in yaml.parse(value, Loader=yaml.SafeLoader):
                _check_names(getattr(event, "value", ""), path)
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return
        _need_at_most(MOST_VALUES, _values(root, {}), "values", path)
        places: dict[Place, Any] = {}
        _find_places(loader, root, (), places, path)
    finally:
        loader.dispose()
    _Sizes(places, given, path).of(())


def _need_at_most(most: int, count: int, what: str, path: str | Path) -> None:
    if count > most:
        raise UsageError(f"{path} expands to more than {most:,} {what}", expected="settings")


def _values(node: Any, known: dict[int, int]) -> int:
    """The number of values in a node, every alias counted in full."""
    if id(node) not in known:
        parts = node.value if isinstance(node.value, list) else ()
        pairs = (part if isinstance(part, tuple) else (part,) for part in parts)
        known[id(node)] = 1 + sum(_values(inner, known) for pair in pairs for inner in pair)
    return known[id(node)]


def _find_places(loader: Any, node: Any, place: Place, places: dict[Place, Any], path: str | Path) -> None:
    if place in places:  # `true` and "true" are two keys, but one name
        raise UsageError(f"{path}: {'.'.join(place)!r} occurs twice", expected="every name once")
    if node.tag in TAGS:
        raise ValueError(f"a {node.tag.rpartition(':')[2]}")
    places[place] = node
    if node.id == "scalar":
        return _check_names(node.value, path)
    inner = enumerate(node.value)
    if node.id == "mapping":
        loader.flatten_mapping(node)  # `<<: *other` becomes what it stands for, before what is said here
        for key, _ in node.value:
            if key.id != "scalar" or str(loader.construct_object(key)) != key.value:  # 0x1 is another 1
                raise ValueError("a key that is neither plain text nor a number")
        node.value = list({(key.tag, key.value): (key, value) for key, value in node.value}.values())
        inner = ((key.value, value) for key, value in node.value)
    for name, value in inner:
        _check_names(str(name), path)
        _find_places(loader, value, (*place, str(name)), places, path)


def _check_names(text: str, path: str | Path) -> None:
    left = NAME.sub("", text)
    if (at := left.find("${")) >= 0:
        asked = left[at : at + 60].partition("}")
        given = f"{path} asks for {asked[0]}{asked[1]}"
        raise UsageError(given, expected="values, or ${NAME} for another value of the file")


def _parts(name: str) -> Place:
    return tuple(re.findall(r"[^.\[\]\s]+", name))


class _Sizes:
    """(values, characters) of each place, with its names expanded."""

    def __init__(self, places: dict[Place, Any], given: Sequence[Place], path: str | Path):
        self.places, self.given, self.path = places, given, path
        self.known: dict[Place, tuple[int, int] | None] = {}

    def of(self, place: Place) -> tuple[int, int]:
        if place not in self.known:
            self.known[place] = None
            self.known[place] = self._of(place)
        if (size := self.known[place]) is None:
            raise UsageError(f"{self.path}: {'.'.join(place)} refers to itself", expected="a value")
        return size

    def _of(self, place: Place) -> tuple[int, int]:
        node, values, characters = self.places[place], 1, 0
        if node.id == "scalar":
            characters = len(node.value)
            inner = [self._target(place, *found.groups()) for found in NAME.finditer(node.value)]
        elif node.id == "mapping":
            characters = sum(len(key.value) for key, _ in node.value)
            inner = [(*place, key.value) for key, _ in node.value]
        else:
            inner = [(*place, str(index)) for index in range(len(node.value))]
        for one in inner:
            if one is not None:
                size = self.of(one)
                values, characters = values + size[0], characters + size[1]
                _need_at_most(MOST_VALUES, values, "values", self.path)
                _need_at_most(MOST_TEXT, characters, "characters", self.path)
        return values, characters

    def _target(self, place: Place, dots: str, name: str) -> Place | None:
        """The place of a name, None where an override gives it."""
        target = (*(place[: -len(dots)] if dots else ()), *_parts(name))
        head = next((target[:n] for n in range(len(target), 0, -1) if target[:n] in self.places), ())
        if head == target:
            return target
        if any(target[: len(g)] == g or g[: len(target)] == target for g in self.given):
            return None
        if head and self.places[head].id == "scalar" and (alone := NAME.fullmatch(self.places[head].value)):
            beyond = self._target(head, *alone.groups())  # `all: ${train}`, then `${all.lr}`
            if beyond is None:
                return None
            return self._target((), "", ".".join((*beyond, *target[len(head) :])))
        raise UsageError(
            f"{self.path} asks for ${{{dots}{name}}}", expected="the name of another value of the file"
        )
