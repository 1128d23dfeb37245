"""How sampled clips of the sprites world are judged: the tracker's figures over many clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edg.sprites.tracker import Track, track
from edg.sprites.world import PACES, Clip, words_of


@dataclass(frozen=True)
class Score:
    """Means over clips. speed: px/frame; direction, intact: shares; slowly, quickly: speed by the pace of
    the caption."""

    clips: int
    speed: float
    direction: float
    intact: float
    intact_frames: float
    slowly: float
    quickly: float


def judge(videos: Sequence[np.ndarray], clips: Sequence[Clip]) -> tuple[Score, list[Track]]:
    """Score sampled videos (T, H, W, 3) against the clips whose first frame and caption they were made
    from."""
    tracks = [track(video, clip.sprite) for video, clip in zip(videos, clips, strict=True)]
    paces = [words_of(clip, told=True).pace for clip in clips]

    def speed_at(pace: str) -> float:
        chosen = [t.speed for t, p in zip(tracks, paces, strict=True) if p == pace]
        return float(np.mean(chosen)) if chosen else float("nan")

    right = [t.direction == clip.motion.direction for t, clip in zip(tracks, clips, strict=True)]
    score = Score(
        clips=len(clips),
        speed=float(np.mean([t.speed for t in tracks])),
        direction=float(np.mean(right)),
        intact=float(np.mean([t.intact for t in tracks])),
        intact_frames=float(np.mean([t.intact_frames for t in tracks])),
        **{pace: speed_at(pace) for pace in PACES},
    )
    return score, tracks
