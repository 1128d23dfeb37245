"""Differences between runs: of their scores, paired clip by clip, and of their settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from edg.metrics.catalogue import Range, range_of
from edg.metrics.table import paired_interval
from edg.report.collect import ReportRun

Values = Mapping[str, Mapping[str, Mapping[str, float]]]  # run -> clip id -> metric -> value
SAME = ("prompt", "image_sha256", "seed")  # settings that the clips of a pair share
METHOD = {
    "difference": "run - reference, mean over prompts of each one's mean over its pairs of clips",
    "pairs": f"clips with the same id, {', '.join(SAME)}",
    "interval": {"level": 0.95, "test": "paired t", "over": "prompts"},
}


def differences(runs: Sequence[ReportRun], values: Values, metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Every run against every earlier one, its reference: {"run", "reference", "pairs": clips that both have,
    "metrics": name -> `paired_difference`, "settings": `other_settings`}."""
    return [
        {
            "run": run.name,
            "reference": reference.name,
            "pairs": len(pairs := paired_ids(run, reference)),
            "metrics": {name: paired_difference(run, reference, pairs, values, name) for name in metrics},
            "settings": other_settings(run, reference),
        }
        for reference, run in combinations(runs, 2)
    ]


def paired_ids(run: ReportRun, reference: ReportRun) -> list[str]:
    """Ids of the clips that both runs made of the same prompt, input image and seed, as far as their records
    tell."""
    return [
        clip_id for clip_id in run.clips if clip_id in reference.clips and _match(run, reference, clip_id)
    ]


def _match(run: ReportRun, reference: ReportRun, clip_id: str) -> bool:
    one, other = (each.clips[clip_id].settings for each in (run, reference))
    return all(one[name] == other[name] for name in SAME if name in one and name in other)


def paired_difference(
    run: ReportRun, reference: ReportRun, pairs: Sequence[str], values: Values, metric: str
) -> dict[str, Any]:
    """`paired_interval` of run - reference, within the metric's range, and "sure": whether it excludes 0."""
    ours, theirs = values[run.name], values[reference.name]
    scored = [one for one in pairs if metric in ours.get(one, ()) and metric in theirs.get(one, ())]
    prompts = [run.clips[one].prompt or reference.clips[one].prompt or one for one in scored]
    found = paired_interval([ours[one][metric] - theirs[one][metric] for one in scored], prompts)
    low, high = range_of(metric)
    span = None if low is None or high is None else high - low
    found = within(found, (None if span is None else -span, span))
    sure = found["low"] is not None and not found["low"] <= 0 <= found["high"]
    return found | {"sure": sure}


def within(score: Mapping[str, Any], limits: Range) -> dict[str, Any]:
    """The score with "low" and "high" cut to the limits: no value lies beyond them."""
    cut = dict(score)
    low, high = limits
    for key in ("low", "high"):
        if cut.get(key) is not None:
            cut[key] = cut[key] if low is None else max(low, cut[key])
            cut[key] = cut[key] if high is None else min(high, cut[key])
    return cut


def other_settings(run: ReportRun, reference: ReportRun) -> dict[str, list[Any]] | None:
    """Dotted name -> [the run's value, the reference's] of the settings that differ, without those of single
    clips and the parameter sets; None where the records of one do not tell them."""
    ours, theirs = run.recipe.get("settings"), reference.recipe.get("settings")
    if not ours or not theirs:
        return None
    names = dict.fromkeys([*ours, *theirs])
    return {name: [ours.get(name), theirs.get(name)] for name in names if ours.get(name) != theirs.get(name)}
