"""Scores of many clips: means with intervals, and files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edg.core.records import write_json, write_text

DRAWS, SEED, LEVEL = 2000, 0, 0.95


@dataclass(frozen=True)
class Row:
    """A clip's scores by metric. None: the metric says nothing of this clip. failed: metric -> reason."""

    clip: str
    id: str
    prompt: str
    seed: int | None
    scores: Mapping[str, float | None]
    failed: Mapping[str, str]
    labels: Mapping[str, Any]

    def entry(self) -> dict[str, Any]:
        return {
            "clip": self.clip, "id": self.id, "prompt": self.prompt, "seed": self.seed,
            "scores": dict(self.scores), "failed": dict(self.failed), "labels": dict(self.labels),
        }  # fmt: skip


def interval(
    values: Sequence[float | None], groups: Sequence[str], draws: int = DRAWS, seed: int = SEED
) -> dict[str, Any]:
    """The mean over clips with the bootstrap's 95 % percentile interval over groups (Efron 1979): whole
    prompts are drawn again, because clips of one prompt are not independent. None is left out. Without two
    groups there is no interval (low and high are None), without any value no mean."""
    sums: dict[str, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        if value is not None:
            sums.setdefault(group, []).append(value)
    found: dict[str, Any] = {"mean": None, "low": None, "high": None}
    found |= {"clips": sum(map(len, sums.values())), "prompts": len(sums)}
    if not sums:
        return found
    totals, counts = np.array([(sum(one), len(one)) for one in sums.values()], dtype=np.float64).T
    found["mean"] = float(totals.sum() / counts.sum())
    if len(sums) > 1:
        drawn = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
        means = totals[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
        tail = 50 * (1 - LEVEL)
        found["low"], found["high"] = map(float, np.percentile(means, (tail, 100 - tail)))
    return found


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
