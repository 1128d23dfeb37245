"""The metrics of a single clip by name: one table for the command, its help and its files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from edg.metrics import camera, consistency, motion
from edg.metrics.alignment import text_alignment
from edg.metrics.camera import GlobalMotion
from edg.metrics.motion import Flow, Frames

Embed = Callable[[Any], np.ndarray]  # of frames or prompts: (n, D)
Range = tuple[float | None, float | None]


@dataclass(frozen=True)
class FeatureExtractors:
    """Functions that metrics compute with.

    flow, flow_vbench: frames -> flow, the second possibly of padded pictures.
    subject: uint8 frames -> (T, D), for consistency.
    picture, text: frames and prompts -> (n, D) in one space, for alignment.
    """

    flow: Callable[[Frames], Flow] = motion.flow
    flow_vbench: Callable[[Frames], Flow] | None = None
    subject: Embed | None = None
    picture: Embed | None = None
    text: Embed | None = None


@dataclass(frozen=True)
class ClipFeatures:
    """A clip with its flow and embeddings, each computed once, when a metric asks for it. image: the input
    image in the clip's size. reference: the real clip, uint8 (T, H, W, 3)."""

    frames: Frames
    fps: float
    prompt: str = ""
    image: np.ndarray | None = None
    reference: Frames | None = None
    extractors: FeatureExtractors = field(default_factory=FeatureExtractors)

    @cached_property
    def flow(self) -> Flow:
        return self.extractors.flow(self.frames)

    @cached_property
    def global_motion(self) -> GlobalMotion:
        return camera.global_motion(self.flow)

    @cached_property
    def camera(self) -> list[str]:
        return camera.camera_motions(camera.tracks(self.flow), *self.frames.shape[1:3])

    @cached_property
    def subject(self) -> np.ndarray:
        return self.extractors.subject(self.frames)

    def dynamic(self) -> float:
        def flow(kept: Frames) -> Flow:
            if self.extractors.flow_vbench is not None:
                return self.extractors.flow_vbench(kept)
            return self.flow if len(kept) == len(self.frames) else self.extractors.flow(kept)

        return float(motion.dynamic(self.frames, self.fps, flow))

    def asked_camera(self) -> float | None:
        asked = camera.asked_motion(self.prompt)
        return None if asked is None else float(asked in self.camera)

    def i2v_subject(self) -> float:
        return consistency.i2v_subject(self.extractors.subject(self.image[None])[0], self.subject)

    def alignment(self) -> float:
        pictures = (
            self.subject
            if self.extractors.picture == self.extractors.subject
            else self.extractors.picture(self.frames)
        )
        return text_alignment(self.extractors.text([self.prompt])[0], pictures)


@dataclass(frozen=True)
class Metric:
    """A metric of a clip.

    better: "higher", or "" where neither is.
    of: the value, None where the metric does not apply to a clip.
    needs: fields of ClipFeatures and FeatureExtractors.
    range: the least and the largest value, None where there is no end.
    """

    unit: str
    better: str
    what: str
    of: Callable[[ClipFeatures], float | None]
    needs: tuple[str, ...] = ()
    range: Range = (None, None)


FROM_0, UNIT, SIGNED, DECIBEL = (0.0, None), (0.0, 1.0), (-1.0, 1.0), (0.0, consistency.IDENTICAL)  # ranges

METRICS = {
    "motion_degree": Metric(
        "px/frame", "", "mean length of the optical flow", lambda c: motion.motion_degree(c.flow),
        range=FROM_0,
    ),
    "motion_top5": Metric(
        "px/frame", "", "mean length of the largest 5 % of the flow",
        lambda c: float(motion.top_motion(c.flow).mean()), range=FROM_0,
    ),
    "dynamic_degree": Metric(
        "share", "higher", "VBench's rule: enough pixels move far enough in enough frames",
        ClipFeatures.dynamic, range=UNIT,
    ),
    "motion_smoothness": Metric(
        "share", "higher", "odd frames against the even ones, warped by the flow",
        lambda c: motion.smoothness(c.frames, c.extractors.flow), range=UNIT,
    ),
    "temporal_flickering": Metric(
        "share", "higher", "1 - mean difference of neighbouring frames / 255",
        lambda c: motion.flicker(c.frames), range=UNIT,
    ),
    "camera_x": Metric("px/frame", "", "global motion to the right", lambda c: c.global_motion.x),
    "camera_y": Metric("px/frame", "", "global motion down", lambda c: c.global_motion.y),
    "camera_zoom": Metric("%/frame", "", "global zoom, positive for growth", lambda c: c.global_motion.zoom),
    "camera_roll": Metric("degrees/frame", "", "global rotation, clockwise", lambda c: c.global_motion.roll),
    "camera_motion": Metric(
        "share", "higher", "VBench's rule: the camera moves as the prompt asks",
        ClipFeatures.asked_camera, ("prompt",), UNIT,
    ),
    "first_frame_psnr": Metric(
        "dB", "higher", "first frame against the input image",
        lambda c: consistency.psnr(c.frames[0], c.image), ("image",), DECIBEL,
    ),
    "first_frame_ssim": Metric(
        "", "higher", "first frame against the input image",
        lambda c: consistency.ssim(c.frames[0], c.image), ("image",), SIGNED,
    ),
    "i2v_subject": Metric(
        "", "higher", "VBench-I2V's formula: embeddings of input image and frames", ClipFeatures.i2v_subject,
        ("image", "subject"), UNIT,
    ),
    "subject_consistency": Metric(
        "", "higher", "VBench's formula: embeddings of frames",
        lambda c: consistency.subject_consistency(c.subject), ("subject",), UNIT,
    ),
    "text_alignment": Metric(
        "cosine", "higher", "similarity of prompt and frames in CLIP's space", ClipFeatures.alignment,
        ("prompt", "picture", "text"), SIGNED,
    ),
    "reference_psnr": Metric(
        "dB", "higher", "frames against those of the real clip",
        lambda c: consistency.psnr(c.frames, c.reference), ("reference",), DECIBEL,
    ),
    "reference_ssim": Metric(
        "", "higher", "frames against those of the real clip",
        lambda c: consistency.clip_ssim(c.frames, c.reference), ("reference",), SIGNED,
    ),
}  # fmt: skip

SETS = {
    "frechet_distance": "distance of Gaussians fitted to the features of both sets (FVD with video features)",
    "kernel_distance": "unbiased squared maximum mean discrepancy of the features, polynomial kernel (KVD)",
}


def range_of(name: str) -> Range:
    """The least and the largest value of a metric; no ends for one that is not of this catalogue."""
    return METRICS[name].range if name in METRICS else (None, None)
