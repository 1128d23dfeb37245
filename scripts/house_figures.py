"""Count figures of the code: size, wording, types, sentences in tests. Several checkouts make one table.

python scripts/house_figures.py                    # this checkout
python scripts/house_figures.py ../other .         # two, side by side
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

DIALECT = ("What", "Whether", "Of", "Told", "How", "Where", "Which")  # first words of a docstring
TOLD = re.compile(r"\b(told|tells?|telling|aloud|say)\b")
SENTENCE = re.compile(r"\w+ \w+")


def trees(folder: Path) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(folder.rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def code_lines(path: Path, tree: ast.Module) -> int:
    """Lines that are neither blank, nor comments, nor docstrings."""
    lines = path.read_text(encoding="utf-8").splitlines()
    skipped = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and ast.get_docstring(node) is not None
        ):
            text = node.body[0]
            skipped |= set(range(text.lineno, text.end_lineno + 1))
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and number not in skipped
        for number, line in enumerate(lines, 1)
    )


def docstrings(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (
            text := ast.get_docstring(node)
        ):
            yield text


def names(tree: ast.Module) -> Iterator[str]:
    """Every name that the code itself gives: functions, classes, arguments, variables, attributes set."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


def public_functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Functions and methods without an underscore in front, of public classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and (
                    not inner.name.startswith("_") or inner.name == "__init__"
                ):
                    yield inner


def takes_any(function: ast.FunctionDef) -> bool:
    """True if an argument or the result is annotated as Any itself."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    hints = [argument.annotation for argument in arguments] + [function.returns]
    return any(isinstance(hint, ast.Name) and hint.id == "Any" for hint in hints)


def sentence_asserts(tree: ast.Module) -> Iterator[ast.AST]:
    """Asserts, and `match=` of `pytest.raises`, that compare a text of two words or more."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            compares = (part for part in ast.walk(node.test) if isinstance(part, ast.Compare))
            sides = (side for part in compares for side in (part.left, *part.comparators))
            if any(_is_sentence(side) for side in sides):
                yield node
        elif isinstance(node, ast.keyword) and node.arg == "match" and _is_sentence(node.value):
            yield node


def _is_sentence(node: ast.AST) -> bool:
    if isinstance(node, ast.JoinedStr):
        return any(_is_sentence(part) for part in node.values)
    return (
        isinstance(node, ast.Constant) and isinstance(node.value, str) and bool(SENTENCE.search(node.value))
    )


def figures(root: Path) -> dict[str, int]:
    """The figures of a checkout by their names."""
    package = list(trees(root / "edg"))
    tests = list(trees(root / "tests"))
    texts = [text for _, tree in package for text in docstrings(tree)]
    functions = [function for _, tree in package for function in public_functions(tree)]
    words = [name for _, tree in package for name in names(tree)]
    asserts = sum(isinstance(node, ast.Assert) for _, tree in tests for node in ast.walk(tree))
    return {
        "files of the package": len(package),
        "lines of code of the package": sum(code_lines(path, tree) for path, tree in package),
        "all lines of the package": sum(len(path.read_text().splitlines()) for path, _ in package),
        "docstrings": len(texts),
        "docstrings that begin in the old dialect": sum(text.split()[0] in DIALECT for text in texts),
        "`told` as a name": sum(name == "told" for name in words),
        "names of telling and saying": sum(bool(TOLD.search(name.replace("_", " "))) for name in words),
        "public signatures": len(functions),
        "public signatures with Any": sum(map(takes_any, functions)),
        "files over 400 lines": sum(len(path.read_text().splitlines()) > 400 for path, _ in package),
        "asserts of the tests": asserts,
        "asserts on sentences": sum(1 for _, tree in tests for _ in sentence_asserts(tree)),
        "lines of the tests": sum(len(path.read_text().splitlines()) for path, _ in tests),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("roots", nargs="*", type=Path, default=[Path(__file__).resolve().parents[1]])
    columns = [figures(root) for root in parser.parse_args(argv).roots]
    for name in columns[0]:
        print(f"{name:<44}" + "".join(f"{column[name]:>10,}" for column in columns))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
