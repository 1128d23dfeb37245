"""Sets merged in memory from the command line: flags that do not go together, records, resuming."""

import json
from pathlib import Path

import pytest

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


def test_a_clip_tells_its_dials_their_strengths_and_the_recipe(capsys, tmp_path, prompts, dials):
    flags = sample(prompts, tmp_path / "a", "--motion", 0.75, "--hold", 0.4, "--dials", dials)
    code, err = command(capsys, *flags)
    assert code == 0, err
    assert "--motion 0.75, --hold 0.4: dyn.alpha = 0.5, T = 400" in err and "curve was measured" not in err
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
    assert command(capsys, *flags)[1].count("1 of 1 clips are finished already") == 1
    code, err = command(
        capsys, *sample(prompts, tmp_path / "a", "--motion", 0.5, "--hold", 0.4, "--dials", dials)
    )
    assert code == 2 and "sets.dyn.recipe.outputs.dyn" in err
    code, err = command(capsys, *flags, "--ddim_steps", 3)
    assert code == 2 and "the curve was measured with --ddim_steps 2" in err


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
    _, err = command(capsys, *sample(prompts, tmp_path / "files", *inside))
    assert "1 of 1 clips are finished already" in err


def test_the_switch_of_the_dials_goes_with_their_recipe_alone(capsys, tmp_path, prompts, dials):
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
        (("--motion", 0.5), ("--switch_at", 100), "--T 300"),
        (("--motion", 0.5, "--hold", 1), ("--solver", "dpmpp"), "--solver ddim"),
        (("--hold", 0.5), ("--ddim_eta", 0, "--loop"), "--ddim_eta 1 no --loop"),
        (("--hold", 0.5), ("--frames", 9, "--no-text_input"), "--video_length 8 --text_input 1"),
        (("--hold", 0.5), ("--M", 502), "--M 1000"),
        (
            ("--hold", 0.5),
            ("--M", 501),
            "--M 1000\n  con alone makes the clip: the start M = 501 is not above T = 500",
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
    assert told in err and ("the curve was measured" in err) == bool(told), err
    assert ("con alone" in err) == ("con alone" in told)


WRONG = {
    "out of range": (("--motion", 1.5), "--motion 1.5", "0 to 1"),
    "no number": (("--hold", "much"), "--hold", "invalid float"),
    "with files": (("--motion", 0.5, "--sets", "a=b"), "--motion with --sets", "files of them"),
    "with a file": (("--hold", 0.5, "--dynamic_path", "a"), "--hold with --dynamic_path", "files of them"),
    "hold and T": (("--hold", 0.5, "--T", 300), "--hold with --T", "one of them"),
    "hold, blended": (("--hold", 0.5, "--blend", "soft"), "--hold with --blend soft", "one or the other"),
    "dial and recipe": (("--motion", 0.5, "--recipe", "edg"), "--motion with --recipe", "measured with"),
    "twice": (("--motion", 0.5, "--strength", "dyn.alpha=1"), "--strength dyn.alpha beside", "one of them"),
    "alone": (("--base", BASE), "--base alone", "--tuned FILE"),
    "no curve": (("--motion", 0.5, "--config", "dynamicrafter-512"), "no curve was measured", "edg sweep"),
    "no files": (("--recipe", "edg", "--config", "dynamicrafter-512"), "no files to merge", "--base FILE"),
    "not the files": (("--motion", 0.5, "--base", TUNED, "--tuned", BASE), "another base", "measure: "),
    "no such place": (("--strength", "dyn.alhpa=1"), "no dyn.alhpa in the recipe", "'dyn.alpha'"),
    "no assignment": (("--strength", "dyn.alpha"), "--strength dyn.alpha", "OUTPUT.SETTING=NUMBER"),
    "no recipe": (("--recipe", "edgg"), "no recipe edgg", "did you mean"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_go_together_is_one_line(capsys, tmp_path, prompts, dials, what):
    flags, given, advice = WRONG[what]
    more = () if what in ("no curve", "no files") else ("--dials", dials)
    code, err = command(capsys, *sample(prompts, tmp_path / "out", *more, *flags))
    assert code == 2 and given in err and advice in err and len(err.splitlines()) == 1, err
    assert not (tmp_path / "out").exists()
