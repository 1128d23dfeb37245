"""Colour profiles: what a picture's numbers mean, in every format; a profile that is none changes nothing."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from edg.core.formats import read_clip
from edg.core.video import picture_notes, read_image

HERE = Path(__file__).parent / "icc"
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
NOISE = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
FLAT = np.full((16, 24, 3), (200, 120, 40), np.uint8)


def icc(space, tags, kind=b"scnr", pcs=b"XYZ "):
    """An ICC profile of version 2 (ICC.1:2001-04, 6)."""
    table, body, at = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        table += struct.pack(">4sII", name, at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s12x4s28x", at + len(body), b"test", 0x02400000, kind, space, pcs, b"acsp")
    return head + struct.pack(">3i48x", 63190, 65536, 54061) + table + body


def xyz(*values):
    return struct.pack(">4s4x3i", b"XYZ ", *(round(65536 * v) for v in values))


def rgb(first, second, third):
    """A profile of sRGB's curve, as a table, and of colorants (x, y, z of the PCS)."""
    v = np.linspace(0, 1, 1024)
    linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    curve = struct.pack(">4s4xI1024H", b"curv", 1024, *np.round(65535 * linear).astype(int))
    colorants = {b"rXYZ": xyz(*first), b"gXYZ": xyz(*second), b"bXYZ": xyz(*third)}
    return {b"wtpt": WHITE, **colorants, b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}


WHITE = xyz(0.9642, 1, 0.8249)
RED, GREEN, BLUE = (0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)
SWAPPED = icc(b"RGB ", rgb(BLUE, GREEN, RED))  # what it calls red is sRGB's blue


def grey(gamma):
    curve = struct.pack(">4s4xIH", b"curv", 1, round(256 * gamma))
    return icc(b"GRAY", {b"wtpt": WHITE, b"kTRC": curve})


def cmyk():
    """Paper is white, cyan alone is the grey of L* = 50, whatever else is black."""
    grid = np.zeros((16, 3), np.uint8) + (0, 128, 128)
    grid[0b0000, 0], grid[0b1000, 0] = 255, 128  # cyan is the first of four bits
    ends = bytes([*range(256)])
    table = struct.pack(">4s4x4B9i", b"mft1", 4, 3, 2, 0, *(65536 * (i % 4 == 0) for i in range(9)))
    lut = table + ends * 4 + grid.astype(np.uint8).tobytes() + ends * 3
    return icc(b"CMYK", {b"wtpt": WHITE, b"A2B0": lut}, b"prtr", b"Lab ")


def encoded(linear):
    """sRGB's curve, 0..1 to levels (IEC 61966-2-1)."""
    linear = np.asarray(linear, float)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def written(path, pixels, profile=None, **more):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **({"icc_profile": profile} if profile else {}), **more)
    return path


def apart(found, expected):
    return np.abs(found.astype(int) - expected).max()


@pytest.mark.parametrize("name, within", [("icc_wide.png", 1), ("icc_swapped.jpg", 3)])
def test_real_files(name, within):
    truth = np.asarray(Image.open(HERE / "icc_truth.png").convert("RGB"))
    assert apart(read_image(HERE / name), truth) <= within
    assert picture_notes(HERE / name) == []


@pytest.mark.parametrize(
    "name, pixels, more, within",
    [
        ("x.png", NOISE, {}, 1),
        ("x.tif", NOISE, {}, 1),
        ("x.tiff", NOISE, {"compression": "tiff_lzw"}, 1),
        ("x.webp", NOISE, {"lossless": True}, 1),
        ("x.webp", FLAT, {"quality": 100}, 4),
        ("x.jpg", FLAT, {"quality": 100, "subsampling": 0}, 4),
        ("x.avif", FLAT, {"quality": 100, "subsampling": "4:4:4"}, 4),
    ],
)
def test_every_format(tmp_path, name, pixels, more, within):
    path = written(tmp_path / name, pixels, SWAPPED, **more)
    assert apart(read_image(path), pixels[..., ::-1]) <= within
    assert picture_notes(path) == []
    assert apart(read_image(written(tmp_path / name, pixels, SRGB, **more)), pixels) <= within - 1


def test_palettes_and_grey_under_a_profile_for_rgb(tmp_path):
    palette = Image.fromarray(FLAT).quantize(4)
    assert apart(read_image(written(tmp_path / "p.png", palette, SWAPPED)), FLAT[..., ::-1]) <= 1
    path = written(tmp_path / "g.png", NOISE[..., 0], SWAPPED)
    assert apart(read_image(path), NOISE[..., :1]) <= 1 and picture_notes(path) == []


@pytest.mark.parametrize("name", ["x.png", "x.webp", "x.tif"])
def test_transparency_is_no_colour(tmp_path, name):
    pixels = np.dstack([FLAT, np.zeros(FLAT.shape[:2], np.uint8)])
    pixels[:, 8:, 3], pixels[:, 16:, 3] = 128, 255
    more = {"lossless": True, "exact": True} if name == "x.webp" else {}
    found = read_image(written(tmp_path / name, pixels, SWAPPED, **more))
    assert found[0, 0].tolist() == [255] * 3
    assert apart(found[:, 16:], FLAT[:, 16:, ::-1]) <= 1
    assert apart(found[:, 8:16], np.round(255 + (128 / 255) * (FLAT[:, 8:16, ::-1] - 255.0))) <= 1


@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.6])
def test_grey_of_8_and_16_bits(tmp_path, gamma):
    ramp = np.arange(256, dtype=np.uint8).repeat(2).reshape(16, 32)
    found = read_image(written(tmp_path / "a.png", ramp, grey(gamma)))
    assert apart(found, np.round(encoded((ramp / 255.0) ** gamma))[..., None]) <= 1
    deep = np.linspace(0, 65535, 512).astype(np.uint16).reshape(16, 32)
    found = read_image(written(tmp_path / "b.png", deep, grey(gamma)))
    assert apart(found, np.round(encoded((deep / 65535.0) ** gamma))[..., None]) <= 1
    alpha = Image.merge("LA", [Image.fromarray(ramp), Image.new("L", (32, 16), 255)])
    found = read_image(written(tmp_path / "c.png", alpha, grey(gamma)))
    assert apart(found, np.round(encoded((ramp / 255.0) ** gamma))[..., None]) <= 1


@pytest.mark.parametrize("name", ["x.jpg", "x.tif"])
def test_cmyk_with_its_printers_profile(tmp_path, name):
    ink = Image.new("CMYK", (32, 16), (255, 0, 0, 0))
    ink.paste((0, 0, 0, 0), (16, 0, 32, 16))
    found = read_image(written(tmp_path / name, ink, cmyk()))
    assert apart(found[:, :8], 119) <= 2, "L* = 50"
    assert apart(found[:, 24:], 255) <= 2


@pytest.mark.parametrize("profile", [SRGB, icc(b"RGB ", rgb(RED, GREEN, BLUE))], ids=["lcms", "table"])
def test_a_profile_of_srgb_leaves_every_value(tmp_path, profile):
    assert np.array_equal(read_image(written(tmp_path / "x.png", NOISE, profile)), NOISE)


def test_turned_by_exif_and_converted(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    found = read_image(written(tmp_path / "x.png", NOISE, SWAPPED, exif=exif))
    assert apart(found, np.rot90(NOISE, -1)[..., ::-1]) <= 1


def test_animations_and_folders_of_frames(tmp_path):
    first, second = Image.fromarray(NOISE), Image.fromarray(FLAT)
    first.save(tmp_path / "x.webp", save_all=True, append_images=[second], lossless=True, icc_profile=SWAPPED)
    (tmp_path / "frames").mkdir()
    written(tmp_path / "frames/00000.png", first, SWAPPED)
    written(tmp_path / "frames/00001.png", second, SWAPPED)
    for clip in ("x.webp", "frames"):
        assert apart(read_clip(tmp_path / clip), np.stack([NOISE, FLAT])[..., ::-1]) <= 1


# ---- profiles that are none --------------------------------------------------------------------------------


def with_chunk(pixels, data, checksum=None, kind=b"iCCP"):
    """A PNG with a chunk that Pillow would not write."""
    Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
    png = file.getvalue()
    checksum = zlib.crc32(kind + data) if checksum is None else checksum
    return png[:33] + struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum) + png[33:]


BROKEN_CHUNKS = {
    "not deflated": (b"name\0\0" + b"x" * 50, None),
    "cut": (b"name\0\0" + zlib.compress(SWAPPED)[:60], None),
    "large when inflated": (b"name\0\0" + zlib.compress(bytes(40 << 20)), None),
    "unknown method": (b"name\0\7" + zlib.compress(SWAPPED), None),
    "without a name": (b"x" * 30, None),
    "empty": (b"", None),
    "wrong checksum": (b"name\0\0" + zlib.compress(SWAPPED), 7),
}


@pytest.mark.parametrize("kind", BROKEN_CHUNKS)
def test_chunks_that_are_no_profile(tmp_path, kind):
    (tmp_path / "x.png").write_bytes(with_chunk(NOISE, *BROKEN_CHUNKS[kind]))
    assert np.array_equal(read_image(tmp_path / "x.png"), NOISE)
    assert len(picture_notes(tmp_path / "x.png")) == 1


BROKEN = {
    "cut": SWAPPED[:300],
    "its head alone": SWAPPED[:128],
    "text": b"no profile" * 30,
    "for grey": grey(2.6),
    "for CMYK": cmyk(),
    "version 9": SWAPPED[:8] + b"\x09" + SWAPPED[9:],
    "black throughout": icc(b"RGB ", rgb(*np.zeros((3, 3)))),
    "17 MB": SWAPPED + bytes(17 << 20),
}


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.webp"])
@pytest.mark.parametrize("kind", BROKEN)
def test_profiles_that_cannot_be_used(tmp_path, kind, name):
    more = {"lossless": True} if name == "x.webp" else {}
    path = written(tmp_path / name, NOISE, BROKEN[kind], **more)
    assert np.array_equal(read_image(path), NOISE)
    assert len(picture_notes(path)) == 1


def test_a_jpeg_that_lacks_a_part_of_its_profile(tmp_path):
    path = written(tmp_path / "x.jpg", FLAT, SWAPPED, quality=100, subsampling=0)
    data = path.read_bytes()
    at = data.index(b"ICC_PROFILE\0\1\1")
    path.write_bytes(data[: at + 13] + b"\2" + data[at + 14 :])  # the first of two
    assert apart(read_image(path), FLAT) <= 3 and len(picture_notes(path)) == 1


@pytest.mark.parametrize("name", ["x.png", "x.webp", "x.tif"])
def test_a_large_profile(tmp_path, name):
    """Pillow refuses a PNG whose profile inflates to more than 1 MB."""
    more = {"lossless": True} if name == "x.webp" else {}
    path = written(tmp_path / name, NOISE, SWAPPED + bytes(3 << 20), **more)
    assert apart(read_image(path), NOISE[..., ::-1]) <= 1 and picture_notes(path) == []


def test_a_profile_of_version_4(tmp_path):
    path = written(tmp_path / "x.png", NOISE, SWAPPED[:8] + b"\x04" + SWAPPED[9:])
    assert apart(read_image(path), NOISE[..., ::-1]) <= 1 and picture_notes(path) == []


# ---- a PNG's own words -------------------------------------------------------------------------------------

PRIMARIES = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)


def described(path, gamma=None, primaries=None, srgb=False):
    chunks = PngImagePlugin.PngInfo()
    if primaries:
        chunks.add(b"cHRM", struct.pack(">8I", *primaries))
    if gamma is not None:
        chunks.add(b"gAMA", struct.pack(">I", gamma))
    if srgb:
        chunks.add(b"sRGB", b"\0")
    Image.fromarray(NOISE).save(path, pnginfo=chunks)
    return read_image(path)


def test_gamma_and_primaries_of_a_png(tmp_path):
    path = tmp_path / "x.png"
    assert apart(described(path, 100000), np.round(encoded(NOISE / 255.0))) <= 1
    assert apart(described(path, 55556), np.round(encoded((NOISE / 255.0) ** 1.8))) <= 1
    blue_first = PRIMARIES[:2] + PRIMARIES[6:] + PRIMARIES[4:6] + PRIMARIES[2:4]
    assert apart(described(path, None, blue_first), NOISE[..., ::-1]) <= 1
    for unchanged in (
        {"gamma": 45455}, {"gamma": 45455, "primaries": PRIMARIES}, {"gamma": 100000, "srgb": True},
        {"gamma": 0}, {"primaries": (0,) * 8}, {"primaries": (1,) * 8},
    ):  # fmt: skip
        assert np.array_equal(described(path, **unchanged), NOISE), unchanged
