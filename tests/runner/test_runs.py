"""Runs: numbers that are not finite, memory too small, sets that do not fit, no network, any order."""

import re
import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import soak  # noqa: E402
from fakes import FakeSystem, job, run  # noqa: E402
from runs import TUNED, clips, edg, given_of, prompt_folder, sampling, spawn  # noqa: E402

from edg.core import device  # noqa: E402
from edg.core.files import read_json  # noqa: E402
from edg.core.video import read_frames  # noqa: E402
from edg.networks.latent_video import load  # noqa: E402
from edg.networks.latent_video.clip_encoders import _tokenizer  # noqa: E402
from edg.networks.latent_video.model import LatentVideoModel  # noqa: E402
from edg.networks.latent_video.presets import SPRITES  # noqa: E402
from edg.systems.base import Result  # noqa: E402
from edg.systems.edg import generate as method  # noqa: E402
from edg.weights.store import open_weights  # noqa: E402
from edg.weights.writers import write_safetensors  # noqa: E402

RED, GREEN = "a red circle moves left", "a green circle moves left"


def altered(path, **changes):
    """The embedded tuned set with some tensors changed: name (dots as __) -> function of the tensor."""
    weights = dict(
        load.load_model(SPRITES.with_adapter(), open_weights(TUNED)).state_dict()
    )  # with its towers
    for name, change in changes.items():
        name = name.replace("__", ".")
        weights[name] = change(weights[name].clone())
    write_safetensors(path, weights)
    return path


def deaf_to(word):
    """A token embedding in which a word is not a number."""

    def change(table):
        table[_tokenizer().encode(word)] = torch.nan
        return table

    return change


@pytest.mark.slow
def test_c84_nan_latents_fail_alone(tmp_path, capsys):
    """One prompt holds a word that con cannot read: its clip fails at con's first step, in a batch of two."""
    con = altered(tmp_path / "con.st", cond_stage_model__model__token_embedding__weight=deaf_to("green"))
    folder = prompt_folder(tmp_path / "in", RED, GREEN, RED)
    flags = ("--T", 500, "--bs", 2)
    argv = sampling(folder, tmp_path / "out", *flags, sets=(f"dyn={TUNED}", f"con={con}"))
    code, told = edg(capsys, *argv)
    assert code == 5 and "0001-1_sample0" in given_of(told), told
    record = read_json(tmp_path / "out/1000/0001-1_sample0.json")
    assert record["status"] == "failed" and "499" in record["error"] and "con" in record["error"]
    assert list(clips(tmp_path / "out")) == ["0000-0_sample0.mp4", "0002-2_sample0.mp4"]


@pytest.mark.slow
def test_c84_nan_frames_fail(tmp_path, capsys):
    broken = altered(tmp_path / "x.st", first_stage_model__decoder__conv_out__bias=lambda t: t * torch.nan)
    argv = sampling(prompt_folder(tmp_path / "in", RED), tmp_path / "out", sets=(f"tuned={broken}",))
    code, told = edg(capsys, *argv)
    assert code == 5 and "0000-0_sample0" in given_of(told) and not clips(tmp_path / "out")


@pytest.mark.slow
def test_c85_constant_video_warns(tmp_path, capsys):
    where = {"first_stage_model__decoder__conv_out__weight": torch.zeros_like}
    grey = altered(tmp_path / "x.st", **where)
    argv = sampling(prompt_folder(tmp_path / "in", RED), tmp_path / "out", sets=(f"tuned={grey}",))
    code, told = edg(capsys, *argv)
    bias = open_weights(TUNED)["first_stage_model.decoder.conv_out.bias"]
    assert bias.unique().numel() > 1, "each channel has its own grey, all frames are alike"
    assert code == 0 and "warning" in told
    assert read_json(next((tmp_path / "out").rglob("*.json")))["warnings"]

    class Black(FakeSystem):
        def generate(self, model, requests, *more):
            yield Result(requests[0], np.zeros((4, 16, 16, 3), np.uint8))

    run(job(tmp_path / "black", 1), Black(), lambda: None)
    assert "warning" in capsys.readouterr().err


class SmallGPU:
    """Raises as CUDA does where more than `clips` come at a time, or more than `frames` are decoded."""

    def __init__(self, monkeypatch, clips, frames):
        self.clips, self.frames, self.refused = clips, frames, []
        for name, over in (("predict", self._over_clips), ("decode_latents", self._over_frames)):
            honest = getattr(LatentVideoModel, name)
            monkeypatch.setattr(LatentVideoModel, name, self._guarded(name, honest, over))

    def _over_clips(self, network, x, *more):
        return len(x) > self.clips

    def _over_frames(self, network, z, chunk=None):
        return (network.vae_chunk or chunk or z.shape[2]) > self.frames

    def _guarded(self, name, honest, over):
        def call(network, x, *args, **more):
            planned = x.device.type == "meta"  # the plan before a run computes nothing
            if not planned and over(network, x, *args):
                self.refused.append(name)
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            return honest(network, x, *args, **more)

        return call


@pytest.mark.slow
def test_c86_out_of_memory_is_retried_smaller(tmp_path, capsys, monkeypatch):
    folder = prompt_folder(tmp_path / "in", RED, GREEN, RED)
    assert edg(capsys, *sampling(folder, tmp_path / "whole", "--perframe_ae"))[0] == 0
    gpu = SmallGPU(monkeypatch, clips=1, frames=1)
    code, told = edg(capsys, *sampling(folder, tmp_path / "out", "--bs", 3, "--no-perframe_ae"))
    assert code == 0 and "warning" in told
    assert gpu.refused == ["predict"], "then the run stays small"
    for path in (tmp_path / "whole").rglob("*.mp4"):
        assert np.array_equal(read_frames(path), read_frames(tmp_path / "out/1000" / path.name))


@pytest.mark.slow
def test_c86_out_of_memory_while_decoding(tmp_path, capsys, monkeypatch):
    gpu = SmallGPU(monkeypatch, clips=8, frames=1)
    folder = prompt_folder(tmp_path / "in", RED, GREEN)
    assert edg(capsys, *sampling(folder, tmp_path / "out", "--no-perframe_ae"))[0] == 0
    assert gpu.refused == ["decode_latents"] and len(clips(tmp_path / "out")) == 2


@pytest.mark.slow
def test_c86_out_of_memory_is_explained(tmp_path, capsys, monkeypatch):
    gpu = SmallGPU(monkeypatch, clips=0, frames=1)
    argv = sampling(prompt_folder(tmp_path / "in", RED, GREEN), tmp_path / "out", "--bs", 2)
    code, told = edg(capsys, *argv)
    assert code == 4 and gpu.refused == ["predict"] * 2, "as asked, and once smaller"
    assert re.search(r"on cpu \(\d+\.\d GB, \d+\.\d GB free\)", given_of(told))
    assert "--low-memory" in told and "--plan" in told


def test_c86_too_little_memory_is_told_before_the_start(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(device, "memory", lambda: (10**7, 10**7))
    monkeypatch.setattr(method, "generate", lambda *_: pytest.fail("begun"))
    code, told = edg(capsys, *sampling(prompt_folder(tmp_path / "in", RED), tmp_path / "out"))
    assert code == 4 and "cpu" in given_of(told)


@pytest.mark.parametrize("what, exit_code", [("missing", 3), ("other shape", 3), ("lacks tensors", 3)])
def test_c87_a_set_that_does_not_fit(tmp_path, capsys, monkeypatch, what, exit_code):
    con, weights = tmp_path / "con.safetensors", dict(open_weights(TUNED).items())
    name = "model.diffusion_model.out.2.weight"
    if what == "other shape":
        weights[name] = weights[name][:, :2].contiguous()
    if what == "lacks tensors":
        del weights[name]
    if what != "missing":
        write_safetensors(con, weights)
    monkeypatch.setattr(LatentVideoModel, "predict", lambda *_, **__: pytest.fail("a step was made"))
    folder = prompt_folder(tmp_path / "in", RED)
    code, told = edg(capsys, *sampling(folder, tmp_path / "out", sets=(f"dyn={TUNED}", f"con={con}")))
    assert code == exit_code and ("con.safetensors" if what == "missing" else name) in told, (code, told)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_c92_hub_offline(capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, never answers
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        code, told = edg(capsys, "fetch", "analytic-init")
        assert code == 4 and "http://127.0.0.1" in given_of(told)
        assert time.monotonic() - began < 10, "3 seconds where nothing else runs"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, told = edg(capsys, "fetch", "analytic-init")
    assert code == 4 and "HF_HUB_OFFLINE" in given_of(told)


@pytest.mark.slow
def test_c97_results_do_not_depend_on_how_they_are_made(tmp_path, capsys):
    """Bit-equal files for any chunk, resumed or not, and for two ranks as for one."""
    folder = prompt_folder(tmp_path / "in", RED, GREEN, RED, GREEN)
    found = {}
    for chunk in (1, 3):
        assert edg(capsys, *sampling(folder, tmp_path / str(chunk), "--chunk", chunk))[0] == 0
        found[chunk] = clips(tmp_path / str(chunk))
    next((tmp_path / "3").rglob("0002*.mp4")).unlink()
    assert edg(capsys, *sampling(folder, tmp_path / "3"))[0] == 0
    found["resumed"] = clips(tmp_path / "3")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    argv = sampling(folder, tmp_path / "two")
    both = [spawn(*argv, RANK=str(rank), LOCAL_RANK=str(rank), **place) for rank in (0, 1)]
    for process in both:
        told = process.communicate(timeout=300)[1]
        assert process.returncode == 0, told
    found["two ranks"] = clips(tmp_path / "two")
    assert len(found[1]) == 4 and all(one == found[1] for one in found.values())


@pytest.mark.slow
def test_soak_of_two_dozen_clips(tmp_path):
    """The long form: python scripts/soak.py --clips 2000."""
    assert soak.main(["--clips", "24", "--lot", "24", "--json", str(tmp_path / "told")]) == 0
    told = read_json(tmp_path / "told")
    assert told["made"] + sum(told["failed"].values()) == 24 and told["unaccounted"] == 0
    assert set(told["failed"]) == set(soak.BAD) and told["faults"]["disk full"] == 1
