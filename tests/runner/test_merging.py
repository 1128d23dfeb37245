"""Sets merged in memory from the command line: flags that do not go together, records, resuming."""

import json
from pathlib import Path

import pytest
from runs import given_of

from edg.cli.main import main, parser_of
from edg.cli.sample import config_of
from edg.core.config import to_yaml
from edg.core.dist import World
from edg.core.hashing import sha256_file
from edg.runner.prepare import prepare
from edg.sprites import WEIGHTS
from edg.systems.edg.dials import Dial, Dials, Point

ROOT = Path(__file__).parents[2]
BASE, TUNED = WEIGHTS / "base.safetensors", WEIGHTS / "tuned.safetensors"


def command(capsys, *argv):
    """(exit code, stderr) of `edg ARGV`."""
    code = main([str(arg) for arg in argv])
    return code, capsys.readouterr().err


@pytest.fixture
def dials(tmp_path):
    """Dials of the embedded weights by round numbers: motion 0..1 is alpha -1..1, hold 0..1 is T 0..1000."""
    move = Dial("dyn.alpha", "speed", "more", (Point(-1, 1, 1, 1), Point(1, 2, 2, 2, (0.9, 1.1))))
    hold = Dial("T", "error", "less", (Point(0, 4, 4, 4), Point(1000, 2, 2, 2, (-2.1, -1.9))))
    inputs = {"base": sha256_file(BASE), "tuned": sha256_file(TUNED)}
    sampling = {"ddim_steps": 2, "unconditional_guidance_scale": 1.0}
    path = tmp_path / "dials.yaml"
    path.write_text(
        to_yaml(Dials("sprites", "edg_temporal_conv", inputs, sampling, 300, "measure", move, hold))
    )
    return path


@pytest.fixture
def prompts(tmp_path):
    """One prompt of the shipped ones."""
    folder = tmp_path / "prompts"
    folder.mkdir()
    image = next(iter(sorted((ROOT / "prompts/sprites").glob("*.png"))))
    (folder / "0.png").write_bytes(image.read_bytes())
    (folder / "prompts.txt").write_text("a blue pillar moves left slowly\n")
    return folder


def sample(prompts, out, *more):
    return ("sample", "--prompt_dir", prompts, "--savedir", out, "--ddim_steps", 2,
            "--unconditional_guidance_scale", 1, "--device", "cpu", *more)  # fmt: skip


def record(out):
    return json.loads((out / "1000/0000-0_sample0.json").read_text())


def test_a_record_holds_dials_strengths_and_recipe(capsys, tmp_path, prompts, dials, fake_network):
    flags = sample(prompts, tmp_path / "a", "--motion", 0.75, "--hold", 0.4, "--dials", dials)
    code, err = command(capsys, *flags)
    assert code == 0, err
    assert "dyn.alpha = 0.5, T = 400" in err
    made = record(tmp_path / "a")
    assert made["dials"]["motion"] == 0.75 and made["dials"]["hold"] == 0.4
    assert made["dials"]["stand_for"] == {"dyn.alpha": 0.5, "T": 400}
    assert made["dials"]["recipe"] == "edg_temporal_conv"
    assert made["merged_in_memory"]["base"] == str(BASE)
    assert list(made["settings"]["sets"]) == ["dyn", "con"]
    sets = made["set_origins"]
    assert sets["dyn"]["recipe"]["outputs"]["dyn"][0]["alpha"] == 0.5
    assert sets["dyn"]["inputs"] == {"base": sha256_file(BASE), "tuned": sha256_file(TUNED)}
    assert made["settings"]["options"]["switch_at"] == [400]
    video = tmp_path / "a/1000/0000-0_sample0.mp4"
    before = video.stat().st_mtime_ns
    assert command(capsys, *flags)[0] == 0 and video.stat().st_mtime_ns == before
    code, err = command(
        capsys, *sample(prompts, tmp_path / "a", "--motion", 0.5, "--hold", 0.4, "--dials", dials)
    )
    assert code == 2 and "sets.dyn.recipe.outputs.dyn" in err, err
    code, err = command(capsys, *flags, "--ddim_steps", 3)
    assert code == 2 and "--ddim_steps 2" in err


@pytest.mark.slow
def test_a_merge_in_memory_is_the_merged_file(capsys, tmp_path, prompts):
    """Clip and identity: a folder that was begun with files goes on in memory."""
    merge = ("merge", "edg", "--base", BASE, "--tuned", TUNED, "--out", tmp_path / "merged", "--quiet")
    assert command(capsys, *merge)[0] == 0
    dyn, con = (tmp_path / "merged" / f"{name}.safetensors" for name in ("dyn", "con"))
    files = ("--dynamic_path", dyn, "--consistency_path", con)
    assert command(capsys, *sample(prompts, tmp_path / "files", *files))[0] == 0
    inside = ("--recipe", "edg", "--base", BASE, "--tuned", TUNED, "--T", 500)
    assert command(capsys, *sample(prompts, tmp_path / "memory", *inside))[0] == 0
    first, second = (record(tmp_path / name) for name in ("files", "memory"))
    assert (
        first["video_sha256"] == second["video_sha256"] and first["settings_hash"] == second["settings_hash"]
    )
    video = tmp_path / "files/1000/0000-0_sample0.mp4"
    before = video.stat().st_mtime_ns
    assert command(capsys, *sample(prompts, tmp_path / "files", *inside))[0] == 0
    assert video.stat().st_mtime_ns == before


@pytest.mark.slow
def test_the_switch_of_the_dials_goes_with_their_recipe_alone(capsys, tmp_path, prompts, dials, fake_network):
    command(capsys, *sample(prompts, tmp_path / "a", "--motion", 0, "--dials", dials))
    assert record(tmp_path / "a")["settings"]["options"]["switch_at"] == [300]
    command(capsys, *sample(prompts, tmp_path / "b", "--recipe", "edg", "--strength", "dyn.alpha=0.1"))
    assert record(tmp_path / "b")["settings"]["options"]["switch_at"] == [500]
    assert "dials" not in record(tmp_path / "b")


@pytest.mark.parametrize(
    "turned, other, told",
    [
        (("--motion", 0.5), (), ""),
        (("--motion", 0.5), ("--T", 300, "--height", 32, "--frames", 8), ""),
        (("--motion", 0.5), ("--blend", "soft"), "--blend hard --T 300"),
        (
            ("--motion", 0.5),
            ("--released",),
            "--con_prompt prompt --image_latent shared_sample --timesteps clean",
        ),
        (("--motion", 0.5), ("--fit", "pad"), "--fit stretch"),
        (("--motion", 0.5), ("--size", "auto"), "--fit stretch"),
        (("--motion", 0.5), ("--multiple_cond_cfg",), "no --cfg_img"),
        (("--motion", 0.5), ("--switch_at", 100), "--T 300"),
        (("--motion", 0.5, "--hold", 1), ("--solver", "dpmpp"), "--solver ddim"),
        (("--hold", 0.5), ("--ddim_eta", 0, "--loop"), "--ddim_eta 1 no --loop"),
        (("--hold", 0.5), ("--frames", 9, "--no-text_input"), "--video_length 8 --text_input 1"),
        (("--hold", 0.5), ("--M", 502), "--M 1000"),
        (
            ("--hold", 0.5),
            ("--M", 501),
            "--M 1000",
        ),
    ],
)
def test_what_is_not_as_the_curve_was_measured_is_told(capsys, tmp_path, prompts, dials, turned, other, told):
    """Flags are checked and told before anything is read: the network is never loaded."""
    flags = sample(prompts, tmp_path, "--dials", dials, *turned, *other)[1:]
    parser = parser_of("sample")
    prepare(config_of(parser.parse_args([str(flag) for flag in flags])), World())
    err = capsys.readouterr().err
    assert "dyn.alpha = 0" in err or "T = " in err
    assert told in err, err
    assert ("M = 501" in err) == ("--M" in other and 501 in other), "con alone makes the clip"


WRONG = {
    "out of range": (("--motion", 1.5), "--motion 1.5"),
    "no number": (("--hold", "much"), "--hold"),
    "with files": (("--motion", 0.5, "--sets", "a=b"), "--motion with --sets"),
    "with a file": (("--hold", 0.5, "--dynamic_path", "a"), "--hold with --dynamic_path"),
    "hold and T": (("--hold", 0.5, "--T", 300), "--hold with --T"),
    "hold, blended": (("--hold", 0.5, "--blend", "soft"), "--hold with --blend soft"),
    "dial and recipe": (("--motion", 0.5, "--recipe", "edg"), "--motion with --recipe"),
    "twice": (("--motion", 0.5, "--strength", "dyn.alpha=1"), "--strength dyn.alpha"),
    "alone": (("--base", BASE), "--base"),
    "no curve": (("--motion", 0.5, "--config", "dynamicrafter-512"), "dynamicrafter-512"),
    "no files": (("--recipe", "edg", "--config", "dynamicrafter-512"), "dynamicrafter-512"),
    "not the files": (("--motion", 0.5, "--base", TUNED, "--tuned", BASE), "base"),
    "no such place": (("--strength", "dyn.alhpa=1"), "dyn.alhpa"),
    "no assignment": (("--strength", "dyn.alpha"), "--strength dyn.alpha"),
    "no recipe": (("--recipe", "edgg"), "edgg"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_go_together_is_one_line(capsys, tmp_path, prompts, dials, what):
    flags, given = WRONG[what]
    more = () if what in ("no curve", "no files") else ("--dials", dials)
    code, err = command(capsys, *sample(prompts, tmp_path / "out", *more, *flags))
    assert code == 2 and given in given_of(err) and len(err.splitlines()) == 1, err
    assert not (tmp_path / "out").exists()
