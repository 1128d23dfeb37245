"""The command line: what a user's mistake gets, and the whole way with the embedded model."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import given_of

from edg.cli.main import COMMANDS, main, parser_of
from edg.core.errors import UsageError
from edg.core.video import read_comment, read_frames, write_image
from edg.sprites import WEIGHTS

ROOT = Path(__file__).parents[1]
RELEASED = """
seed config savedir n_samples bs height width unconditional_guidance_scale ddim_steps ddim_eta prompt_dir
text_input video_length frame_stride timestep_spacing guidance_rescale perframe_ae M
whether_analytic_init analytic_init_path dynamic_path consistency_path T multiple_cond_cfg cfg_img loop
interp negative_prompt img_crop ckpt_path module local_rank
"""


DYN, CON = WEIGHTS / "base.safetensors", WEIGHTS / "tuned.safetensors"


def command(capsys, *argv):
    """(exit code, stderr) of `edg ARGV`."""
    code = main([str(arg) for arg in argv])
    return code, capsys.readouterr().err


@pytest.fixture
def prompts(tmp_path):
    folder = tmp_path / "prompts"
    for i in range(2):
        write_image(folder / f"{i}.png", np.full((40, 30, 3), 60 * i + 40, np.uint8))
    (folder / "prompts.txt").write_text("a red circle moves left\na blue square moves up\n")
    return folder


def sample_flags(prompts, out, *more):
    return [
        "sample", "--dynamic_path", DYN, "--consistency_path", CON,
        "--prompt_dir", prompts, "--savedir", out, "--ddim_steps", 2, "--device", "cpu", *more,
    ]  # fmt: skip


def frames(folder):
    return {path.name: read_frames(path) for path in sorted(folder.glob("**/*.mp4"))}


def same(a, b):
    return bool(a) and a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


@pytest.mark.slow
def test_the_whole_way(capsys, tmp_path, prompts):
    """The network itself: the same frames however many clips are made at once, and wherever the sets lie."""
    made = {}
    for name, more in {
        "plain": ["--local-rank=0"],
        "chunk": ["--chunk", 1],
        "resident": ["--resident"],
        "low": ["--low-memory"],
    }.items():
        flags = sample_flags(prompts, tmp_path / name, "--unconditional_guidance_scale", 1, *more)
        assert command(capsys, *flags)[0] == 0
        made[name] = frames(tmp_path / name)
    assert all(same(made["plain"], other) for other in made.values())


def test_records_comments_and_going_on(capsys, tmp_path, prompts, fake_network):
    code, err = command(capsys, *sample_flags(prompts, tmp_path / "a", "--local-rank=0"))
    assert code == 0 and "--local_rank" in err
    out = tmp_path / "a" / "1000"
    record = json.loads((out / "0001-1_sample0.json").read_text())
    assert record["settings"]["options"]["steps"] == 2 and record["versions"]["torch"]
    assert not {"solver", "guidance_interval", "reuse"} & set(record["settings"]["options"]), "as before them"
    assert json.loads(read_comment(out / "0001-1_sample0.mp4")) == record["settings"]
    before = {path: path.stat().st_mtime_ns for path in out.glob("0*")}
    assert command(capsys, *sample_flags(prompts, tmp_path / "a"))[0] == 0
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("0*")}
    code, err = command(capsys, *sample_flags(prompts, tmp_path / "a", "--ddim_eta", 0.5))
    assert code == 2 and "options.eta" in given_of(err)


@pytest.mark.parametrize(
    "more",
    [
        ["--reuse", 2],
        ["--guidance_interval", 200, 700],
        ["--solver", "dpmpp"],
        ["--solver", "unipc"],
        ["--reuse", 2, "--guidance_interval", 200, 700, "--bs", 1000],
    ],
)
def test_approximations_from_the_command_line(tmp_path, prompts, more, fake_network):
    flags = sample_flags(prompts, tmp_path, "--unconditional_guidance_scale", 2, *more)
    assert main(list(map(str, flags))) == 0
    options = [
        json.loads(path.read_text())["settings"]["options"] for path in tmp_path.rglob("*_sample0.json")
    ]
    assert options and all(str(more[0])[2:] in found for found in options)


def test_devices_are_checked_before_a_plan(capsys):
    assert main(["doctor", "--plan", "sprites", "--device", "foo"]) == 2
    assert "foo" in given_of(capsys.readouterr().err)
    assert main(["doctor", "--plan", "sprites", "--device", "cpu", "--reuse", "2"]) == 0


def test_what_moves_is_not_compiled(capsys, tmp_path, prompts):
    code, err = command(capsys, *sample_flags(prompts, tmp_path, "--compile", "--low-memory"))
    assert code == 2 and "--compile" in given_of(err) and "--low-memory" in given_of(err)


@pytest.mark.slow
def test_torchrun_gives_the_same_frames(capsys, tmp_path, prompts):
    assert command(capsys, *sample_flags(prompts, tmp_path / "one"))[0] == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    flags = [str(flag) for flag in sample_flags(prompts, tmp_path / "two")[1:]]
    done = subprocess.run(
        [*launcher, ROOT / "scripts/infer_multi.py", *flags], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert same(frames(tmp_path / "one"), frames(tmp_path / "two"))


@pytest.mark.parametrize(
    "flags, code, given",
    [
        (["--T", 1001], 2, "--T 1001"),
        (["--T", -1], 2, "--T -1"),
        (["--M", 0], 2, "--M 0"),
        (["--M", 1], 2, "M 1"),
        (["--ddim_steps", 0], 2, "--ddim_steps 0"),
        (["--ddim_eta", "nan"], 2, "--ddim_eta nan"),
        (["--unconditional_guidance_scale", "inf"], 2, "--unconditional_guidance_scale inf"),
        (["--height", 33], 2, "--height 33"),
        (["--width", 0], 2, "--width 0"),
        (["--video_length", 7], 2, "--video_length 7"),
        (["--frames", 65], 2, "--video_length 65"),
        (["--size", "big"], 2, "--size big"),
        (["--size", "32x33"], 2, "--width 33"),
        (["--size", "auto", "--height", 32], 2, "--size"),
        (["--img_crop", "--fit", "pad"], 2, "--img_crop"),
        (["--loop", "--interp"], 2, "loop"),
        (["--format", "mp4,giff"], 2, "giff"),
        (["--format", "gif", "--fps", 60], 2, "--fps 60"),
        (["--crf", 52], 2, "--crf 52"),
        (["--seed", -1], 2, "--seed -1"),
        (["--seed", 2**64], 2, "--seed 18446744073709551616"),
        (["--fps", 0], 2, "--fps 0"),
        (["--fps", 0.0001], 2, "--fps 0.0001"),
        (["--savedir", "/proc/x"], 4, "/proc/x"),
        (["--n_samples", 0], 2, "--n_samples"),
        (["--bs", 0], 2, "--bs"),
        (["--ddim_step", 3], 2, "--ddim_step"),
        (["--sets", "a=x"], 2, "--sets"),
        (["--switch_at", 700, 300], 2, "switch"),
        (["--switch_at", 700, "--T", 3], 2, "--switch_at"),
        (["--whether_analytic_init", 1, "--analytic_init_path", "none.pt"], 2, "none.pt"),
        (["--config", "dynamicrafter-51"], 2, "dynamicrafter-51"),
        (["--prompt_dir", "/nowhere"], 3, "/nowhere"),
        (["--dynamic_path", "none.pt"], 3, "none.pt"),
        (["--savedir", __file__], 4, Path(__file__).name),
        (["--dtype", "fp8"], 2, "fp8"),
    ],
)
def test_mistakes_are_one_line(capsys, tmp_path, prompts, flags, code, given):
    got, err = command(capsys, *sample_flags(prompts, tmp_path / "out", *flags))
    assert got == code and given in given_of(err) and err.count("\n") == 1, err
    assert not list(tmp_path.glob("out/**/*.mp4"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_no_cuda(capsys, tmp_path, prompts):
    code, err = command(capsys, *sample_flags(prompts, tmp_path, "--device", "cuda"))
    assert code == 4 and "cuda" in given_of(err)


def test_a_bad_image_fails_alone(capsys, tmp_path, prompts, fake_network):
    (prompts / "0.png").write_bytes(b"no picture")
    code, err = command(capsys, *sample_flags(prompts, tmp_path / "out"))
    assert code == 5 and "0000-0_sample0" in given_of(err)
    assert [path.name for path in tmp_path.glob("out/**/*.mp4")] == ["0001-1_sample0.mp4"]


def test_one_set_and_three(capsys, tmp_path, prompts, fake_network):
    flags = sample_flags(prompts, tmp_path / "one")[5:]
    assert command(capsys, "sample", "--sets", f"a={DYN}", *flags)[0] == 0
    three = ["sample", "--sets", f"a={DYN}", f"b={CON}", f"c={DYN}", *flags]
    code, err = command(capsys, *three, "--savedir", tmp_path / "three")
    assert code == 2 and "3" in given_of(err)
    assert command(capsys, *three, "--switch_at", 700, 300, "--savedir", tmp_path / "three")[0] == 0


def test_every_released_flag_is_known(capsys):
    with pytest.raises(SystemExit):
        main(["sample", "--help"])
    assert {f"--{name}" for name in RELEASED.split()} <= set(parser_of("sample")._option_string_actions)


def test_a_model_alone_is_sampled_as_measured():
    """As load() does it; not where parameter sets are named, nor for a model by its file."""
    from edg.cli.sample import config_of

    def options(*argv):
        return config_of(parser_of("sample").parse_args([str(a) for a in argv])).options

    measured = {"recipe": "edg_temporal_conv", "T": 300, "guidance_scale": 1.0}
    assert options("--config", "sprites") == measured
    assert options("--config", "sprites", "--T", 200) == measured | {"T": 200}
    assert options("--config", "sprites", "--motion", 0.5) == {"motion": 0.5, "guidance_scale": 1.0}
    for named in (["--sets", "a=b"], ["--dynamic_path", "a", "--consistency_path", "b"]):
        assert not measured.keys() & options("--config", "sprites", *named).keys()
    for other in ("dynamicrafter-512", "configs/models/sprites.yaml"):
        assert options("--config", other) == {}


def test_what_was_filled_in_is_logged_and_recorded(capsys, caplog, tmp_path, prompts, fake_network):
    common = ["--prompt_dir", prompts, "--ddim_steps", 2, "--device", "cpu"]
    assert command(capsys, "sample", "--config", "sprites", *common, "--savedir", tmp_path / "alone")[0] == 0
    flags = ["--recipe=edg_temporal_conv", "--T=300", "--unconditional_guidance_scale=1.0"]
    assert [text for text in caplog.messages if set(flags) <= set(text.split())]
    caplog.clear()
    given = ["--config", "sprites", *flags, *common, "--savedir", tmp_path / "given"]
    assert command(capsys, "sample", *given)[0] == 0
    assert not [text for text in caplog.messages if "--" in text]
    alone, whole = (
        [json.loads(path.read_text()) for path in sorted((tmp_path / run).rglob("*_sample*.json"))]
        for run in ("alone", "given")
    )
    assert [one["settings"] for one in alone] == [one["settings"] for one in whole] and len(alone) == 2
    assert alone[0]["settings"]["options"]["guidance_scale"] == 1.0


def test_flags_mean_the_options_of_their_names():
    from edg.cli.sample import config_of
    from edg.networks.latent_video.presets import DYNAMICRAFTER_512
    from edg.systems.edg.selection import settle

    def options(*argv, sets=2):
        config = config_of(parser_of("sample").parse_args([str(a) for a in argv]))
        return settle(DYNAMICRAFTER_512, config.options, sets)

    default = options()
    assert (default.steps, default.eta, default.guidance_scale, default.guidance_rescale) == (
        50,
        1.0,
        7.5,
        0.7,
    )
    assert (default.spacing, default.start, default.switch_at) == ("uniform_trailing", 1000, (500,))
    assert default.perframe_ae and default.text_input and default.con_prompt == "prompt"
    assert options("--T", 300).switch_at == (300,) and options(sets=1).switch_at == ()
    assert options("--cfg_img", 3).image_guidance_scale == 3
    with pytest.raises(UsageError, match="--cfg_img"):
        options("--cfg_img", 3, "--multiple_cond_cfg", 0)
    for flags in (["--T", 500], ["--switch_at", 500]):
        with pytest.raises(UsageError, match=flags[0]):
            options(*flags, sets=1)
        with pytest.raises(UsageError, match="--blend"):
            options(*flags, "--blend", "soft")
    with pytest.raises(UsageError, match="--blend"):
        options("--blend", "soft", sets=3)
    assert options("--cfg_img", 3, "--multiple_cond_cfg").image_guidance_scale == 3
    assert options("--multiple_cond_cfg").image_guidance_scale == 7.5
    released = options("--released")
    assert (released.con_prompt, released.image_latent, released.timesteps) == (
        "empty",
        "sample_per_set",
        "released",
    )
    assert options("--released", "--con_prompt", "prompt").con_prompt == "prompt"
    assert (
        options("--no-text-input").text_input is False and options("--perframe_ae", "0").perframe_ae is False
    )
    with pytest.raises(UsageError):
        options("--switch_at", 300, 700, sets=3)


def test_unknown_command(capsys):
    code, err = command(capsys, "smaple")
    assert code == 2 and "smaple" in given_of(err)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(capsys, name):
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0 and name in capsys.readouterr().out


def test_debug_shows_the_traceback():
    with pytest.raises(UsageError):
        main(["--debug", "smaple"])


def test_doctor(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("CKPT_PATH", str(tmp_path))
    bad = tmp_path / "dynamicrafter_512_v1/model.ckpt"
    bad.parent.mkdir()
    bad.write_text("<html>")
    assert main(["doctor", "--savedir", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert str(bad) in out and "sprites" in out and "torchvision" in out
    assert not (tmp_path / "out").exists()


def test_fetch_offline_is_quick_and_clear(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CKPT_PATH", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    code, err = command(capsys, "fetch", "cil-512")
    assert code == 4 and "http://127.0.0.1:9" in given_of(err)
    place = tmp_path / "dynamicrafter_cil_512_v1/timenoise.ckpt"
    assert "GraceZhao/DynamiCrafter-CIL-512" in err and str(place) in err
    code, err = command(capsys, "fetch", "cil512")
    assert code == 2 and "cil512" in given_of(err)


def test_fetch_of_complete_files_needs_no_network(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CKPT_PATH", str(tmp_path))
    monkeypatch.setattr("edg.cli.fetch.need_network", lambda _: pytest.fail("asked the network"))
    path = tmp_path / "dynamicrafter_cil_512_v1/timenoise.ckpt"
    path.parent.mkdir()
    torch.save({"state_dict": {"a": torch.ones(3)}}, path)
    assert main(["fetch", "cil-512"]) == 0
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(pytest.fail.Exception):
        main(["fetch", "cil-512"])


@pytest.mark.slow
def test_a_terminated_run_leaves_with_143(tmp_path, prompts):
    import signal
    import time

    flags = [str(flag) for flag in sample_flags(prompts, tmp_path / "out", "--ddim_steps", 500)]
    run = subprocess.Popen([sys.executable, "-m", "edg", *flags], cwd=ROOT, stderr=subprocess.PIPE)
    while not (tmp_path / "out/1000/.edg.lock").exists():
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) == 143
    assert not list((tmp_path / "out/1000").glob(".edg-tmp*"))


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.single_process])
def test_a_command_for_one_process_says_so(monkeypatch, capsys, name):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([name, "--no-such-flag"]) == 2
    assert name in given_of(capsys.readouterr().err)
