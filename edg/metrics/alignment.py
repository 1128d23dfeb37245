"""Does the clip show what the text says? Cosines in a space that texts and pictures share, such as CLIP's."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def text_alignment(text: Float[np.ndarray, " d"], frames: Float[np.ndarray, "t d"]) -> float:
    """The mean over frames of cos(text, frame), in [-1, 1] (CLIPSIM, Wu et al. 2021). Each frame is judged
    alone: the order of the frames changes nothing, so that motion is hardly seen."""
    text, frames = np.asarray(text, np.float64), np.asarray(frames, np.float64)
    lengths = np.linalg.norm(text) * np.linalg.norm(frames, axis=1)
    return float((frames @ text / np.maximum(lengths, 1e-12)).mean())
