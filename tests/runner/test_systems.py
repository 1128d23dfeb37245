"""The way from flags to files knows systems by their protocol alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUNNER = [path.stem for path in sorted((ROOT / "edg/runner").glob("[a-z]*.py"))]


@pytest.mark.parametrize("name", RUNNER)
def test_no_system_is_imported_by_name(name):
    tree = ast.parse((ROOT / f"edg/runner/{name}.py").read_text(encoding="utf-8"))
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert not [m for m in modules if m.startswith("edg.systems.") and m != "edg.systems.base"]


def test_without_its_folder_a_system_is_missed_only_when_asked_for():
    code = "import sys; sys.modules['edg.systems.edg'] = None\n"
    code += "".join(f"import edg.runner.{name}\n" for name in RUNNER)
    code += "from edg import systems\ntry: systems.get()\nexcept ModuleNotFoundError: print('missed')"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "missed"
