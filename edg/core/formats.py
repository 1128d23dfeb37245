"""A clip as files: mp4 (H.264), mov (ProRes), gif, webp, or png, a folder of frames; each with tags inside.

Tags are texts by name (prompt, seed, ...): container metadata in mp4 and mov, a text chunk each in png, and
one JSON text in gif (its comment) and webp (EXIF ImageDescription).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edg.core import video
from edg.core.errors import BadFileError, EdgError, UsageError, nearest
from edg.core.records import atomic_folder, atomic_path, sha256_file
from edg.core.video import need_reasonable_clip, read_frames, read_metadata, write_video

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("mp4", "gif", "webp", "png", "mov")
VIDEOS = (".mp4", ".webm", ".m4v", ".mov", ".mkv", ".avi", ".gif")  # what else is read, beside webp and png
FIRST_FRAME = "00000.png"
FRAME = re.compile(r"\d{5,}\.png")
DESCRIPTION = 0x010E  # EXIF ImageDescription
GIF_FPS = 50  # viewers slow down what asks for more
PALETTE_FRAMES = 8
USUAL_FPS, MOST_FRAMES = 8.0, 256  # of frames that tell no rate; up to which joined frames are taken apart


def parse_formats(text: str) -> tuple[str, ...]:
    """`mp4,gif` -> ("mp4", "gif"). Raises UsageError for a name that is no format."""
    names = [name.strip().lower().lstrip(".") for name in text.split(",")]
    for name in names:
        if name not in FORMATS:
            raise UsageError(
                f"format {name!r}", expected=", ".join(FORMATS) + ", or several with commas",
                fix=nearest(name, FORMATS),
            )  # fmt: skip
    return tuple(dict.fromkeys(names))


def place(folder: Path, stem: str, format: str) -> Path:
    """Where a clip of that format lies: STEM.mp4, ...; png is the folder STEM."""
    return folder / stem if format == "png" else folder / f"{stem}.{format}"


def stem_of(path: Path) -> str:
    """A clip's name without what tells its format: `place` turned round."""
    return path.name if path.is_dir() else path.stem


def is_clip(path: Path) -> bool:
    """Whether this is a video, an animation, or a folder of frames. A webp that stands still is a picture."""
    if path.name.startswith("."):
        return False
    if path.is_dir():
        return (path / FIRST_FRAME).is_file()
    return path.suffix.lower() in VIDEOS or (path.suffix.lower() == ".webp" and _is_animated(path))


def _is_animated(path: Path) -> bool:
    """The flag of animation in the first chunk of a webp (VP8X), without decoding anything."""
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(21)
    except OSError:
        return False
    return head[12:16] == b"VP8X" and len(head) == 21 and bool(head[20] & 2)


def check_speed(formats: Sequence[str], fps: float, crf: int) -> None:
    """Raise UsageError for frames per second or a quality that a file of these formats cannot have."""
    if not (isinstance(fps, Real) and 0.1 <= fps <= 240):
        raise UsageError(f"--fps {fps!r}", expected="0.1 <= fps <= 240")
    if "gif" in formats and fps > GIF_FPS:
        raise UsageError(f"--fps {fps:g} with gif", expected=f"at most {GIF_FPS}, or another format")
    if not (isinstance(crf, int) and 0 <= crf <= 51):
        raise UsageError(f"--crf {crf!r}", expected="0 <= crf <= 51")


def write_clip(
    path: str | Path, frames: np.ndarray, format: str, *, fps: float, crf: int, tags: Mapping[str, str]
) -> None:
    """uint8 (T, H, W, 3) to `path`, atomically. crf counts for mp4 alone. Raises UsageError, MachineError."""
    check_speed([format], fps, crf)
    if format in ("mp4", "mov"):
        return write_video(path, frames, fps, crf, tags=tags)
    pictures = _pictures(frames)
    if format == "png":
        return _write_folder(Path(path), pictures, tags)
    text = json.dumps(dict(tags))  # ASCII, which is all that EXIF takes
    with atomic_path(path) as temporary:
        if format == "gif":
            pictures, times = _with_one_palette(pictures), durations(len(frames), fps, 10)
            more = {"comment": text.encode(), "disposal": 1, "optimize": False}
        else:
            times = durations(len(frames), fps, 1)
            more = {"exif": _exif(text), "lossless": True}  # lossy, libwebp leaves out frames that are alike
        first, *rest = pictures
        first.save(
            temporary, format=format, save_all=True, append_images=rest, duration=times, loop=0, **more
        )


def durations(count: int, fps: float, unit: int) -> list[int]:
    """Milliseconds that each frame is shown, whole multiples of `unit`, without drifting from fps."""
    ends = [round(1000 * i / fps / unit) * unit for i in range(count + 1)]
    return [max(unit, end - begin) for begin, end in zip(ends, ends[1:], strict=False)]


def _pictures(frames: np.ndarray) -> list[Image.Image]:
    from PIL import Image

    return [Image.fromarray(frame) for frame in np.ascontiguousarray(frames)]


def _write_folder(path: Path, pictures: Sequence[Image.Image], tags: Mapping[str, str]) -> None:
    from PIL.PngImagePlugin import PngInfo

    _check_replaceable(path)
    chunks = PngInfo()
    for name, text in tags.items():
        chunks.add_itxt(name, text)
    with atomic_folder(path) as temporary:
        for index, picture in enumerate(pictures):
            picture.save(temporary / f"{index:05d}.png", pnginfo=chunks)


def _check_replaceable(path: Path) -> None:
    """Raise UsageError where frames would take the place of something else than frames."""
    strange = path.name if path.is_file() else ""
    if path.is_dir():
        strange = next((one.name for one in path.iterdir() if not FRAME.fullmatch(one.name)), "")
    if strange:
        raise UsageError(
            f"{path} has {strange} in it" if path.is_dir() else f"{path} is a file",
            expected="a new name for the folder of frames, or that of one to be replaced",
        )


def _with_one_palette(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """The frames in 256 colours, the same for all: colours chosen for each frame alone would flicker."""
    from PIL import Image

    chosen = pictures[:: max(1, len(pictures) // PALETTE_FRAMES)]
    width, height = chosen[0].size
    sheet = Image.new("RGB", (width, height * len(chosen)))
    for row, picture in enumerate(chosen):
        sheet.paste(picture, (0, row * height))
    palette = sheet.quantize(256)
    return [picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for picture in pictures]


def _exif(text: str) -> Image.Exif:
    from PIL import Image

    exif = Image.Exif()
    exif[DESCRIPTION] = text
    return exif


# ---- back --------------------------------------------------------------------------------------------------


def read_clip(path: str | Path) -> np.ndarray:
    """All frames of a clip of any format as uint8 (T, H, W, 3). Viewers' formats (gif, webp) join frames that
    are equal. Raises BadFileError."""
    path = Path(path)
    _need_files(path)
    if path.is_dir() or path.suffix.lower() in (".gif", ".webp"):
        return _stacked(path, _open_all(path))
    return read_frames(path)


def _need_files(path: Path) -> None:
    """Raise BadFileError for a pipe or a device, as a clip or among its frames: it would be waited for."""
    for file in path.glob("*.png") if path.is_dir() else (path,):
        if file.exists() and not file.is_file():
            raise BadFileError(f"{file} is not a file")


def read_timed(path: str | Path) -> tuple[np.ndarray, float]:
    """All frames of a clip of any format as uint8 (T, H, W, 3), and its frames per second (0 where a video
    does not say). Frames that gif or webp have joined come as often as they are shown. Raises
    BadFileError."""
    path = Path(path)
    if path.is_dir():
        return read_clip(path), _told_rate(path)
    _need_files(path)
    if path.suffix.lower() not in (".gif", ".webp"):
        return video.read_clip(path)
    pictures = _open_all(path)
    times = np.array([picture.info.get("duration") or 1000 / USUAL_FPS for picture in pictures])
    single = times[times < 1.5 * times.min()].mean()  # milliseconds; gif's are 120 and 130 for 125
    counts = np.maximum(1, np.round(times / single)).astype(int)
    if counts.sum() > MOST_FRAMES:
        counts[:] = 1
    return _stacked(path, pictures).repeat(counts, axis=0), round(1000 * float(counts.sum() / times.sum()), 3)


def _told_rate(path: Path) -> float:
    """Frames per second by the settings inside a clip."""
    with suppress(ValueError, KeyError, TypeError):
        return float(json.loads(read_tags(path)["comment"])["fps"])
    return USUAL_FPS


def read_tags(path: str | Path) -> dict[str, str]:
    """The tags in a clip of any format ({} when there are none). Raises BadFileError."""
    path = Path(path)
    if not (path.is_dir() or path.suffix.lower() in (".gif", ".webp")):
        return read_metadata(path)
    first = _open_all(path)[0]
    if path.is_dir():
        return dict(first.text)
    text = (
        first.info.get("comment", b"")
        if path.suffix.lower() == ".gif"
        else first.getexif().get(DESCRIPTION, "")
    )
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _open_all(path: Path) -> list[Image.Image]:
    from PIL import Image, ImageSequence

    try:
        if path.is_dir():
            pictures = [Image.open(file, formats=["PNG"]) for file in sorted(path.glob("*.png"))]
            for number, picture in enumerate(pictures, 1):
                need_reasonable_clip(path, number, picture.size)
        else:
            with Image.open(path, formats=["GIF", "WEBP"]) as film:
                need_reasonable_clip(path, getattr(film, "n_frames", 1), film.size)
                pictures = [frame.copy() for frame in ImageSequence.Iterator(film)]
        for picture in pictures:
            picture.load()
    except EdgError:
        raise
    except Exception as error:  # Pillow's readers raise nearly every kind for broken files
        raise BadFileError(f"cannot read the clip {path}: {error}") from error
    if not pictures:
        raise BadFileError(f"the clip {path} holds no frame")
    return pictures


def _stacked(path: Path, pictures: Sequence[Image.Image]) -> np.ndarray:
    sizes = {picture.size for picture in pictures}
    if len(sizes) > 1:
        raise BadFileError(f"the frames of {path} are of {len(sizes)} sizes", expected="one")
    return np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])


def digest(path: str | Path) -> str:
    """sha256 of a clip's file; of a folder, over the names and digests of what is in it. Raises
    BadFileError."""
    path = Path(path)
    if not path.is_dir():
        return sha256_file(path)
    lines = [f"{file.name} {sha256_file(file)}\n" for file in sorted(path.iterdir())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
