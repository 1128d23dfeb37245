"""`edg train` as its user meets it: stages in a row, results with their record, resuming, mistakes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from edg.cli.main import main
from edg.core.config import to_dict
from edg.core.errors import UsageError
from edg.core.files import lock_folder
from edg.core.video import write_video
from edg.data.batches import TensorTable
from edg.networks.latent_video.load import build, load_model
from edg.networks.latent_video.models import load_spec
from edg.runner import train
from edg.runner.train import data_settings, open_data, read_runs
from edg.systems.edg.training.run import precompute
from edg.training.callbacks import checkpoints
from edg.training.lightning import read_log
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_finished_run_is_skipped_and_another_one_refused(trained, capsys):
    out, command = trained
    before = (out / "tuned.safetensors").stat().st_mtime_ns
    assert main(["train", *command]) == 0
    names = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["vae", "base", "tuned"]
    assert (out / "tuned.safetensors").stat().st_mtime_ns == before
    assert main(["train", *command, "stages.tuned.train.lr=0.1"]) == 2
    assert "train.lr" in capsys.readouterr().err


@pytest.mark.slow
def test_the_result_is_info_merge_and_sample_material(trained, tmp_path, capsys):
    out, _ = trained
    assert main(["info", str(out / "tuned.safetensors")]) == 0
    assert "sprites" in capsys.readouterr().out
    merge = [sys.executable, "run_merge.py", "--base", str(out / "base.safetensors"), "--tuned"]
    merge += [str(out / "tuned.safetensors"), "--outdir", str(tmp_path)]
    assert subprocess.run(merge, cwd=ROOT).returncode == 0
    assert (tmp_path / "dyn.pt").exists() and (tmp_path / "con.pt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("save_every", [500, 2])
def test_a_finished_run_can_be_trained_longer(tmp_path, capsys, caplog, save_every):
    """As one that was to be so long from the beginning; not shorter, nor without its checkpoints."""
    common = [CONFIG, "--stages", "vae", "--device", "cpu", "--threads", "1", "stages.vae.data.count=16"]
    common += ["stages.vae.train.batch=4", "stages.vae.train.precision=fp32"]
    common += ["stages.vae.train.schedule=constant", f"stages.vae.train.save_every={save_every}"]

    def result(folder, steps):
        assert main(["train", *common, f"out={tmp_path / folder}", f"stages.vae.train.steps={steps}"]) == 0
        return open_weights(tmp_path / folder / "vae.safetensors")

    result("longer", 3)
    longer, whole = result("longer", 5), result("whole", 5)
    assert all(torch.equal(longer[name], whole[name]) for name in whole)
    record = longer.provenance["training"]
    assert record["train"]["steps"] == 5 and record["steps_before"] == [3]
    lines = read_log(tmp_path / "longer/vae/log.jsonl")
    assert [line["step"] for line in lines] == [5] or [line["step"] for line in lines] == [3, 5]
    assert any("step 5 of 5" in text for text in caplog.messages), "without a terminal, too"

    capsys.readouterr()
    for name, given in (("train.steps", 4), ("train.steps", 6)):
        if given == 6:
            for checkpoint in checkpoints(tmp_path / "longer/vae"):
                checkpoint.unlink()
        assert main(["train", *common, f"out={tmp_path / 'longer'}", f"stages.vae.train.steps={given}"]) == 2
        assert name in capsys.readouterr().err


SIGKILL = """
import os, signal, sys
from edg.cli.main import main
from edg.training import callbacks
callbacks.remove = lambda path: os.kill(os.getpid(), signal.SIGKILL)
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_run_that_is_killed_keeps_two_checkpoints_and_ends_as_one_that_was_not(tmp_path):
    """By SIGKILL, between the third checkpoint and the removal of the first."""
    common = ["train", CONFIG, "--stages", "vae", "--device", "cpu", "--threads", "1"]
    common += ["stages.vae.data.count=16", "stages.vae.train.batch=4", "stages.vae.train.steps=5"]
    common += ["stages.vae.train.save_every=1", "stages.vae.train.keep=2"]
    killed = [*common, f"out={tmp_path / 'killed'}"]
    done = subprocess.run([sys.executable, "-c", SIGKILL, *killed], cwd=ROOT, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(checkpoints(tmp_path / "killed/vae")) == 3
    assert main(killed) == 0 and main([*common, f"out={tmp_path / 'whole'}"]) == 0
    names = [[path.name for path in checkpoints(tmp_path / run / "vae")] for run in ("killed", "whole")]
    assert names == [["step_00000004.ckpt", "step_00000005.ckpt"]] * 2
    ours, theirs = (open_weights(tmp_path / run / "vae.safetensors") for run in ("killed", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_a_stage_others_began_from_is_not_trained_longer_beside_them(trained, capsys):
    out, command = trained
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main(["train", *command, "stages.base.train.steps=3"]) == 2
    error = capsys.readouterr().err
    assert "--stages base" in error and str(out / "tuned.safetensors") in error
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_mistakes_are_named(tmp_path, capsys):
    for arguments, named in (
        (["stages.vae.train.step=3"], "train.step"),
        (["--stages", "tunde"], "'tunde'"),
        (["train.steps=5"], "stages.NAME.train.steps=5"),
        (["lr"], "'lr'"),
        (["stages.vae.data.kind=sprite"], "data.kind"),
        (["stages.vae.train.batch=0"], "train.batch"),
    ):
        assert main(["train", CONFIG, f"out={tmp_path}", *arguments]) == 2
        assert named in capsys.readouterr().err
    assert main(["train", str(tmp_path / "no.yaml")]) == 3


def test_the_shipped_configurations_can_be_read():
    names = [run.name for run in read_runs(CONFIG, [])]
    assert names == ["vae", "base", "tuned"]
    for path in sorted((ROOT / "configs/train").glob("*.yaml")):
        for run in read_runs(path, []):
            load_spec(run.spec)


def run_file(path, **changes):
    values = {"spec": "sprites", "seed": 0, "out": str(path.parent), "data": {"kind": "cache", "path": "c"}}
    values |= {"train": {"steps": 1, "batch": 1, "lr": 0.1}, **changes}
    path.write_text(json.dumps(values))  # JSON is YAML
    return path


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"train.betas": "[2,3]"}, "train.betas"),
        ({"train.final_lr": "-0.1"}, "train.final_lr"),
        ({"train.text_rate": "-1"}, "train.text_rate"),
        ({"lora": "{rank: 0}"}, "lora.rank"),
        ({"lora": "{rank: 2, alpha: 0}"}, "lora.alpha"),
        ({"lora": "{rank: 2}", "trainable": "[adapter]"}, "[adapter]"),
        ({"trainable": "[adapter,lora]"}, "lora"),
        ({"autoencoder.calm": "0"}, "autoencoder.calm"),
        ({"samples.every": "-1"}, "samples.every"),
        ({"samples.count": "0"}, "samples.count"),
        ({"seed": "-1"}, "seed"),
    ],
)
def test_odd_settings_are_refused(tmp_path, changes, named):
    with pytest.raises(UsageError) as error:
        read_runs(run_file(tmp_path / "run.yaml"), [f"{key}={value}" for key, value in changes.items()])
    assert named in error.value.given


def test_keys_of_files_are_read_and_recorded_by_their_names(tmp_path):
    own = {"train": {"steps": 1, "batch": 1, "lr": 0.1, "text_rate": 5}, "autoencoder": {"calm": 4}}
    (run,) = read_runs(run_file(tmp_path / "run.yaml", **own), [])
    assert (run.train.text_lr_multiplier, run.autoencoder.posterior_std_divisor) == (5.0, 4.0)
    record = to_dict(run)
    assert (record["train"]["text_rate"], record["autoencoder"]["calm"]) == (5.0, 4.0)


def test_lora_is_trained_by_name_or_with_everything(tmp_path):
    for trainable in (["adapter", "lora"], ["all"]):
        run_file(tmp_path / "run.yaml", lora={"rank": 2}, trainable=trainable)
        assert read_runs(tmp_path / "run.yaml", [])[0].lora.rank == 2


@pytest.mark.parametrize("stages", [[1], {}, {"a": 3}, "vae"])
def test_odd_stages_are_refused(tmp_path, stages):
    with pytest.raises(UsageError) as error:
        read_runs(run_file(tmp_path / "run.yaml", stages=stages), [])
    assert "stages" in error.value.given


@pytest.mark.parametrize(
    "data, named",
    [
        ({"split": "nope"}, "data.split"),
        ({"count": 0}, "data.count"),
        ({"focus": 0}, "data.focus"),
        ({"split": "stills"}, "stills"),
    ],
)
def test_odd_sprites_are_refused(tmp_path, data, named):
    world = {"kind": "sprites", "split": "base", "count": 1, **data}
    (run,) = read_runs(run_file(tmp_path / "run.yaml", data=world), [])
    with pytest.raises(UsageError) as error:
        data_settings(run)
    assert named in error.value.given


@pytest.mark.parametrize(
    "data, named",
    [({"frames": 0}, "0"), ({"height": -64}, "-64x32"), ({"width": 33}, "32x33"), ({"width": 0}, "32x0")],
)
def test_odd_sizes_of_clips_are_refused(tmp_path, data, named):
    videos = {"kind": "videos", "root": str(tmp_path), **data}
    (run,) = read_runs(run_file(tmp_path / "run.yaml", data=videos), [])
    with pytest.raises(UsageError) as error:
        open_data(run)
    assert named in error.value.given


def test_videos_are_read_by_the_reader_that_is_named(tmp_path):
    write_video(tmp_path / "a.mp4", np.full((20, 40, 64, 3), 90, np.uint8), fps=12)
    pytest.importorskip("decord")
    for reader in ("pyav", "decord"):
        videos = {"kind": "videos", "root": str(tmp_path), "reader": reader}
        (run,) = read_runs(run_file(tmp_path / "run.yaml", data=videos), [])
        assert open_data(run)[0, 0]["reader"] == reader
    (run,) = read_runs(run_file(tmp_path / "run.yaml", data={**videos, "reader": "opencv"}), [])
    with pytest.raises(UsageError):
        data_settings(run)


def test_a_stage_adds_to_the_common_settings(tmp_path):
    path = run_file(
        tmp_path / "run.yaml",
        objective={"drops": {"text": 0.5}},
        stages={
            "one": {"train": {"steps": 5}, "objective": {"drops": {"both": 0.25}}, "data": {"path": "d"}},
            "two": {"data": {"kind": "sprites", "split": "base", "count": 1}},
        },
    )
    one, two = read_runs(path, ["train.lr=0.2"])
    assert (one.train.steps, one.train.lr, two.train.steps) == (5, 0.2, 1)
    assert (one.objective.drops.text, one.objective.drops.both) == (0.5, 0.25)
    assert one.data == {"kind": "cache", "path": "d"}, "the kind is the common one"
    assert two.data == {"kind": "sprites", "split": "base", "count": 1}, "of another kind, nothing is taken"
    for text in ("train.steps=3", "data.path=e"):
        with pytest.raises(UsageError) as error:
            read_runs(path, [text])
        assert error.value.fix == f"stages.NAME.{text}"


def test_a_start_that_is_not_there_is_found_before_anything_is_trained(tmp_path, capsys):
    for arguments, named in (
        (["stages.base.vae=vea"], ("base", "'vea'", "'vae'")),
        (["stages.tuned.init=bsae"], ("tuned", "'bsae'", "'base'")),
        (["stages.vae.vae=base"], ("vae of vae",)),
        (["--stages", "tuned"], ("init of tuned",)),
    ):
        assert main(["train", CONFIG, f"out={tmp_path / 'out'}", *arguments]) == 3
        assert not (tmp_path / "out").exists()
        error = capsys.readouterr().err
        assert all(name in error for name in named)


def test_a_cache_of_first_frames_has_no_random_ones(tmp_path, monkeypatch):
    index = SimpleNamespace(every_frame=False)
    clips = SimpleNamespace(index=index, without_hashes=lambda: 0)
    monkeypatch.setattr("edg.systems.edg.training.run.CachedClips", lambda path: clips)
    (run,) = read_runs(run_file(tmp_path / "run.yaml", objective={"random_frame": True}), [])
    with pytest.raises(UsageError) as error:
        open_data(run)
    assert "objective.random_frame" in error.value.given and "--every-frame" in error.value.fix
    index.every_frame = True
    assert open_data(run).index is index


def test_sprites_have_every_frame_where_the_run_asks_for_it():
    spec = load_spec("sprites")
    model = build(spec, "cpu").eval()
    frames = torch.rand(2, 3, 2, spec.height, spec.width) * 2 - 1
    given = TensorTable({"frames": frames, "caption": ["a", "b"], "fps": torch.tensor([8, 8])})
    every, first = precompute(model, given, 0, every_frame=True), precompute(model, given, 0)
    assert torch.equal(every[1]["latents"], first[1]["latents"]) and "image" not in every[1]
    assert torch.allclose(every[1]["images"][0], first[1]["image"], atol=1e-5)
    assert torch.allclose(every[1]["images"][1], model.embedder(frames[1:, :, 1])[0], atol=1e-5)


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_diverged_run_is_no_result(tmp_path, capsys):
    wild = ["stages.vae.train.lr=1e6", "stages.vae.train.steps=4", "stages.vae.train.precision=fp32"]
    command = [CONFIG, f"out={tmp_path}", *SHORT, *wild, "--stages", "vae", "--device", "cpu"]
    assert main(["train", *command]) == 2
    assert "train.lr" in capsys.readouterr().err
    assert not (tmp_path / "vae.safetensors").exists()


@pytest.mark.slow
def test_two_runs_do_not_share_a_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "LOCK_TIMEOUT", 0)
    command = ["train", CONFIG, f"out={tmp_path}", *SHORT, "--stages", "vae", "--device", "cpu"]
    (tmp_path / "vae").mkdir()
    with lock_folder(tmp_path / "vae"):
        assert main(command) == 4
    error = capsys.readouterr().err
    assert str(tmp_path / "vae") in error and str(os.getpid()) in error
    assert main(command) == 0
