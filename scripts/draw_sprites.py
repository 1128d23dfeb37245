#!/usr/bin/env python
"""Draw prompts/sprites: held-out first frames of the sprites world, and captions that describe
the motion.

python scripts/draw_sprites.py [FOLDER]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from edg.sprites.world import caption, held_out, render, words_of

SEED = 2031  # training uses 20, the experiment 4000


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    captions = []
    for k, clip in enumerate(held_out(SEED, 8)):
        pixels = np.round(render(clip)[0][0] * 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{k:02d}-{clip.sprite.colour}-{clip.sprite.shape}.png")
        captions.append(caption(words_of(clip)))
    (folder / "prompts.txt").write_text("\n".join(captions) + "\n")


def folder_of(arguments: Sequence[str] | None = None) -> Path:
    """The folder that the arguments name, prompts/sprites without one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path(__file__).resolve().parents[1] / "prompts/sprites"
    )
    return parser.parse_args(arguments).folder


if __name__ == "__main__":
    main(folder_of())
