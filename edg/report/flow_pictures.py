"""Pictures of a clip for the comparison page: a strip of frames, a strip of optical flow, the motion curve.

They lie in the page's media folder, named by the hash of the clip, so a second report finds them without
decoding anything. In flow pictures hue is the direction, brightness the square root of the speed; what is
slower than FLOOR is black.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from edg.core.errors import BadFileError
from edg.core.files import atomic_path, read_json, write_text
from edg.core.formats import ANIMATIONS, clip_sha256, read_timed
from edg.core.hashing import sha256_file
from edg.core.sheet import is_small
from edg.core.video import open_film, read_image, read_rate, write_video
from edg.report.collect import is_number

VERSION = 4  # of these pictures; those of another version are made again
LIMIT = 0.05  # of the shorter side, per frame: the speed that has full colour
# px/frame of the pictures that flow is taken from. Of a drawn scene that stands still, with a texture of 8
# grey levels, 99 % of the flow is below 0.02 px after H.264 at crf 10 and below 0.08 px at crf 23.
FLOOR = 0.1
FRAMES, PAIRS = 8, 24  # at most so many cells in a strip
CELL = 192  # px, the longer side of a cell
WORKING_SIDE = 320  # px; flow of larger clips is taken from smaller frames and scaled
PLAYED = (".mp4", ".webm")  # endings of files that browsers may play; others become mp4
KEY = 32  # hexadecimal digits of a file's sha256


def clip_media(video: Path, media: Path) -> dict[str, Any]:
    """The media files of one clip, made where they are missing.

    Returns {"key", "video", "strip", "flow": file names, "n", "fps", "w", "h", "cells": flow pictures in the
    strip, "curve": px/frame for each pair}. Raises BadFileError when the video cannot be read.
    """
    key = clip_sha256(video)[:KEY]
    facts = _known(media, key)
    return facts or _make(video, media, key)


def _known(media: Path, key: str) -> dict[str, Any] | None:
    """The stored facts of this clip, which are written last; None when one of its files is missing, or when
    they are not as `_make` writes them (the folder may be somebody else's)."""
    with suppress(BadFileError):
        facts = read_json(media / f"{key}.facts.json")
        if _is_ours(facts, key) and all((media / name).is_file() for name in media_files(facts)):
            return facts
    return None


def _is_ours(facts: Any, key: str) -> bool:
    if not isinstance(facts, dict) or (facts.get("version"), facts.get("key")) != (VERSION, key):
        return False
    video, strip, flow, curve = (facts.get(part) for part in ("video", "strip", "flow", "curve"))
    named = video in [key + ending for ending in PLAYED] and strip == f"{key}.strip.webp"
    numbers = [facts.get(part) for part in ("n", "fps", "w", "h", "cells")]
    numbers += curve if isinstance(curve, list) else [None]
    return named and flow in ("", f"{key}.flow.webp") and all(map(is_number, numbers))


def media_files(facts: dict[str, Any]) -> list[str]:
    """Names of the media files that a clip's facts list."""
    return [facts[part] for part in ("video", "strip", "flow") if facts.get(part)]


def _make(video: Path, media: Path, key: str) -> dict[str, Any]:
    from edg.metrics.motion import pair_motion

    frames, rate = read_timed(video)
    rate = rate or read_rate(video)
    count, height, width = frames.shape[:3]
    facts = {"version": VERSION, "key": key, "n": count, "fps": round(rate, 3), "w": width, "h": height}
    facts |= {"strip": f"{key}.strip.webp", "flow": "", "cells": 0, "curve": []}
    facts["video"] = _copy(video, media, key, frames, rate)
    _write_picture(media / facts["strip"], _strip(frames[_spread(count, FRAMES)]), is_small(height, width))
    if count > 1:
        found = clip_flow(frames)
        shown = _shrunk_flow(found[_spread(len(found), PAIRS)])
        facts |= {"flow": f"{key}.flow.webp", "cells": len(shown)}
        facts["curve"] = [round(float(value), 4) for value in pair_motion(found)]
        side = min(height, width)
        colours = flow_colours(shown, LIMIT * side, noise_floor(side))
        _write_picture(media / facts["flow"], _strip(colours), is_small(height, width))
    write_text(media / f"{key}.facts.json", json.dumps(facts, separators=(",", ":")))
    return facts


def _copy(video: Path, media: Path, key: str, frames: np.ndarray, rate: float) -> str:
    """Put the clip into the media folder as a file that browsers play; returns its name."""
    moving = video.is_dir() or video.suffix.lower() in ANIMATIONS
    ending = "" if moving else open_film(video).web_ending
    if not ending:
        even = np.pad(frames, ((0, 0), (0, -frames.shape[1] % 2), (0, -frames.shape[2] % 2), (0, 0)), "edge")
        write_video(media / f"{key}.mp4", even, rate)
        return f"{key}.mp4"
    return add_media(video, media / f"{key}{ending}")


def add_media(source: Path, target: Path) -> str:
    """Put a file into the media folder, as a hard link where possible; returns its name."""
    if not target.is_file():
        try:
            os.link(source.resolve(), target)
        except OSError:
            with atomic_path(target) as temporary:
                shutil.copyfile(source, temporary)
    return target.name


def image_media(image: Path, media: Path) -> str:
    """Put an input image, at most 512 px large, into the media folder; returns its name. Raises
    BadFileError."""
    from PIL import Image

    name = f"{sha256_file(image)[:KEY]}.input.webp"
    if not (media / name).is_file():
        picture = Image.fromarray(read_image(image))
        picture.thumbnail((512, 512))
        _write_picture(media / name, np.asarray(picture), is_small(picture.height, picture.width))
    return name


# ---- flow --------------------------------------------------------------------------------------------------


def clip_flow(frames: np.ndarray) -> np.ndarray:
    """Optical flow of uint8 frames (T, H, W, 3): float32 (T-1, h, w, 2) in px/frame of the clip; large clips
    are measured at a smaller size."""
    from edg.metrics.motion import flow

    height, width = frames.shape[1:3]
    scale = min(1.0, WORKING_SIDE / min(height, width))
    if scale == 1.0:
        return flow(frames)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.stack([_resized(frame, size) for frame in frames])
    return flow(small) * np.float32([width / size[0], height / size[1]])


def _shrunk_flow(flow: np.ndarray) -> np.ndarray:
    """Flow (N, h, w, 2) averaged down to the size of a cell; its lengths stay in px of the clip."""
    size = _cell_size(*flow.shape[1:3])
    parts = [[_resized(pair[..., axis], size) for axis in (0, 1)] for pair in flow]
    return np.moveaxis(np.array(parts), 1, -1)


def noise_floor(side: int) -> float:
    """FLOOR in px/frame of a clip whose shorter side this is: larger ones are measured at WORKING_SIDE."""
    return FLOOR * max(1.0, side / WORKING_SIDE)


def flow_colours(flow: np.ndarray, limit: float, floor: float = 0.0) -> np.ndarray:
    """Colours of flow, float (..., 2) -> uint8 (..., 3). Hue: 0 red to the right, then clockwise through
    yellow (down and right), green, blue; value: sqrt(speed / limit) up to 1. Below `floor` all is black."""
    u, v = flow[..., 0], flow[..., 1]
    hue = np.arctan2(v, u) / (2 * np.pi) % 1.0
    speed = np.hypot(u, v)
    value = np.where(speed < floor, 0, np.sqrt(np.minimum(speed / limit, 1.0)))
    saturation = 0.9
    parts = []
    for n in (5, 3, 1):  # HSV to RGB (Smith 1978), one channel at a time
        k = (n + 6 * hue) % 6
        parts.append(value * (1 - saturation * np.clip(np.minimum(k, 4 - k), 0, 1)))
    return np.round(np.stack(parts, axis=-1) * 255).astype(np.uint8)


def colour_wheel(size: int = 160) -> np.ndarray:
    """The colour key, uint8 (size, size, 3): each place has the colour of flow from the middle to it."""
    at = (np.arange(size) + 0.5) / size * 2 - 1
    return flow_colours(np.stack(np.meshgrid(at, at), axis=-1), 1.0)


# ---- pictures ----------------------------------------------------------------------------------------------


def _spread(count: int, most: int) -> np.ndarray:
    """Up to `most` indices below count, evenly spaced, first and last included."""
    return np.round(np.linspace(0, count - 1, min(count, most))).astype(int)


def _strip(pictures: np.ndarray) -> np.ndarray:
    """Pictures (N, H, W, 3) side by side, each at most CELL large."""
    size = _cell_size(*pictures.shape[1:3])
    return np.concatenate([_resized(picture, size) for picture in pictures], axis=1)


def _cell_size(height: int, width: int) -> tuple[int, int]:
    scale = min(1.0, CELL / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    if picture.shape[1::-1] == size:
        return picture
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


def _write_picture(path: Path, picture: np.ndarray, exact: bool) -> None:
    """Write a WebP; exact: without loss, for what is shown by whole pixels."""
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, "WEBP", lossless=exact, quality=80, method=2)
