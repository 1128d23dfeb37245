"""The catalogue of docs/reliability.md is whole: every case is a test that carries its number."""

import ast
import re
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
CASES = range(1, 99)


def test_every_case_has_a_named_test():
    names = [
        node.name
        for path in HERE.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    numbers = {int(found[1]) for name in names if (found := re.match(r"test_c(\d+)_", name))}
    assert numbers == set(CASES)
    assert [name for name, count in Counter(names).items() if count > 1] == [], "a name hides another"
