"""run_merge.py, `edg merge` and `edg info` from the outside."""

import argparse
import errno
import importlib.util
from pathlib import Path

import pytest
import torch

from edg.cli import info as inspect
from edg.cli import merge as commands
from edg.cli.main import main
from edg.core.errors import BadFileError, UsageError
from edg.core.shipped import shipped
from edg.networks import open_weights
from edg.weights.store import write_pt

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run_merge():
    spec = importlib.util.spec_from_file_location("run_merge", ROOT / "run_merge.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def published(folder, base, tuned):
    for place, state in (("dynamicrafter_512_v1/model", base), ("dynamicrafter_cil_512_v1/timenoise", tuned)):
        path = folder / f"{place}.ckpt"
        path.parent.mkdir(parents=True)
        torch.save({"state_dict": state}, path)


def test_run_merge_with_the_published_layout(tmp_path, base, tuned, run_merge, capsys):
    published(tmp_path / "ckpt", base, tuned)
    numbers = {
        "dyn-alpha": 0.25,
        "dyn-beta": 0.75,
        "con-alpha": 1.0,
        "con-beta": 0.0,
        "seed": 3,
        "drop-rate": 0.5,
    }
    flags = [text for name, value in numbers.items() for text in (f"--{name}", str(value))]
    assert (
        run_merge.main(["--basedir", str(tmp_path), "--ckptdir", "ckpt", "--outdir", "ckpt/merge", *flags])
        == 0
    )
    for name in ("dyn", "con"):
        state = torch.load(tmp_path / f"ckpt/merge/{name}.pt", weights_only=True)["state_dict"]
        assert set(state) == set(base)
    assert all(torch.equal(state[n], tuned[n]) for n in tuned)  # con_beta 0: con is the tuned model
    assert "complete" in capsys.readouterr().out


def test_run_merge_errors_and_exit_codes(tmp_path, run_merge, capsys):
    assert run_merge.main(["--ckptdir", str(tmp_path)]) == 3
    assert "model.ckpt does not exist" in capsys.readouterr().err
    assert run_merge.main(["--dyn-alhpa", "1"]) == 2
    assert "--dyn-alpha" in capsys.readouterr().err
    assert run_merge.main(["--config", "edg", "--dyn-alpha", "1"]) == 2
    assert not list(tmp_path.iterdir())


def test_run_merge_takes_a_recipe(tmp_path, base, tuned, run_merge):
    published(tmp_path, base, tuned)
    out = tmp_path / "out"
    assert run_merge.main(["--ckptdir", str(tmp_path), "--outdir", str(out), "--config", "extrapolate"]) == 0
    made = open_weights(out / "extrapolated.pt")
    name = "model.diffusion_model.out.2.bias"
    assert torch.allclose(made[name], base[name] + 0.25 * (base[name] - tuned[name]))


def call(add, run, *argv):
    parser = argparse.ArgumentParser()
    add(parser)
    return run(parser.parse_args(list(argv)))


def merge(*argv):
    return call(commands.add_merge_arguments, commands.merge_command, *argv)


def info(*argv):
    return call(inspect.add_info_arguments, inspect.info_command, *argv)


def test_merge_and_info(tmp_path, files, capsys):
    base, tuned = map(str, files)
    out = str(tmp_path / "out")
    assert (
        merge("edg", "--base", base, "--tuned", tuned, "--out", out, "--verify", "--quiet", "--seed", "9")
        == 0
    )
    capsys.readouterr()
    assert info(f"{out}/dyn.safetensors") == 0
    text = capsys.readouterr().out
    for part in ("DynamiCrafter", "adapter     no", "float32 100 %", "seed 9", "dynamic: alpha 0.25", base):
        assert part in text, part


def test_dry_run_writes_nothing(tmp_path, files, capsys):
    base, tuned = map(str, files)
    out = tmp_path / "out"
    assert merge("edg_temporal", "--base", base, "--tuned", tuned, "--out", str(out), "--dry-run") == 0
    assert "dynamic: 4 tensors" in capsys.readouterr().out and not out.exists()


def test_inputs_must_be_given(files):
    with pytest.raises(UsageError, match="tuned"):
        merge("edg", "--base", str(files[0]))
    with pytest.raises(UsageError, match="--input"):
        merge("edg", "--input", "third")


def test_the_recipes_are_listed(capsys):
    assert main(["merge"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(
        path.stem for path in shipped("configs", "merge").glob("*.yaml")
    )
    assert all(len(line.split()) > 3 and line.endswith(".") for line in lines)


@pytest.mark.parametrize("given, missing", [("--base", "--tuned FILE"), ("--tuned", "--base FILE")])
def test_a_missing_input_is_named_by_its_flag(command, tiny, given, missing):
    code, err = command(["merge", "linear", given, tiny.base])
    assert code == 2 and missing in err and "--input" not in err


def test_info_counts_components_and_takes_an_identifier(tmp_path, adapted, capsys):
    write_pt(tmp_path / "x.pt", {n: t.half() for n, t in adapted.items()})
    weights = open_weights(tmp_path / "x.pt")
    lines = inspect.describe(weights, lambda w: "some-spec" if "queries" in w else "")
    text = "\n".join(lines)
    assert "some-spec" in text and "adapter     yes" in text and "float16 100 %" in text
    counts = {line.split()[0]: line.split()[1] for line in lines if line.startswith("  ")}
    assert counts["adapter"] == str(4 * 10 + 4 + 3 * 6 + 36) and counts["buffers"] == "10"


def test_info_of_a_file_without_its_base(tmp_path, files, capsys):
    base, tuned = map(str, files)
    merge("edg", "--base", base, "--tuned", tuned, "--out", str(tmp_path / "out"), "--quiet")
    files[0].unlink()
    capsys.readouterr()
    with pytest.raises(BadFileError):
        info(str(tmp_path / "out" / "dyn.safetensors"))
    assert "9 tensors" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--dyn-alpha", "nan"], "--dyn-alpha"),
        (["--drop-rate", "1.7"], "drop_rate 1.7"),
        (["--drop-rate=-2"], "drop_rate -2"),
        (["--seed", "-5"], "--seed"),
    ],
)
def test_numbers_of_run_merge_are_checked(tmp_path, run_merge, capsys, flags, message):
    assert run_merge.main(["--ckptdir", str(tmp_path), *flags]) == 2
    assert message in capsys.readouterr().err


def test_seed_of_edg_merge_is_checked(files):
    base, tuned = map(str, files)
    with pytest.raises(SystemExit) as left:
        merge("edg", "--base", base, "--tuned", tuned, "--seed", "-3")
    assert left.value.code == 2


def one_line(capsys, *parts):
    err = capsys.readouterr().err
    assert err.startswith("run_merge.py: error: ") and err.count("\n") == 1, err
    assert all(part in err for part in parts), err


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_place_that_cannot_be_written_is_said(tmp_path, base, tuned, run_merge, capsys):
    published(tmp_path, base, tuned)
    assert run_merge.main(["--ckptdir", str(tmp_path), "--outdir", "/proc/x"]) == 4
    one_line(capsys, "cannot write /proc/x")


@pytest.mark.parametrize("flag, code", [("--base", 2), ("--outdir", 2), ("--config", 2)])
def test_names_that_are_too_long(tmp_path, base, tuned, run_merge, capsys, flag, code):
    published(tmp_path, base, tuned)
    assert run_merge.main(["--ckptdir", str(tmp_path), flag, "a" * 300]) == code
    one_line(capsys, "a" * 300)


@pytest.mark.parametrize(
    "error, message",
    [
        (OSError(errno.EIO, "Input/output error", "x.pt"), "x.pt"),
        (MemoryError(), "out of memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9"),
            "out of memory",
        ),
        (ModuleNotFoundError("No module named 'omegaconf'", name="omegaconf"), "pip install"),
    ],
)
def test_trouble_of_the_machine_is_one_line(monkeypatch, run_merge, capsys, error, message):
    def fail(*_):
        raise error

    monkeypatch.setattr(run_merge, "merge", fail)
    assert run_merge.main([]) == 4
    one_line(capsys, message)
    with pytest.raises(type(error)):
        run_merge.main(["--debug"])


def test_defects_keep_their_traceback(monkeypatch, run_merge):
    monkeypatch.setattr(run_merge, "merge", lambda argv: [][0])
    with pytest.raises(IndexError):
        run_merge.main([])


def test_a_scaled_network_is_told(tmp_path, base, tuned, run_merge, capsys):
    published(tmp_path, base, tuned)
    assert run_merge.main(["--ckptdir", str(tmp_path), "--con-alpha", "0.5", "--missing", "drop"]) == 0
    assert capsys.readouterr().err.count("alpha 0.5 scales the whole network") == 1


def test_a_step_of_a_training_run_is_no_model(tmp_path, capsys):
    (tmp_path / "tuned").mkdir()
    step = tmp_path / "tuned" / "step_00000001.ckpt"
    state = {"state_dict": {"model.x": torch.ones(2)}, "average": {}, "optimizer_states": [{"state": {}}]}
    torch.save(state, step)
    for command in (["info", str(step)], ["export", str(step), str(tmp_path / "out.pt")]):
        assert main(command) == 3
        told = capsys.readouterr().err
        assert str(tmp_path / "tuned.safetensors") in told
