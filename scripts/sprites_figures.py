#!/usr/bin/env python
"""Measure base, tuned, dyn, con and the decoupled run on held-out images of the sprites world.

    python scripts/sprites_figures.py      # the table of docs/sprites.md, on the shipped weights
    python scripts/sprites_figures.py --rows tuned --count 16 --guidance 3

Prints one line per row of the table and writes OUT/figures.json and OUT/sprites.png. A row that
figures.json holds for the same settings is not sampled again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from PIL import Image

from edg.core.records import sha256_file, write_json
from edg.sprites.data import psnr_on_shape, stills
from edg.sprites.scoring import Score, judge
from edg.sprites.world import Clip, caption, held_out, render, words_of
from edg.systems.base import Request
from edg.systems.edg import EdgSystem
from edg.systems.edg.load import load_model
from edg.systems.edg.options import SamplingOptions
from edg.systems.edg.presets import PRESETS
from edg.weights import merge
from edg.weights.recipe import edg_recipe
from edg.weights.store import open_weights

SHIPPED = Path("edg/sprites/weights")
TITLES = {
    "base": "base, caption without motion",
    "base_told": "base, caption with motion",
    "tuned": "tuned",
    "dyn": "dyn alone",
    "con": "con alone",
    "decoupled": "decoupled: dyn above T, con below",
}
SETS = {
    "base": ["base"],
    "base_told": ["base"],
    "tuned": ["tuned"],
    "dyn": ["dyn"],
    "con": ["con"],
    "decoupled": ["dyn", "con"],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, default=SHIPPED / "base.safetensors")
    parser.add_argument("--tuned", type=Path, default=SHIPPED / "tuned.safetensors")
    parser.add_argument("--out", type=Path, default=Path("output/sprites_figures"))
    parser.add_argument("--rows", nargs="+", default=list(TITLES), choices=list(TITLES))
    parser.add_argument("--count", type=int, default=64, help="held-out images")
    parser.add_argument(
        "--images-seed", type=int, default=2000, help="seed of the held-out images; training uses 20"
    )
    parser.add_argument("--seed", type=int, default=123)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--rescale", type=float, default=0.7)
    parser.add_argument("--switch-at", type=int, default=500, help="T")
    parser.add_argument("--dyn-alpha", type=float, default=0.25)
    parser.add_argument("--dyn-beta", type=float, default=0.75)
    parser.add_argument("--con-beta", type=float, default=0.25)
    parser.add_argument("--drop-rate", type=float, default=0.7)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    print(
        f"autoencoder: {shape_psnr(args.base, args.images_seed):.1f} dB on the pixels of the shape",
        flush=True,
    )
    files = {"base": args.base, "tuned": args.tuned, **merged(args)}
    clips = held_out(args.images_seed, args.count)
    figures = args.out / "figures.json"
    table = json.loads(figures.read_text()) if figures.exists() else {}
    videos = {}
    for row in args.rows:
        key = json.dumps([row, settings(args, [files[name] for name in SETS[row]])])
        saved = args.out / f"{row}.npy"
        if table.get(row, {}).get("key") != key or not saved.exists():
            start = time.monotonic()
            np.save(saved, sample(row, files, clips, args))
            score = judge(list(np.load(saved)), clips)[0]
            table[row] = {"key": key, "seconds": round(time.monotonic() - start), **dataclasses.asdict(score)}
            write_json(figures, table)
        videos[row] = np.load(saved)
        fields = {f.name: table[row][f.name] for f in dataclasses.fields(Score)}
        print(line(TITLES[row], Score(**fields)), flush=True)
    sheet(videos, clips).save(args.out / "sprites.png", optimize=True)


@torch.no_grad()
def shape_psnr(weights: Path, seed: int, count: int = 512) -> float:
    """PSNR in dB on the shape's pixels of new stills, decoded from the posterior's mean."""
    vae = load_model(PRESETS["sprites"], open_weights(weights)).first_stage_model
    test = stills(seed, count, shape_weight=2.0)
    decoded = torch.cat([vae.decode(vae.encode(part).mean) for part in test["frames"].split(64)])
    return psnr_on_shape(decoded, test["frames"], test["weight"][:, 0] - 1)


def settings(args: argparse.Namespace, files: list[Path]) -> list:
    """What a row's figures depend on."""
    names = ("count", "images_seed", "seed", "steps", "guidance", "rescale", "switch_at", "batch")
    return [[getattr(args, name) for name in names], [sha256_file(path) for path in files]]


def merged(args: argparse.Namespace) -> dict[str, Path]:
    """dyn and con of the two files by the published recipe, written to OUT."""
    recipe = edg_recipe(
        str(args.base),
        str(args.tuned),
        dyn_alpha=args.dyn_alpha,
        dyn_beta=args.dyn_beta,
        con_beta=args.con_beta,
        drop_rate=args.drop_rate,
    )
    if {"dyn", "con", "decoupled"} & set(args.rows):
        merge.run(recipe, args.out, full=True)
    return {name: args.out / f"{name}.safetensors" for name in ("dyn", "con")}


def sample(row: str, files: dict[str, Path], clips: list[Clip], args: argparse.Namespace) -> np.ndarray:
    """uint8 (N, T, H, W, 3): every clip's first frame and caption, animated by the project's own sampler."""
    told = row != "base"
    options = SamplingOptions(
        steps=args.steps,
        guidance_scale=args.guidance,
        guidance_rescale=args.rescale,
        switch_at=(args.switch_at,) if len(SETS[row]) == 2 else (),
    )
    requests = []
    for k, clip in enumerate(clips):
        path = args.out / "images" / f"{k:02d}.png"
        path.parent.mkdir(exist_ok=True)
        first_frame(clip).save(path)
        prompt = caption(words_of(clip, told))
        requests.append(Request(f"{k:02d}", prompt, path, args.seed, clip.frames, 32, 32, options))
    system = EdgSystem()
    spec = PRESETS["sprites"]
    model = system.load(spec, {n: open_weights(files[n]) for n in SETS[row]}, batch_size=args.batch)
    results = list(system.generate(model, requests))
    failed = [r.error for r in results if r.frames is None]
    if failed:
        raise SystemExit(f"{row}: {failed[0]}")
    return np.stack([r.frames for r in results])


def first_frame(clip: Clip) -> Image.Image:
    return Image.fromarray(np.round(render(dataclasses.replace(clip, frames=1))[0][0] * 255).astype(np.uint8))


def line(title: str, s: Score) -> str:
    return (
        f"| {title} | {s.speed:.2f} | {s.slowly:.2f} | {s.quickly:.2f} | {s.direction:.0%} | {s.intact:.0%} "
        f"| {s.intact_frames:.0%} |"
    )


def sheet(videos: dict[str, np.ndarray], clips: list[Clip], chosen: int = 4, zoom: int = 2) -> Image.Image:
    """One block of rows per clip: the true motion, then every row's sample; frames from left to right."""
    blocks = []
    for k in range(min(chosen, len(clips))):
        truth = np.round(render(clips[k])[0] * 255).astype(np.uint8)
        strips = [truth, *(video[k] for video in videos.values())]
        rows = [np.concatenate(list(np.pad(s, ((0, 0), (1, 1), (1, 1), (0, 0)))), axis=1) for s in strips]
        blocks.append(np.concatenate([*rows, np.full((4, rows[0].shape[1], 3), 255, np.uint8)]))
    pixels = np.concatenate(blocks)
    return Image.fromarray(pixels).resize(
        (pixels.shape[1] * zoom, pixels.shape[0] * zoom), Image.Resampling.NEAREST
    )


if __name__ == "__main__":
    main()
