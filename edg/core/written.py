"""Scalars of a YAML file as they were written. YAML 1.1 reads `007`, `2024_06_01`, `12:30`, `1e3` and `on` as
numbers and booleans; where a name or a path is wanted, the written text is the value."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

_SUSPECT = re.compile(r"[-+.\d~]|(?:yes|no|on|off|true|false|null)$", re.IGNORECASE)
_PLAIN = re.compile(r"0|-?[1-9]\d{0,17}|true|false|null")


class Whole(int):
    text: str


class Real(float):
    text: str


class Truth(int):
    """A boolean that was not written as `true` or `false`."""

    text: str


KINDS = {bool: Truth, int: Whole, float: Real}


def plain(value: Any) -> Any:
    """The number or boolean of a scalar; of mappings and lists, with such values inside."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(item) for item in value)
    for kind, ours in KINDS.items():
        if isinstance(value, ours):
            return kind(value)
    return value


def text_of(value: Any) -> Any:
    """The text that a scalar was written as; other values are returned unchanged."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return getattr(value, "text", str(value))
    return value


def is_written(value: Any) -> bool:
    return isinstance(value, tuple(KINDS.values()))


class Scalars:
    """The scalars of a file and of the settings over it. read: a YAML text -> its value."""

    def __init__(self, read: Callable[[str], Any]):
        self.read, self.texts, self.known = read, [], {}
        # what stands in the text for a scalar while names are followed: nothing that a file can hold
        self.name = f"\ue0f0{secrets.token_hex(8)}:"
        self.mark = re.compile(f"{self.name}(\\d+)\ue0f1")

    def marked(self, text: str) -> str:
        """The YAML text with a mark in place of every value that could be read as something else than
        its text."""
        import yaml

        found: list[tuple[int, int, str]] = []
        with suppress(yaml.YAMLError):  # the reader reports it
            _find(yaml.compose(text, Loader=yaml.SafeLoader), text, found, set())
        for start, end, value in sorted(found, reverse=True):
            text = f'{text[:start]}"{self.name}{len(self.texts)}\ue0f1"{text[end:]}'
            self.texts.append(value)
        return text

    def restored(self, value: Any) -> Any:
        """A read value with the scalars in place of their marks. Inside a longer text the written
        text is put, but numbers with a point or a power are put as Python writes them, as OmegaConf
        does."""
        if isinstance(value, Mapping):
            return {key: self.restored(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.restored(item) for item in value]
        if not isinstance(value, str) or self.name not in value:
            return value
        if whole := self.mark.fullmatch(value):
            return self._value(int(whole[1]))
        return self.mark.sub(lambda mark: self._inside(int(mark[1])), value)

    def _inside(self, number: int) -> str:
        value = self._value(number)
        return str(float(value)) if isinstance(value, float) else self.texts[number]

    def _value(self, number: int) -> Any:
        text = self.texts[number]
        if text not in self.known:
            value = self.read(text)
            kind = KINDS.get(type(value))
            if kind and not _PLAIN.fullmatch(text) and (kind is Truth or str(value) != text):
                value = kind(value)
                value.text = text
            self.known[text] = value
        return self.known[text]


def _find(node: Any, text: str, found: list[tuple[int, int, str]], seen: set[int]) -> None:
    """The places of plain values (not of keys) that are suspect: start, end, text."""
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    if node.id == "scalar":
        start, end = node.start_mark.index, node.end_mark.index
        given = text[start:end]  # with `&name ` in front, perhaps; `!!int 3` means what it says
        suspect = node.style is None and _SUSPECT.match(node.value) and "!" not in given
        if suspect and given.endswith(node.value) and "${" not in node.value:
            found.append((end - len(node.value), end, node.value))
        return
    for part in node.value:
        _find(part[1] if isinstance(part, tuple) else part, text, found, seen)
