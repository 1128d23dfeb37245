"""Clips as files: mp4 (H.264), mov (ProRes), gif, webp, or png, a folder of frames; each with metadata
inside. Videos, animations and folders of numbered frames by other programs are read, too.

Metadata are texts by name (prompt, seed, ...): container metadata in mp4 and mov, text chunks in png, one
JSON text in gif (its comment) and webp (EXIF ImageDescription).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from edg.core import video
from edg.core.colour import to_rgb
from edg.core.errors import BadFileError, EdgError, UsageError, nearest
from edg.core.files import atomic_folder, atomic_path
from edg.core.hashing import sha256_file
from edg.core.video import check_clip_size, read_frames, read_metadata, write_video

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("mp4", "gif", "webp", "png", "mov")
VIDEOS = (".mp4", ".webm", ".m4v", ".mov", ".mkv", ".avi", ".gif")
VIDEOS += (".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".3gp")  # all that training reads
ANIMATIONS = (".gif", ".webp", ".png", ".apng", ".avif")  # all but gif may stand still as well
STILLS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")  # what frames of a folder may be
FIRST_FRAME = "00000.png"
FRAME = re.compile(r"\d{5,}\.png")
NUMBERED = re.compile(r"(.*?)([0-9]+)([^0-9]*)", re.DOTALL)  # a stem: what is before, number, what is behind
DESCRIPTION = 0x010E  # EXIF ImageDescription
GIF_FPS = 50  # viewers slow down what asks for more
PALETTE_FRAMES = 8
LARGEST_WEBP = 1 << 30  # bytes
USUAL_FPS, MOST_FRAMES = 8.0, 256  # of frames without a rate; up to which joined frames are split


def parse_formats(text: str) -> tuple[str, ...]:
    """`mp4,gif` -> ("mp4", "gif"). Raises UsageError for a name that is no format."""
    names = [name.strip().lower().lstrip(".") for name in text.split(",")]
    for name in names:
        if name not in FORMATS:
            raise UsageError(
                f"format {name!r}", expected=", ".join(FORMATS) + ", or several separated by commas",
                fix=nearest(name, FORMATS),
            )  # fmt: skip
    return tuple(dict.fromkeys(names))


def clip_path(folder: Path, stem: str, format: str) -> Path:
    """The path of a clip in a format: STEM.mp4, ...; png is the folder STEM."""
    return folder / stem if format == "png" else folder / f"{stem}.{format}"


def clip_stem(path: Path) -> str:
    """The name of a clip without its format: the reverse of `clip_path`."""
    return path.name if path.is_dir() else path.stem


def is_clip(path: Path) -> bool:
    """True for a video, an animation, or a folder of frames. A webp of one frame is a picture."""
    if path.name.startswith("."):
        return False
    if path.is_dir():
        return (path / FIRST_FRAME).is_file() or _has_frames(path)
    suffix = path.suffix.lower()
    return suffix in VIDEOS or (suffix in ANIMATIONS and _is_animated(path))


def _is_animated(path: Path) -> bool:
    """True if a webp, png or avif is animated, by its first chunks, without decoding anything."""
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(21)
            if head[:8] == b"\x89PNG\r\n\x1a\n":
                return _has_animation_chunk(file)
    except OSError:
        return False
    if head[4:8] == b"ftyp":
        return head[8:12] == b"avis"
    return head[12:16] == b"VP8X" and len(head) == 21 and bool(head[20] & 2)


def _has_animation_chunk(png: BinaryIO) -> bool:
    png.seek(8)
    for _ in range(100):  # acTL comes before the picture; few chunks do
        length, kind = int.from_bytes(png.read(4), "big"), png.read(4)
        if kind in (b"acTL", b"IDAT", b""):
            return kind == b"acTL"
        png.seek(length + 4, 1)
    return False


# ---- folders of frames -------------------------------------------------------------------------------------


def _pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder but those that `edg sample --preview` makes."""
    paths = [path for path in folder.iterdir() if path.suffix.lower() in STILLS]
    return [path for path in paths if not path.name.startswith(".") and not path.stem.endswith(".preview")]


def _series(paths: Sequence[Path]) -> dict[tuple[str, str] | None, dict[int, list[Path]]]:
    """(Text before the number, text after it) -> number -> files; None -> those without a number."""
    found: dict[tuple[str, str] | None, dict[int, list[Path]]] = {}
    for path in sorted(paths):
        parts = NUMBERED.fullmatch(path.stem)
        name, number = ((parts[1], parts[3]), int(parts[2][:18])) if parts else (None, 0)
        found.setdefault(name, {}).setdefault(number, []).append(path)
    return found


def _has_frames(folder: Path) -> bool:
    """True if a folder holds pictures that are numbered in one way. One with texts is a folder of
    prompts, one with videos or animations a folder of clips."""
    try:
        if any(path.suffix.lower() in (".txt", *VIDEOS) for path in folder.iterdir()):
            return False
        series = _series(_pictures_in(folder))
    except OSError:
        return False
    numbered = [list(numbers.values()) for name, numbers in series.items() if name and len(numbers) > 1]
    return any(not _is_animated(files[0][0]) for files in numbered)


def frame_files(folder: Path) -> list[Path]:
    """The frames of a folder in the order of their numbers, whatever the text around these.

    Raises BadFileError with the reason: no frames, other pictures among them, a number that is missing or
    there twice.
    """
    try:
        series = _series(_pictures_in(folder))
    except OSError as error:
        raise BadFileError(f"cannot read the folder {folder}: {error.strerror}") from error
    if not series:
        raise BadFileError(f"the clip {folder} holds no frame", expected="pictures such as 00000.png")
    expected = "frames with one name and a number each, such as frame_0001.png"
    if len(series) > 1 or None in series:
        names = [next(iter(numbers.values()))[0].name for numbers in series.values()]
        others = f" and {len(names) - 2} more kinds" * (len(names) > 2)
        raise BadFileError(
            f"{folder} holds pictures of several names: {', '.join(names[:2])}{others}", expected=expected
        )
    [numbers] = series.values()
    twice = next((paths for paths in numbers.values() if len(paths) > 1), None)
    if twice:
        given = f"{folder} holds frame {twice[0].name} twice, as {twice[1].name}"
        raise BadFileError(given, expected=expected)
    order = sorted(numbers)
    step = min((b - a for a, b in zip(order, order[1:], strict=False)), default=1)
    gap = next((a for a, b in zip(order, order[1:], strict=False) if b - a != step), None)
    if gap is not None:
        raise BadFileError(
            f"{folder}: number {gap + step} is missing after {numbers[gap][0].name}", expected=expected
        )
    return [numbers[number][0] for number in order]


def check_speed(formats: Sequence[str], fps: float, crf: int) -> None:
    """Raise UsageError for a frame rate or a quality that a file of these formats cannot have."""
    if not (isinstance(fps, Real) and 0.1 <= fps <= 240):
        raise UsageError(f"--fps {fps!r}", expected="0.1 <= fps <= 240")
    if "gif" in formats and fps > GIF_FPS:
        raise UsageError(f"--fps {fps:g} with gif", expected=f"at most {GIF_FPS}, or another format")
    if not (isinstance(crf, int) and not isinstance(crf, bool) and 0 <= crf <= 51):
        raise UsageError(f"--crf {crf!r}", expected="0 <= crf <= 51")


def write_clip(
    path: str | Path, frames: np.ndarray, format: str, *, fps: float, crf: int, tags: Mapping[str, str]
) -> None:
    """Write uint8 (T, H, W, 3) to `path`, atomically. crf counts for mp4 alone, 0 as 1. Raises
    UsageError, MachineError."""
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
    """Milliseconds of each frame, whole multiples of `unit`, without drifting from fps."""
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
    """Raise UsageError where a folder of frames would replace something else."""
    strange = path.name if path.is_file() else ""
    if path.is_dir():
        strange = next((one.name for one in path.iterdir() if not FRAME.fullmatch(one.name)), "")
    if strange:
        raise UsageError(
            f"{path} has {strange} in it" if path.is_dir() else f"{path} is a file",
            expected="a new folder, or a folder of frames to replace",
        )


def _with_one_palette(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """The frames in 256 colours, the same for all: a palette for each frame would flicker."""
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
    """All frames of a clip of any format as uint8 (T, H, W, 3). Viewers' formats (gif, webp, ...) join frames
    that are equal. Raises BadFileError."""
    path = Path(path)
    if path.is_dir():
        return _stacked(path, map(video.read_image, frame_files(path)))
    if _is_picture(path):
        return _animation(path)[0]
    return read_frames(path)


def _is_picture(path: Path) -> bool:
    """True if Pillow reads the clip. Raises BadFileError for a pipe or a device: it would be waited for."""
    if path.exists() and not path.is_file():
        raise BadFileError(f"{path} is not a file")
    return path.suffix.lower() in ANIMATIONS


def read_timed(path: str | Path) -> tuple[np.ndarray, float]:
    """All frames of a clip of any format as uint8 (T, H, W, 3), and its frames per second (0 where a
    video has none). Frames that gif or webp have joined, and those of a variable rate, are repeated as
    long as they are shown. Raises BadFileError."""
    path = Path(path)
    if path.is_dir():
        return read_clip(path), _rate_of_settings(path)
    if not _is_picture(path):
        return video.read_steady(path, MOST_FRAMES)
    frames, times = _animation(path)
    single = times[times < 1.5 * times.min()].mean()  # milliseconds; gif's are 120 and 130 for 125
    counts = np.maximum(1, np.round(times / single)).astype(int)
    if counts.sum() > MOST_FRAMES:
        counts[:] = 1
    return frames.repeat(counts, axis=0), round(1000 * float(counts.sum() / times.sum()), 3)


def clip_shape(path: str | Path) -> tuple[int, int, int, float]:
    """(T, H, W, frames per second) of a clip of any format; 0 frames per second where it does not say.
    Raises BadFileError."""
    path = Path(path)
    if path.is_dir():
        first, *others = frame_files(path)
        height, width, _ = video.read_image(first).shape
        return 1 + len(others), height, width, _rate_of_settings(path, 0.0)
    if _is_picture(path):
        frames, rate = read_timed(path)
        return *frames.shape[:3], rate
    film = video.open_film(path)
    return film.frames, *film.size, film.fps


def _rate_of_settings(path: Path, otherwise: float = USUAL_FPS) -> float:
    """Frames per second by the settings in a clip's metadata."""
    with suppress(ValueError, KeyError, TypeError):
        return float(json.loads(read_tags(path)["comment"])["fps"])
    return otherwise


def read_tags(path: str | Path) -> dict[str, str]:
    """The metadata of a clip of any format ({} when there are none). Raises BadFileError."""
    path = Path(path)
    if path.is_dir():
        path, *others = frame_files(path)
        for other in others:
            with _opened(other):
                pass  # what is damaged is no clip
    if not _is_picture(path) and path.suffix.lower() not in STILLS:
        return read_metadata(path)
    with _opened(path) as picture:
        if picture.format == "PNG":
            return dict(picture.text)
        if picture.format == "GIF":
            text = picture.info.get("comment", b"")
        else:
            text = picture.getexif().get(DESCRIPTION, "")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture file and decode its first picture. Raises BadFileError."""
    from PIL import Image

    try:
        with Image.open(_source(path), formats=video.PICTURES) as picture:
            check_clip_size(path, getattr(picture, "n_frames", 1), picture.size)
            picture.load()
            yield picture
    except EdgError:
        raise
    except Exception as error:  # Pillow's readers raise nearly every kind for broken files
        raise BadFileError(f"cannot read the clip {path}: {error}") from error


def _source(path: Path) -> Path | BytesIO:
    """A file for Pillow. A webp's frames may be opaque, each on a part of a clear canvas: the file is
    marked as one with alpha, without which Pillow makes the canvas black."""
    with open(path, "rb") as file:
        if file.read(4) != b"RIFF" or path.stat().st_size > LARGEST_WEBP:
            return path
        data = bytearray(b"RIFF" + file.read())
    if data[12:16] == b"VP8X" and len(data) > 20:
        data[20] |= 0x10
    return BytesIO(data)


def _animation(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 (T, H, W, 3), milliseconds that each is shown) of gif, webp, png or avif, on white as a still
    picture is."""
    from PIL import ImageSequence

    pictures, times = [], []
    with _opened(path) as film:
        for number, frame in enumerate(ImageSequence.Iterator(film)):
            if number == 0 and getattr(film, "default_image", False):
                continue  # an apng's picture for viewers that know no apng
            pictures.append(np.asarray(to_rgb(frame)))
            times.append(frame.info.get("duration") or 1000 / USUAL_FPS)
    return _stacked(path, pictures), np.array(times)


def _stacked(path: Path, pictures: Iterable[np.ndarray]) -> np.ndarray:
    found: list[np.ndarray] = []
    for picture in pictures:
        found.append(picture)
        check_clip_size(path, len(found), picture.shape[1::-1])
    sizes = {picture.shape for picture in found}
    if len(sizes) > 1:
        raise BadFileError(f"the frames of {path} are of {len(sizes)} sizes", expected="frames of one size")
    return np.stack(found)


def clip_sha256(path: str | Path) -> str:
    """SHA-256 of a clip's file; of a folder, over the names and hashes of its files. Raises BadFileError."""
    path = Path(path)
    if not path.is_dir():
        return sha256_file(path)
    lines = [f"{file.name} {sha256_file(file)}\n" for file in sorted(path.iterdir()) if file.is_file()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
