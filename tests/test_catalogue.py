"""The catalogue of docs/reliability.md is whole: every case is a test that carries its number."""

import ast
import re
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
CASES = range(1, 99)


def test_every_case_has_a_named_test():
    numbers = set()
    for path in HERE.rglob("test_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        numbers |= {int(found[1]) for name in names if (found := re.match(r"test_c(\d+)_", name))}
        twice = [name for name, count in Counter(names).items() if count > 1 and name.startswith("test_")]
        assert twice == [], f"in {path} a name hides another"
    assert numbers == set(CASES)
