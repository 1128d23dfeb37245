"""bench/merge.py end to end on two small files, and that it refuses a merge that is wrong."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from bench import merge
from edg.merging import merge as product
from edg.merging.recipe import load_recipe

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_a_small_run_writes_a_table_with_every_row(tmp_path):
    path = tmp_path / "RESULTS.md"
    path.write_text("# Title\n\n## merge\n\nold\n\n## step\n\nkept\n")
    flags = ["--size", "2x4MB", "--spec", "sprites", "--runs", "1", "--peer", "none", "--work", tmp_path]
    subprocess.run([sys.executable, ROOT / "bench" / "merge.py", *flags, "--results", path], check=True)
    text = path.read_text()
    for case in merge.CASES:
        row = next(line for line in text.splitlines() if f"edg: {case.title}" in line)
        assert "tensors" in row and " 0 tensors" not in row
    assert text.count("not installed") == 2
    assert "kept" in text and "old" not in text and str(tmp_path) not in text
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Inputs, and dyn and con of the product."""
    folder = tmp_path_factory.mktemp("made")
    inputs = merge.make_inputs(folder, "sprites", 2e6)
    recipe = load_recipe("edg")
    named = dict(zip(("base", "tuned"), map(str, inputs), strict=True))
    found = product.run(dataclasses.replace(recipe, inputs=named), folder / "out", full=True, warn=print)
    return inputs, [item.path for item in found]


def test_the_product_passes_the_check(made):
    assert merge.check(merge.CASES[0], *made) > merge.SAMPLE


def test_another_formula_is_refused(made, monkeypatch):
    right = merge.formula
    monkeypatch.setattr(merge, "formula", lambda *a: right(*a) * (1 + 1e-6))
    with pytest.raises(SystemExit, match="refused"):
        merge.check(merge.CASES[0], *made)


def test_a_missing_tensor_and_a_wrong_value_are_refused(made, tmp_path):
    inputs, outputs = made
    tensors = load_file(outputs[0])
    name = next(n for n in sorted(tensors) if n.startswith("model.diffusion_model."))
    wrong = tmp_path / outputs[0].name
    save_file({k: v for k, v in tensors.items() if k != name}, wrong)
    with pytest.raises(SystemExit, match="refused"):
        merge.check(merge.CASES[0], inputs, [wrong, outputs[1]])
    tensors[name].view(-1)[0] += 1e-3
    save_file(tensors, wrong)
    with pytest.raises(SystemExit, match=name):
        merge.check(merge.CASES[0], inputs, [wrong, outputs[1]])


def test_sizes_are_read_and_wrong_ones_told():
    assert merge.bytes_of("2x10.4GB") == pytest.approx(10.4e9)
    assert merge.bytes_of("2x20MB") == 2e7
    for wrong in ("3x1GB", "10GB", "2xGB"):
        with pytest.raises(Exception, match="two files"):
            merge.bytes_of(wrong)
