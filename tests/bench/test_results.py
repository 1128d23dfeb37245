"""The small module all benchmarks share."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench import results

ROOT = Path(__file__).parents[2]


def test_a_section_replaces_its_last_one_and_no_other(tmp_path):
    path = tmp_path / "RESULTS.md"
    for name, text in (("step", "crimson"), ("merge", "green"), ("step", "blue")):
        results.write_section(name, text, path)
    text = path.read_text()
    assert re.findall(r"(?m)^## (.*)$", text) == ["merge", "step"]
    assert "crimson" not in text and "green" in text and "blue" in text
    assert text.startswith(results.TITLE) and "torch" in text and "cores" in text


def test_ratios_are_taken_pair_by_pair():
    assert results.ratio([1, 20, 300], [1, 10, 100]) == 2
    with pytest.raises(ValueError):
        results.ratio([1], [1, 2])


def test_a_table_has_a_line_per_row_of_one_width():
    lines = results.table(("", "a"), [["x", 1], ["longer", 22]]).splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1


def measured(code: str) -> subprocess.CompletedProcess:
    """Run code beside `results` in a process without torch."""
    head = "import sys; from bench.results import measure; py = [sys.executable, '-c']\n"
    return subprocess.run([sys.executable, "-c", head + code], cwd=ROOT, capture_output=True, text=True)


def test_time_and_memory_of_a_command():
    work = "import time; x = bytearray(200 << 20); time.sleep(0.2)"
    code = f"m = measure([*py, {work!r}]); print(m.peak, m.seconds)"
    peak, seconds = map(float, measured(code).stdout.split())
    assert 200 << 20 < peak < 300 << 20 and 0.2 < seconds < 20


def test_a_failing_command_ends_with_its_words():
    found = measured("measure([*py, 'raise ValueError(12345)'])")
    assert found.returncode == 1 and "12345" in found.stderr
