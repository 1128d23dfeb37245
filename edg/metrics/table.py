"""Scores of many clips: means with intervals, and files."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from edg.core.files import write_json, write_text

DRAWS, SEED = 2000, 0
ALIKE = 6  # differences of one sign that tell something: 2 / 2^6 < 5 %, as in a sign test


@dataclass(frozen=True)
class Row:
    """Scores of a clip by metric. None: the metric does not apply to it. failed: metric -> reason.
    sha256: of the measured file ("" where it could not be read)."""

    clip: str
    id: str
    prompt: str
    seed: int | None
    scores: Mapping[str, float | None]
    failed: Mapping[str, str]
    labels: Mapping[str, Any]
    sha256: str = ""

    def entry(self) -> dict[str, Any]:
        return {
            "clip": self.clip, "sha256": self.sha256, "id": self.id, "prompt": self.prompt, "seed": self.seed,
            "scores": dict(self.scores), "failed": dict(self.failed), "labels": dict(self.labels),
        }  # fmt: skip


def by_group(values: Sequence[float | None], groups: Sequence[str]) -> dict[str, list[float]]:
    """The values of each group, groups by name. None is left out."""
    found: dict[str, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        if value is not None:
            found.setdefault(group, []).append(value)
    return dict(sorted(found.items()))


def interval(
    values: Sequence[float | None], groups: Sequence[str], draws: int = DRAWS, seed: int = SEED
) -> dict[str, Any]:
    """The mean over groups (prompts) of each one's mean over its clips, so that every prompt counts the same,
    with its 95 % `bootstrap` over groups: clips of one prompt are not independent. None is left out. Without
    two groups there is no interval (low and high are None), without any value no mean."""
    grouped = by_group(values, groups)
    found: dict[str, Any] = {"mean": None, "low": None, "high": None}
    found |= {"clips": sum(map(len, grouped.values())), "prompts": len(grouped)}
    means = np.array([np.mean(one) for one in grouped.values()], np.float64)
    if len(means):
        found["mean"] = float(means.mean())
    if len(means) > 1:
        found["low"], found["high"] = bootstrap(means, draws, seed)
    return found


def bootstrap(values: np.ndarray, draws: int = DRAWS, seed: int = SEED) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of independent values (N,), resampled (Efron 1979)."""
    drawn = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def paired_interval(differences: Sequence[float], groups: Sequence[str]) -> dict[str, Any]:
    """The mean over groups (prompts) of each one's mean difference, with the 95 % interval of a paired t test
    over groups (Student 1908). Without two groups low and high are None, and where fewer than ALIKE groups
    differ by one number only: their variance of 0 is not credible."""
    grouped = by_group(differences, groups)
    found: dict[str, Any] = {"mean": None, "low": None, "high": None}
    found |= {"pairs": len(differences), "prompts": len(grouped)}
    means = np.array([np.mean(one) for one in grouped.values()], np.float64)
    if not len(means):
        return found
    found["mean"] = mean = float(means.mean())
    differ = not means.any() or np.ptp(means) > 1e-9 * np.abs(means).max()  # but by rounding
    if len(means) >= ALIKE or (len(means) > 1 and differ):
        half = t_quantile(len(means) - 1) * float(means.std(ddof=1)) / math.sqrt(len(means))
        found["low"], found["high"] = mean - half, mean + half
    return found


@lru_cache
def t_quantile(freedom: int, level: float = 0.95) -> float:
    """The t with P(|T| < t) = level of Student's distribution with `freedom` whole degrees, by bisection of
    its series in arctan(t / sqrt(freedom)) (Abramowitz and Stegun 26.7.3, 26.7.4)."""
    odd = freedom % 2

    def probability(angle: float) -> float:
        term, total = (math.cos(angle) if odd else 1.0), 0.0
        for k in range(1, freedom // 2 + 1):
            total += term
            term *= math.cos(angle) ** 2 * (2 * k / (2 * k + 1) if odd else (2 * k - 1) / (2 * k))
        total *= math.sin(angle)
        return 2 / math.pi * (angle + total) if odd else total

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if probability(middle) < level else (low, middle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def summary(
    rows: Sequence[Row], names: Sequence[str], draws: int = DRAWS, seed: int = SEED
) -> dict[str, Any]:
    """`interval` of every metric over the rows, prompts as groups (a clip without prompt is its own)."""
    groups = [row.prompt or row.clip for row in rows]
    return {name: interval([row.scores.get(name) for row in rows], groups, draws, seed) for name in names}


def write_rows(folder: Path, rows: Sequence[Row], names: Sequence[str]) -> None:
    """scores.jsonl, a line for each clip, and scores.csv, the same as a table; atomically."""
    lines = [json.dumps(row.entry(), ensure_ascii=False) + "\n" for row in rows]
    write_text(folder / "scores.jsonl", "".join(lines))
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["clip", "id", "prompt", "seed", *names])
    for row in rows:
        numbers = [row.scores.get(name) for name in names]
        writer.writerow([row.clip, row.id, row.prompt, row.seed, *numbers])
    write_text(folder / "scores.csv", table.getvalue())


def write_summary(folder: Path, value: Mapping[str, Any]) -> None:
    write_json(folder / "scores.json", value)
