"""SECURITY.md: the tests it names are there, and what can be told from the source is told from the source."""

import ast
import re
import time
from pathlib import Path

import pytest
from PIL import Image

from edg.core.config import read_yaml
from edg.core.errors import BadFileError, UsageError
from edg.core.video import read_image

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [*sorted((ROOT / "edg").rglob("*.py")), ROOT / "run_merge.py", ROOT / "scripts" / "infer_multi.py"]
RUNS_CODE = {"eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "pickle.Unpickler",
             "yaml.load", "yaml.unsafe_load", "marshal.loads", "os.system", "torch.hub.load", "torch.package",
             "dill.load", "joblib.load", "load_from_checkpoint"}  # fmt: skip
NET = {"urllib", "http", "socket", "requests", "httpx", "aiohttp", "ftplib", "huggingface_hub",
       "socketserver"}  # fmt: skip


ZEROS = "0" * 400  # a number that no float can hold


def trees():
    for path in SOURCES:
        yield str(path.relative_to(ROOT)), list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def calls():
    """(file, dotted name, keywords) of every call in the program."""
    for file, nodes in trees():
        for node in nodes:
            if isinstance(node, ast.Call):
                yield file, ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


def test_no_unpickler_and_no_evaluation():
    """torch.load is always told weights_only=True, and a TorchScript file is opened in one place."""
    made = list(calls())
    assert [(file, name) for file, name, _ in made if name in RUNS_CODE] == []
    assert {name.rpartition(".")[2] for _, name, _ in made}.isdisjoint({"load_from_checkpoint", "Unpickler"})
    taken = {node.module for _, nodes in trees() for node in nodes if isinstance(node, ast.ImportFrom)}
    assert taken.isdisjoint({"pickle", "marshal", "dill", "joblib"})
    loads = [keywords for _, name, keywords in made if name == "torch.load"]
    assert loads and all(keywords.get("weights_only") == "True" for keywords in loads)
    resumed = [keywords for _, name, keywords in made if "ckpt_path" in keywords]
    assert resumed and all(keywords["weights_only"] == "True" for keywords in resumed)
    assert {file for file, name, _ in made if name == "torch.jit.load"} == {"edg/metrics/networks.py"}


def test_only_fetch_knows_the_net():
    """The demo has a socket too: it listens."""
    found = set()
    for file, nodes in trees():
        for node in nodes:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(name.partition(".")[0] in NET for name in names):
                found |= {(file, name.partition(".")[0]) for name in names}
    found = {(file, name) for file, name in found if file != "edg/cli/fetch.py"}
    assert found == {("edg/demo/process.py", "socket")}


@pytest.mark.parametrize("depth", [6, 12])
def test_a_bomb_of_yaml_aliases(tmp_path, command, depth):
    """Ten aliases to ten aliases to ...: a million million values if they were all made."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, depth)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    began = time.process_time()
    code, err = command(["merge", tmp_path / "bomb.yaml"])
    assert code == 2 and "bomb.yaml" in err and time.process_time() - began < 5


@pytest.mark.parametrize(
    "text",
    ["3", "true", "1.5", "!!set {a}", "a: 0b_", "a: !!int x", "a: !!float x", "a: 9" + "9" * 5000,
     "!!python/object/apply:os.system ['touch x']"]
)  # fmt: skip
def test_yaml_that_is_no_mapping_of_settings(tmp_path, command, text):
    """Found by `scripts/fuzz.py settings`, and what YAML of other libraries would run."""
    (tmp_path / "x.yaml").write_text(text)
    code, err = command(["merge", tmp_path / "x.yaml"])
    assert code == 2 and len(err) < 1000 and "\\ue0f" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["x.yaml"]


@pytest.mark.parametrize(
    "step",
    ["{op: linear, 3: 4}", f"{{op: linear, weights: [1{ZEROS}, 1]}}", f"{{op: svd, rank: -1{ZEROS}}}",
     "{op: extrapolate, alpha: .nan}", "{op: 3}", "3", "{op: extrapolate, 1.5: 0}"]
)  # fmt: skip
def test_recipes_that_are_no_recipes(tmp_path, command, step):
    (tmp_path / "x.yaml").write_text(f"inputs: {{a: '', b: ''}}\noutputs: {{x: [{step}]}}")
    code, err = command(["merge", tmp_path / "x.yaml"])
    assert code == 2 and "expected" in err and len(err) < 2000


def test_security_md_names_tests_that_are_there():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > 12
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{test}"
    for path in re.findall(r"`((?:edg|scripts|tests)/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path


def test_settings_read_nothing_from_outside(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    path = tmp_path / "x.yaml"
    path.write_text("a: ${oc.env:SECRET}\nb: 1\n")
    with pytest.raises(UsageError, match=r"\$\{oc.env:SECRET\}"):
        read_yaml(path)
    path.write_text("a: 1\nb: ${a}\n")
    with pytest.raises(UsageError, match="SECRET"):
        read_yaml(path, ["a=${oc.env:SECRET}"])
    assert read_yaml(path) == {"a": 1, "b": 1}


def test_only_decoders_of_pictures_are_reached(tmp_path):
    """An EPS file is a program for Ghostscript, whatever its name ends in."""
    path = tmp_path / "x.png"
    Image.new("RGB", (8, 8)).save(path, "EPS")
    with pytest.raises(BadFileError):
        read_image(path)
