"""Rules for the whole package, by its source: one function for each rule."""

import ast
import collections
import re
import shutil
import traceback
from pathlib import Path

import pytest

from edg import systems
from edg.cli.main import parser_of
from edg.cli.sample import IGNORED, sample
from edg.core.options import declared
from edg.networks.latent_video.unet import UNet
from edg.runner.config import PARTS
from edg.sprites import WEIGHTS

PACKAGE = Path(__file__).parents[1] / "edg"
TREES = {
    path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
}
ENVIRONMENT = {"core/dist.py", "core/files.py", "cli/fetch.py"}
# Architectures' own names for their parts.
SHARED_NAMES = {"Block", "Downsample", "Upsample"}


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
    assert twice.keys() <= SHARED_NAMES, twice


# ---- systems are known to the registry alone ---------------------------------------------------------------

GENERAL = ("runner/", "cli/", "report/", "demo/", "verify/", "api.py")
#: Fields of Options classes that are words of English, or of a room below, and may stand anywhere.
EVERYDAY = {
    "T": "frames in shapes, and a type variable",
    "base": "a merge's base model, and what a file with changed tensors alone rests on",
    "crop": "images are fitted by core/images.py for every system",
    "fit": "as crop, and whether a run fits the memory",
    "hold": "English",
    "loop": "films in a page play in a loop",
    "motion": "a metric",
    "pad": "as crop",
    "recipe": "a merge's, which `edg merge`, `edg info` and records name",
    "start": "English",
    "steps": "of a bar, a merge, a sampler",
    "tuned": "an input of `edg merge --base --tuned`",
}
#: (file, word) that stay, with the reason.
KEPT_WORDS = {
    ("verify/merges.py", "dyn"): "an output's name in the reference cases of a merge recipe",
    ("verify/merges.py", "con"): "as dyn",
}


def docstrings(tree):
    """Nodes that are docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            constant = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            if constant and isinstance(first.value.value, str):
                yield first.value


def texts(tree):
    """String constants but docstrings, and identifiers."""
    skipped = {id(node) for node in docstrings(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.value
        for name in ("id", "attr", "arg", "name"):
            if isinstance(found := getattr(node, name, None), str):
                yield found


def words_of_systems():
    """Names of models, parameter sets and options of all systems."""
    found = {"dyn", "con", *systems.known_specs()}
    for system in systems.all_systems():
        found |= declared(system.part("options")).keys()
    return found


def test_general_rooms_name_no_system_model_set_or_option():
    known, found = words_of_systems() - EVERYDAY.keys(), set()
    for file, tree in TREES.items():
        if file.startswith(GENERAL):
            words = {word for text in texts(tree) for word in re.findall(r"[A-Za-z][\w-]*", text)}
            found |= {(file, word) for word in words & known}
    assert found == KEPT_WORDS.keys()


def test_general_rooms_import_no_system():
    for file, tree in TREES.items():
        modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        named = {f"edg.systems.{name}" for name in systems.SYSTEMS}
        if file.startswith(GENERAL):
            assert not any(".".join(module.split(".")[:3]) in named for module in modules), file


def test_every_everyday_word_is_an_option():
    assert EVERYDAY.keys() <= words_of_systems()


@pytest.mark.parametrize("name", systems.SYSTEMS)
def test_system_folders_have_the_same_file_names(name):
    files = {path.name for path in (PACKAGE / "systems" / name).iterdir()}
    assert {"__init__.py", "system.py", "options.py", "generate.py", "files.py", "verify"} <= files
    assert len((PACKAGE / "systems" / name / "generate.py").read_text().splitlines()) <= 120


# ---- options are declared once -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", systems.SYSTEMS)
def test_no_two_options_share_a_name(name):
    kinds = (*PARTS.values(), systems.get(name).part("options"))
    fields = [field for kind in kinds for field in declared(kind).values() if field.option.flags is not None]
    count = collections.Counter(spelling for field in fields for spelling in {*field.flags, *field.names})
    assert not [spelling for spelling, times in count.items() if times > 1]


@pytest.mark.parametrize("name", systems.SYSTEMS)
def test_every_flag_of_sample_is_a_declared_option(name):
    kinds = (*PARTS.values(), systems.get(name).part("options"))
    fields = {field for kind in kinds for field in declared(kind)}
    parser = parser_of("sample", argv=["--system", name])
    assert {action.dest for action in parser._actions} <= fields | {"help", "debug", "json", *IGNORED}


def test_parsed_arguments_stay_in_the_command_line():
    found = set()
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            annotation = getattr(node, "annotation", None) or getattr(node, "returns", None)
            if isinstance(annotation, ast.AST) and "Namespace" in ast.unparse(annotation):
                found.add(file)
    allowed = {
        file for file in found if file.startswith("cli/") or re.match(r"systems/\w+/training/.*flags", file)
    }
    assert found <= allowed | {"core/arguments.py", "core/options.py"}


# ---- words -------------------------------------------------------------------------------------------------


def test_docstrings_begin_with_what_they_name():
    wrong = [
        (file, text)
        for file, tree in TREES.items()
        for text in (node.value.split(maxsplit=1)[:1] for node in docstrings(tree) if str(node.value).strip())
        if text[0].strip(",:;.") in ("What", "Whether", "Of", "Told")
    ]
    assert not wrong


def test_told_is_no_name():
    for file, tree in TREES.items():
        names = {
            getattr(node, name, None) for node in ast.walk(tree) for name in ("id", "attr", "arg", "name")
        }
        assert "told" not in names, file


# ---- from entry to network ---------------------------------------------------------------------------------


class Reached(Exception):
    """The network was called."""


def test_from_the_command_to_the_network(tmp_path, monkeypatch):
    frames = []

    def forward(network, x, *args, **kwargs):
        if not x.is_meta:  # as for the memory estimate
            stack = [frame.filename for frame in traceback.extract_stack()]
            frames.extend(file for file in stack[:-1] if Path(file).is_relative_to(PACKAGE))
            raise Reached
        return ours(network, x, *args, **kwargs)

    ours = UNet.forward
    monkeypatch.setattr(UNet, "forward", forward)
    source = PACKAGE.parent / "prompts" / "sprites" / "05-red-circle.png"
    shutil.copy(source, tmp_path / "a.png")
    (tmp_path / "prompts.txt").write_text("a red circle")
    argv = ["--config", "sprites", "--sets", f"a={WEIGHTS / 'base.safetensors'}", "--ddim_steps", "1"]
    argv += ["--device", "cpu", "--prompt_dir", str(tmp_path), "--savedir", str(tmp_path / "out")]
    with pytest.raises(Reached):
        sample(parser_of("sample", argv=argv).parse_args(argv))
    entry = next(place for place, file in enumerate(frames) if file.endswith("cli/sample.py"))
    assert len(frames[entry:]) <= 12 and len(set(frames[entry:])) <= 9, frames[entry:]
