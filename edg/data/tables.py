"""Reader of tables of videos: csv with any usual separator, or JSON, one object per line or a list of them.

The separator is the one with which the first line has known columns, so that a caption may hold any of them.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from edg.core.errors import BadFileError
from edg.data.captions import SUFFIXES

SEPARATORS = (",", ";", "\t", "|")
KINDS = {b"PK\x03\x04": "a zip or an Excel file", b"PAR1": "a Parquet file", b"\x1f\x8b": "a gzipped file"}
MARKS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
HEAD = 50  # rows that are examined before the others

Row = tuple[int, dict[str, str], str]  # number of its last line, column -> text, note


def open_rows(
    path: Path, file: IO[str], score: Callable[[Sequence[str]], int]
) -> tuple[list[str], Iterator[Row]]:
    """Read the columns of an open file, and its rows lazily. score: how well a list of columns is known, 0
    where it is not. Raises BadFileError, also while the rows are read."""
    if path.suffix.lower() in (".json", ".jsonl", ".ndjson"):
        return _json_rows(path, file)
    first = list(islice(file, HEAD))
    skipped = next((at for at, line in enumerate(first) if line.strip()), len(first))
    separators = SEPARATORS
    if skipped < len(first) and (given := re.fullmatch(r'"?sep=(.)"?', first[skipped].strip("\r\n"))):
        separators, skipped = (given[1],), skipped + 1  # a line of Excel's
    headers = {each: _header(first[skipped:], each, path) for each in separators}
    separator = max(headers, key=lambda each: (score(headers[each]), len(headers[each])))
    lines = _Lines(chain(first, file))
    for _ in range(skipped):
        next(lines)
    return headers[separator], _csv_rows(lines, separator, path)


def open_text(path: Path) -> IO[str]:
    """Open a text file, line ends untranslated. Raises BadFileError for a file that is no text, OSError."""
    file = path.open("rb")
    try:
        return io.TextIOWrapper(file, encoding=_encoding(file.peek(4)[:4], path), newline="")
    except BaseException:
        file.close()
        raise


def _encoding(start: bytes, path: Path) -> str:
    """Detect the encoding of a text from its first bytes, UTF-8 by default."""
    for magic, kind in KINDS.items():
        if start.startswith(magic):
            raise BadFileError(f"{path} is {kind}", expected="a csv in UTF-8, or .jsonl")
    marked = next((name for mark, name in MARKS.items() if start.startswith(mark)), None)
    if marked is None and len(start) > 1 and bool(start[0]) != bool(start[1]):
        return "utf-16-le" if start[0] else "utf-16-be"  # a letter of ASCII without the mark
    return marked or "utf-8-sig"


def undecodable(path: Path, error: UnicodeDecodeError) -> BadFileError:
    """The error for a file that is not in its encoding, with the line's number."""
    number = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):  # noqa: B007
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                break
    return BadFileError(f"cannot read line {number} of {path}: {error}", expected="text in UTF-8")


# ---- csv ---------------------------------------------------------------------------------------------------


class _Lines:
    """Lines of a file, counted. record: lines of the row that is being read; ended: the reader asked for more
    than there are."""

    def __init__(self, lines: Iterator[str]):
        self.lines, self.number, self.ended = lines, 0, False
        self.record: list[str] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        try:
            line = next(self.lines)
        except StopIteration:
            self.ended = True
            raise
        self.number += 1
        self.record.append(line)
        return line


def _header(lines: Sequence[str], separator: str, path: Path) -> list[str]:
    try:
        return [name.strip() for name in next(_reader(iter(lines), separator), [])]
    except csv.Error as error:
        raise BadFileError(f"cannot read the first line of {path}: {error}") from error


def _reader(lines: Iterator[str], separator: str, strict: bool = False) -> Iterator[list[str]]:
    return csv.reader(lines, delimiter=separator, skipinitialspace=separator != "\t", strict=strict)


def _csv_rows(lines: _Lines, separator: str, path: Path) -> Iterator[Row]:
    reader, header = _reader(lines, separator), None
    while True:
        lines.record.clear()
        first = lines.number + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # a field of 100,000 letters: rows behind an open quote
            raise _open_quote(path, first, str(error)) from error
        if lines.ended:
            raise _open_quote(path, first, "it is never closed")
        note = ""
        if len(lines.record) > 1:
            _need_closed(lines.record, separator, path, first)
        elif '"' in lines.record[0]:
            values, note = _within_quotes(lines.record[0], separator, values)
        if header is None:
            header = [name.strip() for name in values]
        elif values:
            if surplus := sum(bool(value.strip()) for value in values[len(header) :]):
                note = f"has {surplus} more values than columns"
            yield lines.number, dict(zip(header, values, strict=False)), note


def _strictly(lines: Sequence[str], separator: str) -> list[str]:
    return next(_reader(iter(lines), separator, strict=True))


def _within_quotes(line: str, separator: str, values: list[str]) -> tuple[list[str], str]:
    """Read a row of one line with quotes within quotes, doubled or behind a backslash (as databases write
    them); with a note if they are neither."""
    for text in (line, line.replace('\\"', '""')):
        with suppress(csv.Error):
            return _strictly([text], separator), ""
    return values, "has quotes within quotes that are not doubled"


def _need_closed(record: Sequence[str], separator: str, path: Path, first: int) -> None:
    """Raise BadFileError if a row of several lines has swallowed other rows."""
    try:
        _strictly(record, separator)
    except csv.Error as error:
        raise _open_quote(path, first, str(error)) from error
    endings = "|".join(map(re.escape, SUFFIXES))
    between = re.escape(separator)
    row = re.compile(rf'\s*"?[^"{between}]*(?:{endings})"?\s*{between}', re.IGNORECASE)
    for after, line in enumerate(record[1:], 1):
        if row.match(line):
            raise _open_quote(path, first, f"line {first + after} is a row itself")


def _open_quote(path: Path, line: int, why: str) -> BadFileError:
    return BadFileError(
        f'line {line} of {path} opens a quote (") that swallows what follows ({why})',
        expected="quotes in pairs",
        fix='close it; write a quote within a caption twice ("")',
    )


# ---- JSON --------------------------------------------------------------------------------------------------


def _json_rows(path: Path, file: IO[str]) -> tuple[list[str], Iterator[Row]]:
    values = _json_lines(path, file) if path.suffix.lower() != ".json" else _json_list(path, file)
    rows = ((line, {key: _text(value) for key, value in row.items()}, "") for line, row in values)
    head = list(islice(rows, HEAD))
    columns = dict.fromkeys(name for _, row, _ in head for name in row)
    return list(columns), chain(head, rows)


def _json_lines(path: Path, file: IO[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield number, _object(_parsed(line, f"line {number} of {path}"), f"line {number} of {path}")


def _json_list(path: Path, file: IO[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    value = _parsed(file.read(), str(path))
    lists = [key for key, rows in value.items() if _is_rows(rows)] if isinstance(value, dict) else []
    if len(lists) > 1:
        raise BadFileError(
            f"{path} has several lists of objects: {', '.join(name[:40] for name in lists[:5])}",
            expected="one list, with an object for each video",
        )
    if lists:  # {"version": 1, "videos": [{"path": "clip.mp4", ...}, ...]}
        value = value[lists[0]]
    elif isinstance(value, dict):  # {"clip.mp4": "caption"}, or with objects in place of the captions
        rows = {name: row if isinstance(row, dict) else {"caption": row} for name, row in value.items()}
        value = [{"path": name, **row} for name, row in rows.items()]
    if not isinstance(value, list):
        raise BadFileError(f"{path} has no rows", expected='[{"path": "clip.mp4", "caption": "..."}, ...]')
    for number, row in enumerate(value, 1):
        yield number, _object(row, f"row {number} of {path}")


def _is_rows(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(row, dict) for row in value)


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadFileError(f"cannot read {where} as JSON: {error}") from error


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadFileError(f"{where} is not an object", expected='{"path": "clip.mp4", "caption": "..."}')
    return value


def _text(value: object) -> str:
    """A JSON value as text: the first text of a list, "" for anything else that is no text or number."""
    if isinstance(value, list):
        value = next((each for each in value if isinstance(each, str)), "")
    is_text = isinstance(value, str | int | float) and not isinstance(value, bool)
    return str(value) if is_text and value == value else ""  # pandas writes NaN for a missing value
