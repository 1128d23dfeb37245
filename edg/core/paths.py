"""Paths and names as a user gives them: `~` is the home folder, and impossible file names are refused."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from edg.core.errors import UsageError

LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes that Linux and macOS take
STEM = 200  # bytes of a name that endings, step numbers and temporary names are added to


def user_path(given: Any, what: str = "the path") -> str:
    """The path that somebody wrote: `~` and `~name` at its beginning are home folders, `./~` is a file called
    `~`. What it gives may be given again. what: its place in an error, such as `--out`.

    Raises UsageError for an empty path, a home folder that nobody has, and names that no file can have.
    """
    if not isinstance(given, (str, os.PathLike)) or isinstance(text := os.fspath(given), bytes):
        raise UsageError(f"{what} is {given!r}", expected="a path")
    check_name(text, what)
    if not text.startswith("~"):  # Path drops the `./` by which a file `~` differs from the home folder
        return os.path.abspath(text) if str(Path(text)).startswith("~") else text
    home = os.path.expanduser(text)
    if home.startswith("~"):
        literal = f"for a file of that name, write ./{text}"
        raise UsageError(f"{what} is {text!r}", expected="a user's home folder", fix=literal)
    check_name(home, what)
    return home


def check_name(given: str | os.PathLike, what: str = "the path") -> None:
    """Raise UsageError for a path that no file system takes."""
    text = os.fspath(given)
    if not text:
        raise UsageError(f"{what} is empty", expected="a path")
    if "\0" in text:
        raise UsageError(f"{what} is {text!r}", expected="a path without a NUL character")
    try:
        data = os.fsencode(text)
    except UnicodeEncodeError:
        raise UsageError(f"{what} is {text!r}", expected="characters that a file name can contain") from None
    if len(data) > LONGEST_PATH or any(len(part) > LONGEST_NAME for part in data.split(b"/")):
        raise UsageError(
            f"{what} is {text!r}",
            expected=f"names of at most {LONGEST_NAME} bytes, and {LONGEST_PATH} bytes in all",
        )


def file_stem(given: Any, what: str) -> str:
    """A name that files are called by, such as a run's. Raises UsageError for one that is no plain name:
    empty, hidden, too long, with a separator or a control character."""
    good = isinstance(given, str) and given.strip() == given and not given.startswith(".")
    if not good or not given or re.search(r"[/\\\x00-\x1f\x7f\ud800-\udfff]", given):
        raise UsageError(
            f"{what} is {given!r}", expected="a plain file name: no folder, no leading dot, not empty"
        )
    if len(given.encode()) > STEM:
        raise UsageError(f"{what} is {given!r}", expected=f"at most {STEM} bytes")
    return given
