"""Pictures and frames to and from files. Frames are uint8 (T, H, W, 3), networks see [-1, 1].

What a picture file becomes: EXIF rotation applied, transparency laid on white, CMYK and palettes to RGB,
16-bit grey scaled by 1/257, float grey taken as 0..1, the first picture of an animation.
"""

from __future__ import annotations

import logging
import os
import stat
import warnings
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edg.core.errors import BadFileError, EdgError, MachineError, UsageError
from edg.core.records import atomic_path

if TYPE_CHECKING:
    import torch
    from av.container import InputContainer
    from PIL import Image

    from edg.core.films import Film

MAX_PIXELS = 64_000_000
# Every further decoder that Pillow has is code that a file called .png could reach.
PICTURES = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
# A playlist called .mp4 would make FFmpeg read what it names, files and hosts.
FILMS = "mov,mp4,matroska,webm,avi,gif,mpeg,mpegts,mpegvideo,asf,flv,ogg,m4v,h264,hevc,ivf,mxf"
MAX_CLIP = 4 << 30  # bytes of decoded frames
# One encoder thread, and no macroblock tree: with it x264 reads memory that it has not written (seen at 64x48
# and below: one file in ten differs), without it the same frames give the same file.
REPEATABLE = {"threads": "1", "mbtree": "0"}


# ---- pictures in -------------------------------------------------------------------------------------------


def read_image(path: str | Path) -> np.ndarray:
    """A picture file as uint8 RGB (H, W, 3).

    Raises BadFileError when it is missing, not a file, not a picture, cut short, or above 64 megapixels.
    """
    from PIL import Image, ImageOps

    path = Path(path)
    _need_regular_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=PICTURES) as image:
                _need_reasonable_size(path, image.size)
                image.load()
                return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
    except EdgError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(path, "") from error
    except MemoryError as error:
        raise _too_large(path, "") from error
    except Exception as error:  # Pillow's readers raise nearly every kind for broken files
        reason = str(error).replace(str(path), path.name) or type(error).__name__
        raise BadFileError(
            f"cannot read the image {path}: {reason}", expected="a jpg, png or webp file"
        ) from error


def pictures_in(path: str | Path) -> int:
    """How many pictures a file holds, of which `read_image` takes the first: more than one in an animation.
    Raises BadFileError."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=PICTURES) as image:  # in a photograph's MPO the others are previews
                return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    except Exception as error:  # as above
        raise BadFileError(f"cannot read the image {path}: {error}") from error


def _need_regular_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise BadFileError(f"cannot open the image {path}: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise BadFileError(f"{path} is not a file", expected="an image file")
    if path.stat().st_size == 0:
        raise BadFileError(f"the image {path} is empty (0 bytes)")


def _need_reasonable_size(path: Path, size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise _too_large(path, f" ({size[0]}x{size[1]})")


def _too_large(path: Path, size: str) -> BadFileError:
    return BadFileError(
        f"the image {path} is too large{size}", expected="at most 64 megapixels", fix="shrink it first"
    )


def _to_rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I"):  # Pillow clips 16-bit grey at 255 instead of scaling it
        grey = np.clip(np.round(np.asarray(image).astype(np.float64) / 257), 0, 255)
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        grey = np.clip(np.nan_to_num(np.asarray(image)), 0, 1) * 255
        return Image.fromarray(np.round(grey).astype(np.uint8)).convert("RGB")
    if image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture).convert("RGB")
    return image.convert("RGB")


def fit_image(
    image: np.ndarray, height: int, width: int, crop: bool = False, pad: bool = False
) -> torch.Tensor:
    """uint8 (H, W, 3) to float32 (3, height, width) in [-1, 1].

    Neither: resized to exactly this size, the aspect ratio is not kept (released; antialiased bilinear).
    crop: resized to cover the size, then cut in the centre. pad: resized to lie within it, on black.
    """
    import torch
    from PIL import Image

    assert not (crop and pad)
    picture = Image.fromarray(image)
    box = (0, 0, *picture.size)
    if pad:
        covered = max(picture.width / width, picture.height / height)
        inner = max(1, round(picture.width / covered)), max(1, round(picture.height / covered))
        laid = Image.new("RGB", (width, height))
        laid.paste(_resize(picture, inner, box), ((width - inner[0]) // 2, (height - inner[1]) // 2))
        picture, box = laid, (0, 0, width, height)
    if crop:
        covered = min(picture.width / width, picture.height / height)
        left = max(0.0, (picture.width - covered * width) / 2)
        top = max(0.0, (picture.height - covered * height) / 2)
        box = (left, top, picture.width - left, picture.height - top)
    pixels = np.array(_resize(picture, (width, height), box))
    return (torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float() / 255 - 0.5) / 0.5


def on_white(picture: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 4), red, green, blue and alpha, as (H, W, 3) on white."""
    from PIL import Image

    return np.asarray(_to_rgb(Image.fromarray(picture)))


def resize_picture(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """uint8 (H, W, 3) at another size, antialiased bilinear."""
    from PIL import Image

    image = Image.fromarray(picture)
    return np.asarray(_resize(image, (width, height), (0, 0, *image.size)))


def _resize(
    picture: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]
) -> Image.Image:
    """The box of a picture at `size`, antialiased bilinear, in one pass for each direction: the pass between
    them rounds, and which comes first is Pillow 13's rule under any Pillow."""
    from PIL.Image import Resampling

    bilinear = Resampling.BILINEAR
    left, top, right, bottom = box
    (width, height), (old_width, old_height) = size, picture.size
    shrinks = bottom - top - height
    if shrinks > 0 and shrinks > 2 * (right - left - width):
        picture = picture.resize((old_width, height), bilinear, (0, top, old_width, bottom))
        return picture.resize(size, bilinear, (left, 0, right, height))
    picture = picture.resize((width, old_height), bilinear, (left, 0, right, old_height))
    return picture.resize(size, bilinear, (0, top, width, bottom))


# ---- frames out --------------------------------------------------------------------------------------------


def to_uint8(video: torch.Tensor, loop: bool = False) -> np.ndarray:
    """float (3, T, H, W) in about [-1, 1] to uint8 (T, H, W, 3): clamped, then truncated, as released.

    loop: the last frame, a copy of the first, is dropped.
    """
    import torch

    frames = (video.float().clamp(-1, 1) + 1) / 2 * 255
    frames = frames.to(torch.uint8).permute(1, 2, 3, 0).contiguous().cpu().numpy()
    return frames[:-1] if loop else frames


# Container, encoder, pixels. ProRes: 422 HQ, 10 bits; it knows no crf.
MOVIES = {".mp4": ("mp4", "libx264", "yuv420p"), ".mov": ("mov", "prores_ks", "yuv422p10le")}


def write_video(
    path: str | Path,
    frames: np.ndarray,
    fps: float = 8,
    crf: int = 10,
    comment: str = "",
    tags: Mapping[str, str] | None = None,
) -> None:
    """uint8 (T, H, W, 3) to an H.264 mp4 (yuv420p), or to ProRes 422 HQ where the name ends in .mov,
    atomically. `comment` becomes the file's comment tag, `tags` further ones.

    The same frames give the same file, whatever the number of cores.
    Raises UsageError for an odd height or width, MachineError when it cannot be written.
    """
    import av

    frames = np.ascontiguousarray(frames)
    _, height, width, channels = frames.shape
    assert frames.dtype == np.uint8 and channels == 3
    if height % 2 or width % 2:
        raise UsageError(f"cannot write a video of {width}x{height}", expected="an even width and height")
    try:
        _encode(Path(path), frames, fps, crf, {"comment": comment} if comment else {}, tags or {})
    except av.codec.codec.UnknownCodecError as error:
        raise MachineError(
            f"PyAV has no encoder {error}", fix="pip install -U av, or --format png"
        ) from error
    except av.FFmpegError as error:
        told = f"the encoder of {path} failed: {error.strerror or error}"
        raise MachineError(told, fix="pip install -U av, or --format png") from error


def _encode(
    path: Path, frames: np.ndarray, fps: float, crf: int, comment: Mapping[str, str], tags: Mapping[str, str]
) -> None:
    import av

    _, height, width, _ = frames.shape
    kind, codec, pixels = MOVIES.get(path.suffix.lower(), MOVIES[".mp4"])
    quality = {"crf": str(crf), **REPEATABLE} if kind == "mp4" else {"profile": "3", "threads": "1"}
    with (
        atomic_path(path) as temporary,
        av.open(
            os.path.abspath(temporary), "w", format=kind, options={"movflags": "use_metadata_tags"}
        ) as container,
    ):
        container.metadata.update(comment, **tags)
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream(codec, rate=rate, options=quality)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def open_container(path: str | Path, **options: str) -> InputContainer:
    """A video file for reading: this file and no other, whatever its name (`tcp:HOST:1.mp4` is an address to
    FFmpeg) or its content asks for. Raises av.FFmpegError."""
    import av

    bounds = {"protocol_whitelist": "file", "format_whitelist": FILMS}
    return av.open(os.path.abspath(path), options={**bounds, **options})


def read_clip(path: str | Path) -> tuple[np.ndarray, float]:
    """All frames of a video file as a player shows them (see films.py), uint8 (T, H, W, 3), and its frames
    per second (0 where it does not say). Raises BadFileError when it cannot be read, or has more than 4 GB of
    frames."""
    film = open_film(path)
    return _all_frames(film), film.fps


def read_frames(path: str | Path) -> np.ndarray:
    """All frames of a video file as uint8 (T, H, W, 3). Raises BadFileError when it cannot be read."""
    return read_clip(path)[0]


def read_steady(path: str | Path, most: int) -> tuple[np.ndarray, float]:
    """As read_clip, in even steps: where the frames of a film come at a changing rate, those that are longer
    seen come again, up to `most` frames in all (see `films.evenly`)."""
    from edg.core.films import evenly

    film = open_film(path)
    frames = _all_frames(film)
    if film.steady:
        return frames, film.fps
    chosen, rate = evenly(film.times, film.end, film.fps, most)
    need_reasonable_clip(path, len(chosen), (frames.shape[2], frames.shape[1]))
    return frames[chosen], rate


def open_film(path: str | Path) -> Film:
    """A video file, its packets listed. Raises BadFileError."""
    from edg.core.films import Film

    path = Path(path)
    try:
        status = path.stat()
    except OSError as error:
        raise BadFileError(f"cannot read the video {path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        reason = "empty (0 bytes)" if stat.S_ISREG(status.st_mode) else "not a file"
        raise BadFileError(f"cannot read the video {path}: {reason}")
    return Film(path)


def _all_frames(film: Film) -> np.ndarray:
    need_reasonable_clip(film.path, film.frames, film.size[::-1])
    frames = film.get(range(film.frames))
    for warning in film.warnings:
        logging.getLogger("edg").warning(warning)
    return frames


def need_reasonable_clip(path: str | Path, frames: int, size: tuple[int, int]) -> None:
    """Raise BadFileError where so many frames of (width, height) do not belong into memory."""
    _need_reasonable_size(Path(path), size)
    if frames * size[0] * size[1] * 3 > MAX_CLIP:
        raise BadFileError(f"{path} holds over {MAX_CLIP >> 30} GB of frames", expected="a clip")


def read_rate(path: str | Path) -> float:
    """Frames a second of a video file. Raises BadFileError when it does not say."""
    rate = open_film(path).fps
    if not rate > 0:
        raise BadFileError(f"the video {path} does not say its frames a second")
    return rate


def read_metadata(path: str | Path) -> dict[str, str]:
    """The tags of a video file. Raises BadFileError."""
    import av

    try:
        with open_container(path) as container:
            return dict(container.metadata)
    except (av.FFmpegError, OSError) as error:
        raise BadFileError(f"cannot read the video {path}: {error}") from error


def read_comment(path: str | Path) -> str:
    """The comment tag of a video file ("" when there is none)."""
    return read_metadata(path).get("comment", "")


def write_image(path: str | Path, image: np.ndarray) -> None:
    """uint8 (H, W, 3) to a picture file (png, jpg, webp by its name), atomically."""
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary)


# ---- contact sheet -----------------------------------------------------------------------------------------


def contact_sheet(clips: Iterable[tuple[str, np.ndarray]], columns: int = 6, width: int = 160) -> np.ndarray:
    """One row per clip, `columns` evenly spaced frames `width` pixels wide under its label; uint8 (H, W, 3).

    clips: (label, uint8 frames (T, H, W, 3)); an iterator is read one clip at a time.
    """
    rows = [_sheet_row(label, frames, columns, width) for label, frames in clips]
    assert rows, "a contact sheet needs a clip"
    return np.concatenate(rows)


def _sheet_row(label: str, frames: np.ndarray, columns: int, width: int, gap: int = 4) -> np.ndarray:
    from PIL import Image, ImageDraw, ImageFont

    height = max(1, round(width * frames.shape[1] / frames.shape[2]))
    small = width < frames.shape[2]
    method = Image.Resampling.BILINEAR if small else Image.Resampling.NEAREST
    total = columns * (width + gap) + gap
    row = Image.new("RGB", (total, height + 18 + gap), "white")
    font = ImageFont.load_default(12)
    ImageDraw.Draw(row).text((gap, 2), _clipped(label, font, total - 2 * gap), fill="black", font=font)
    for column, index in enumerate(_evenly(len(frames), columns)):
        picture = Image.fromarray(frames[index]).resize((width, height), method)
        row.paste(picture, (gap + column * (width + gap), 18))
    return np.asarray(row)


def _clipped(label: str, font, width: float) -> str:
    if font.getlength(label) <= width:
        return label
    while label and font.getlength(label + "...") > width:
        label = label[:-1]
    return label + "..."


def _evenly(count: int, columns: int) -> Sequence[int]:
    """`columns` indices from 0 to count - 1, first and last included."""
    if count <= columns:
        return range(count)
    return [round(i * (count - 1) / (columns - 1)) for i in range(columns)]
