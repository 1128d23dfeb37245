"""Intervals over prompts, and files."""

import csv
import json

import numpy as np
import pytest

from edg.metrics.table import Row, interval, paired_interval, summary, t_quantile, write_rows


def test_mean_over_prompts_and_counts():
    found = interval([1, 2, None, 6], ["a", "a", "b", "c"])
    assert found["mean"] == (1.5 + 6) / 2 and found["clips"] == 3 and found["prompts"] == 2
    assert found["low"] == 1.5 and found["high"] == 6  # prompts drawn twice: aa, ac, ca, cc
    assert interval([None], ["a"]) == {"mean": None, "low": None, "high": None, "clips": 0, "prompts": 0}


def test_one_prompt_has_no_interval():
    found = interval([1, 2, 3], ["a", "a", "a"])
    assert found["mean"] == 2 and found["low"] is None and found["high"] is None


def test_coverage_of_clips_that_hang_together():
    """Prompts differ (sd 1), clips of a prompt hardly (0.1): 95 % intervals hold the mean about that often,
    and are far wider than those that take clips for independent."""
    rng, hits, widths = np.random.default_rng(0), 0, []
    groups = [str(k) for k in range(40) for _ in range(5)]
    for _ in range(600):
        values = np.repeat(rng.normal(0, 1, 40), 5) + rng.normal(0, 0.1, 200)
        found = interval(values, groups, draws=400)
        alone = interval(values, [str(k) for k in range(200)], draws=400)
        hits += found["low"] <= 0 <= found["high"]
        widths.append((found["high"] - found["low"]) / (alone["high"] - alone["low"]))
    assert 0.9 <= hits / 600 <= 0.98 and np.mean(widths) == pytest.approx(5**0.5, rel=0.1)


def test_the_interval_is_that_of_95_percent():
    """The mean of 100 drawn again is all but normal: 1.96 standard errors to either side."""
    values = np.random.default_rng(0).permutation(np.linspace(-1, 1, 100))
    found = interval(values, [str(k) for k in range(100)], draws=20_000)
    error = values.std() / 10
    assert found["low"] == pytest.approx(-1.96 * error, abs=0.05 * error)
    assert found["high"] == pytest.approx(1.96 * error, abs=0.05 * error)


def test_clips_of_a_prompt_are_one_group_and_clips_without_one_each_their_own():
    def row(clip, prompt, value):
        return Row(clip, clip, prompt, 0, {"m": value}, {}, {})

    rows = [row("a", "one", 1.0), row("b", "one", 3.0), row("c", "", 5.0), row("d", "", 9.0)]
    found = summary(rows, ["m"])["m"]
    assert (found["prompts"], found["clips"], found["mean"]) == (3, 4, (2 + 5 + 9) / 3)


def test_seeded():
    values, groups = np.random.default_rng(1).normal(size=30), [str(k) for k in range(30)]
    assert interval(values, groups) == interval(values, groups) != interval(values, groups, seed=1)


def test_files(tmp_path):
    rows = [
        Row("a.mp4", "a", 'a "red", circle', 1, {"m": 0.5, "n": None}, {}, {"camera": ["static"]}),
        Row("b.mp4", "b", "", None, {"m": 1.5}, {"n": "why, not"}, {}),
    ]
    write_rows(tmp_path, rows, ["m", "n"])
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert lines[0]["scores"] == {"m": 0.5, "n": None} and lines[1]["failed"] == {"n": "why, not"}
    with open(tmp_path / "scores.csv", newline="") as file:
        assert list(csv.reader(file)) == [
            ["clip", "id", "prompt", "seed", "m", "n"],
            ["a.mp4", "a", 'a "red", circle', "1", "0.5", ""],
            ["b.mp4", "b", "", "", "1.5", ""],
        ]
    assert summary(rows, ["m"])["m"]["prompts"] == 2


def test_names_and_prompts_that_are_no_text_are_written_as_escapes(tmp_path):
    write_rows(tmp_path, [Row("\udcff.mp4", "\udcff", "\ud800", 1, {"m": 1}, {}, {})], ["m"])
    found = json.loads((tmp_path / "scores.jsonl").read_text())
    assert (found["clip"], found["prompt"]) == ("\udcff.mp4", "\ud800"), "JSON has them as they were"
    assert (tmp_path / "scores.csv").read_text().endswith("\\udcff.mp4,\\udcff,\\ud800,1,1\n")


# ---- pairs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freedom, t", [
    (1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (5, 2.5706), (10, 2.2281), (29, 2.0452),
    (100, 1.984),
])  # fmt: skip
def test_the_quantiles_are_those_of_the_tables(freedom, t):
    assert t_quantile(freedom) == pytest.approx(t, abs=6e-5)


@pytest.mark.parametrize("count", [3, 12])
def test_the_interval_of_pairs_covers_the_truth_as_often_as_it_says(count):
    rng, draws = np.random.default_rng(count), 4000
    samples = rng.normal(0.7, 2.0, (draws, count))
    found = [paired_interval(sample, [f"{k}" for k in range(count)]) for sample in samples]
    assert np.mean([one["low"] <= 0.7 <= one["high"] for one in found]) == pytest.approx(0.95, abs=0.011)


def test_few_differences_that_are_all_alike_have_no_interval():
    few = paired_interval([1.0] * 5, list("abcde"))
    assert (few["mean"], few["low"], few["prompts"]) == (1.0, None, 5)
    assert paired_interval([0.9 - 0.7, 0.8 - 0.6, 0.7 - 0.5], list("abc"))["low"] is None, "but by rounding"
    assert paired_interval([1.0] * 6, list("abcdef"))["low"] == 1.0
    assert paired_interval([0.0] * 2, list("ab"))["high"] == 0.0, "nothing has changed"
    assert paired_interval([1.0, 2.0], ["a", "a"])["low"] is None, "one prompt"
    assert paired_interval([], [])["mean"] is None
