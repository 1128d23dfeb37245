"""Summary statistics of runs: means with intervals, and confidence ellipses of two metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edg.metrics.catalogue import range_of
from edg.metrics.table import by_group, interval
from edg.report.collect import ReportRun, is_number
from edg.report.differences import within

MOTION = "motion_degree"
ABOUT_MOTION = {"unit": "px/frame", "better": "", "what": "mean length of the optical flow"}
AGAINST = ("consist", "align")  # parts of the names of metrics that motion is plotted against


def metric_entries(runs: Sequence[ReportRun], values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The metrics that a run has: {"name", "unit", "better", "what", "range"}; motion first, then as scored.

    values: run -> clip id -> metric -> value.
    """
    about = {name: one for run in runs for name, one in run.scores.items()}
    scored = [name for run in values.values() for clip in run.values() for name in clip]
    names = list(dict.fromkeys([*([MOTION] if MOTION in scored else []), *about, *scored]))
    known = {MOTION: ABOUT_MOTION} | about
    return [
        {"name": name, "range": range_of(name)}
        | {key: str(known.get(name, {}).get(key, "")) for key in ("unit", "better", "what")}
        for name in names
    ]


def summaries(
    run: ReportRun, values: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float | None]]:
    """Metric -> mean and 95 % interval within the metric's range: of scores.json, else by the same
    `interval` over prompts.

    values: clip id -> metric -> value.
    """
    found = {}
    for name in dict.fromkeys(name for clip in values.values() for name in clip):
        groups = by_prompt(run, values, name)
        found[name] = interval(list(groups.values()), list(groups))
    found |= {name: one for name, one in run.scores.items() if is_number(one.get("mean"))}
    numbers = {
        name: {key: one.get(key) if is_number(one.get(key)) else None for key in ("mean", "low", "high")}
        for name, one in found.items()
    }
    return {name: within(one, range_of(name)) for name, one in numbers.items()}


def by_prompt(run: ReportRun, values: Mapping[str, Mapping[str, float]], metric: str) -> dict[str, float]:
    """Prompt (or the clip's id where it has none) -> mean of its clips."""
    prompts = [run.clips[clip_id].prompt or clip_id for clip_id in values]
    groups = by_group([scores.get(metric) for scores in values.values()], prompts)
    return {prompt: float(np.mean(group)) for prompt, group in groups.items()}


def trade_offs(
    runs: Sequence[ReportRun], values: Mapping[str, Any], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Confidence ellipses of motion (x) against each metric of consistency and alignment (y): of every run,
    or None."""
    wanted = [name for part in AGAINST for name in names if part in name.lower()]
    plots = []
    for y in dict.fromkeys(wanted):
        ellipses = []
        for run in runs:
            pair = [by_prompt(run, values[run.name], name) for name in (MOTION, y)]
            both = [prompt for prompt in pair[0] if prompt in pair[1]]
            ellipses.append(ellipse(np.array([[one[prompt] for one in pair] for prompt in both])))
        if any(ellipses):
            plots.append({"x": MOTION, "y": y, "runs": ellipses})
    return plots


def ellipse(points: np.ndarray, level: float = 0.95) -> dict[str, Any] | None:
    """Confidence region of the mean of points (N, 2): mean + root (cos a, sin a), by Hotelling's T^2 (1931).

    T^2 has 2 (N-1) / (N-2) times the F distribution with 2 and N-2 degrees, whose quantile is
    (N-2)/2 ((1 - level)^(-2/(N-2)) - 1). Below three points root is None: no region; None without a point.
    """
    count = len(points)
    if not count:
        return None
    mean = [float(value) for value in points.mean(axis=0)]
    if count < 3:
        return {"mean": mean, "root": None}
    squared = (count - 1) * ((1 - level) ** (-2 / (count - 2)) - 1)
    size, axes = np.linalg.eigh(np.cov(points.T) * squared / count)
    root = axes * np.sqrt(np.maximum(size, 0)) @ axes.T
    return {"mean": mean, "root": root.tolist()}
