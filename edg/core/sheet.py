"""Contact sheets: pictures of several clips, one row each, under its label."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont


SMALL = 128  # px; pictures with a shorter side below are shown by whole pixels, each as a square of some


def contact_sheet(clips: Iterable[tuple[str, np.ndarray]], columns: int = 6, width: int = 160) -> np.ndarray:
    """Draw one row per clip, `columns` evenly spaced frames about `width` pixels wide under its label; uint8
    (H, W, 3). Frames below SMALL are enlarged by a whole number, pixel by pixel.

    clips: (label, uint8 frames (T, H, W, 3)); an iterator is read one clip at a time.
    """
    rows = [_sheet_row(label, frames, columns, width) for label, frames in clips]
    assert rows, "a contact sheet needs a clip"
    return stacked(rows)


def stacked(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures (H, W, 3) below each other, white to the right of those that are narrower."""
    widest = max(row.shape[1] for row in rows)
    blanks = [((0, 0), (0, widest - row.shape[1]), (0, 0)) for row in rows]
    return np.concatenate([np.pad(*one, constant_values=255) for one in zip(rows, blanks, strict=True)])


def is_small(height: int, width: int) -> bool:
    """True if a picture of this size is shown by whole pixels."""
    return min(height, width) < SMALL


def shown_size(height: int, width: int, wanted: int) -> tuple[int, int]:
    """(height, width) of a picture that is to be about `wanted` px wide: a whole multiple of its own where it
    is small and narrower."""
    if is_small(height, width) and width < wanted:
        factor = max(1, round(wanted / width))
        return factor * height, factor * width
    return max(1, round(wanted * height / width)), wanted


def _sheet_row(label: str, frames: np.ndarray, columns: int, width: int, gap: int = 4) -> np.ndarray:
    from PIL import Image, ImageDraw, ImageFont

    whole = is_small(*frames.shape[1:3]) and frames.shape[2] < width
    method = Image.Resampling.NEAREST if whole else Image.Resampling.BILINEAR
    height, width = shown_size(*frames.shape[1:3], width)
    total = columns * (width + gap) + gap
    row = Image.new("RGB", (total, height + 18 + gap), "white")
    font = ImageFont.load_default(12)
    ImageDraw.Draw(row).text((gap, 2), _clipped(label, font, total - 2 * gap), fill="black", font=font)
    for column, index in enumerate(_evenly(len(frames), columns)):
        picture = Image.fromarray(frames[index]).resize((width, height), method)
        row.paste(picture, (gap + column * (width + gap), 18))
    return np.asarray(row)


def _clipped(label: str, font: FreeTypeFont | ImageFont, width: float) -> str:
    """The label in one line of at most `width` pixels. Only as much of it is looked at as may fit: a
    character takes a pixel at least, and there are fewer than ten blanks for each."""
    most = int(width)
    seen = "".join(c if c.isprintable() else " " for c in label[: 10 * most])
    line = " ".join(seen.split())
    if len(label) <= 10 * most and len(line) <= most and font.getlength(line) <= width:
        return line
    ends = accumulate(map(font.getlength, line[:most]), initial=font.getlength("..."))
    line = line[: sum(end <= width for end in ends) - 1]
    while line and font.getlength(line + "...") > width:  # pairs of letters may stand further apart
        line = line[:-1]
    return line + "..."


def _evenly(count: int, columns: int) -> Sequence[int]:
    """`columns` indices from 0 to count - 1, first and last included."""
    if count <= columns:
        return range(count)
    return [round(i * (count - 1) / (columns - 1)) for i in range(columns)]
