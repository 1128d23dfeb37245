"""`edg train` as its user meets it: stages in a row, results with their record, resuming, mistakes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edg.cli import main
from edg.core.records import lock_folder
from edg.runner import train
from edg.runner.train import read_runs
from edg.systems.edg.find import load_spec
from edg.systems.edg.load import load_model
from edg.weights.store import open_weights

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/train/sprites.yaml")
SHORT = [
    "stages.vae.data.count=16", "stages.vae.train.steps=2", "stages.vae.train.batch=4",
    "stages.base.data.count=4", "stages.base.train.steps=2", "stages.base.train.batch=2",
    "stages.tuned.data.count=4", "stages.tuned.train.steps=2", "stages.tuned.train.batch=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("train")
    command = [CONFIG, f"out={out}", *SHORT, "--device", "cpu", "--threads", "1"]
    assert main(["train", *command]) == 0
    return out, command


def test_three_stages_leave_three_parameter_sets(trained):
    out, _ = trained
    base, tuned = open_weights(out / "base.safetensors"), open_weights(out / "tuned.safetensors")
    load_model(load_spec("sprites"), base)
    load_model(load_spec("sprites").with_adapter(), tuned)
    record = tuned.provenance
    assert record["training"]["train"]["steps"] == 2 and record["training"]["samples_in_data"] == 4
    assert record["inputs"][0]["path"] == str(out / "base.safetensors")
    assert record["stored"] < record["tensors"], "the frozen autoencoder is the base's"
    assert not any(
        name.startswith("first_stage_model.")
        for name in open_weights(out / "tuned.safetensors", join_base=False)
    )


def test_a_finished_run_is_skipped_and_another_one_refused(trained, capsys):
    out, command = trained
    before = (out / "tuned.safetensors").stat().st_mtime_ns
    assert main(["train", *command]) == 0
    assert "is there already" in capsys.readouterr().out
    assert (out / "tuned.safetensors").stat().st_mtime_ns == before
    assert main(["train", *command, "stages.tuned.train.lr=0.1"]) == 2
    assert "train.lr" in capsys.readouterr().err


def test_the_result_is_info_merge_and_sample_material(trained, tmp_path, capsys):
    out, _ = trained
    assert main(["info", str(out / "tuned.safetensors")]) == 0
    told = capsys.readouterr().out
    assert "trained" in told and "sprites" in told and "adapter     yes" in told
    merge = [sys.executable, "run_merge.py", "--base", str(out / "base.safetensors"), "--tuned"]
    merge += [str(out / "tuned.safetensors"), "--outdir", str(tmp_path)]
    assert subprocess.run(merge, cwd=ROOT).returncode == 0
    assert (tmp_path / "dyn.pt").exists() and (tmp_path / "con.pt").exists()


def test_mistakes_are_named(tmp_path, capsys):
    def told(*arguments):
        assert main(["train", CONFIG, f"out={tmp_path}", *arguments]) == 2
        return capsys.readouterr().err

    assert "train.step" in told("stages.vae.train.step=3") and "steps"
    assert "no stage 'tunde'" in told("--stages", "tunde")
    assert "stages.NAME.train.steps=5" in told("train.steps=5")
    assert "key=value" in told("lr")
    assert "data.kind" in told("stages.vae.data.kind=sprite")
    assert "train.batch is 0" in told("stages.vae.train.batch=0")
    assert main(["train", str(tmp_path / "no.yaml")]) == 3


def test_the_shipped_configurations_can_be_read():
    names = [run.name for run in read_runs(CONFIG, [])]
    assert names == ["vae", "base", "tuned"]
    for path in sorted((ROOT / "configs/train").glob("*.yaml")):
        for run in read_runs(path, []):
            load_spec(run.spec)


def test_a_begun_run_does_not_go_on_with_other_settings(trained, tmp_path, capsys):
    base = trained[0] / "base.safetensors"
    own = [f"out={tmp_path}", f"stages.tuned.init={base}", "stages.tuned.train.save_every=1"]
    command = ["train", CONFIG, *SHORT, *own, "--stages", "tuned", "--device", "cpu", "--threads", "1"]
    assert main(command) == 0
    first = (tmp_path / "tuned.safetensors").read_bytes()
    (tmp_path / "tuned.safetensors").unlink()
    changed = [*command[:2], *SHORT, *own, "stages.tuned.train.lr=0.1", *command[-6:]]
    assert main(changed) == 2
    assert "train.lr" in capsys.readouterr().err
    assert main(command) == 0
    assert (tmp_path / "tuned.safetensors").read_bytes() == first


def test_a_diverged_run_is_no_result(tmp_path, capsys):
    wild = ["stages.vae.train.lr=1e20", "stages.vae.train.steps=4", "stages.vae.train.precision=fp32"]
    command = [CONFIG, f"out={tmp_path}", *SHORT, *wild, "--stages", "vae", "--device", "cpu"]
    assert main(["train", *command]) == 2
    assert "not finite" in capsys.readouterr().err
    assert not (tmp_path / "vae.safetensors").exists()


def test_two_runs_do_not_share_a_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "PATIENCE", 0)
    command = ["train", CONFIG, f"out={tmp_path}", *SHORT, "--stages", "vae", "--device", "cpu"]
    (tmp_path / "vae").mkdir()
    with lock_folder(tmp_path / "vae"):
        assert main(command) == 4
    assert f"{tmp_path / 'vae'} is locked by pid {os.getpid()}" in capsys.readouterr().err
    assert main(command) == 0
