"""Formulas by hand."""

import numpy as np
import pytest

from edg.core.errors import UsageError
from edg.metrics.alignment import text_alignment
from edg.metrics.consistency import clip_ssim, i2v_subject, psnr, ssim, subject_consistency

RIGHT, UP, DIAGONAL, LEFT = (2.0, 0.0), (0.0, 1.0), (3.0, 3.0), (-1.0, 0.0)
HALF = 2**-0.5  # cos of 45 degrees


def test_i2v_subject():
    frames = np.array([RIGHT, DIAGONAL, UP])  # steps: HALF, HALF
    assert i2v_subject(np.array(RIGHT), frames) == pytest.approx(0.4 * 1 + 0.3 * HALF + 0.3 * HALF)
    assert i2v_subject(np.array(DIAGONAL), np.array([RIGHT, UP, UP])) == pytest.approx(
        0.4 * HALF + 0.3 * (0 + 1) / 2 + 0.3 * 0
    )
    # below 0 counts as 0
    assert i2v_subject(np.array(LEFT), np.array([RIGHT, LEFT, RIGHT])) == pytest.approx(0.4)


def test_subject_consistency():
    frames = np.array([RIGHT, DIAGONAL, UP])
    assert subject_consistency(frames) == pytest.approx(((HALF + HALF) / 2 + (0 + HALF) / 2) / 2)
    assert subject_consistency(np.array([RIGHT, RIGHT])) == pytest.approx(1)
    assert subject_consistency(np.array([RIGHT, LEFT])) == 0
    with pytest.raises(UsageError, match="1 frames"):
        subject_consistency(np.array([RIGHT]))


def test_text_alignment():
    assert text_alignment(np.array(RIGHT), np.array([RIGHT, UP, DIAGONAL])) == pytest.approx(
        (1 + 0 + HALF) / 3
    )
    assert text_alignment(np.array(RIGHT), np.array([LEFT])) == pytest.approx(-1)


def test_psnr():
    a = np.full((4, 4, 3), 100, np.uint8)
    assert psnr(a, a + 5) == pytest.approx(10 * np.log10(255**2 / 25))
    assert psnr(a * 0, a * 0 + 255) == 0
    assert psnr(a, a) == 100
    with pytest.raises(UsageError):
        psnr(a, a[1:])


def test_psnr_is_never_above_that_of_equal_pictures():
    """One value of 160,000 differs by 1: 10 log10(255^2 x 160,000) = 100.2 dB."""
    a = np.zeros((400, 400), np.uint8)
    b = a.copy()
    b[7, 7] = 1
    assert psnr(a, b) == 100
    assert (
        psnr(a[:100], b[:100]) == pytest.approx(10 * np.log10(255**2 * 40_000))
        and psnr(a[:100], b[:100]) < 100
    )


def test_ssim_of_even_pictures():
    """Without structure only the light term is left: (2 a b + c1) / (a^2 + b^2 + c1)."""
    a, b = np.full((16, 20, 3), 100, np.uint8), np.full((16, 20, 3), 140, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert ssim(a, b) == pytest.approx((2 * 100 * 140 + c1) / (100**2 + 140**2 + c1))
    assert ssim(a, a) == 1
    with pytest.raises(UsageError, match="11 px"):
        ssim(a[:10], b[:10])


def test_ssim_of_one_window():
    """11x11 pixels are one window; its weighted moments, written out."""
    rng = np.random.default_rng(3)
    a, b = rng.integers(0, 256, (2, 11, 11, 3), dtype=np.uint8)
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weight = np.outer(line, line) / line.sum() ** 2
    c1, c2, expected = (0.01 * 255) ** 2, (0.03 * 255) ** 2, []
    for channel in range(3):
        x, y = a[..., channel].astype(float), b[..., channel].astype(float)
        mx, my = (weight * x).sum(), (weight * y).sum()
        vx, vy = (weight * (x - mx) ** 2).sum(), (weight * (y - my) ** 2).sum()
        xy = (weight * (x - mx) * (y - my)).sum()
        expected.append((2 * mx * my + c1) * (2 * xy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    assert ssim(a, b) == pytest.approx(np.mean(expected), abs=1e-9)
    assert clip_ssim(np.stack([a, a]), np.stack([b, a])) == pytest.approx((np.mean(expected) + 1) / 2)
