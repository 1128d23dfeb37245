"""Reading and writing of pictures and videos. Frames are uint8 (T, H, W, 3); networks take [-1, 1].

Of a picture file the first picture is read, with its EXIF rotation applied, in sRGB on white (see
core/colour.py).
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edg.core.colour import profile_note, to_rgb, without_profile
from edg.core.errors import BadFileError, EdgError, MachineError, UsageError
from edg.core.files import atomic_path
from edg.core.log import warn

if TYPE_CHECKING:
    import torch
    from av.container import InputContainer
    from av.filter import Graph
    from PIL import Image

    from edg.core.films import Film

MAX_PIXELS = 64_000_000
MAX_PICTURE = 512 << 20  # bytes of a picture file: 64 megapixels as they are, of 16 bits, are 488 MB
# Every further decoder that Pillow has is code that a file called .png could reach.
PICTURES = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
# A playlist called .mp4 would make FFmpeg read what it names, files and hosts.
FILMS = "mov,mp4,matroska,webm,avi,gif,mpeg,mpegts,mpegvideo,asf,flv,ogg,m4v,h264,hevc,ivf,mxf"
MAX_CLIP = 4 << 30  # bytes of decoded frames
# One encoder thread, and no macroblock tree: with it x264 reads memory that it has not written (seen at 64x48
# and below: one file in ten differs), without it the same frames give the same file.
REPEATABLE = {"threads": "1", "mbtree": "0"}


# ---- pictures in -------------------------------------------------------------------------------------------


def picture_bytes(path: str | Path) -> bytes:
    """The bytes of a picture file, read once, so that what is decoded is what is hashed. Raises
    BadFileError when it is missing, not a file, empty or too large."""
    path = Path(path)
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BadFileError(f"{path} is not a file", expected="an image file")
            data = file.read(MAX_PICTURE + 1)
    except IsADirectoryError as error:
        raise BadFileError(f"{path} is not a file", expected="an image file") from error
    except (OSError, ValueError) as error:  # a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise BadFileError(f"cannot open the image {path}: {reason}") from error
    if not data:
        raise BadFileError(f"the image {path} is empty (0 bytes)")
    if len(data) > MAX_PICTURE:
        raise _too_large(path, f" (over {MAX_PICTURE >> 20} MB)")
    return data


def read_image(path: str | Path, data: bytes | None = None) -> np.ndarray:
    """A picture file as uint8 RGB (H, W, 3). data: its bytes, where they were read already.

    Raises BadFileError when it is missing, not a file, not a picture, cut short, or above 64 megapixels.
    """
    from PIL import Image, ImageOps

    path = Path(path)
    data = picture_bytes(path) if data is None else data
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with _open_picture(data) as image:
                _need_reasonable_size(path, image.size)
                image.load()
                return np.asarray(to_rgb(ImageOps.exif_transpose(image)))
    except EdgError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(path, "") from error
    except MemoryError as error:
        raise _too_large(path, "") from error
    except Exception as error:  # Pillow's readers raise nearly every kind for broken files
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = (
            "its content is not a supported image format" if unknown else str(error) or type(error).__name__
        )
        raise BadFileError(
            f"cannot read the image {path}: {reason}", expected="a jpg, png or webp file"
        ) from error


def picture_notes(path: str | Path, data: bytes | None = None) -> list[str]:
    """Notes for the user on how `read_image` reads a file: that it has further pictures, or a colour profile
    that is not followed. data: its bytes, where they were read already. Raises BadFileError."""
    notes, data = [], picture_bytes(path) if data is None else data
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with _open_picture(data) as image:  # in a photograph's MPO the others are previews
                count = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
                reason = profile_note(image)
    except Exception as error:  # as above
        raise BadFileError(f"cannot read the image {path}: {error}") from error
    name = Path(path).name
    if count > 1:
        notes.append(f"the image {name} is an animation of {count} pictures: its first is used")
    if reason:
        notes.append(
            f"the image {name} has a colour profile that cannot be used ({reason}), so the profile is ignored"
        )
    return notes


def _open_picture(data: bytes) -> Image.Image:
    """Open a picture; a PNG that Pillow refuses because of its profile, too."""
    from PIL import Image

    try:
        return Image.open(io.BytesIO(data), formats=PICTURES)
    except (ValueError, OSError):
        parts = without_profile(data)
        if parts is None:
            raise
        image = Image.open(io.BytesIO(parts[0]), formats=PICTURES)
        image.info["icc_profile"] = parts[1]  # None as in a JPEG whose profile lacks a part
        return image


def _need_reasonable_size(path: Path, size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise _too_large(path, f" ({size[0]}x{size[1]})")


def _too_large(path: Path, size: str) -> BadFileError:
    return BadFileError(
        f"the image {path} is too large{size}", expected="at most 64 megapixels", fix="make it smaller"
    )


def fit_image(
    image: np.ndarray, height: int, width: int, crop: bool = False, pad: bool = False
) -> torch.Tensor:
    """Resize uint8 (H, W, 3) to float32 (3, height, width) in [-1, 1].

    By default to exactly this size without keeping the aspect ratio (as released; antialiased bilinear).
    crop: resized to cover the size, then cut at the centre. pad: resized to lie within it, on black.
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
    """Blend uint8 (H, W, 4), RGBA, on white: (H, W, 3)."""
    from PIL import Image

    return np.asarray(to_rgb(Image.fromarray(picture)))


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
# By PyAV: the PyAV plugin of imageio keeps metadata, but has no public way to set options of the encoder, so
# quality, matrix, primaries, transfer curve and range would be lost (measured: pixels differ by up to 109).


def to_uint8(video: torch.Tensor, loop: bool = False) -> np.ndarray:
    """float (3, T, H, W) in about [-1, 1] to uint8 (T, H, W, 3): clamped, then truncated, as released.

    loop: the last frame, a copy of the first, is dropped.
    """
    import torch

    frames = (video.float().clamp(-1, 1) + 1) / 2 * 255
    frames = frames.to(torch.uint8).permute(1, 2, 3, 0).contiguous().cpu().numpy()
    return frames[:-1] if loop else frames


LOWEST_CRF = 1  # below, x264 codes without loss, in a profile (High 4:4:4 Predictive) that few players have
PRECISE = "out_range=tv:flags=area+accurate_rnd+full_chroma_inp+bitexact"


@dataclass(frozen=True)
class Movie:
    """A kind of video file: container, encoder and pixel format, and the matrix and transfer curve of its
    frames, in FFmpeg's words. All are tagged: players guess what is not from the height."""

    container: str
    encoder: str
    pixels: str
    matrix: str
    transfer: str

    @property
    def named(self) -> dict[str, str]:
        colours = {"color_primaries": "bt709", "color_trc": self.transfer, "colorspace": self.matrix}
        return colours | {"color_range": "tv"}

    def quality(self, crf: int) -> dict[str, str]:
        if self.encoder == "libx264":
            return {"crf": str(max(crf, LOWEST_CRF)), **REPEATABLE}
        return {"profile": "3", "threads": "1"}


MOVIES = {
    # BT.601's matrix, small and large: Chromium's own code for BT.709 (libyuv's) has blue 9 levels off.
    ".mp4": Movie("mp4", "libx264", "yuv420p", matrix="smpte170m", transfer="iec61966-2-1"),
    # ProRes 422 HQ, 10 bits; it knows no crf, and no name for sRGB's curve.
    ".mov": Movie("mov", "prores_ks", "yuv422p10le", matrix="bt709", transfer="bt709"),
}


def write_video(
    path: str | Path,
    frames: np.ndarray,
    fps: float = 8,
    crf: int = 10,
    comment: str = "",
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write uint8 (T, H, W, 3) as an H.264 mp4 (yuv420p), or as ProRes 422 HQ where the name ends in
    .mov, atomically and with its colours tagged. comment, tags: metadata. crf 0 counts as 1.

    The same frames give the same file, whatever the number of cores. Raises UsageError for an odd height
    or width, MachineError when it cannot be written.
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
        given = f"the encoder of {path} failed: {error.strerror or error}"
        raise MachineError(given, fix="pip install -U av, or --format png") from error


def _encode(
    path: Path, frames: np.ndarray, fps: float, crf: int, comment: Mapping[str, str], tags: Mapping[str, str]
) -> None:
    import av

    _, height, width, _ = frames.shape
    movie = MOVIES.get(path.suffix.lower(), MOVIES[".mp4"])
    with (
        atomic_path(path) as temporary,
        av.open(
            os.path.abspath(temporary), "w", format=movie.container, options={"movflags": "use_metadata_tags"}
        ) as container,
    ):
        container.metadata.update(comment, **tags)
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream(movie.encoder, rate=rate, options=movie.quality(crf) | movie.named)
        stream.width, stream.height, stream.pix_fmt = width, height, movie.pixels
        graph = _converter(movie, width, height, 1 / rate)
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, 1 / rate
            graph.push(frame)
            container.mux(stream.encode(graph.pull()))
        container.mux(stream.encode(None))


def _converter(movie: Movie, width: int, height: int, time_base: Fraction) -> Graph:
    """A filter graph from rgb24 to the movie's frames, tagged as such: ProRes writes the tags of its
    frames, x264 those of its stream."""
    import av
    from av.filter import Graph

    graph = Graph()
    source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=time_base)
    names = movie.named | {"range": "tv"}
    names.pop("color_range")
    parts = [
        ("scale", f"out_color_matrix={movie.matrix}:{PRECISE}"),
        ("format", movie.pixels),
        ("setparams", ":".join(f"{name}={value}" for name, value in names.items())),
        ("buffersink", None),
    ]
    graph.link_nodes(source, *(graph.add(*part) for part in parts)).configure()
    return graph


def open_container(path: str | Path, **options: str) -> InputContainer:
    """Open a video file and no other, whatever its name (`tcp:HOST:1.mp4` is an address to FFmpeg) or its
    content asks for. Raises av.FFmpegError."""
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
    """Read a clip at a constant frame rate: frames of a variable rate are repeated, up to `most` in all
    (see `films.evenly`)."""
    from edg.core.films import evenly

    film = open_film(path)
    frames = _all_frames(film)
    if film.steady:
        return frames, film.fps
    chosen, rate = evenly(film.times, film.end, film.fps, most)
    check_clip_size(path, len(chosen), (frames.shape[2], frames.shape[1]))
    return frames[chosen], rate


def open_film(path: str | Path) -> Film:
    """Open a video file and list its packets. Raises BadFileError."""
    from edg.core.films import Film

    path = Path(path)
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise BadFileError(f"cannot read the video {path}: {reason}") from error
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        reason = "it is empty (0 bytes)" if stat.S_ISREG(status.st_mode) else "it is not a file"
        raise BadFileError(f"cannot read the video {path}: {reason}")
    return Film(path)


def _all_frames(film: Film) -> np.ndarray:
    frames = film.get(range(film.frames))
    for warning in film.warnings:
        warn(warning)
    return frames


def check_clip_size(path: str | Path, frames: int, size: tuple[int, int]) -> None:
    """Raise BadFileError when so many frames of (width, height) do not fit into memory."""
    _need_reasonable_size(Path(path), size)
    if frames * size[0] * size[1] * 3 > MAX_CLIP:
        raise BadFileError(
            f"{path} has more than {MAX_CLIP >> 30} GB of frames", expected="a shorter or smaller clip"
        )


def read_rate(path: str | Path) -> float:
    """Frames per second of a video file. Raises BadFileError when it has none."""
    rate = open_film(path).fps
    if not rate > 0:
        raise BadFileError(f"the video {path} does not state its frame rate")
    return rate


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a video file. Raises BadFileError."""
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
    """Write uint8 (H, W, 3) as a picture file (png, jpg, webp by its name), atomically."""
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary)
