"""`--json`: the errors of any command as objects for programs, with the same exit codes."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edg.cli import main as cli
from edg.cli.main import COMMANDS, main, parser_of
from edg.core.video import write_video

ROOT = Path(__file__).parents[1]
FIELDS = {"kind", "exit_code", "given", "expected", "fix"}


def told(err):
    """The error that the last line of stderr is."""
    return json.loads(err.splitlines()[-1])["error"]


def fail(capsys, *argv):
    """(exit code, the object) of a command that fails; in words, the same parts stand in one line."""
    code, error = main([*map(str, argv), "--json"]), told(capsys.readouterr().err)
    assert set(error) >= FIELDS and error["exit_code"] == code != 0
    assert main(list(map(str, argv))) == code
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("edg: error: ") and all(
        error[part] in line for part in ("given", "expected", "fix")
    )
    return code, error


@pytest.mark.parametrize(
    "argv, code, kind, given",
    [
        (["smaple"], 2, "usage", "edg has no command 'smaple'"),
        (["info", "none.ckpt"], 3, "bad_file", "none.ckpt does not exist"),
        (["sample", "--sets", "x"], 2, "usage", "--sets x"),
        (["sample", "--ddim_step", 3], 2, "usage", "unknown flag --ddim_step"),
        (["merge", "edgg"], 2, "usage", "no recipe edgg"),
        (["score", "/nowhere"], 3, "bad_file", "/nowhere is not a folder"),
        (["demo", "--port", 99999], 2, "usage", "--port"),
    ],
)
def test_an_error_is_an_object(capsys, argv, code, kind, given):
    got, error = fail(capsys, *argv)
    assert (got, error["kind"]) == (code, kind) and given in error["given"]


def test_parts_are_apart(capsys):
    _, error = fail(capsys, "smaple")
    assert error["expected"].split(", ") == list(COMMANDS) and error["fix"] == "did you mean 'sample'?"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_knows_it(name):
    assert "--json" in parser_of(name)._option_string_actions


def test_what_failed_is_listed(capsys, tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.mp4").write_bytes(b"")
    write_video(
        tmp_path / "c.mp4", np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3)).astype(np.uint8)
    )
    code, error = fail(capsys, "score", tmp_path, "--metrics", "motion_degree")
    assert (code, error["kind"]) == (5, "some_failed")
    assert [item["item"] for item in error["failed"]] == ["a.mp4: motion_degree", "b.mp4: motion_degree"]
    assert all("cannot read the video" in item["reason"] for item in error["failed"])
    assert (tmp_path / "scores.json").exists()


def test_a_report_names_the_files_it_could_not_show(capsys, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/a.mp4").write_bytes(b"")
    write_video(tmp_path / "run/b.mp4", np.zeros((2, 16, 16, 3), np.uint8))
    code, error = fail(capsys, "report", tmp_path / "run", "--out", tmp_path / "page")
    assert code == 5 and [item["item"] for item in error["failed"]] == [str(tmp_path / "run/a.mp4")]


@pytest.mark.parametrize(
    "raised, code, kind",
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 4, "environment"),
        (OSError(28, "No space left on device", "x"), 4, "environment"),
        (ModuleNotFoundError("no av", name="av"), 4, "environment"),
        (ZeroDivisionError("of ours"), 1, "defect"),
    ],
)
def test_whatever_ends_a_command(capsys, raised, code, kind):
    def call():
        raise raised

    assert cli.guard(call, as_json=True) == code
    err = capsys.readouterr().err
    assert told(err)["kind"] == kind and ("Traceback" in err) == (kind == "defect")


def test_a_name_that_would_break_the_line(capsys, tmp_path):
    path = tmp_path / "x\n\x1b[31m\u202egnp.ckpt"
    path.write_bytes(b"")
    assert main(["info", str(path), "--json"]) == 3
    assert str(path) in told(capsys.readouterr().err)["given"]
    assert main(["info", str(path)]) == 3
    line = capsys.readouterr().err
    assert r"x\n\x1b[31m\u202egnp.ckpt is empty" in line and line.count("\n") == 1


@pytest.mark.slow
def test_a_result_is_as_without(capsys):
    assert main(["completion", "bash", "--json"]) == 0
    with_it = capsys.readouterr()
    assert main(["completion", "bash"]) == 0
    assert capsys.readouterr() == with_it and with_it.err == ""


@pytest.mark.slow
def test_run_merge_tells_it_too(tmp_path):
    argv = [sys.executable, ROOT / "run_merge.py", "--ckptdir", tmp_path, "--json"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == told(done.stderr)["exit_code"] == 3


def test_a_terminated_command_tells_it(capsys):
    def call():
        cli.terminate(signal.SIGTERM, None)

    for as_json in (False, True):
        with pytest.raises(SystemExit) as left:
            cli.guard(call, as_json=as_json)
        assert left.value.code == 143
        err = capsys.readouterr().err
        assert told(err)["exit_code"] == 143 if as_json else err == ""
