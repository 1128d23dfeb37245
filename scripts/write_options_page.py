"""Write docs/options.md: every option of `edg sample`, from its declaration.

python scripts/write_options_page.py
"""

from __future__ import annotations

import argparse
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from edg import systems  # noqa: E402
from edg.core.options import Declared, NamedPath, declared  # noqa: E402
from edg.runner.config import PARTS  # noqa: E402

PAGE = ROOT / "docs" / "options.md"
HEAD = """# Options of `edg sample`

This page lists every option of `edg sample`; `python scripts/write_options_page.py` writes it.

The same names, without dashes, are keys of a sweep (`configs/sweeps/*.yaml`) and keywords of `edg.load(...)`
and `animate(...)`. Options marked *pixels* decide the clip: a run with another value of one does not continue
a folder of clips.
"""


def page() -> str:
    """The page as Markdown."""
    parts = [HEAD, "## All systems\n"]
    parts += table([field for kind in PARTS.values() for field in declared(kind).values()], decides=False)
    for system in systems.all_systems():
        parts += [f"## System `{system.name}`: {system.title}\n"]
        by_group: dict[str, list[Declared]] = {}
        for field in declared(system.part("options")).values():
            if field.option.flags is not None:
                by_group.setdefault(field.option.group, []).append(field)
        for group, fields in by_group.items():
            parts += [f"### {group[0].upper()}{group[1:]}\n", *table(fields, decides=True)]
    return "\n".join(parts)


def table(fields: list[Declared], decides: bool) -> Iterator[str]:
    yield "| option | value | default | |\n|---|---|---|---|"
    for field in fields:
        names = ", ".join(f"`{flag}`" for flag in field.flags)
        if others := [name for name in field.names if f"--{name}" not in field.flags and "-" not in name]:
            names += f" ({', '.join(f'`{name}`' for name in others)})"
        mark = "*pixels* " if decides and field.option.pixels else ""
        help = field.option.help.replace("|", "\\|")
        yield f"| {names} | {value(field)} | {default(field)} | {mark}{help} |"
    yield ""


def value(field: Declared) -> str:
    kind = field.item
    if typing.get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(kind))
    if typing.get_origin(kind) is Annotated:
        return "`NAME=FILE`" if kind == NamedPath else "path"
    name = {bool: "switch", int: "integer", float: "number", str: "text"}[kind]
    low, high = field.option.low, field.option.high
    name += f", {low:,} to {high:,}" if low is not None and high is not None else ""
    if field.count == "+":
        return f"{name}, several"
    return f"{field.count} x {name}" if isinstance(field.count, int) else name


def default(field: Declared) -> str:
    shown = field.default
    if shown is None or shown in ("", ()):
        return ""
    if isinstance(shown, bool):
        return "on" if shown else "off"
    return f"`{' '.join(map(str, shown)) if isinstance(shown, tuple) else shown}`"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
