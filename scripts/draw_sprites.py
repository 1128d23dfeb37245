#!/usr/bin/env python
"""Draw prompts/sprites: held-out first frames of the sprites world and the captions that say how they
shall move.

python scripts/draw_sprites.py [FOLDER]
"""

from __future__ import annotations

import sys
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


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "prompts/sprites"))
