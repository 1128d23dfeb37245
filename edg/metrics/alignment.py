"""Agreement of a clip with its prompt: cosines in a space of texts and images, such as CLIP's."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def text_alignment(text: Float[np.ndarray, " d"], frames: Float[np.ndarray, "t d"]) -> float:
    """Mean over frames of cos(text, frame), in [-1, 1] (CLIPSIM, Wu et al. 2021). Frames are compared one
    by one: their order changes nothing, so motion has little effect."""
    text, frames = np.asarray(text, np.float64), np.asarray(frames, np.float64)
    lengths = np.linalg.norm(text) * np.linalg.norm(frames, axis=1)
    return float((frames @ text / np.maximum(lengths, 1e-12)).mean())
