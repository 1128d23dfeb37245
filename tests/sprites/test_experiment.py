"""scripts/sprites_experiment.py from fine-tune to table, with two images and two steps."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ARMS = ("base", "naive", "slow_-1", "ties", "start_960", "decoupled_500")


def experiment(out, *arguments):
    command = [sys.executable, "scripts/sprites_experiment.py", "--quick", "--count", "2", "--steps", "2"]
    train = ["--train", "train.steps=1", "train.batch=2", "stages.naive.data.count=4"]
    done = subprocess.run(
        [*command, "--out", str(out), "--jobs", "1", *train, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_experiment_runs_and_goes_on(tmp_path):
    first = experiment(tmp_path, "--arms", *ARMS)
    assert "6 rows x seeds, 0 done before" in first
    rows = json.loads((tmp_path / "table.json").read_text())
    assert list(rows) == list(ARMS)
    assert all(row["figures"]["speed"]["mean"] >= 0 for row in rows.values())
    assert (tmp_path / "table.md").read_text() in first and (tmp_path / "trade_off.png").exists()
    again = experiment(tmp_path, "--arms", "base", "naive", "dyn")
    assert "3 rows x seeds, 2 done before" in again
    assert json.loads((tmp_path / "table.json").read_text())["base"] == rows["base"]
