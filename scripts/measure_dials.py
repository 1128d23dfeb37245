#!/usr/bin/env python
"""Measure the effect of `--motion` and `--hold` on the embedded model, on held-out images of the sprites.

    python scripts/measure_dials.py            # over strength and T -> configs/dials/sprites.yaml
    python scripts/measure_dials.py --check    # over the dials, on other images -> docs/img/dials.png

32 images, two noise seeds, 16 DDIM steps, no guidance. To resume, run it again: results in OUT that have
the same settings are kept. With --base, --tuned and --dials FILE: the dials of another fine-tune.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.append(str(Path(__file__).resolve().parents[1]))  # experiments/

import numpy as np
import torch
from PIL import Image

from edg.cli.main import guard
from edg.core import config
from edg.core.arguments import Parser
from edg.core.errors import EdgError, UsageError
from edg.core.files import write_json, write_text
from edg.core.hashing import sha256_file
from edg.merging.lazy import merged
from edg.merging.recipe import adjusted, load_recipe, to_dict
from edg.networks import family_of
from edg.networks.latent_video.presets import SPRITES
from edg.sprites import WEIGHTS
from edg.sprites.world import caption, held_out, render, words_of
from edg.systems.base import Placement, Request
from edg.systems.edg.dials import WORDS, Dial, Dials, Point, find_dials
from edg.systems.edg.generate import generate
from edg.systems.edg.options import SamplingOptions
from edg.systems.edg.parameter_sets import load_sets
from experiments.plot_dials import FIGURES, Panel, draw, table
from experiments.plots import pyplot
from experiments.scoring import Estimate, Judgement, estimate, estimates, judge

ROOT = Path(__file__).resolve().parents[1]
RECIPE, STRENGTH, T = "edg_temporal_conv", "dyn.alpha", 300  # what docs/sprites.md found best
STRENGTHS = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5)  # -1 is the fine-tune, 0 the base, in the temporal convolutions
SWITCHES = (0, 100, 300, 500, 700, 1000)  # dyn alone ... con alone
TURNED = (0.0, 0.25, 0.5, 0.75, 1.0)
HELD = (("intact", "more"), ("first_frame", "less"))  # what hold may be of: the first that T moves
COUNT, SEEDS, STEPS, GUIDANCE = 32, 2, 16, 1.0
IMAGES, OTHER_IMAGES = 5000, 6000  # training has 20, the experiment 3000 and 4000, prompts 2031

Table = list[list[Judgement]]  # by seed, then image


@dataclass(frozen=True)
class Bench:
    """The models and folders that clips are made with. images: the seed of the held-out images."""

    base: Path
    tuned: Path
    images: int
    out: Path
    count: int = COUNT
    seeds: int = SEEDS
    steps: int = STEPS

    def at(self, strengths: Mapping[str, float]) -> Table:
        """Judgements of the clips with these numbers in the recipe and this T."""
        strengths = {STRENGTH: STRENGTHS[-1], "T": T, **strengths}
        return [self._judged(strengths, seed) for seed in range(self.seeds)]

    def _judged(self, strengths: Mapping[str, float], seed: int) -> list[Judgement]:
        shas = [sha256_file(path) for path in (self.base, self.tuned)]
        key = [
            to_dict(load_recipe(RECIPE))["outputs"],
            shas,
            dict(strengths),
            seed,
            self.images,
            self.count,
            self.steps,
            GUIDANCE,
        ]
        name = "_".join(f"{place}={value:g}" for place, value in strengths.items())
        path = self.out / "rows" / f"{name}_images={self.images}_seed={seed}.json"
        saved = json.loads(path.read_text()) if path.exists() else {}
        if saved.get("key") != key:
            began = time.monotonic()
            chosen = held_out(self.images, self.count)
            videos = self._sample(strengths, seed, chosen)
            found = [
                dataclasses.asdict(judge(video, clip)) for video, clip in zip(videos, chosen, strict=True)
            ]
            saved = {"key": key, "clips": found}
            write_json(path, saved)
            print(f"{name}, images {self.images}, seed {seed}: {time.monotonic() - began:.0f} s", flush=True)
        return [Judgement(**values) for values in saved["clips"]]

    def _sample(self, strengths: Mapping[str, float], seed: int, chosen: Sequence) -> list[np.ndarray]:
        """uint8 (T, H, W, 3) for each clip, sets merged in memory; nothing is lost to a video file."""
        recipe = load_recipe(RECIPE)
        for place, value in strengths.items():
            recipe = recipe if place == "T" else adjusted(recipe, place, value)
        recipe = replace(recipe, inputs={"base": str(self.base), "tuned": str(self.tuned)})
        sets = merged(recipe, warn=lambda _: None, family=family_of)
        settings = {"switch_at": (int(strengths["T"]),), "steps": self.steps, "guidance_scale": GUIDANCE}
        options = SamplingOptions(perframe_ae=SPRITES.perframe_ae, **settings)
        requests = [
            Request(
                f"{k:02d}", caption(words_of(clip, "tuned")), seed, clip.frames, 32, 32, options,
                image=self._image(k, clip),
            )
            for k, clip in enumerate(chosen)
        ]  # fmt: skip
        placement = Placement(torch.device("cpu"), torch.float32, min(32, self.count))
        model = load_sets(SPRITES, sets, placement)
        results = list(generate(model, requests))
        if failed := [result.error for result in results if result.frames is None]:
            raise EdgError(f"{strengths}: {failed[0]}")
        return [result.frames for result in results]

    def _image(self, k: int, clip: Any) -> Path:
        path = self.out / "images" / str(self.images) / f"{k:02d}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            frame = render(dataclasses.replace(clip, frames=1))[0][0]
            Image.fromarray(np.round(frame * 255).astype(np.uint8)).save(path)
        return path


# ---- curves ------------------------------------------------------------------------------------------------


def points(rows: Mapping[float, Table], figure: str) -> tuple[Point, ...]:
    """The curve of a figure over what was moved, with what the same clips changed from point to point."""
    found, before = [], None
    for at, judgements in rows.items():
        values = np.array([[j.figure(figure) for j in one] for one in judgements])
        e = estimates(judgements)[figure]
        change = None
        if before is not None:
            c = estimate(values - before)
            change = (round(c.low, 4), round(c.high, 4))
        found.append(Point(float(at), *(round(x, 4) for x in (e.mean, e.low, e.high)), change))
        before = values
    return tuple(found)


def measure(bench: Bench) -> tuple[Dials, dict[str, Mapping[float, Table]]]:
    """The dials, and all judgements that they are from."""
    rows = {
        "motion": {at: bench.at({STRENGTH: at}) for at in STRENGTHS},
        "hold": {at: bench.at({"T": at}) for at in SWITCHES},
    }
    held = [Dial("T", FIGURES[name], wants, points(rows["hold"], name)) for name, wants in HELD]
    dials = Dials(
        model="sprites",
        recipe=RECIPE,
        inputs={name: sha256_file(getattr(bench, name)) for name in ("base", "tuned")},
        sampling={"ddim_steps": bench.steps, "unconditional_guidance_scale": GUIDANCE},
        T=T,
        command="python scripts/measure_dials.py",
        motion=Dial(STRENGTH, FIGURES["speed"], "more", points(rows["motion"], "speed")),
        hold=next((dial for dial in held if dial.range()), held[0]),
    )
    return dials, rows


def as_yaml(dials: Dials, bench: Bench) -> str:
    """The file, points in a line each."""
    head = (
        f"# Written by `{dials.command}`: {bench.count} held-out images (seed {bench.images}),\n"
        f"# {bench.seeds} seeds of the noise, {bench.steps} DDIM steps, no guidance. change: 95 %\n"
        "# confidence interval of the paired change from the previous point, see docs/dials.md.\n"
    )
    values = config.to_dict(dials)
    words = {word: values.pop(word) for word in WORDS}
    text = head + config.to_yaml(values)
    for word, dial in words.items():
        rows = [{k: v for k, v in point.items() if v is not None} for point in dial.pop("points")]
        text += f"{word}:\n" + "".join(f"  {key}: {json.dumps(value)}\n" for key, value in dial.items())
        lines = [json.dumps(row).replace('"', "") for row in rows]
        text += "  points:\n" + "".join(f"    - {line}\n" for line in lines)
    return text


def figures(rows: Mapping[float, Table]) -> dict[float, dict[str, Estimate]]:
    """The figures of every place, and `gain`: what the same clips are faster than at the first."""
    speeds = {at: np.array([[j.speed for j in one] for one in judgements]) for at, judgements in rows.items()}
    first = next(iter(speeds.values()))
    return {at: {**estimates(rows[at]), "gain": estimate(speed - first)} for at, speed in speeds.items()}


# ---- check -------------------------------------------------------------------------------------------------


def check(bench: Bench, dials: Dials) -> list[Panel]:
    """The dials turned: a panel's row for each, and for a dial that is none its curve over what it moves."""
    found = []
    for word in WORDS:
        dial = getattr(dials, word)
        if not dial.range():
            places = {point.at: {dial.moves: point.at} for point in dial.points}
            axis, promise = f"{dial.moves} (--{word} has no measured effect)", None
        else:
            places = {
                turned: dials.strengths(**{"motion": None, "hold": None, word: turned}) for turned in TURNED
            }
            axis, promise = f"--{word}", dial
        rows = figures({at: bench.at(strengths) for at, strengths in places.items()})
        found.append(Panel(axis, rows, places, promise))
    return found


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    pyplot()  # a missing package is reported now, not after the last clip
    torch.set_num_threads(1)
    sizes = {name: getattr(args, name) for name in ("base", "tuned", "out", "count", "seeds", "steps")}
    if args.check:
        return turn(Bench(images=OTHER_IMAGES, **sizes), args)
    bench = Bench(images=IMAGES, **sizes)
    dials, rows = measure(bench)
    write_text(args.dials, as_yaml(dials, bench))
    panels = [Panel(getattr(dials, word).moves, figures(rows[word]), {}, None) for word in WORDS]
    write_text(args.out / "curves.md", table(panels))
    draw(args.out / "curves.png", panels)
    for word in WORDS:
        dial = getattr(dials, word)
        ends = dial.range()
        found = f"{ends[0].at:g} to {ends[-1].at:g}" if ends else "no significant change"
        print(f"{word}: {dial.figure}, over {dial.moves}: {found}")
    print(f"{args.dials}, {args.out}/curves.md, curves.png")
    return 0


def turn(bench: Bench, args: argparse.Namespace) -> int:
    """The dials of a file, turned: a table and a figure."""
    dials = find_dials(str(args.dials), "sprites")
    if dials.inputs != {name: sha256_file(getattr(bench, name)) for name in ("base", "tuned")}:
        raise UsageError(
            f"{args.dials} was measured with other files",
            expected="the --base and --tuned it was measured with",
        )
    panels = check(bench, dials)
    write_text(args.out / "check.md", table(panels))
    draw(args.figure, panels)
    print(table(panels) + f"{args.figure}, {args.out}/check.md")
    return 0


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="sample over the dials instead of measuring their curves"
    )
    parser.add_argument("--base", type=Path, default=WEIGHTS / "base.safetensors")
    parser.add_argument("--tuned", type=Path, default=WEIGHTS / "tuned.safetensors")
    parser.add_argument("--dials", type=Path, default=ROOT / "configs/dials/sprites.yaml")
    parser.add_argument("--out", type=Path, default=Path("output/dials"))
    parser.add_argument("--figure", type=Path, default=ROOT / "docs/img/dials.png", help="plot of --check")
    parser.add_argument("--count", type=int, default=COUNT, help="held-out images (32)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="clips per image (2)")
    parser.add_argument("--steps", type=int, default=STEPS, help="DDIM steps (16)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(guard(main, "measure_dials"))
