"""Rules for the whole package, by its source: one function for each rule."""

import ast
import collections
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "edg"
TREES = {
    path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
}
ENVIRONMENT = {"core/dist.py", "core/files.py", "cli/fetch.py"}
# Architectures' own names for their parts.
SHARED_NAMES = {"Block", "Downsample", "Upsample"}
PENDING_NAMES = {"Video", "Table", "ClipSpec", "Linear", "Samples", "Plan"}  # to be renamed


def is_environ(node):
    return isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "getenvb")


def written_environments(tree):
    """The nodes that set variables for libraries: `os.environ |= ...`, `os.environ.setdefault(...)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.AugAssign) and is_environ(node.target):
            yield node.target
        call = node.value if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) else None
        if call and isinstance(call.func, ast.Attribute) and call.func.attr == "setdefault":
            yield call.func.value


def test_environment_variables_are_read_in_three_files():
    found = set()
    for file, tree in TREES.items():
        written = {id(node) for node in written_environments(tree)}
        nodes = list(ast.walk(tree))
        if any(is_environ(node) and id(node) not in written for node in nodes):
            found.add(file)
        assert not any(  # `from os import environ`
            isinstance(node, ast.ImportFrom) and node.module == "os" and node.names for node in nodes
        ), file
    assert found <= ENVIRONMENT


def test_no_two_public_classes_have_one_name():
    places = collections.defaultdict(list)
    for file, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(file)
    twice = {name: files for name, files in places.items() if len(files) > 1}
    assert twice.keys() <= SHARED_NAMES | PENDING_NAMES, twice


def test_the_demo_and_the_report_name_no_model():
    """Neither parameter sets of one system nor the embedded model; comments and texts count, too."""
    words = {"sprites", "dyn", "con", "motion", "hold", "recipe"}
    for path in sorted([*PACKAGE.glob("demo/*.py"), *PACKAGE.glob("report/*.py")]):
        if path.parent.name == "report":
            words = words - {"motion", "recipe"}  # a metric, and what records of any system may have
        found = set(path.read_text(encoding="utf-8").replace("_", " ").split()) & words
        assert not found, (path, found)
