"""Errors a user can act on: what was given, what was expected, what to do, and the exit code."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

OK, CASE_FAILED, USAGE, BAD_FILE, ENVIRONMENT, SOME_FAILED = 0, 1, 2, 3, 4, 5
INTERRUPTED, TERMINATED, DEFECT = 130, 143, 1
LONGEST = 2000  # characters shown of a part of an error, and of any other line: a name may be a megabyte long
KINDS = {
    USAGE: "usage", BAD_FILE: "bad_file", ENVIRONMENT: "environment", SOME_FAILED: "some_failed",
    INTERRUPTED: "interrupted", TERMINATED: "terminated", DEFECT: "defect",
}  # fmt: skip


class EdgError(ValueError):
    """A user's mistake or a limit of the machine, reported in one line.

    given: the input. expected: the right one. fix: advice. Of each at most LONGEST characters are kept.
    """

    exit_code = USAGE

    def __init__(self, given: str, *, expected: str = "", fix: str = ""):
        given, expected, fix = (shortened(text) for text in (given, expected, fix))
        self.given, self.expected, self.fix = given, expected, fix
        parts = [given, f"expected {expected}" if expected else "", fix]
        super().__init__("; ".join(part for part in parts if part))

    def as_dict(self) -> dict[str, Any]:
        """The error for `--json`, see docs/troubleshooting.md."""
        entry = {"kind": KINDS.get(self.exit_code, "usage"), "exit_code": self.exit_code}
        return entry | {"given": self.given, "expected": self.expected, "fix": self.fix}


class UsageError(EdgError):
    """A flag, a configuration or a combination of inputs is wrong (exit 2)."""


class BadFileError(EdgError):
    """An input file is not what it should be (exit 3)."""

    exit_code = BAD_FILE


class MachineError(EdgError):
    """Disk, memory or device cannot do what was asked (exit 4)."""

    exit_code = ENVIRONMENT


class SomeFailedError(EdgError):
    """Some items of a batch failed, the others are finished (exit 5). failed: item -> reason, all of them."""

    exit_code = SOME_FAILED

    def __init__(
        self, given: str, *, expected: str = "", fix: str = "", failed: Mapping[str, str] | None = None
    ):
        super().__init__(given, expected=expected, fix=fix)
        self.failed = dict(failed or {})

    def as_dict(self) -> dict[str, Any]:
        return super().as_dict() | {
            "failed": [
                {"item": shortened(item), "reason": shortened(why)} for item, why in self.failed.items()
            ]
        }


def require(condition: object, given: str, expected: str = "", fix: str = "") -> None:
    """Raise UsageError(given, expected, fix) unless the condition holds."""
    if not condition:
        raise UsageError(given, expected=expected, fix=fix)


NO_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """True for an error of Python, of an accelerator, or of the CPU (a plain RuntimeError of torch) that
    reports that memory ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error) if isinstance(error, RuntimeError) else ""
    return any(phrase in text for phrase in NO_MEMORY)


def nearest(name: object, known) -> str:
    """The known name closest to `name`, as a phrase for an error message ("" when none is close)."""
    import difflib

    if len(str(name)) > LONGEST:  # the search takes time by the square of the length
        return ""
    near = [one for one in known if len(str(one)) <= LONGEST]
    hits = difflib.get_close_matches(str(name), near, n=1, cutoff=0.5)
    return f"did you mean {hits[0]!r}?" if hits else ""


def visible(text: str) -> str:
    """`text` in one line: control characters, line ends and marks that change the direction of writing, which
    file names and prompts may contain, are shown as escapes (`\\x1b`), so that no terminal interprets them.
    Long text is shortened."""
    text = shortened(text, 4 * LONGEST)
    return "".join(_escaped(letter) if _is_control(letter) else letter for letter in text)


def shortened(text: str, most: int = LONGEST) -> str:
    """`text`, or its beginning and its end if it has more than `most` characters: what is wrong with a long
    name comes after it."""
    if len(text) <= most:
        return text
    head, tail = most * 2 // 3, most // 4
    return f"{text[:head]} ... ({len(text) - head - tail:,} characters) ... {text[-tail:]}"


def _is_control(letter: str) -> bool:
    turns = "\u202a" <= letter <= "\u202e" or "\u2066" <= letter <= "\u2069"
    return turns or unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
