"""A grid of points: their names and flags, what fails, and going on after a kill."""

import json
import signal
import subprocess
import sys
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
from runs import given_of

from edg.cli.main import main
from edg.cli.sweep import FOLDER, end, flags_of, points, read
from edg.core.errors import EdgError, UsageError

ROOT = Path(__file__).parents[2]
SHARED = """
options: {config: sprites, prompt_dir: %s, recipe: edg_temporal_conv, ddim_steps: 2, T: 300,
          unconditional_guidance_scale: 1.0, device: cpu}
"""


@pytest.fixture
def prompts(tmp_path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    for index, image in enumerate(sorted((ROOT / "prompts/sprites").glob("*.png"))[:2]):
        (folder / f"{index}.png").write_bytes(image.read_bytes())
    (folder / "prompts.txt").write_text("a blue pillar moves left\na green circle moves up\n")
    return folder


@pytest.fixture
def sweep_file(tmp_path, prompts):
    def write(grid, name="s.yaml"):
        (tmp_path / name).write_text(f"out: {tmp_path}/out\n{SHARED % prompts}\ngrid: {grid}\n")
        return str(tmp_path / name)

    return write


def test_a_point_for_every_combination_the_last_name_fastest(sweep_file):
    found = points(read(sweep_file("{dyn: {alpha: [0, 1.5]}, seed: [1, 2]}")))
    assert [str(point) for point in found] == [
        "dyn.alpha=0_seed=1", "dyn.alpha=0_seed=2", "dyn.alpha=1.5_seed=1", "dyn.alpha=1.5_seed=2",
    ]  # fmt: skip
    assert (
        found[2].config.options["strength"] == ("dyn.alpha=1.5",)
        and found[2].config.prompts.seed == 1
        and found[2].config.options["T"] == 300
    )
    assert found[2].config.output.savedir == str(found[2].folder) and found[2].options["config"] == "sprites"


def test_settings_of_the_command_line_go_over_the_files(sweep_file):
    path = sweep_file("{seed: [1, 2]}")
    plan = read(path, ["grid.seed=[7]", "grid.dyn.alpha=[0.5]", "out=elsewhere", "options.T=100"])
    assert (
        plan.out == "elsewhere"
        and plan.grid == {"seed": [7], "dyn.alpha": [0.5]}
        and plan.options["T"] == 100
    )


def test_options_as_flags():
    flags = flags_of(
        {"T": 300, "preview": True, "loop": False, "fps": None, "switch_at": [800, 300], "dyn.alpha": -1},
        "strength",
    )
    assert flags == [
        "--T=300",
        "--preview=1",
        "--loop=0",
        "--switch_at",
        "800",
        "300",
        "--strength",
        "dyn.alpha=-1",
    ]


def test_the_sweeps_are_listed(capsys):
    assert main(["sweep"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(path.stem for path in FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("name", [path.stem for path in sorted(FOLDER.glob("*.yaml"))])
def test_the_shipped_sweeps_are_right(name):
    assert len(points(read(name))) > 4


WRONG = {
    "{}": "grid",
    "{seed: 3}": "grid.seed",
    "{seed: []}": "grid.seed",
    "{sede: [1]}": "'sede'",
    "{seed: [1, x]}": "seed=x",
    "{T: [1]}": "T",
    "{savedir: [a]}": "savedir",
    "{seed: [1, 1]}": "seed=1",
    "{dyn: {alpha: [1]}, dyn.alpha: [2]}": "dyn.alpha",
    "{dyn: {alpha: [1, 1.0]}}": "dyn.alpha=1 and dyn.alpha=1.0",
    "{ddim_eta: [1, 1.0]}": "ddim_eta=1 and ddim_eta=1.0",
    "{ddim-steps: [3]}": "ddim_steps and ddim-steps",
    "{frames: [8], video_length: [9]}": "frames and video_length",
    "{dyn: {alhpa: [0]}}": "dyn.alhpa=0: .*'dyn.alpha'",
    "{ddim_eta: [1, null]}": "ddim_eta=1 and ddim_eta=None are the same point",
    "{config: [512, sprites]}": "config in grid and in options|config both",
    "{height: [32, 33]}": "height=33: --height 33",
    "{ddim_eta: [0, -1]}": "ddim_eta=-1: --ddim_eta -1",
    "{n_samples: [0]}": "n_samples=0: --n_samples 0",
}  # fmt: skip


@pytest.mark.parametrize("grid", WRONG)
def test_a_wrong_grid_is_told_before_anything_is_made(sweep_file, tmp_path, grid):
    with pytest.raises(UsageError, match=WRONG[grid]):
        points(read(sweep_file(grid)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "grid, told",
    [
        ("{motion: [0, 2]}", "motion=2: --motion 2"),
        ("{motion: [1], hold: [.nan]}", "motion=1_hold=nan: --hold nan"),
        ("{motion: [1, 1.0]}", "motion=1 and motion=1.0"),
        ("{motion: [0.5], config: [dynamicrafter-512]}", "dynamicrafter-512"),
        ("{motion: [0.5], base: [a], tuned: [b]}", ""),  # which model they are is told when they are opened
    ],
)
def test_dials_are_checked_before_anything_is_made(tmp_path, capsys, grid, told):
    (tmp_path / "s.yaml").write_text(f"out: {tmp_path}/out\noptions: {{}}\ngrid: {grid}\n")
    code = main(["sweep", str(tmp_path / "s.yaml"), "--dry-run"])
    out, err = capsys.readouterr()
    assert code == (2 if told else 0) and told in err and bool(out) != bool(told), err


def test_an_unknown_key_and_an_unknown_sweep_name_the_nearest(sweep_file):
    with pytest.raises(UsageError, match="'grid'"):
        read(sweep_file("{seed: [1]}"), ["gird.T=[1]"])
    with pytest.raises(UsageError, match="'sprites_motion'"):
        read("sprites_motoin")


@pytest.mark.parametrize("rank", ["0", "1"])
def test_it_is_one_process(capsys, sweep_file, tmp_path, monkeypatch, rank):
    for name, value in {"WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("edg.cli.main.GRACE", 0)
    assert main(["sweep", sweep_file("{seed: [1, 2]}")]) == 2
    out, err = capsys.readouterr()
    assert "edg sweep" in given_of(err) and "--dry-run" in err
    assert err.count("\n") == 1 and not out and not (tmp_path / "out").exists()


def test_a_point_that_fails_is_named_and_the_rest_goes_on(capsys, sweep_file, tmp_path, fake_network):
    (tmp_path / "prompts").rename(tmp_path / "p")
    path = sweep_file(f"{{dyn: {{alpha: [0.5]}}, prompt_dir: [none, {tmp_path}/p]}}")
    Path(path).write_text(Path(path).read_text().replace(f"prompt_dir: {tmp_path}/prompts, ", ""))
    assert main(["sweep", path]) == 5
    err = capsys.readouterr().err
    assert "dyn.alpha=0.5_prompt_dir=none" in given_of(err)
    (good,) = {found.parents[1] for found in tmp_path.glob("out/*/1000/*.mp4")}
    assert len(list(good.glob("1000/*.mp4"))) == 2
    told = json.loads((good / "point.json").read_text())
    assert told["name"] == good.name and told["options"]["dyn.alpha"] == 0.5
    assert told["options"]["prompt_dir"] == f"{tmp_path}/p"


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_stopped_it_goes_on_and_makes_nothing_twice(sweep_file, tmp_path, how):
    command = [sys.executable, "-m", "edg", "sweep", sweep_file("{dyn: {alpha: [0, 1]}}")]

    def clips():
        return {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*/1000/[0-9]*.json")}

    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not clips() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(how)
    err = process.communicate()[1]
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "Traceback" not in err and not list(tmp_path.rglob(".edg-tmp*"))
    first = clips()
    assert 1 <= len(first) < 4, "killed too late, or it did not begin"
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    last = clips()
    assert len(last) == 4 and first.items() <= last.items()


def test_other_options_in_the_same_folder_are_told_and_change_nothing(
    capsys, sweep_file, tmp_path, fake_network
):
    path = sweep_file("{seed: [1, 2]}")
    assert main(["sweep", path, "grid.seed=[1]"]) == 0
    files = {
        file: file.read_bytes() for file in tmp_path.glob("out/seed=1/**/*.*") if "scores" not in file.name
    }
    capsys.readouterr()
    assert main(["sweep", path, "options.ddim_steps=3"]) == 5
    err = capsys.readouterr().err
    assert "seed=1" in given_of(err) and "options.steps" in err
    assert "--overwrite" not in err and len(list(tmp_path.glob("out/seed=2/1000/*.mp4"))) == 2
    assert files == {file: file.read_bytes() for file in files}, "point.json tells what its clips are"


def test_it_ends_in_scores_and_a_report_of_the_points_that_were_made(
    monkeypatch, sweep_file, tmp_path, capsys
):
    """Both by stand-ins: a point whose scores fail is named, and still in the report."""
    import edg.report
    import edg.runner

    called = []

    def score(config):
        called.append(config.folder)
        if "seed=1" in str(config.folder):
            raise EdgError("no clip could be scored")

    def write_report(runs, out):
        called.append((runs, out))
        return out / "index.html"

    for package, name, parts in (
        (edg.runner, "score", {"score": score}),
        (edg.report, "page", {"write_report": write_report}),
    ):
        module = ModuleType(f"{package.__name__}.{name}")
        module.__spec__ = ModuleSpec(module.__name__, None)
        vars(module).update(parts)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(package, name, module, raising=False)
    plan = read(sweep_file("{seed: [1, 2]}"))
    failed = end(plan, points(plan))
    out = tmp_path / "out"
    runs = [out / "seed=1/1000", out / "seed=2/1000"]
    assert called == [*runs, (runs, out / "report")]
    assert failed == {"scores of seed=1": "no clip could be scored"}
    assert f"report: {out}/report/index.html" in capsys.readouterr().err
    assert end(plan, []) == {} and len(called) == 3  # nothing to show
