"""`edg export`: one complete file, for whoever reads it."""

import json

import pytest
import torch

from edg.cli.main import main
from edg.core.errors import UsageError
from edg.weights import export as exporting
from edg.weights.export import export
from edg.weights.store import open_weights

BIAS = "model.diffusion_model.out.2.bias"


@pytest.fixture
def changes(tmp_path, files):
    """A file that holds only what a merge changed."""
    argv = ["merge", "edg", "--base", files[0], "--tuned", files[1], "--out", tmp_path / "out", "--quiet"]
    assert main([str(arg) for arg in argv]) == 0
    path = tmp_path / "out" / "dyn.safetensors"
    assert open_weights(path).provenance["base"]
    return path


def run(*argv):
    return main(["export", *map(str, argv)])


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x.ckpt"])
def test_a_file_of_changes_becomes_complete(tmp_path, changes, files, base, name, capsys):
    whole = {n: t for n, t in open_weights(changes).items()}
    assert run(changes, tmp_path / name, "--quiet") == 0
    assert f"complete: {len(base)} tensors" in capsys.readouterr().out
    files[0].unlink()  # nothing refers to the base any more
    made = open_weights(tmp_path / name)
    assert set(made) == set(base) and all(torch.equal(made[n], whole[n]) for n in base)
    record = made.provenance
    assert "base" not in record and record["recipe"]["outputs"] and record["stored"] == len(base)
    assert record["exported"]["path"] == str(changes) and len(record["exported"]["sha256"]) == 64


def test_other_tools_open_it(tmp_path, changes):
    from safetensors.torch import load_file

    export(changes, tmp_path / "x.ckpt", "float16")
    export(changes, tmp_path / "x.safetensors", "float16")
    state = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    table = load_file(tmp_path / "x.safetensors")
    assert set(state) == set(table) and all(torch.equal(state[n], table[n]) for n in state)


@pytest.mark.parametrize(
    "flag, dtype", [("fp16", torch.float16), ("bf16", torch.bfloat16), ("float32", torch.float32)]
)
def test_dtypes(tmp_path, base, flag, dtype, monkeypatch):
    monkeypatch.setattr(exporting, "CHUNK", 7)  # many blocks, the last one short
    base = base | {"count": torch.tensor([1, 2]), "wide": torch.arange(5, dtype=torch.float64) / 3}
    torch.save({"state_dict": base}, tmp_path / "base.ckpt")
    assert run(tmp_path / "base.ckpt", tmp_path / "x.pt", "--dtype", flag, "--quiet") == 0
    made = open_weights(tmp_path / "x.pt")
    assert torch.equal(made["betas"], base["betas"])  # 16 bits cannot hold a schedule
    assert torch.equal(made["count"], base["count"])
    for name in set(base) - {"betas", "count"}:
        assert made[name].dtype == dtype and torch.equal(made[name], base[name].to(dtype)), name


def test_values_beyond_float16_are_refused(tmp_path, base):
    torch.save({BIAS: torch.tensor([1.0, 1e5, float("inf")])}, tmp_path / "big.pt")
    with pytest.raises(UsageError, match=BIAS):
        export(tmp_path / "big.pt", tmp_path / "x.pt", "float16")
    assert [path.name for path in tmp_path.iterdir()] == ["big.pt"]
    export(tmp_path / "big.pt", tmp_path / "x.pt", "bfloat16")


def test_mistakes(tmp_path, files, capsys):
    base, out = files[0], tmp_path / "x.pt"
    for argv, code, text in (
        ((base, tmp_path / "x.bin"), 2, "ends in .safetensors, .pt or .ckpt"),
        ((base, out, "--dtype", "fp61"), 2, "did you mean 'fp16'?"),
        ((base, out, "--dtype", "auto"), 2, "fp16, bf16 or float32"),
        ((base, base), 2, "one of the input files"),
        ((tmp_path / "no.ckpt", out), 3, "does not exist"),
        ((base, files[1]), 2, "already exists"),
    ):
        assert run(*argv) == code
        assert text in capsys.readouterr().err
    assert not out.exists()
    assert run(base, files[1], "--overwrite", "--quiet") == 0
    assert json.loads(open_weights(files[1]).metadata["edg"])["exported"]["dtype"] == "as stored"
