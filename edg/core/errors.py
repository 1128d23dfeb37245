"""Errors a user can act on: what was given, what was expected, what to do, and the exit code."""

from __future__ import annotations

OK, CASE_FAILED, USAGE, BAD_FILE, ENVIRONMENT, SOME_FAILED = 0, 1, 2, 3, 4, 5


class EdgError(ValueError):
    """A user's mistake or a machine's limit, told in one line.

    given: what we were handed. expected: what would have been right. fix: what to do now.
    """

    exit_code = USAGE

    def __init__(self, given: str, *, expected: str = "", fix: str = ""):
        self.given, self.expected, self.fix = given, expected, fix
        parts = [given, f"expected {expected}" if expected else "", fix]
        super().__init__("; ".join(part for part in parts if part))


class UsageError(EdgError):
    """A flag, a configuration or a combination of inputs is wrong (exit 2)."""


class BadFileError(EdgError):
    """An input file is not what it should be (exit 3)."""

    exit_code = BAD_FILE


class MachineError(EdgError):
    """Disk, memory or device cannot do what was asked (exit 4)."""

    exit_code = ENVIRONMENT


class SomeFailedError(EdgError):
    """Some items of a batch failed, the others are finished (exit 5)."""

    exit_code = SOME_FAILED


def nearest(name: object, known) -> str:
    """The known name closest to `name`, as a phrase for an error message ("" when none is close)."""
    import difflib

    hits = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"did you mean {hits[0]!r}?" if hits else ""
