"""Motion of a clip by optical flow, without any weights. Frames are uint8 (T, H, W, 3), flow is float32
(T-1, H, W, 2) in px/frame: what is at (y, x) in frame t is at (y + flow[t, y, x, 1],
x + flow[t, y, x, 0]) in frame t + 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8

from edg.core.errors import require

Frames = UInt8[np.ndarray, "t h w 3"]
Flow = Float[np.ndarray, "pairs h w 2"]
SMALLEST = 64  # px; pictures with a shorter side are enlarged for the flow: its patches are 8 px at half size
REFINEMENT = 10  # iterations of DIS' variational refinement; its medium preset has 5
SHARE = 0.05  # of the pixels, those with the largest flow: VBench's


# ---- flow --------------------------------------------------------------------------------------------------


def flow(frames: Frames) -> Flow:
    """Dense inverse search (Kroeger et al. 2016, OpenCV's medium preset) between neighbouring frames, on the
    one colour axis of the clip along which its edges are strongest. Raises UsageError below two frames."""
    import cv2

    require(
        len(frames) >= 2, f"a clip of {len(frames)} frames", "at least 2: flow is computed between two frames"
    )
    height, width = frames.shape[1:3]
    scale = -(-SMALLEST // min(height, width))
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    search.setVariationalRefinementIterations(REFINEMENT)
    pictures = [_enlarged(picture, scale) for picture in one_channel(frames)]
    found = np.empty((len(frames) - 1, height, width, 2), np.float32)
    for t in range(len(found)):
        large = search.calc(pictures[t], pictures[t + 1], None)
        found[t] = cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA) / scale
    return found


def one_channel(frames: Frames) -> UInt8[np.ndarray, "t h w"]:
    """The clip along its colour axis with the strongest edges (Di Zenzo 1986: first eigenvector of the colour
    gradients' covariance), stretched to 0..255: a red shape on grey of the same lightness does not vanish."""
    covariance = np.zeros((3, 3))
    for picture in frames[:: max(1, len(frames) // 4)].astype(np.float32):
        for axis in (0, 1):
            edges = np.diff(picture, axis=axis).reshape(-1, 3)
            covariance += edges.T @ edges
    axis = np.linalg.eigh(covariance)[1][:, -1] if covariance.any() else np.ones(3) / 3
    values = frames.astype(np.float32) @ (axis * (1 if axis.sum() >= 0 else -1)).astype(np.float32)
    low, high = values.min(), values.max()
    return np.round((values - low) * (255 / max(high - low, 1.0))).astype(np.uint8)


def _enlarged(picture: np.ndarray, scale: int) -> np.ndarray:
    import cv2

    if scale == 1:
        return picture
    return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)


# ---- how much ----------------------------------------------------------------------------------------------


def speed(flow: Flow) -> Float[np.ndarray, "pairs h w"]:
    """Length of the flow, px/frame."""
    return np.hypot(flow[..., 0], flow[..., 1])


def pair_motion(flow: Flow) -> np.ndarray:
    """(T-1,): mean length of the flow of every pair of frames, px/frame; the motion curve of a clip."""
    return speed(flow).mean(axis=(1, 2), dtype=np.float64)


def motion_degree(flow: Flow) -> float:
    """Mean length of the flow over all pixels and pairs, px/frame."""
    return float(pair_motion(flow).mean())


def top_motion(flow: Flow, share: float = SHARE) -> np.ndarray:
    """(T-1,): for every pair the mean of its floor(share H W) largest flow lengths, px/frame. A small thing
    that moves counts as much as a large one."""
    lengths = speed(flow).reshape(len(flow), -1)
    count = int(share * lengths.shape[1])
    require(count, f"{lengths.shape[1]} pixels", f"at least {round(1 / share)} pixels per frame")
    return np.partition(lengths, -count, axis=1)[:, -count:].mean(axis=1, dtype=np.float64)


# ---- VBench's dynamic degree -------------------------------------------------------------------------------


def frame_step(fps: float) -> int:
    """The k of VBench, which keeps every k-th frame, about 8 per second: max(1, round(fps / 8)), where a
    half is rounded to the even neighbour."""
    return max(1, round(fps / 8))


def is_dynamic(flow: Flow, height: int, width: int) -> bool:
    """VBench's rule over the flow of N kept frames of height x width: True if the top 5 % move more than
    6 min(H, W) / 256 px in at least round(4 N / 16) pairs. The flow may be of padded pictures."""
    threshold = 6.0 * min(height, width) / 256.0
    needed = round(4 * (len(flow) + 1) / 16)
    return int((top_motion(flow) > threshold).sum()) >= needed


def dynamic(frames: Frames, fps: float, flow: Callable[[Frames], Flow] = flow) -> bool:
    """VBench's dynamic degree of one clip (Huang et al. 2024), which it computes with RAFT's flow."""
    kept = frames[:: frame_step(fps)]
    given = f"{len(frames)} frames at {fps:g} a second, of which {len(kept)} is kept"
    require(len(kept) >= 2, given, "at least 2 kept frames")
    return is_dynamic(flow(kept), *frames.shape[1:3])


# ---- how evenly --------------------------------------------------------------------------------------------


def flicker(frames: Frames) -> float:
    """(255 - mean |f_i - f_i+1|) / 255 over neighbours, VBench's temporal flickering; a still has 1."""
    changes = [
        np.abs(frames[t + 1].astype(np.int16) - frames[t]).mean(dtype=np.float64)
        for t in range(len(frames) - 1)
    ]
    require(changes, "a clip of one frame", "at least 2 frames")
    return float((255 - np.mean(changes)) / 255)


def smoothness(frames: Frames, flow: Callable[[Frames], Flow] = flow) -> float:
    """(255 - mean |g_i - f_i|) / 255 over the odd frames f_i, g_i warped by the flow from the even ones:
    VBench's motion smoothness with warping in the place of its network (AMT-S)."""
    even, odd = frames[::2], frames[1::2]
    require(len(even) >= 2, f"a clip of {len(frames)} frames", "at least 3 frames")
    flows = flow(even)
    differences = [
        np.abs(midway(even[i], even[i + 1], flows[i]).astype(np.float32) - odd[i]).mean(dtype=np.float64)
        for i in range(len(even) - 1)
    ]
    return float((255 - np.mean(differences)) / 255)


def midway(before: np.ndarray, after: np.ndarray, flow: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    """The picture between two: the mean of `before` halfway along the flow and of `after` halfway
    back, both sampled with the flow at the pixel itself."""
    import cv2

    height, width = flow.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    sides = (
        cv2.remap(
            picture,
            x + sign * flow[..., 0] / 2,
            y + sign * flow[..., 1] / 2,
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        ).astype(np.float32)
        for picture, sign in ((before, -1), (after, 1))
    )
    return np.round(sum(sides) / 2).astype(np.uint8)
