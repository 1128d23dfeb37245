"""bench/startup.py without run.sh, on a small layout."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_a_short_run_writes_its_rows(tmp_path):
    path = tmp_path / "RESULTS.md"
    command = [sys.executable, ROOT / "bench" / "startup.py", "--spec", "sprites", "--runs", "1", "--no-clip"]
    subprocess.run([*command, "--work", tmp_path, "--results", path], check=True)
    text = path.read_text()
    assert "edg --help" in text and "edg info" in text and "goal" in text
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
