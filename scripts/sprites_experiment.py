#!/usr/bin/env python
"""Compare base, fine-tunes, merges and decoupled runs on held-out images of the sprites world.

    python scripts/sprites_experiment.py --quick     # 16 images, one seed, one fine-tune, 10 steps
    python scripts/sprites_experiment.py             # the table and the plots of docs/sprites.md

fine-tunes -> merges -> clips -> OUT/table.md, table.json, *.png. To resume, run it again: results with the
same settings are kept. `--arms 'slow*' decoupled_500` makes some rows only.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import functools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.append(str(Path(__file__).resolve().parents[1]))  # experiments/

import numpy as np
import torch
from einops import rearrange
from PIL import Image

from edg.cli.main import guard
from edg.cli.main import main as edg
from edg.core.arguments import Parser
from edg.core.device import usable_cores
from edg.core.errors import EdgError, UsageError, nearest
from edg.core.files import atomic_path, write_json, write_text
from edg.core.hashing import sha256_file
from edg.diffusion.analytic_init import Moments
from edg.merging import merge
from edg.networks import family_of, open_weights
from edg.networks.latent_video.load import load_model
from edg.networks.latent_video.presets import SPRITES
from edg.sprites.data import clip_tensors, psnr_on_shape, stills
from edg.sprites.world import SpriteClip, caption, clips, held_out, render, words_of
from edg.systems.base import Placement, Request
from edg.systems.edg.generate import generate
from edg.systems.edg.options import SamplingOptions
from edg.systems.edg.parameter_sets import load_sets
from edg.systems.edg.training.analytic_init import write_initial_noise
from experiments.plot_sprites import Row, plots, sheet, table
from experiments.plots import pyplot
from experiments.scoring import Judgement, estimates, judge
from experiments.sprites_arms import TUNES, Arm, arms, files_of, made_of, name_of, recipes

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "edg/sprites/weights"
TRAINING = ROOT / "configs/train/sprites_experiment.yaml"
SHEET = ("base", "slow", "slow-1", "decoupled_500", "conv-1.5_300")  # rows of OUT/sheet.png

# ---- clips -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One row with one seed: what a worker process does."""

    name: str
    arm: Arm
    files: tuple[Path, ...]
    made_of: str
    seed: int
    count: int
    images_seed: int
    steps: int
    guidance: float
    batch: int
    out: Path

    @property
    def path(self) -> Path:
        return self.out / "rows" / f"{self.name}_{self.seed}.json"

    def key(self) -> dict[str, Any]:
        """The settings that the row's figures depend on."""
        options = {k: v if k != "analytic_init" else sha256_file(v) for k, v in self.arm.options.items()}
        names = ("seed", "count", "images_seed", "steps", "guidance", "batch", "made_of")
        key = {"options": options, "told": self.arm.with_motion} | {n: getattr(self, n) for n in names}
        return json.loads(json.dumps(key))


def judged(task: Task) -> list[Judgement] | None:
    """The judgements of a task that was done before."""
    if not task.path.exists():
        return None
    saved = json.loads(task.path.read_text())
    if saved["key"] != task.key():
        return None
    return [Judgement(**values) for values in saved["clips"]]


def do(task: Task) -> float:
    """Sample the clips of a task, judge them and write both down; seconds."""
    torch.set_num_threads(1)
    start, key, chosen = time.monotonic(), task.key(), held_out(task.images_seed, task.count)
    videos = sample(task, chosen)
    values = [dataclasses.asdict(judge(video, clip)) for video, clip in zip(videos, chosen, strict=True)]
    task.path.unlink(missing_ok=True)  # never an old judgement beside new clips
    with atomic_path(task.path.with_suffix(".npz")) as part, part.open("wb") as file:
        np.savez_compressed(file, videos=videos)
    write_json(task.path, {"key": key, "clips": values})
    return time.monotonic() - start


def sample(task: Task, chosen: list[SpriteClip]) -> np.ndarray:
    """uint8 (N, T, H, W, 3): every clip's first frame and caption, animated by the project's own sampler."""
    arm = task.arm
    settings = {"switch_at": (), "steps": task.steps, "guidance_scale": task.guidance, **arm.options}
    options = SamplingOptions(perframe_ae=SPRITES.perframe_ae, **settings)
    requests = [
        Request(
            f"{k:02d}", caption(words_of(clip, "tuned" if arm.with_motion else "base")), task.seed,
            clip.frames, 32, 32, options, image_of(task.out, k),
        )
        for k, clip in enumerate(chosen)
    ]  # fmt: skip
    places = zip(arm.sets, task.files, strict=True)
    weights = {f"{k}_{name_of(what)}": open_weights(file) for k, (what, file) in enumerate(places)}
    offload = "none" if options.blend == "soft" else "parameter_sets"
    placement = Placement(torch.device("cpu"), torch.float32, task.batch, offload)
    model = load_sets(SPRITES, weights, placement)
    results = list(generate(model, requests))
    failed = [result.error for result in results if result.frames is None]
    if failed:
        raise EdgError(f"{task.name}: {failed[0]}")
    return np.stack([result.frames for result in results])


def image_of(out: Path, k: int) -> Path:
    return out / "images" / f"{k:02d}.png"


def write_images(out: Path, chosen: list[SpriteClip]) -> None:
    image_of(out, 0).parent.mkdir(parents=True, exist_ok=True)
    for k, clip in enumerate(chosen):
        frame = render(dataclasses.replace(clip, frames=1))[0][0]
        Image.fromarray(np.round(frame * 255).astype(np.uint8)).save(image_of(out, k))


def run_all(tasks: list[Task], jobs: int) -> None:
    """Do the tasks that are not done, `jobs` at a time: one core each is more than two on one."""
    todo = [task for task in tasks if judged(task) is None]
    print(f"{len(tasks)} rows x seeds, {len(tasks) - len(todo)} already done", flush=True)
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(do, task): task for task in todo}
        try:
            for number, done in enumerate(as_completed(waiting), 1):
                task, seconds = waiting[done], done.result()
                print(f"[{number}/{len(todo)}] {task.name}, seed {task.seed}: {seconds:.0f} s", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


# ---- what is there before ----------------------------------------------------------------------------------


@torch.no_grad()
def initial_noise(base: Path, path: Path, count: int = 1024, seed: int = 20) -> None:
    """Analytic-Init of the fine-tune's clips (Zhao et al. 2024), for runs that start at M < 1000."""
    made_for = json.loads(open_weights(path).metadata.get("edg", "{}")) if path.exists() else {}
    if made_for.get("weights_sha256") == sha256_file(base):
        return
    model, found = load_model(SPRITES, open_weights(base)), Moments()
    frames = clip_tensors(list(clips("tuned", seed, count)), "tuned")["frames"]
    for part in frames.split(64):
        posterior = model.encode_frames(rearrange(part, "b c t h w -> (b t) c h w"))
        mean, variance = (
            rearrange(x, "(b t) c h w -> b c t h w", b=len(part))
            for x in (posterior.mean, posterior.logvar.exp())
        )
        scale = SPRITES.scale_factor
        found.add(scale * mean, scale**2 * variance)
    write_initial_noise(path, found, {"weights_sha256": sha256_file(base), "seed": seed})


@torch.no_grad()
def shape_psnr(base: Path, seed: int, count: int = 512) -> float:
    """PSNR in dB on the shape's pixels of new stills, decoded from the posterior's mean."""
    vae = load_model(SPRITES, open_weights(base)).first_stage_model
    test = stills(seed, count, shape_weight=2.0)
    decoded = torch.cat([vae.decode(vae.encode(part).mean) for part in test["frames"].split(64)])
    return psnr_on_shape(decoded, test["frames"], test["weight"][:, 0] - 1)


def fine_tunes(names: set[str], args: argparse.Namespace) -> dict[str, Path]:
    """name -> file: the shipped one, and those trained for the experiment."""
    found = {"slow": args.tuned}
    wanted = sorted(names - set(found))
    if wanted:
        folder = args.out / "training"
        settings = [f"out={folder}", f"init={args.base}", *args.train]
        if code := edg(["train", str(TRAINING), *settings, "--stages", ",".join(wanted)]):
            raise SystemExit(code)
        found |= {name: folder / f"{name}.safetensors" for name in wanted}
    return found


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    pyplot()  # a missing package is reported now, not after the last clip
    tunes = ["slow"] if args.quick else [*TUNES, "naive"]
    args.out.mkdir(parents=True, exist_ok=True)
    print(
        f"autoencoder: {shape_psnr(args.base, args.images_seed):.1f} dB on the pixels of the shape",
        flush=True,
    )
    noise = args.out / "initial_noise.pt"
    rows = arms(tunes, str(noise))
    for pattern in args.arms or ():
        if not fnmatch.filter(rows, pattern):
            raise UsageError(f"no row {pattern}", expected=", ".join(rows), fix=nearest(pattern, rows))
    if args.arms:
        rows = {n: arm for n, arm in rows.items() if any(fnmatch.fnmatch(n, p) for p in args.arms)}
    files = {"base": args.base, **fine_tunes(files_of(rows.values()) - {"base"}, args)}

    def path_of(name: str) -> Path:
        return files.get(name, args.out / "sets" / f"{name}.safetensors")

    for recipe in recipes(rows.values(), path_of):
        merge.run(recipe, args.out / "sets", full=True, warn=lambda _: None, family=family_of)
    if any("analytic_init" in arm.options for arm in rows.values()):
        initial_noise(args.base, noise)
    write_images(args.out, held_out(args.images_seed, args.count))
    settings = {n: getattr(args, n) for n in ("count", "images_seed", "steps", "guidance", "batch", "out")}
    sha_of = functools.cache(lambda name: sha256_file(files[name]))
    made_of_all = {n: json.dumps([made_of(s, sha_of) for s in arm.sets]) for n, arm in rows.items()}
    tasks = [
        Task(name, arm, tuple(path_of(name_of(s)) for s in arm.sets), made_of_all[name], seed, **settings)
        for seed in range(args.seeds)
        for name, arm in rows.items()
    ]
    (args.out / "rows").mkdir(exist_ok=True)
    run_all(tasks, args.jobs)
    report(rows, tasks, args.out / "selected" if args.arms else args.out)
    return 0


def report(arms: Mapping[str, Arm], tasks: list[Task], out: Path) -> None:
    """OUT/table.json, table.md and the plots, from what the tasks have left."""
    rows = {}
    for name, arm in arms.items():
        found = estimates([judged(task) for task in tasks if task.name == name])
        rows[name] = Row(arm.title, arm.group, arm.at, found)
    write_json(out / "table.json", {name: dataclasses.asdict(row) for name, row in rows.items()})
    write_text(out / "table.md", table(rows))
    print(table(rows), end="")
    plots(rows, out)
    shown = {task.name: task for task in reversed(tasks) if task.name in SHEET}
    if shown:
        videos = {
            name: np.load(shown[name].path.with_suffix(".npz"))["videos"] for name in SHEET if name in shown
        }
        sheet(videos, held_out(tasks[0].images_seed, tasks[0].count)).save(out / "sheet.png", optimize=True)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="16 images, 1 seed, 10 steps, only the shipped fine-tune"
    )
    parser.add_argument("--base", type=Path, default=SHIPPED / "base.safetensors")
    parser.add_argument(
        "--tuned", type=Path, default=SHIPPED / "tuned.safetensors", help="the fine-tune `slow`"
    )
    parser.add_argument(
        "--train",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="settings of the fine-tunes, see configs/train/sprites_experiment.yaml",
    )
    parser.add_argument(
        "--out", type=Path, help="folder of the results (output/sprites_experiment, with --quick ..._quick)"
    )
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="only these rows, * and ? allowed")
    parser.add_argument("--count", type=int, help="held-out images (64)")
    parser.add_argument("--seeds", type=int, help="clips per image, with seeds 0, 1, ... (3)")
    parser.add_argument(
        "--images-seed", type=int, default=4000, help="seed of the held-out images (4000); training has 20"
    )
    parser.add_argument("--steps", type=int, help="DDIM steps (16)")
    parser.add_argument("--guidance", type=float, default=1.0, help="guidance scale; 1 is no guidance (1)")
    parser.add_argument("--batch", type=int, default=32, help="clips per network call (32)")
    parser.add_argument(
        "--jobs", type=int, default=usable_cores(), help="number of processes, with one thread each"
    )
    args = parser.parse_args(argv)
    small = {"count": 16, "seeds": 1, "steps": 10, "out": Path("output/sprites_experiment_quick")}
    full = {"count": 64, "seeds": 3, "steps": 16, "out": Path("output/sprites_experiment")}
    for name, value in (small if args.quick else full).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


if __name__ == "__main__":
    sys.exit(guard(main, "sprites_experiment"))
