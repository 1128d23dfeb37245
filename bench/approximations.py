"""What every approximation saves and what it costs: sprites, the shipped weights, held-out images.

    python bench/approximations.py                  # all 64 images
    python bench/approximations.py --images 16

Two parameter sets, switched at T = 300 (configs/merge/edg_temporal_conv.yaml), guided, both resident. All rows are
run on one batch of images after another: seconds and ratios are medians over the batches, the judgements are those
of docs/sprites.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import numpy as np  # noqa: E402
import results  # noqa: E402
import torch  # noqa: E402

from edg.core.video import write_image  # noqa: E402
from edg.sprites import WEIGHTS  # noqa: E402
from edg.sprites.experiment import arms, name_of, recipes  # noqa: E402
from edg.sprites.scoring import Judgement, estimates, judge  # noqa: E402
from edg.sprites.world import Clip, caption, held_out, render, words_of  # noqa: E402
from edg.systems.base import Request  # noqa: E402
from edg.systems.edg import EdgSystem  # noqa: E402
from edg.systems.edg.presets import SPRITES  # noqa: E402
from edg.weights import merge  # noqa: E402
from edg.weights.store import open_weights  # noqa: E402

STOCHASTIC, DETERMINISTIC = "DDIM, 50 steps", "DDIM, 50 steps, eta 0"
ROWS: dict[str, dict[str, Any]] = {  # options beside the default ones
    STOCHASTIC: {},
    "DDIM, 16 steps": {"steps": 16},
    "DDIM, 8 steps": {"steps": 8},
    "guidance in 0..700": {"guidance_interval": (0, 700)},
    "guidance in 300..1000": {"guidance_interval": (300, 1000)},
    "guidance in 300..700": {"guidance_interval": (300, 700)},
    "reuse 2": {"reuse": 2},
    "reuse 3": {"reuse": 3},
    "reuse 5": {"reuse": 5},
    DETERMINISTIC: {"eta": 0.0},
    **{f"DDIM, {n} steps, eta 0": {"eta": 0.0, "steps": n} for n in (20, 12, 8)},
    **{f"DPM-Solver++, {n} steps": {"solver": "dpmpp", "steps": n} for n in (20, 12, 8)},
    "DPM-Solver++, 12 steps, guidance in 300..700, reuse 2": {
        "solver": "dpmpp", "steps": 12, "guidance_interval": (300, 700), "reuse": 2,
    },
}  # fmt: skip


def reference(options: Mapping[str, Any]) -> str:
    """The row that an approximation is held against: as many random numbers, nothing approximated."""
    return DETERMINISTIC if options.get("eta") == 0 or options.get("solver") == "dpmpp" else STOCHASTIC


@dataclass
class Found:
    """Of one row: seconds of each batch, and the clips in the order of the images."""

    seconds: list[float] = field(default_factory=list)
    videos: list[np.ndarray] = field(default_factory=list)
    judgements: list[Judgement] = field(default_factory=list)


def load(folder: Path, device: str, batch: int) -> Any:
    """The two parameter sets of docs/sprites.md's best row, both in memory."""
    arm = arms(["slow"], "")["conv-1.5_300"]
    shipped = {"base": WEIGHTS / "base.safetensors", "slow": WEIGHTS / "tuned.safetensors"}

    def path_of(name: str) -> Path:
        return shipped.get(name, folder / f"{name}.safetensors")

    for recipe in recipes([arm], path_of):
        merge.run(recipe, folder, full=True, warn=lambda _: None)
    names = [name_of(what) for what in arm.sets]
    sets = {f"{k}_{name}": open_weights(path_of(name)) for k, name in enumerate(names)}
    return EdgSystem().load(SPRITES, sets, device=device, resident=True, batch_size=batch)


def requests_of(clips: Sequence[Clip], first: int, folder: Path, options: Any) -> list[Request]:
    found = []
    for k, clip in enumerate(clips, first):
        image = folder / f"{k:02d}.png"
        if not image.exists():
            write_image(
                image, np.round(render(dataclasses.replace(clip, frames=1))[0][0] * 255).astype(np.uint8)
            )
        found.append(Request(f"{k:02d}", caption(words_of(clip)), image, 0, clip.frames, 32, 32, options))
    return found


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Found]:
    """Every row on every batch of images, one batch after another."""
    system, model = EdgSystem(), load(folder, args.device, args.batch)
    clips, found = held_out(args.images_seed, args.images), {name: Found() for name in ROWS}
    common = {"switch_at": (300,), "guidance_scale": args.guidance}
    for first in range(0, len(clips), args.batch):
        part = clips[first : first + args.batch]
        for name, more in ROWS.items():
            requests = requests_of(part, first, folder, system.options(SPRITES, {**common, **more}))
            began = time.perf_counter()
            made = list(system.generate(model, requests))
            found[name].seconds.append((time.perf_counter() - began) / len(part))
            for result, clip in zip(made, part, strict=True):
                if result.frames is None:
                    raise SystemExit(f"{name}: {result.error}")
                found[name].videos.append(result.frames)
                found[name].judgements.append(judge(result.frames, clip))
        print(f"{first + len(part)} of {len(clips)} images", file=sys.stderr, flush=True)
    return found


HEAD = ("", "s/clip", "ratio", "px/frame", "direction", "kept", "first-frame error", "deviation")


def row(name: str, found: Mapping[str, Found]) -> list[str]:
    mine, exact = found[name], found[reference(ROWS[name])]
    ratio = median(a / b for a, b in zip(mine.seconds, found[STOCHASTIC].seconds, strict=True))
    told = {key: value.mean for key, value in estimates([mine.judgements]).items()}
    apart = np.abs(np.stack(mine.videos).astype(float) - np.stack(exact.videos)).mean()
    shares = [f"{told[key]:.0%}" for key in ("direction", "intact")]
    figures = [f"{median(mine.seconds):.2f}", f"{ratio:.2f}", f"{told['speed']:.2f}"]
    return [name, *figures, *shares, f"{told['first_frame']:.1f}", f"{apart:.2f}"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=64, help="held-out images (64)")
    parser.add_argument("--images-seed", type=int, default=4000, help="that they are drawn from (4000)")
    parser.add_argument("--guidance", type=float, default=3.0, help="guidance scale (3)")
    parser.add_argument("--batch", type=int, default=8, help="clips in a network call (8)")
    parser.add_argument("--device", default="cpu", help="(cpu)")
    parser.add_argument("--results", type=Path, default=results.RESULTS, help="the file of results")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args, Path(folder))
    command = f"`python bench/approximations.py --images {args.images} --guidance {args.guidance:g}`"
    text = (
        f"{command}: {args.images} images, batches of {args.batch}, {torch.get_num_threads()} threads, fp32, on "
        f"{args.device}; T = 300. Loading is not in the seconds, encoders and decoding are.\n\n"
        + results.table(HEAD, [row(name, found) for name in ROWS])
        + f"\n\nRatio: of the seconds to those of the first row. Kept: colour and shape. First-frame error and "
        f"deviation: mean absolute, in levels of 255; the deviation is from the same clips by `{DETERMINISTIC}` for "
        f"deterministic rows, else by `{STOCHASTIC}`. A deterministic and a random run give different clips of the "
        "same kind, and so do two numbers of steps with eta 1: there the judgements say more than the deviation."
    )
    results.write_section("approximations", text, args.results)


if __name__ == "__main__":
    main()
