"""Conversion of pictures of any colour space to 8-bit sRGB.

Transparency is blended on white, CMYK and palettes become RGB, 16-bit grey is scaled by 1/257, float grey is
taken as 0..1. A colour profile inside the file (ICC), or a PNG's primaries and gamma (cHRM, gAMA), is
followed; one that is sRGB anyway leaves every value as it is, and one that cannot be used is ignored.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image, ImageCms

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
LARGEST_PROFILE = 16 << 20  # bytes; the largest of printers have 3 MB
SAME = 2  # levels: a profile this near to sRGB everywhere is one of its many spellings
MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # a profile's colour space -> Pillow's mode
WITH_ALPHA = ("LA", "PA", "La", "RGBA", "RGBa")
SRGB_GAMMA = 0.43, 0.48  # a PNG's 0.45455 stands for sRGB's own curve (PNG specification, 11.3.2.5)
SRGB_PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # x, y of white, red, green, blue
D50 = np.array([0.9642, 1.0, 0.8249])
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def to_rgb(image: Image.Image) -> Image.Image:
    """A loaded picture in sRGB on white, mode RGB."""
    from PIL import Image

    converted = _convert(image)
    if converted.mode == "RGB":
        return converted
    white = Image.new("RGBA", converted.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, converted).convert("RGB")


def profile_note(image: Image.Image) -> str:
    """The reason why a picture's colour profile cannot be used, "" where it can or there is none."""
    profile, reason = _profile(image)
    if profile is None:
        return reason
    return _conversion(profile, _base_mode(image))[1]


def without_profile(data: bytes) -> tuple[bytes, bytes | None] | None:
    """(the bytes of a PNG without the chunk of its profile, by which Pillow may refuse the whole picture; the
    profile, None where it is none). None for a file without such a chunk."""
    kept, profile, found = [data[:8]], None, False
    for kind, start, end in _chunks(data):
        if kind == b"iCCP":
            found, profile = True, _inflated(data[start:end])
        else:
            kept.append(data[start:end])
    return (b"".join(kept), profile) if found else None


def _inflated(chunk: bytes) -> bytes | None:
    """The profile in a chunk iCCP, at most a byte more than `LARGEST_PROFILE`; None where it is damaged."""
    body, checksum = chunk[8:-4], chunk[-4:]
    _, mark, packed = body.partition(b"\0")
    if not mark or packed[:1] != b"\0" or zlib.crc32(chunk[4:-4]).to_bytes(4, "big") != checksum:
        return None
    try:
        return zlib.decompressobj().decompress(packed[1:], LARGEST_PROFILE + 1)
    except zlib.error:
        return None


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    at = 8
    while data[:8] == PNG_MAGIC and at + 8 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], at, end
        at = end


# ---- values ------------------------------------------------------------------------------------------------


def _convert(image: Image.Image) -> Image.Image:
    """The picture in RGB, or RGBA where it is transparent."""
    mode, (profile, _) = _base_mode(image), _profile(image)
    transform = None if profile is None else _conversion(profile, mode)[0]
    alpha = None
    if image.mode in WITH_ALPHA or ("transparency" in image.info and not _is_deep(image)):
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    if mode == "L":
        colours = _grey(image, transform)
    elif transform is not None:
        colours = transform.apply(image.convert(mode))
    else:
        colours = image.convert("RGB")
    if alpha is not None:
        colours.putalpha(alpha)
    return colours


def _grey(image: Image.Image, transform: ImageCms.ImageCmsTransform | None) -> Image.Image:
    """Grey in RGB. Pillow clips that of 16 bits and of floats at 255 instead of scaling it. A transform is
    taken at the 256 levels and interpolated: those of a linear profile lie far apart where it is dark."""
    from PIL import Image

    if _is_deep(image):
        values = np.asarray(image).astype(np.float64)
        values = np.nan_to_num(values) if image.mode == "F" else values / 65535
        levels = np.clip(values, 0, 1) * 255
    else:
        levels = np.asarray(image.getchannel("R") if image.mode == "RGBA" else image.convert("L"))
    if transform is None:
        return Image.fromarray(np.round(levels).astype(np.uint8)).convert("RGB")
    table = np.asarray(transform.apply(_probe("L").convert(transform.input_mode)))[:, 0]
    channels = [np.interp(levels, np.arange(256), table[:, c]) for c in range(3)]
    return Image.fromarray(np.round(np.stack(channels, axis=-1)).astype(np.uint8))


def _is_deep(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def _base_mode(image: Image.Image) -> str:
    if image.mode in ("1", "L", "LA", "La") or _is_deep(image):
        return "L"
    return "CMYK" if image.mode == "CMYK" else "RGB"


# ---- profiles ----------------------------------------------------------------------------------------------


def _profile(image: Image.Image) -> tuple[bytes | None, str]:
    """(ICC profile, "") of a picture, (None, "") where it has none, (None, reason) where it is no profile."""
    if "icc_profile" not in image.info:
        return _png_profile(image.info), ""
    profile = image.info["icc_profile"]
    if not profile:
        return None, "it is incomplete"
    if len(profile) > LARGEST_PROFILE:
        return None, f"it is larger than {LARGEST_PROFILE >> 20} MB"
    return bytes(profile), ""


@lru_cache(maxsize=4)
def _conversion(profile: bytes, mode: str) -> tuple[ImageCms.ImageCmsTransform | None, str]:
    """(how values of Pillow's `mode` become sRGB, why not). (None, ""): they are sRGB as they are.

    Relative to the white of the medium, black to black, as browsers and editors do it."""
    from PIL import ImageCms

    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
    # lcms' short cut for grey is 6 levels off where it is dark
    flags |= ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.HIGHRESPRECALC
    try:  # a Pillow without LittleCMS says so at the first call
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        own = MODES.get(space)
        if own is None or (own != mode and (own, mode) != ("RGB", "L")):
            return None, f"it is for {space} images, but this image is {'grey' if mode == 'L' else mode}"
        transform = ImageCms.ImageCmsTransform(
            source, srgb, own, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC, flags=flags
        )
        probe = _probe(own)
        before, after = (np.asarray(x.convert("RGB")).astype(int) for x in (probe, transform.apply(probe)))
    except (ImportError, ImageCms.PyCMSError, OSError, ValueError, TypeError, MemoryError) as error:
        return None, str(error) or type(error).__name__
    if (after == after[:1]).all():
        return None, "it maps all colours to the same one"
    if own != "CMYK" and np.abs(before - after).max() <= SAME:
        return None, ""
    return transform, ""


def _probe(mode: str) -> Image.Image:
    """Values all over the colour space, a picture of one column."""
    from PIL import Image

    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[:, None])
    levels = np.linspace(0, 255, 17 if mode == "RGB" else 5).astype(np.uint8)
    grid = np.stack(np.meshgrid(*[levels] * len(mode), indexing="ij"), axis=-1).reshape(-1, 1, len(mode))
    return Image.fromarray(grid, mode)


def _png_profile(info: dict[str, Any]) -> bytes | None:
    """A profile of a PNG's primaries and gamma; None where they stand for sRGB, or say nothing of use."""
    gamma, primaries = info.get("gamma"), info.get("chromaticity")
    if "srgb" in info or not (gamma or primaries):
        return None
    usual_gamma = not gamma or SRGB_GAMMA[0] <= gamma <= SRGB_GAMMA[1]
    if not primaries or len(primaries) != 8 or np.abs(np.subtract(primaries, SRGB_PRIMARIES)).max() < 0.005:
        primaries = SRGB_PRIMARIES
    if usual_gamma and primaries is SRGB_PRIMARIES:
        return None
    try:
        with np.errstate(all="raise"):
            return _matrix_profile(primaries, None if usual_gamma else 1 / gamma)
    except (np.linalg.LinAlgError, struct.error, ArithmeticError):  # no colours at all
        return None


def _matrix_profile(primaries: tuple[float, ...], gamma: float | None) -> bytes:
    """An ICC profile (version 2) of primaries, x and y of white, red, green and blue, and a gamma, None for
    sRGB's curve."""
    x, y = np.reshape(primaries, (4, 2)).T
    white, *rgb = np.stack([x / y, np.ones(4), (1 - x - y) / y], axis=1)
    to_xyz = np.stack(rgb, axis=1)
    to_xyz = to_xyz * np.linalg.solve(to_xyz, white)
    adapted = np.linalg.solve(BRADFORD, np.diag(BRADFORD @ D50 / (BRADFORD @ white)) @ BRADFORD) @ to_xyz
    if gamma is None:
        v = np.linspace(0, 1, 1024)
        linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
        curve = struct.pack(">4sII1024H", b"curv", 0, 1024, *np.round(linear * 65535).astype(int))
    else:
        curve = struct.pack(">4sIIHH", b"curv", 0, 1, round(gamma * 256), 0)
    tags = {b"wtpt": _xyz(D50), b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    tags |= dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(_xyz, adapted.T), strict=True))
    table, body, at = [struct.pack(">I", len(tags))], [], 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table.append(struct.pack(">4sII", name, at, len(data)))
        body.append(data)
        at += len(data)
    head = struct.pack(">I4sI4s4s4s12x4s28x", at, bytes(4), 0x02400000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    head += struct.pack(">3i48x", *(round(v * 65536) for v in D50))
    return b"".join([head, *table, *body])


def _xyz(values: np.ndarray) -> bytes:
    return struct.pack(">4sI3i", b"XYZ ", 0, *(round(float(v) * 65536) for v in values))
