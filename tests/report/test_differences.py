"""Differences between runs: which clips are pairs, figures by hand, settings that differ, the file."""

import json

import numpy as np
import pytest

from edg.core.files import read_json, write_json
from edg.metrics.catalogue import METRICS
from edg.report.collect import collect
from edg.report.differences import differences, other_settings, paired_ids
from edg.report.page import write_report
from edg.report.summary import metric_entries, summaries


def two(make, tmp_path, clips=4, **settings):
    """Two runs of the same prompts and image; settings are those of the second."""
    folders = [make.run(tmp_path / name, clips=clips) for name in "ab"]
    for path in folders[1].glob("*.json"):
        record = read_json(path)
        write_json(path, record | {"settings": record["settings"] | settings})
    return folders


def values_of(runs, **by_run):
    """Scores of metric "x" by run, in the order of its clips."""
    return {
        run.name: {key: {"x": value} for key, value in zip(run.clips, by_run[run.name], strict=True)}
        for run in runs
    }


def test_a_difference_is_that_of_pairs_over_prompts(make, tmp_path):
    """Differences 1, 3 of one prompt, 4 and 6 of others: means 2, 4, 6; t of two degrees is 4.3027, the
    standard error 2 / sqrt(3)."""
    folders = two(make, tmp_path)
    for folder in folders:
        make.record(folder, "0001-thing_sample0", "a thing moves right 0", folders[0] / "images/thing.png")
    runs = collect(folders, {})
    values = values_of(runs, a=[10.0, 20.0, 30.0, 40.0], b=[11.0, 23.0, 34.0, 46.0])
    [entry] = differences(runs, values, ["x"])
    found = entry["metrics"]["x"]
    half = 4.302652729911275 * 2 / np.sqrt(3)
    assert (entry["run"], entry["reference"], entry["pairs"]) == ("b", "a", 4)
    assert (found["mean"], found["pairs"], found["prompts"]) == (4.0, 4, 3)
    assert (found["low"], found["high"]) == pytest.approx((4 - half, 4 + half))
    assert not found["sure"]


def test_an_interval_that_excludes_0_is_sure(make, tmp_path):
    runs = collect(two(make, tmp_path), {})
    values = values_of(runs, a=[0.0, 0.0, 0.0, 0.0], b=[-1.0, -1.1, -0.9, -1.0])
    [entry] = differences(runs, values, ["x"])
    assert entry["metrics"]["x"]["sure"] and entry["metrics"]["x"]["high"] < 0


@pytest.mark.parametrize("name", ["prompt", "seed", "image_sha256"])
def test_clips_of_another_prompt_seed_or_image_are_no_pairs(make, tmp_path, name):
    folders = two(make, tmp_path)
    path = next(folders[1].glob("0002-*.json"))
    record = read_json(path)
    write_json(path, record | {"settings": record["settings"] | {name: "another"}})
    one, other = collect(folders, {})
    assert [clip_id[:4] for clip_id in paired_ids(other, one)] == ["0000", "0001", "0003"]


def test_clips_without_records_are_paired_by_name(make, tmp_path):
    folders = two(make, tmp_path)
    for path in folders[1].glob("*.json"):
        path.unlink()
    one, other = collect(folders, {})
    assert len(paired_ids(other, one)) == 4 and other_settings(other, one) is None


def test_other_settings_are_named_and_parameter_sets_are_not(make, tmp_path):
    options = {"options": {"steps": 8, "eta": 1.0}, "sets": {"dyn": {"sha256": ["ab"]}}}
    one, other = collect(two(make, tmp_path, **options), {})
    assert other_settings(other, one) == {"options.steps": [8, None], "options.eta": [1.0, None]}
    assert other_settings(one, one) == {}
    same = collect(two(make, tmp_path / "same", sets={"dyn": {"sha256": ["ab"]}}), {})
    assert other_settings(same[1], same[0]) == {}


def test_no_interval_lies_beyond_the_range_of_its_metric(make, tmp_path):
    """Two prompts, of which one changes by 0.9: t of one degree is 12.7, so the plain interval is -5 to 6."""
    runs = collect(two(make, tmp_path, clips=2), {})
    scores = {"a": (0.1, 0.5), "b": (1.0, 0.5)}
    values = {
        run.name: {
            key: {"dynamic_degree": value} for key, value in zip(run.clips, scores[run.name], strict=True)
        }
        for run in runs
    }
    found = differences(runs, values, ["dynamic_degree"])[0]["metrics"]["dynamic_degree"]
    assert (found["low"], found["high"]) == (-1.0, 1.0) and found["mean"] == pytest.approx(0.45)
    run = runs[0]
    run.scores["dynamic_degree"] = {"mean": 0.9, "low": -0.2, "high": 1.4}
    assert summaries(run, {})["dynamic_degree"] == {"mean": 0.9, "low": 0.0, "high": 1.0}
    [entry] = metric_entries([run], {})
    assert entry["range"] == (0.0, 1.0)


def test_every_range_has_its_ends_in_order():
    for name, metric in METRICS.items():
        low, high = metric.range
        assert low is None or high is None or low < high, name


def test_the_file_has_every_pair_of_runs_once(make, tmp_path):
    folders = [*two(make, tmp_path), make.run(tmp_path / "c", 3, clips=4)]
    write_report(folders, tmp_path / "r")
    data = read_json(tmp_path / "r/differences.json")
    assert [(one["run"], one["reference"]) for one in data["differences"]] == [
        ("b", "a"), ("c", "a"), ("c", "b"),
    ]  # fmt: skip
    motion = data["differences"][1]["metrics"]["motion_degree"]
    assert motion["mean"] > 1 and motion["sure"] and data["runs"]["c"] == str(tmp_path / "c")
    page = (tmp_path / "r/index.html").read_text().split('id="data">')[1].split("</script>")[0]
    assert json.loads(page)["differences"] == data["differences"], "the figures of the page"
    write_report(folders[:1], tmp_path / "r")
    assert not (tmp_path / "r/differences.json").exists()
