"""Measure what each approximation saves and costs: sprites, the shipped weights, held-out images.

    python bench/approximations.py                          # all 64 images, 50 steps
    python bench/approximations.py --images 2 --steps 6     # to see that it runs

Two parameter sets, switched at T = 300 (configs/merge/edg_temporal_conv.yaml), guided, both resident. After
one batch in four steps, which is not counted, all rows are run on one batch of images after another; a speed
is the median of the ratios batch by batch, and the judgements are those of docs/sprites.md.
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

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench import results  # noqa: E402
from edg.core.device import dtype_for, multiplies  # noqa: E402
from edg.core.video import write_image  # noqa: E402
from edg.merging import merge  # noqa: E402
from edg.networks import family_of, open_weights  # noqa: E402
from edg.networks.latent_video.presets import SPRITES  # noqa: E402
from edg.sprites import WEIGHTS  # noqa: E402
from edg.sprites.world import SpriteClip, caption, held_out, render, words_of  # noqa: E402
from edg.systems.base import Placement, Request, Silent  # noqa: E402
from edg.systems.edg.generate import generate  # noqa: E402
from edg.systems.edg.options import SamplingOptions  # noqa: E402
from edg.systems.edg.parameter_sets import load_sets  # noqa: E402
from experiments.plot_sprites import cell  # noqa: E402
from experiments.scoring import Judgement, estimates, judge  # noqa: E402
from experiments.sprites_arms import arms, name_of, recipes  # noqa: E402

SWITCH_AT = 300
PREVIEWS = ("a linear map", "a tiny decoder")
INTERVALS = ((0, 700), (300, 1000), (300, 700))


@dataclass
class Row:
    """One way to make the clips. like: the row whose clips it approximates. Then what was found: seconds of a
    clip, for each batch; the clips and their judgements in the order of the images; the last previews."""

    name: str
    like: str
    options: Mapping[str, Any]
    seed: int = 0
    dtype: str = "fp32"
    preview: str = ""  # by what: a linear map, or a tiny decoder
    seconds: list[float] = field(default_factory=list)
    videos: list[np.ndarray] = field(default_factory=list)
    judgements: list[Judgement] = field(default_factory=list)
    previews: dict[str, np.ndarray] = field(default_factory=dict)


def rows_of(steps: int) -> list[Row]:
    """Exact ones first: DDIM with eta 1, its like with another seed, and DDIM with eta 0."""
    random, fixed, few = f"DDIM, {steps} steps", f"DDIM, {steps} steps, eta 0", "DPM-Solver++, {} steps"
    most, fair, least = (max(1, round(steps * share)) for share in (0.4, 0.24, 0.16))
    fewer = dict.fromkeys((most, fair, least))
    inside = {f"guidance in {a}..{b}": {"guidance_interval": (a, b)} for a, b in INTERVALS}
    reused = {f"reuse {n}": {"reuse": n} for n in (2, 3, 5)}
    together = {"steps": fair, "solver": "dpmpp", "guidance_interval": (300, 700), "reuse": 2}
    return [
        Row(random, random, {}),
        Row("the same, another seed", random, {}, seed=1),
        *(Row(f"the same, preview by {what}", random, {}, preview=what) for what in PREVIEWS),
        Row("the same, bfloat16", random, {}, dtype="bf16"),
        *(Row(f"DDIM, {n} steps", random, {"steps": n}) for n in fewer),
        *(Row(name, random, options) for name, options in (inside | reused).items()),
        Row(fixed, fixed, {"eta": 0.0}),
        *(Row(f"DDIM, {n} steps, eta 0", fixed, {"eta": 0.0, "steps": n}) for n in fewer),
        *(Row(few.format(n), fixed, {"solver": "dpmpp", "steps": n}) for n in fewer),
        *(Row(f"UniPC, {n} steps", fixed, {"solver": "unipc", "steps": n}) for n in fewer if n < most),
        Row(f"{few.format(fair)}, guidance in 300..700, reuse 2", fixed, together),
    ]


def load(rows: Sequence[Row], folder: Path, device: str, batch: int) -> dict[str, Any]:
    """The two parameter sets of docs/sprites.md's best row, both in memory, for each dtype of the rows."""
    arm = arms(["slow"], "")[f"conv-1.5_{SWITCH_AT}"]
    shipped = {"base": WEIGHTS / "base.safetensors", "slow": WEIGHTS / "tuned.safetensors"}

    def path_of(name: str) -> Path:
        return shipped.get(name, folder / f"{name}.safetensors")

    for recipe in recipes([arm], path_of):
        merge.run(recipe, folder, full=True, warn=lambda _: None, family=family_of)
    sets = {f"{k}_{name_of(what)}": open_weights(path_of(name_of(what))) for k, what in enumerate(arm.sets)}
    kind = torch.device(device).type
    dtypes = {row.dtype: dtype_for(row.dtype, kind) for row in rows}
    return {
        name: load_sets(SPRITES, sets, Placement(torch.device(device), dtype, batch, "none"))
        for name, dtype in dtypes.items()
    }


def images_of(clips: Sequence[SpriteClip], folder: Path) -> list[Path]:
    """The clips' first frames, as files."""
    paths = [folder / f"{k:03d}.png" for k in range(len(clips))]
    for path, clip in zip(paths, clips, strict=True):
        first = render(dataclasses.replace(clip, frames=1))[0][0]
        write_image(path, np.round(first * 255).astype(np.uint8))
    return paths


def measure(rows: Sequence[Row], args: argparse.Namespace, folder: Path) -> None:
    """Every row on every batch of images, one batch after another."""
    models, clips = load(rows, folder, args.device, args.batch), held_out(args.images_seed, args.images)
    images = images_of(clips, folder)
    common = SamplingOptions(steps=args.steps, switch_at=(SWITCH_AT,), guidance_scale=args.guidance)
    few = dataclasses.replace(common, steps=4)  # below T too
    for model in models.values():  # what comes with the first call alone
        first_batch = zip(clips[: args.batch], images, strict=False)
        make(Row("", "", {}), model, [request(*one, 0, few) for one in first_batch])
    for first in range(0, len(clips), args.batch):
        part = range(first, min(first + args.batch, len(clips)))
        for row in rows:
            options = dataclasses.replace(common, **row.options)
            make(row, models[row.dtype], [request(clips[k], images[k], row.seed, options) for k in part])
            row.judgements += [judge(row.videos[k], clips[k]) for k in part]
        print(f"{part.stop} of {len(clips)} images", file=sys.stderr, flush=True)


def request(clip: SpriteClip, image: Path, seed: int, options: SamplingOptions) -> Request:
    return Request(image.stem, caption(words_of(clip)), seed, clip.frames, 32, 32, options, image)


def make(row: Row, model: Any, requests: Sequence[Request]) -> None:
    class Watcher(Silent):
        wants_preview = row.preview != ""

        def preview(self, request: Request, label: str, frames: np.ndarray) -> None:
            row.previews[request.id] = frames

    began = time.perf_counter()
    if row.preview == PREVIEWS[1]:
        decoder = str(WEIGHTS / "tiny_decoder.safetensors")
        requests = [
            dataclasses.replace(r, options=dataclasses.replace(r.options, preview_decoder=decoder))
            for r in requests
        ]
    made = list(generate(model, requests, Watcher()))
    row.seconds.append((time.perf_counter() - began) / len(requests))
    if failed := [result.error for result in made if result.frames is None]:
        raise SystemExit(f"{row.name}: {failed[0]}")
    row.videos += [result.frames for result in made]


HEAD = ("", "s/clip", "times as fast", "px/frame", "direction", "kept", "first frame", "difference")


def told(row: Row, exact: Row, plain: Row) -> list[str]:
    """The cells of a row. exact: the row it approximates; plain: the one its speed is told against."""
    found = estimates([row.judgements])
    shown = [cell(name, found[name]) for name in ("speed", "direction", "intact", "first_frame")]
    faster = results.ratio(plain.seconds, row.seconds)
    return [row.name, f"{median(row.seconds):.2f}", f"{faster:.2f}", *shown, f"{difference(row, exact):.1%}"]


def difference(row: Row, exact: Row) -> float:
    """|a - b| / |b| over all clips, b the exact ones."""
    a, b = (np.stack(one.videos).astype(np.float64) for one in (row, exact))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def preview_error(row: Row) -> float:
    """Mean absolute distance of the last previews to the clips at their size, in levels of 255."""
    small = np.stack([row.previews[key] for key in sorted(row.previews)]).astype(np.float64)
    count, frames, h, w, _ = small.shape
    clips = np.stack(row.videos).astype(np.float64)
    cells = clips.reshape(count, frames, h, clips.shape[2] // h, w, clips.shape[3] // w, 3)
    return float(np.abs(small - cells.mean((3, 5))).mean())


def text_of(rows: Sequence[Row], args: argparse.Namespace) -> str:
    by_name = {row.name: row for row in rows}
    table = results.table(HEAD, [told(row, by_name[row.like], rows[0]) for row in rows])
    apart = [f"{preview_error(row):.1f} by {row.preview}" for row in rows if row.preview]
    random, fixed = dict.fromkeys(row.like for row in rows)
    return f"""
{args.images} images in batches of {args.batch}, guidance scale {args.guidance:g}, T = {SWITCH_AT}, on
{args.device} with {torch.get_num_threads()} threads, in float32 where no other dtype is named. Loading is not
in the seconds, encoders and decoder are.

{table}

Times as fast: as the first row. Direction: as the caption tells; kept: colour and shape; first frame: mean
absolute error in levels of 255; in brackets 95 % intervals over the images. Difference: |a - b| / |b| of the
frames, b those of `{random}`, for deterministic rows of `{fixed}`. A random run in other steps draws other
noise: there, as with another seed, the judgements say more than the difference. The last preview's distance
from the clip at its size, mean absolute in levels of 255: {", ".join(apart)}.
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=64, help="held-out images (64)")
    parser.add_argument("--images-seed", type=int, default=4000, help="seed of the held-out images (4000)")
    parser.add_argument("--steps", type=int, default=50, help="steps of the exact rows (50)")
    parser.add_argument("--guidance", type=float, default=3.0, help="guidance scale (3)")
    parser.add_argument("--batch", type=int, default=8, help="clips per network call (8)")
    parser.add_argument("--device", default="cpu", help="device (cpu)")
    parser.add_argument("--results", type=Path, default=results.RESULTS, help="file of the results")
    args = parser.parse_args(argv)
    rows = rows_of(args.steps)
    if torch.device(args.device).type == "cpu" and not multiplies(torch.bfloat16):
        rows = [row for row in rows if row.dtype == "fp32"]
    with tempfile.TemporaryDirectory() as folder:
        measure(rows, args, Path(folder))
    results.write_section("approximations", text_of(rows, args), args.results)


if __name__ == "__main__":
    main()
