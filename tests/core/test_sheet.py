"""The contact sheet: frames in rows under labels, whatever the labels are."""

import time

import numpy as np
import pytest
from PIL import ImageFont

from edg.core.sheet import contact_sheet
from edg.core.video import read_image, write_image

FRAMES = np.full((6, 32, 48, 3), 200, np.uint8)


def test_contact_sheet(tmp_path):
    sheet = contact_sheet(
        [("a label that is much too long " * 9, FRAMES), ("b", FRAMES[:3])], columns=4, width=40
    )
    assert sheet.ndim == 3 and sheet.shape[1] == 4 * 44 + 4 and sheet.dtype == np.uint8
    write_image(tmp_path / "sheet.png", sheet)
    assert np.array_equal(read_image(tmp_path / "sheet.png"), sheet)


def row(label):
    return contact_sheet([(label, FRAMES)])


@pytest.mark.parametrize(
    "text",
    ["a" * 5000, "a" * 10**6, "i" * 10**6, "a\nb " * 10**5, " " * 10**6, "\x00\x07" * 10**6, "\ud800" * 10**6]
    + ["\N{BEAR FACE}" * 10**6, "\N{ARABIC LETTER MEEM}\u202e" * 10**6, "e\u0301" * 10**6, "\u200b" * 10**6],
    ids=lambda text: ascii(text[:2]) + f" x {len(text)}",
)
def test_a_label_of_any_length_is_one_line(text):
    began = time.process_time()
    sheet = row(text)
    assert time.process_time() - began < 1
    assert sheet.shape == row("short").shape
    assert (sheet[18:] == row("short")[18:]).all(), "nothing runs into the pictures"
    assert (sheet[:, -4:] == 255).all(), "nor out of the sheet"


@pytest.mark.parametrize("side, factor", [(8, 20), (32, 5), (64, 2), (100, 2), (127, 1)])
def test_small_frames_are_enlarged_by_whole_pixels(side, factor):
    """About 160 px wide, and every pixel a square of `factor` px."""
    frames = np.random.default_rng(0).integers(0, 256, (6, side, side, 3)).astype(np.uint8)
    sheet = contact_sheet([("a", frames)])
    pitch = factor * side + 4
    assert sheet.shape[1] == 6 * pitch + 4
    for k in (0, 5):
        shown = sheet[18 : 18 + factor * side, 4 + k * pitch : 4 + k * pitch + factor * side]
        assert (shown == np.kron(frames[k], np.ones((factor, factor, 1), np.uint8))).all()


def test_frames_of_other_sizes_share_a_sheet():
    sheet = contact_sheet([("a", FRAMES), ("b", np.zeros((6, 256, 256, 3), np.uint8))])
    assert sheet.shape[1] == 6 * 164 + 4
    assert (sheet[18:110, 6 * 148 + 4 :] == 255).all(), "white beside the narrower row"


def test_what_does_not_fit_is_marked():
    font = ImageFont.load_default(12)
    fits = "W" * int((row("").shape[1] - 8) / font.getlength("W"))
    assert (row(fits) != row(fits[:-3] + "...")).any()
    assert (row(fits + "W" * 10) == row(fits + "W" * 5000)).all()
    assert (row("one\n two\t three") == row("one two three")).all()
    assert (row("x" * 10**6) != row("x" * 100)).any()
