"""Command line parsing: argparse with the nearest name for a misspelt one, `-` and `_` alike, errors as
UsageError."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence

from edg.core.errors import UsageError, nearest
from edg.core.paths import user_path


class Parser(argparse.ArgumentParser):
    """Unknown flags are errors that name the nearest one; `--dyn-alpha` and `--dyn_alpha` are the same; flags
    and other arguments may come in any order."""

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", _Help)
        super().__init__(*args, **kwargs)

    def parse_args(self, args=None, namespace=None):
        import sys

        args = [self._known_spelling(arg) for arg in (sys.argv[1:] if args is None else args)]
        namespace, extras = self.parse_known_intermixed_args(args, namespace)
        if extras:
            self._refuse(extras)
        return namespace

    def _known_spelling(self, arg: str) -> str:
        name, equals, value = arg.partition("=")
        if not name.startswith("--") or name in self._option_string_actions:
            return arg
        for other in self._option_string_actions:
            if other.replace("-", "_") == name.replace("-", "_"):
                return other + equals + value
        return arg

    def _refuse(self, extras: Sequence[str]) -> None:
        flags = [extra.partition("=")[0] for extra in extras if extra.startswith("-")]
        if not flags:
            raise UsageError(f"{self.prog}: unexpected argument {extras[0]!r}", fix=f"see {self.prog} --help")
        hint = nearest(flags[0], self._option_string_actions) or f"see {self.prog} --help"
        raise UsageError(f"{self.prog}: unknown flag {flags[0]}", fix=hint)

    def error(self, message: str):
        hint = ""
        if found := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            hint = nearest(found[1], re.findall(r"[\w.-]+", found[2]))
        raise UsageError(f"{self.prog}: {message}", fix=hint)


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=110)


def add_switch(
    parser, *names: str, default: bool | str | None = False, help: str = "", dest: str = ""
) -> None:
    """A flag that may stand alone (`--loop`), with a value (`--loop 0`), or be denied (`--no-loop`)."""
    dest = dest or names[0].lstrip("-").replace("-", "_")
    how = {"dest": dest, "nargs": "?", "const": True, "type": boolean, "metavar": "0|1"}
    parser.add_argument(*names, default=default, help=help, **how)
    parser.add_argument(
        *(f"--no-{name.lstrip('-')}" for name in names),
        dest=dest,
        action="store_false",
        default=default,
        help=argparse.SUPPRESS,
    )


def boolean(text: str) -> bool:
    known = {
        "1": True,
        "true": True,
        "yes": True,
        "on": True,
        "0": False,
        "false": False,
        "no": False,
        "off": False,
    }
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(
            f"{text!r}; expected 1 or 0 (also yes or no, on or off, true or false)"
        )
    return known[text.lower()]


# ---- types of arguments ------------------------------------------------------------------------------------


def as_path(text: str) -> str:
    """The type of a flag that names a file or a folder: a path as written, see `user_path`."""
    try:
        return user_path(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def named_path(text: str) -> str:
    """NAME=PATH, the path as above; a text without both is for the command to refuse."""
    name, equals, file = text.partition("=")
    if "\0" in name:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a name without a NUL character")
    return f"{name}={as_path(file)}" if file else text


PATHS = (as_path, named_path)


def whole(low: int, high: int) -> Callable[[str], int]:
    """The type of a whole number in low..high."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number from {low} to {high}")
        return value

    return read


def number(low: float, high: float) -> Callable[[str], float]:
    """The type of a finite number in low..high."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or math.isinf(value):
            raise argparse.ArgumentTypeError(f"{text!r}; expected a number from {low:g} to {high:g}")
        return value

    return read
