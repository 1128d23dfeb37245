"""scripts/sprites_experiment.py from fine-tune to table, with two images and two steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edg.merging.steps import Copy, LinearCombination
from edg.networks.latent_video.keys import FAMILY
from experiments.sprites_arms import TUNES, arms, files_of, name_of, recipes

ROOT = Path(__file__).parents[2]
ARMS = ("base", "slow-1", "ties", "start_960", "conv-1_500", "three_sets")


def experiment(out, *arguments):
    command = [sys.executable, "scripts/sprites_experiment.py", "--quick", "--count", "2", "--steps", "2"]
    done = subprocess.run(
        [*command, "--out", str(out), "--jobs", "1", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_experiment_runs_and_goes_on(tmp_path):
    first = experiment(tmp_path, "--arms", *ARMS)
    assert "6 rows x seeds, 0 already done" in first
    rows = json.loads((tmp_path / "selected/table.json").read_text())
    assert list(rows) == list(ARMS)
    assert all(row["figures"]["speed"]["mean"] >= 0 for row in rows.values())
    assert (tmp_path / "selected/table.md").read_text() in first and (
        tmp_path / "selected/trade_off.png"
    ).exists()
    noise = (tmp_path / "initial_noise.pt").stat().st_mtime_ns
    again = experiment(tmp_path, "--arms", "base", "slow-1", "start_960", "dyn")
    assert (tmp_path / "initial_noise.pt").stat().st_mtime_ns == noise, "made once"
    assert "4 rows x seeds, 3 already done" in again
    assert json.loads((tmp_path / "selected/table.json").read_text())["base"] == rows["base"]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["sprites_experiment.py", "measure_dials.py"])
def test_a_missing_package_is_reported_at_the_start(tmp_path, script):
    (tmp_path / "matplotlib.py").write_text("raise ImportError")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / script, "--out", tmp_path / "out"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 4 and "matplotlib" in done.stderr
    assert not (tmp_path / "out").exists()


def test_every_set_of_every_row_is_made_once_and_before_it_is_read():
    rows, made = arms([*TUNES, "naive"], "noise.pt"), []
    for recipe in recipes(rows.values(), Path):
        assert all(name in made for name in recipe.inputs.values() if name not in ("base", *TUNES))
        made += recipe.outputs
    assert files_of(rows.values()) == {"base", "naive", *TUNES} and files_of([rows["dare"]]) == {
        "base",
        "slow",
    }
    merged = {name_of(s) for row in rows.values() for s in row.sets} - {"base", "naive", *TUNES}
    assert merged <= set(made) and len(made) == len(set(made))
    assert all(len(row.options.get("switch_at", ())) == len(row.sets) - 1 for row in rows.values())


def test_a_point_in_some_modules_leaves_the_rest_to_the_fine_tune():
    (recipe,) = recipes([arms(["slow"], "")["conv-1"]], Path)
    conv, other = "model.diffusion_model.input_blocks.1.0.temopral_conv.conv1.2.weight", "queries"
    steps = [recipe.step_for("slow_conv-1", name, FAMILY) for name in (conv, other)]
    assert steps[0] == LinearCombination(weights=(2.0, -1.0), where=("temporal_conv",))
    assert isinstance(steps[1], Copy) and steps[1].of == "tuned"
