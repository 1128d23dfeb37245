"""Options, declared once: a dataclass field carries its flags, range and help.

The command line, YAML files, sweep grids, Python keywords, records and the reference page all read them here.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from edg.core import config
from edg.core.arguments import add_switch, as_path, boolean, named_path
from edg.core.errors import UsageError, nearest, require
from edg.core.hashing import cached_sha256

#: A field's type for NAME=FILE, the path as the user wrote it.
NamedPath = Annotated[str, "name=path"]
Options = TypeVar("Options")


@dataclass(frozen=True)
class Option:
    """Declaration of a field. flags: its names on the command line, the field's own where empty, None for a
    field that users do not set; names: further ones for Python and YAML. low, high: range of its numbers,
    both ends included. bare: value of the flag without one. pixels: it changes the clip. since: version of
    the records that first name it; from 2 on a record names it only where it is not the default. required:
    the command line has to give it. explicit: giving it has a meaning even with the default value."""

    help: str = ""
    flags: tuple[str, ...] | None = ()
    names: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    metavar: str | tuple[str, ...] | None = None
    bare: str | None = None
    group: str = "options"
    pixels: bool = True
    since: int = 1
    required: bool = False
    explicit: bool = False


def option(
    default: Any,
    help: str = "",
    *,
    flags: Sequence[str] | None = (),
    names: Sequence[str] = (),
    low: float | None = None,
    high: float | None = None,
    metavar: str | tuple[str, ...] | None = None,
    bare: str | None = None,
    group: str = "options",
    pixels: bool = True,
    since: int = 1,
    required: bool = False,
    explicit: bool = False,
) -> Any:
    """A dataclass field with its declaration, see `Option`."""
    flags = None if flags is None else tuple(flags)
    declared = Option(
        help, flags, tuple(names), low, high, metavar, bare, group, pixels, since, required, explicit
    )
    return dataclasses.field(default=default, metadata={"option": declared})


# ---- declarations ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Declared:
    """A field with its declaration. kind: its type without None; flags: as they are typed."""

    name: str
    default: Any
    kind: Any
    option: Option

    @property
    def flags(self) -> tuple[str, ...]:
        return self.option.flags or (f"--{self.name}",)

    @property
    def names(self) -> tuple[str, ...]:
        """The names that Python, YAML and sweeps may use."""
        typed = (flag.lstrip("-").replace("-", "_") for flag in self.flags)
        return tuple(dict.fromkeys([self.name, *typed, *self.option.names]))

    def says_nothing(self, value: Any) -> bool:
        """True if giving this value is the same as giving none."""
        return value == self.default and not self.option.explicit

    @property
    def many(self) -> bool:
        return typing.get_origin(self.kind) is tuple

    @property
    def item(self) -> Any:
        """The type of one value."""
        return typing.get_args(self.kind)[0] if self.many else self.kind

    @property
    def count(self) -> int | str | None:
        """The number of values a flag takes, as argparse writes it."""
        arguments = typing.get_args(self.kind)
        if not self.many:
            return "?" if self.option.bare is not None else None
        return "+" if arguments[-1] is Ellipsis else len(arguments)


@functools.cache
def declared(options: type) -> Mapping[str, Declared]:
    """The declared fields of a dataclass by name, those without flags included."""
    hints = typing.get_type_hints(options, include_extras=True)
    return {
        field.name: Declared(
            field.name, field.default, _without_none(hints[field.name]), field.metadata["option"]
        )
        for field in dataclasses.fields(options)
        if "option" in field.metadata
    }


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else hint
    return hint


@functools.cache
def names(options: type) -> Mapping[str, str]:
    """Every name that a user may give -> its field."""
    return {
        name: field.name
        for field in declared(options).values()
        if field.option.flags is not None
        for name in field.names
    }


METAVARS = {int: "N", float: "X"}


# ---- command line ------------------------------------------------------------------------------------------


def add_flags(parser: argparse.ArgumentParser, *classes: type) -> None:
    """Add the flags of dataclasses to a parser, group by group. What is not given is not in the namespace."""
    groups: dict[str, Any] = {}
    for options in classes:
        for field in declared(options).values():
            if field.option.flags is None:
                continue
            title = field.option.group
            if title not in groups:
                groups[title] = parser.add_argument_group(title)
            _add_flag(groups[title], field)


def _add_flag(group: Any, field: Declared) -> None:
    option, kind = field.option, field.item
    default = field.default
    hidden = default in (None, "", ()) or isinstance(default, bool)
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    note = "" if hidden else f"({shown})"
    text = f"{option.help} {note}".strip()
    if kind is bool:
        add_switch(group, *field.flags, dest=field.name, default=argparse.SUPPRESS, help=text)
        return
    how: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, "help": text}
    if typing.get_origin(kind) is Literal:
        how["choices"] = typing.get_args(kind)
    else:
        how["type"] = _argument_type(field)
        how["metavar"] = option.metavar or METAVARS.get(kind, "TEXT")
    if field.count is not None:
        how["nargs"] = field.count
    if option.required:
        how["required"] = True
    if option.bare is not None:
        how["const"] = option.bare
    group.add_argument(*field.flags, **how)


def _argument_type(field: Declared) -> Any:
    kind = field.item
    if typing.get_origin(kind) is Annotated:
        return named_path if kind == NamedPath else as_path
    return kind  # ranges are checked by `converted`


def _number(kind: Any, text: str) -> Any:
    try:
        return kind(text)
    except (ValueError, OverflowError):
        return None


def _is_within(option: Option, value: float) -> bool:
    low = -math.inf if option.low is None else option.low
    high = math.inf if option.high is None else option.high
    return math.isfinite(value) and low <= value <= high


def _range(field: Declared) -> str:
    what = "a whole number" if field.item is int else "a number"
    low, high = field.option.low, field.option.high
    if low is None and high is None:
        return f"{what}, finite" if field.item is float else what
    if high is None:
        return f"{what}, at least {low:g}"
    return f"{what}, at most {high:g}" if low is None else f"{what} from {_plain(low)} to {_plain(high)}"


def _plain(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def typed_values(namespace: argparse.Namespace, *classes: type) -> dict[str, Any]:
    """The values that a parser found for the fields of these classes."""
    return {
        name: getattr(namespace, name)
        for options in classes
        for name in declared(options)
        if hasattr(namespace, name)
    }


# ---- values ------------------------------------------------------------------------------------------------


def converted(options: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The given values by field name, each of its field's type and within its range; None is not given.

    Keys are fields, flags without dashes, or further names. Raises UsageError, with the nearest name for an
    unknown one.
    """
    known, found = names(options), {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        require(name in known, f"no option {key!r}", ", ".join(declared(options)), nearest(name, known))
        if value is None:
            continue
        field = declared(options)[known[name]]
        require(
            field.name not in found, f"{key} together with another name of the same option", "one of them"
        )
        found[field.name] = _convert(field, str(key), value)
    return found


def _convert(field: Declared, key: str, value: Any) -> Any:
    if field.many:
        values = value if isinstance(value, (list, tuple)) else (value,)
        count = field.count
        require(count == "+" or len(values) == count, f"{key} is {value!r}", f"{count} values")
        return tuple(_convert_one(field, key, one) for one in values)
    return _convert_one(field, key, value)


def _convert_one(field: Declared, key: str, value: Any) -> Any:
    kind = field.item
    if hasattr(value, "item") and getattr(value, "shape", None) == ():  # a number of numpy or torch
        value = value.item()
    if kind in (int, float) and isinstance(value, str):
        number = _number(kind, value)
        value = value if number is None else number
    elif kind is bool and isinstance(value, (str, int)) and not isinstance(value, bool):
        try:
            value = boolean(str(value))
        except argparse.ArgumentTypeError:
            raise UsageError(f"{key} is {value!r}", expected="true or false") from None
    elif kind == NamedPath:
        try:
            return named_path(str(value))
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"{key}: {error}") from None
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    elif kind is str and not isinstance(value, (str, bytes, int, float, list, tuple, Mapping)):
        value = str(value)  # a device of torch, say
    value = config.convert(kind, value, key)
    if kind in (int, float) and not _is_within(field.option, value):
        shown = f"{value:g}" if kind is float else value
        raise UsageError(f"{field.flags[0]} {shown}", expected=_range(field))
    return value


def from_values(options: type[Options], values: Mapping[str, Any]) -> Options:
    """The options with these values, defaults for the rest, see `converted`."""
    return options(**converted(options, values))


def settings(options: Any) -> dict[str, Any]:
    """The values that decide a clip's pixels, as a record holds them: a file counts by its content, and
    an option that came later only where it is not the default, so that earlier records stay valid."""
    found = {}
    for field in declared(type(options)).values():
        value = getattr(options, field.name)
        if not field.option.pixels or (field.option.since > 1 and value == field.default):
            continue
        if field.kind == config.PathText and value is not None:
            value = getattr(options, f"{field.name}_sha256", None) or cached_sha256(value)
        found[field.name] = config.to_dict(value)
    return found


def as_flags(options: type, values: Mapping[str, Any]) -> list[str]:
    """Values by field name as arguments of a command line."""
    arguments = []
    for name, value in values.items():
        flag, kind = declared(options)[name].flags[0], declared(options)[name].item
        if kind is bool:
            arguments.append(flag if value else f"{flag}=0")
        elif isinstance(value, tuple):
            arguments += [flag, *map(str, value)]
        else:
            arguments.append(f"{flag}={value}")
    return arguments
