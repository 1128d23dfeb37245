"""A system from elsewhere: the registry's line is all that the package needs to know of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edg import systems
from edg.api import load
from edg.cli.main import main, parser_of
from edg.core.errors import UsageError
from edg.core.video import read_frames, write_image, write_video
from edg.weights.store import open_weights, write_safetensors

TESTS = Path(__file__).parents[1]


@pytest.fixture(params=["SYSTEM"])
def toy(request, monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS))
    monkeypatch.setitem(systems.SYSTEMS, "toy", f"toy_system:{request.param}")


@pytest.fixture
def prompts(tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "prompts.txt").write_text("a square\nanother square\n")
    return folder


def edg(*argv):
    return main([str(arg) for arg in argv])


def sample(prompts, out, *more):
    return edg(
        "sample", "--system", "toy", "--prompt_dir", prompts, "--savedir", out, "--device", "cpu", *more
    )


def records(out):
    return [json.loads(path.read_text()) for path in sorted(out.glob("0*.json"))]


def test_prompts_without_images_become_clips_that_resume(toy, prompts, tmp_path, capsys):
    out = tmp_path / "out"
    assert sample(prompts, out, "--speed", 2) == 0
    first, second = records(out)
    assert first["id"] == "0000-prompts_sample0" and second["settings"]["prompt"] == "another square"
    assert first["settings"]["system"] == "toy" and first["settings"]["options"] == {"speed": 2.0}
    assert "image_sha256" not in first["settings"] and "image" not in first
    frames = read_frames(out / "0000-prompts_sample0.mp4")
    assert frames[3, 6, 6:10].min() > 150 > 50 > frames[3, 6, :4].max()
    before = (out / "0000-prompts_sample0.mp4").stat().st_mtime_ns
    assert sample(prompts, out, "--speed", 2) == 0
    assert (out / "0000-prompts_sample0.mp4").stat().st_mtime_ns == before
    assert sample(prompts, out, "--speed", 3) == 2, "other settings"
    assert sample(prompts, out, "--speed", 2, "--colour", 90) == 2, "a later option, not the default"


def test_its_flags_are_those_of_help_and_no_other_systems(toy):
    own = parser_of("sample", argv=["--system=toy"])._option_string_actions
    by_model = parser_of("sample", argv=["--config", "toy-16"])._option_string_actions
    assert "--speed" in own and "--ddim_steps" not in own and own.keys() == by_model.keys()
    assert "--speed" not in parser_of("sample")._option_string_actions


@pytest.mark.parametrize(
    ("argv", "given"),
    [
        (["--speed", "10"], "--speed"),
        (["--speed", "nan"], "--speed"),
        (["--ddim_steps", "3"], "--ddim_steps"),
        (["--height", "18"], "--height"),
        (["--frames", "5"], "--video_length"),
        (["--config", "sprites"], "sprites"),
        (["--system", "tyo"], "tyo"),
    ],
)
def test_mistakes_name_the_flag(toy, prompts, tmp_path, argv, given):
    with pytest.raises(UsageError) as caught:
        sample(prompts, tmp_path / "out", *argv, "--debug")
    assert given in caught.value.given and not (tmp_path / "out").exists()


def test_a_sweep_over_its_options_scored_and_reported(toy, prompts, tmp_path):
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        f"out: {tmp_path / 'swept'}\noptions: {{system: toy, prompt_dir: {prompts}, device: cpu}}\n"
        "grid: {speed: [0, 2]}\n"
    )
    assert edg("sweep", sweep) == 0
    still, moving = (
        json.loads((tmp_path / f"swept/speed={speed}/scores.json").read_text())["metrics"] for speed in (0, 2)
    )
    assert still["motion_degree"]["mean"] < moving["motion_degree"]["mean"]
    assert (tmp_path / "swept/report/index.html").is_file()


def test_python_and_info_and_fetch(toy, tmp_path, capsys):
    video = load("toy-16").animate(prompt="a square", speed=3)
    assert video.frames.shape == (4, 16, 16, 3) and video.frames[1, 5, 3:7].min() == 200
    with pytest.raises(UsageError):
        load("toy-16", guidance=3)
    with pytest.raises(UsageError) as caught:
        load("toy-16").animate(np.zeros((16, 16, 3), np.uint8), "a square")
    assert "image" in caught.value.given and "toy" in caught.value.expected
    write_safetensors(tmp_path / "toy.safetensors", {"toy": torch.ones(3)})
    assert edg("info", tmp_path / "toy.safetensors") == 0
    assert "toy-16" in capsys.readouterr().out
    with pytest.raises(UsageError) as caught:
        edg("fetch", "toy-weihgts", "--debug")
    assert "toy-weights" in caught.value.fix


def test_what_it_does_not_do_is_refused(toy, tmp_path):
    for part in ("train", "embed", "verify", "estimate"):
        with pytest.raises(UsageError) as caught:
            systems.get("toy").part(part)
        assert "toy" in caught.value.given
    with pytest.raises(UsageError):
        edg("doctor", "--plan", "toy-16", "--debug")


@pytest.mark.parametrize("toy", ["FROM_VIDEO"], indirect=True)
def test_a_reference_clip_takes_the_place_of_the_image(toy, prompts, tmp_path):
    assert sample(prompts, tmp_path / "none") == 2, "no video"
    for line in (1, 2):
        write_video(prompts / f"{line:02d}.mp4", np.full((3, 16, 16, 3), 60 * line, np.uint8))
    assert sample(prompts, tmp_path / "out") == 0
    found = records(tmp_path / "out")
    assert [Path(record["reference_video"]).name for record in found] == ["01.mp4", "02.mp4"]
    assert len({record["settings"]["video_sha256"] for record in found}) == 2


@pytest.mark.parametrize("toy", ["FROM_BOTH"], indirect=True)
def test_images_and_videos_of_one_folder_go_together(toy, prompts, tmp_path):
    for line in (1, 2):
        write_image(prompts / f"{line:02d}.png", np.full((16, 16, 3), 60 * line, np.uint8))
    assert sample(prompts, tmp_path / "images") == 0
    for line in (1, 2):
        write_video(prompts / f"{line:02d}.mp4", np.full((3, 16, 16, 3), 60 * line, np.uint8))
    assert sample(prompts, tmp_path / "both") == 0
    assert [("reference_video" in r, "image" in r) for r in records(tmp_path / "images")] == [
        (False, True)
    ] * 2
    for found in records(tmp_path / "both"):
        assert Path(found["image"]).stem == Path(found["reference_video"]).stem


def test_tensors_beside_a_clip(toy, prompts, tmp_path):
    out = tmp_path / "out"
    assert sample(prompts, out, "--colour", 9) == 0
    (name,) = records(out)[0]["artifacts"]
    assert open_weights(out / name)["path"].tolist() == [0, 1, 2, 3]
    assert sample(prompts, out, "--overwrite") == 0
    assert "artifacts" not in records(out)[0] and not (out / name).exists()


def test_a_model_of_another_system_is_named(toy, prompts, tmp_path):
    with pytest.raises(UsageError) as caught:
        sample(prompts, tmp_path / "out", "--config", "sprites", "--debug")
    assert "sprites" in caught.value.given and caught.value.fix == "--system edg"
