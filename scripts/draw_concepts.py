#!/usr/bin/env python
"""Draw the pictures of docs/concepts.md with the embedded model: `python scripts/draw_concepts.py`.

    denoising.png   one clip at five timesteps: the latent, and the clean clip that the network predicts
    switch.png      base, con, dyn, and dyn above T with con below
    line.png        one clip along base + s (tuned - base)

Frames run from left to right; the cross marks the shape's place on the image; the figure at a row's end
is its measured speed (edg/sprites/tracker.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # experiments/

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from edg.cli.main import guard
from edg.core.arguments import Parser
from edg.diffusion.ddim import ddim
from edg.merging import merge
from edg.merging.recipe import Recipe
from edg.networks import family_of, open_weights
from edg.networks.latent_video.presets import SPRITES
from edg.sprites.tracker import track
from edg.sprites.world import SpriteClip, caption, held_out, render, words_of
from edg.systems.base import Placement, Request
from edg.systems.edg.clip_state import condition_batch, decode, start, to_frames
from edg.systems.edg.denoiser import denoiser
from edg.systems.edg.generate import generate
from edg.systems.edg.options import SamplingOptions
from edg.systems.edg.parameter_sets import load_sets
from edg.systems.edg.sampling_schedule import schedule_of_sets
from experiments.sprites_arms import point

ROOT = Path(__file__).resolve().parents[1]
PLACEMENT = Placement(torch.device("cpu"), torch.float32)
SHIPPED = {name: ROOT / f"edg/sprites/weights/{name}.safetensors" for name in ("base", "tuned")}
LINE = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
ZOOM, GAP, LABEL = 3, 3, 190  # pixels of a pixel; between frames; width of a row's name
GREY = (128, 128, 128, 255)  # readable on a light page and on a dark one


def merged(folder: Path) -> dict[str, Path]:
    """The parameter sets: points of the line, and dyn of configs/merge/edg_temporal_conv.yaml."""
    sets = [point("slow", s) for s in LINE] + [point("slow", -1.5, "conv")]
    recipe = Recipe(
        inputs={name: str(path) for name, path in SHIPPED.items()}, outputs={m.name: m.steps for m in sets}
    )
    made = merge.run(recipe, folder, full=True, warn=lambda _: None, family=family_of)
    return {item.output: item.path for item in made} | SHIPPED


class Renderer:
    """Clips of held-out images, by the project's own sampler, without guidance."""

    def __init__(self, folder: Path, steps: int, seed: int):
        self.folder, self.steps, self.seed, self.files = folder, steps, seed, merged(folder)

    def prepare(self, clip: SpriteClip, sets: Sequence[str], T: Sequence[int] = (), split: str = "tuned"):
        settings = {"switch_at": tuple(T), "steps": self.steps, "guidance_scale": 1.0}
        first = Image.fromarray(to_levels(render(dataclasses.replace(clip, frames=1))[0])[0])
        first.save(self.folder / "image.png")
        options = SamplingOptions(perframe_ae=SPRITES.perframe_ae, **settings)
        image = self.folder / "image.png"
        request = Request(
            "0",
            caption(words_of(clip, split)),
            self.seed,
            clip.frames,
            SPRITES.height,
            SPRITES.width,
            options,
            image,
        )
        weights = {f"{k}_{name}": open_weights(self.files[name]) for k, name in enumerate(sets)}
        return load_sets(SPRITES, weights, PLACEMENT), request

    def film(self, clip: SpriteClip, sets: Sequence[str], T: Sequence[int] = ()) -> np.ndarray:
        """uint8 (T, H, W, 3)"""
        model, request = self.prepare(clip, sets, T)
        return next(generate(model, [request])).frames

    @torch.no_grad()
    def stages(self, clip: SpriteClip, count: int = 5) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """`count` times (timestep, the latent, the clean clip that the base takes it for), decoded."""
        model, request = self.prepare(clip, ["base"], split="base")
        state, options, found = start(model, request), request.options, []
        [(use, steps)] = schedule_of_sets(model, options)
        conditions = [condition_batch(model.network(index), index, [state], options) for index in use]
        denoise = denoiser(model, use, conditions, steps, options)
        chosen = {round(k) for k in np.linspace(0, len(steps) - 1, count)}

        def noise(step, shape):
            return state.noise("step", step.index, shape=(1, *shape[1:]))

        def decoded(x):
            shown = dataclasses.replace(state, x_1CTHW=x)
            return to_frames(decode(model.network(0), shown, options), options)

        before = state.x_1CTHW
        for now in ddim(denoise, before, steps, noise):
            if now.step.index in chosen:
                found.append((now.step.t, decoded(before), decoded(now.x0)))
            before = now.x
        return found


# ---- drawing -----------------------------------------------------------------------------------------------


def to_levels(frames: np.ndarray) -> np.ndarray:
    return np.round(frames * 255).astype(np.uint8)


def draw(path: Path, rows: Mapping[str, np.ndarray], clip: SpriteClip, halves: bool = False) -> None:
    """Rows of frames, uint8 (T, H, W, 3), their names in front, the shape's speed behind, on nothing.
    halves: what is left and what is right are two clips, without a speed."""
    count, height, width = next(iter(rows.values())).shape[:3]
    font = ImageFont.load_default(20)
    size = (width * ZOOM + GAP, height * ZOOM + GAP)
    end = LABEL + count * size[0] + 8
    canvas = Image.new("RGBA", (end + (0 if halves else LABEL), len(rows) * size[1]))
    pen = ImageDraw.Draw(canvas)
    for row, (name, frames) in enumerate(rows.items()):
        middle = row * size[1] + size[1] // 2
        pen.multiline_text((0, middle), name, GREY, font, anchor="lm")
        if not halves:
            figure = f"{track(frames, clip.sprite).speed:.2f} px/frame"
            pen.text((end, middle), figure, GREY, font, anchor="lm")
        for t, frame in enumerate(frames):
            apart = 8 * (halves and t >= count // 2)
            canvas.paste(enlarged(frame, clip), (LABEL + t * size[0] + apart, row * size[1]))
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path, optimize=True)
    print(path, flush=True)


def enlarged(frame: np.ndarray, clip: SpriteClip, zoom: int = ZOOM) -> Image.Image:
    """A frame `zoom` times as large, with a cross where the shape begins."""
    large = Image.fromarray(frame)
    large = large.resize((large.width * zoom, large.height * zoom), Image.Resampling.NEAREST)
    pen, x, y = ImageDraw.Draw(large), round(clip.sprite.x * zoom), round(clip.sprite.y * zoom)
    pen.line([(x - 6, y), (x + 6, y)], "white")
    pen.line([(x, y - 6), (x, y + 6)], "white")
    return large


def denoising(studio: Renderer, clip: SpriteClip, out: Path) -> None:
    """Frames 0, 2, 5, 7 of the latent, then the same of what it is taken for."""
    some = [0, 2, 5, 7]
    rows = {f"t = {t}": np.concatenate([a[some], b[some]]) for t, a, b in studio.stages(clip)}
    draw(out / "denoising.png", rows, clip, halves=True)


def ways(studio: Renderer, clip: SpriteClip) -> dict[str, np.ndarray]:
    """The films of base, con, dyn, and of dyn switched to con, by name."""
    dyn = point("slow", -1.5, "conv").name
    return {
        "base": studio.film(clip, ["base"]),
        "con (tuned)": studio.film(clip, ["tuned"]),
        "dyn": studio.film(clip, [dyn]),
        "dyn while t > 300,\nthen con": studio.film(clip, [dyn, "tuned"], [300]),
    }


def switched(studio: Renderer, clip: SpriteClip, out: Path) -> None:
    draw(out / "switch.png", ways(studio, clip), clip)


def animated(studio: Renderer, clip: SpriteClip, out: Path) -> None:
    """clips.gif: a row for each way, a column for each of two clips; the shapes begin at the crosses, and
    below each clip stands how it moves, as tracked."""
    columns = [clip, next(c for c in held_out(4000, 16) if differs(c, clip))]
    films = [ways(studio, each) for each in columns]
    side, left, top, line = 128, LABEL, 34, 26
    zoom, high = side // SPRITES.height, side + line
    font, small = ImageFont.load_default(16), ImageFont.load_default(13)
    card = Image.new("RGB", (left + 2 * (side + 24), top + len(films[0]) * high), "white")
    pen, places = ImageDraw.Draw(card), []
    for row, name in enumerate(films[0]):
        pen.multiline_text((8, top + row * high + side // 2), name, "black", font, anchor="lm")
    for column, (each, film) in enumerate(zip(columns, films, strict=True)):
        x, words = left + column * (side + 24), words_of(each)
        pen.text((x + side // 2, top // 2), f"{words.direction} {words.pace}", "black", font, anchor="mm")
        for row, frames in enumerate(film.values()):
            found, y = track(frames, each.sprite), top + row * high
            moves = f"{found.direction}, {found.speed:.2f} px/frame"
            pen.text((x + side // 2, y + side + line // 2 - 2), moves, (90, 90, 90), small, anchor="mm")
            places.append((x, y, frames, each))
    pages = [card.copy() for _ in range(clip.frames)]
    for x, y, frames, each in places:
        for page, frame in zip(pages, frames, strict=True):
            page.paste(enlarged(frame, each, zoom), (x, y))
    out.mkdir(parents=True, exist_ok=True)
    lasts = [140] * (clip.frames - 1) + [900]  # milliseconds
    pages[0].save(out / "clips.gif", save_all=True, append_images=pages[1:], duration=lasts, loop=0)
    print(out / "clips.gif", flush=True)


def differs(one: SpriteClip, other: SpriteClip) -> bool:
    """True for clips of other colour, shape, direction and pace."""
    a, b = words_of(one), words_of(other)
    return a.colour != b.colour and a.shape != b.shape and a.direction != b.direction and a.pace != b.pace


def line(studio: Renderer, clip: SpriteClip, out: Path) -> None:
    names = {s: f"s = {s:g}" + {0: ", base", 1: ", tuned"}.get(s, "") for s in LINE}
    draw(out / "line.png", {names[s]: studio.film(clip, [point("slow", s).name]) for s in LINE}, clip)


PICTURES = {"denoising": denoising, "switch": switched, "line": line, "clips": animated}


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "docs/img/concepts",
        help="folder of the pictures (docs/img/concepts)",
    )
    parser.add_argument("--only", nargs="+", choices=list(PICTURES), default=list(PICTURES))
    parser.add_argument("--image", type=int, default=5, help="number of the held-out image (5)")
    parser.add_argument("--steps", type=int, default=16, help="DDIM steps (16)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (0)")
    args = parser.parse_args(argv)
    clip = held_out(4000, args.image + 1)[args.image]
    print(caption(words_of(clip)))
    with tempfile.TemporaryDirectory() as folder:
        studio = Renderer(Path(folder), args.steps, args.seed)
        for name in args.only:
            PICTURES[name](studio, clip, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(guard(main, "draw_concepts"))
