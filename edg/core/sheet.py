"""Contact sheets: pictures of several clips, one row each, under its label."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont


def contact_sheet(clips: Iterable[tuple[str, np.ndarray]], columns: int = 6, width: int = 160) -> np.ndarray:
    """Draw one row per clip, `columns` evenly spaced frames `width` pixels wide under its label; uint8
    (H, W, 3).

    clips: (label, uint8 frames (T, H, W, 3)); an iterator is read one clip at a time.
    """
    rows = [_sheet_row(label, frames, columns, width) for label, frames in clips]
    assert rows, "a contact sheet needs a clip"
    return np.concatenate(rows)


def _sheet_row(label: str, frames: np.ndarray, columns: int, width: int, gap: int = 4) -> np.ndarray:
    from PIL import Image, ImageDraw, ImageFont

    height = max(1, round(width * frames.shape[1] / frames.shape[2]))
    small = width < frames.shape[2]
    method = Image.Resampling.BILINEAR if small else Image.Resampling.NEAREST
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
