"""Consistency of a clip: cosines of embeddings over its frames, and pixel distances to another picture.

Embeddings are (T, D) for frames and (D,) for a picture, by any network. Cosines below 0 count as 0, as in
VBench.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from edg.core.errors import require

Embeddings = Float[np.ndarray, "t d"]
IDENTICAL = 100.0  # dB; what PSNR says of equal pictures, in the place of infinity
WINDOW, SIGMA = 11, 1.5  # px, of SSIM's Gaussian window
K1, K2 = 0.01, 0.03


# ---- embeddings --------------------------------------------------------------------------------------------


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosines of the rows of a and b, clipped at 0."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.clip((a * b).sum(axis=-1) / np.maximum(lengths, 1e-12), 0, None)


def i2v_subject(image: Float[np.ndarray, " d"], frames: Embeddings) -> float:
    """0.4 max_i cos(input, f_i) + 0.3 mean_i cos(f_i-1, f_i) + 0.3 min_i cos(f_i-1, f_i): VBench-I2V, there
    with DINO ViT-B/16. Raises UsageError below two frames."""
    steps = _steps(frames)
    return float(0.4 * cosines(image, frames).max() + 0.3 * steps.mean() + 0.3 * steps.min())


def subject_consistency(frames: Embeddings) -> float:
    """The mean over i >= 2 of (cos(f_1, f_i) + cos(f_i-1, f_i)) / 2: VBench, there with DINO ViT-B/16."""
    steps = _steps(frames)
    return float(((cosines(frames[:1], frames[1:]) + steps) / 2).mean())


def _steps(frames: Embeddings) -> np.ndarray:
    require(
        len(frames) >= 2, f"a clip of {len(frames)} frames", "at least 2: neighbouring frames are compared"
    )
    return cosines(frames[:-1], frames[1:])


# ---- pixels ------------------------------------------------------------------------------------------------


def check_shapes(a: np.ndarray, b: np.ndarray) -> None:
    require(a.shape == b.shape, f"pictures of shape {a.shape} and {b.shape}", "the same shape")


def psnr(a: UInt8[np.ndarray, "*any"], b: UInt8[np.ndarray, "*any"]) -> float:
    """10 log10(255^2 / mean squared difference) in dB, at most IDENTICAL."""
    check_shapes(a, b)
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return min(IDENTICAL, float(10 * np.log10(255**2 / error))) if error else IDENTICAL


def ssim(a: UInt8[np.ndarray, "h w 3"], b: UInt8[np.ndarray, "h w 3"]) -> float:
    """Structural similarity (Wang et al. 2004) of two pictures, mean over channels and over all places where
    the Gaussian window of 11 px lies inside. Raises UsageError for pictures smaller than the window."""
    import cv2

    check_shapes(a, b)
    height, width = a.shape[:2]
    expected = f"at least {WINDOW} px on each side"
    require(min(height, width) >= WINDOW, f"SSIM of pictures of {width}x{height}", expected)

    def blurred(x: np.ndarray) -> np.ndarray:
        side = WINDOW // 2
        whole = cv2.GaussianBlur(x, (WINDOW, WINDOW), SIGMA)
        return whole[side:-side, side:-side]

    a, b = a.astype(np.float64), b.astype(np.float64)
    mean_a, mean_b = blurred(a), blurred(b)
    var_a, var_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
    both = blurred(a * b) - mean_a * mean_b
    c1, c2 = (K1 * 255) ** 2, (K2 * 255) ** 2
    light = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * both + c2) / (var_a + var_b + c2)
    return float((light * structure).mean())


def clip_ssim(a: UInt8[np.ndarray, "t h w 3"], b: UInt8[np.ndarray, "t h w 3"]) -> float:
    """The mean of `ssim` over the frames of two clips."""
    check_shapes(a, b)
    return float(np.mean([ssim(one, other) for one, other in zip(a, b, strict=True)]))
