"""Catalogue, images: whatever kind of file they are, the clip begins with the colours that a viewer shows."""

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sampling import RED, records, sampler, save

from edg.core.video import MAX_PIXELS

ROOT = Path(__file__).parents[2]
WHITE, BLUE = (255, 255, 255), (0, 0, 255)


@pytest.fixture
def sample(command, monkeypatch):
    return sampler(command, monkeypatch)


@pytest.fixture
def shown(sample, tmp_path):
    """shown(image, *flags, **options) -> the first frame of its clip, uint8 (32, 32, 3).

    The picture lies under the name of a png, whatever it is: what a file is, its bytes tell."""

    def first(image, *flags, **options):
        folder = tmp_path / "in"
        path = save(folder / "x.png", image, **({"format": "PNG"} | options)) if image else folder / "x.png"
        (folder / "p.txt").write_text("one")
        code, err, out = sample(folder, "--format", "png", *flags)
        assert code == 0, err
        assert path.exists()
        return np.asarray(Image.open(out / "0000-x_sample0/00000.png"))

    return first


def is_colour(frame, colour, within=1):
    return frame.shape == (32, 32, 3) and np.abs(frame.astype(int) - colour).max() <= within


def solid(mode, colour):
    return Image.new(mode, (8, 8), colour)


def grey16(value):
    return Image.fromarray(np.full((8, 8), value, np.uint16))


def png(width, height, depth, kind, rows):
    """The bytes of a png that Pillow cannot write."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_c52_cmyk(shown):
    assert is_colour(shown(solid("CMYK", (0, 255, 255, 0)), format="JPEG", quality=100), (255, 0, 0), 3)
    assert is_colour(shown(solid("CMYK", (0, 0, 0, 255)), "--overwrite", format="TIFF"), (0, 0, 0))


def test_c53_grey_of_16_bits_is_not_white(shown):
    assert is_colour(shown(grey16(257 * 100)), (100, 100, 100))


def test_c54_rgb_of_16_bits(shown, tmp_path):
    (tmp_path / "in").mkdir()
    row = b"\x00" + struct.pack(">3H", 257 * 200, 257 * 30, 257 * 40) * 8
    (tmp_path / "in/x.png").write_bytes(png(8, 8, 16, 2, row * 8))
    assert is_colour(shown(None), RED)


def test_c55_palette(shown):
    image = solid("P", 1)
    image.putpalette([0, 0, 0, *RED])
    assert is_colour(shown(image), RED)
    assert is_colour(shown(image, "--overwrite", transparency=1), WHITE)


@pytest.mark.parametrize("alpha, colour", [(0, WHITE), (128, (227, 142, 147)), (255, RED)])
def test_c56_transparency_lies_on_white(shown, alpha, colour):
    assert is_colour(shown(solid("RGBA", (*RED, alpha))), colour)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_c57_exif_rotation(shown, orientation):
    upright = np.zeros((32, 32, 3), np.uint8)
    upright[:8, :16] = RED  # tells all eight apart
    ways = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
    }
    ways |= {5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE}
    ways |= {8: Image.Transpose.ROTATE_270}
    stored, exif = Image.fromarray(upright), Image.Exif()
    exif[0x0112] = orientation
    stored = stored.transpose(ways[orientation]) if orientation > 1 else stored
    assert np.array_equal(shown(stored, exif=exif), upright)


@pytest.mark.parametrize(
    "image, format, colour",
    [
        (solid("1", 1), "PNG", WHITE),
        (solid("L", 77), "PNG", (77, 77, 77)),
        (solid("LA", (10, 0)), "PNG", WHITE),
        (Image.fromarray(np.full((8, 8), 0.5, np.float32)), "TIFF", (128, 128, 128)),
        (Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF", (0, 0, 0)),
    ],
    ids=["1 bit", "grey", "grey with alpha", "float", "NaN"],
)
def test_c58_other_kinds(shown, image, format, colour):
    assert is_colour(shown(image, format=format), colour)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_c59_animation(shown, capsys, tmp_path, format):
    more = {"lossless": True} if format == "WEBP" else {}
    still = shown(solid("RGB", RED), format=format, save_all=True, append_images=[solid("RGB", BLUE)], **more)
    assert is_colour(still, RED)
    (record,) = records(tmp_path / "in-out/1000").values()
    assert "the image x.png is an animation of 2 pictures: its first is used" in record["warnings"]


def test_a_profile_that_cannot_be_used_is_in_the_record(shown, tmp_path):
    assert is_colour(shown(solid("RGB", RED), icc_profile=b"no profile" * 30), RED)
    (record,) = records(tmp_path / "in-out/1000").values()
    assert len([warning for warning in record["warnings"] if "x.png" in warning]) == 1


def broken(path, kind):
    """A file of that kind as `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "cut":
        save(path, Image.effect_noise((64, 64), 80), format="JPEG")
        return path.write_bytes(path.read_bytes()[:900])
    data = {
        "60000x60000": png(60_000, 60_000, 8, 2, b""),
        "one row too many": png(8000, MAX_PIXELS // 8000 + 1, 8, 2, b""),
        "2^31 wide": png(2**31 - 1, 2**31 - 1, 16, 6, b""),
        "text bomb": png(8, 8, 8, 2, (b"\0" + bytes(24)) * 8)[:-12] + text_bomb(),
        "page": b"<html><script>alert(1)</script></html>",
        "vector": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(x) run\nshowpage\n",
        "empty": b"",
    }
    path.write_bytes(data[kind])


def text_bomb():
    data = b"Comment\0\0" + zlib.compress(bytes(200_000_000), 9)
    chunk = b"zTXt" + data
    end = b"\0\0\0\0IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    return struct.pack(">I", len(data)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + end


def fails_alone(sample, folder, kind):
    """The clip of a broken image fails, its reason is told and written; the other one is made."""
    broken(folder / "1.png", kind)
    save(folder / "2.png", solid("RGB", RED))
    (folder / "p.txt").write_text("one\ntwo\n")
    code, err, out = sample(folder)
    found = records(out)
    assert code == 5 and [record["status"] for record in found.values()] == ["failed", "done"], err
    reason = found["0000-1_sample0"]["error"]
    assert f"failed 0000-1_sample0: {reason}" in err and "1.png" in reason
    return reason


@pytest.mark.parametrize("kind", ["cut", "page", "vector", "PostScript", "empty", "text bomb"])
def test_c60_truncated_or_no_image(sample, tmp_path, kind):
    reason = fails_alone(sample, tmp_path / "in", kind)
    assert "is empty (0 bytes)" in reason if kind == "empty" else "cannot read the image" in reason


@pytest.mark.parametrize("kind", ["60000x60000", "one row too many", "2^31 wide"])
def test_c61_too_many_pixels(sample, tmp_path, kind):
    reason = fails_alone(sample, tmp_path / "in", kind)
    assert "is too large" in reason and "at most 64 megapixels" in reason


MEMORY = """
import resource, sys
from edg.core.errors import BadFileError
from edg.core.video import read_image
from PIL import Image, ImageOps, PngImagePlugin, TiffImagePlugin
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
for path in sys.argv[1:]:
    try:
        read_image(path)
    except BadFileError:
        print((peak() - before) / (1e6 if sys.platform == "darwin" else 1e3))
"""


def test_c61_refusing_takes_no_memory(tmp_path):
    """Less than 50 MB for 3,600 megapixels and for 200 MB of text in a small file."""
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, kind in zip(paths, ("60000x60000", "text bomb"), strict=True):
        broken(path, kind)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *map(str, paths)], cwd=ROOT, capture_output=True, text=True
    )
    grown = [float(line) for line in done.stdout.split()]
    assert len(grown) == 2 and max(grown) < 50, (grown, done.stderr)


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad", "auto"])
@pytest.mark.parametrize("size", [(1, 1), (1, 4096), (4096, 1)])
def test_c62_the_smallest_and_the_thinnest(shown, size, fit):
    flags = ["--size", "auto"] if fit == "auto" else ["--fit", fit]
    frame = shown(Image.new("RGB", size, RED), *flags)
    assert is_colour(frame, RED) or (
        fit == "pad" and (frame == RED).all(-1).any() and frame.shape[:2] == (32, 32)
    )
