"""Pictures in every shape users have them, and videos that are there completely or not at all."""

import os
import struct
import zlib

import av
import numpy as np
import pytest
import torch
from PIL import Image

from edg.core.errors import BadFileError, MachineError, UsageError
from edg.core.video import (
    fit_image,
    read_comment,
    read_frames,
    read_image,
    to_uint8,
    write_video,
)

RED = (200, 30, 40)


def save(path, image, **options):
    image.save(path, **options)
    return path


def solid(mode, colour, size=(4, 3)):
    return Image.new(mode, size, colour)


@pytest.mark.parametrize(
    "name, image, expected",
    [
        ("rgb.png", solid("RGB", RED), RED),
        ("grey.png", solid("L", 77), (77, 77, 77)),
        ("bit.png", solid("1", 1), (255, 255, 255)),
        ("alpha.png", solid("RGBA", (200, 30, 40, 0)), (255, 255, 255)),
        ("half.png", solid("RGBA", (0, 0, 0, 128)), (127, 127, 127)),
        ("la.png", solid("LA", (10, 0)), (255, 255, 255)),
        ("grey16.png", Image.fromarray(np.full((3, 4), 257 * 100, np.uint16)), (100, 100, 100)),
        ("dark16.png", Image.fromarray(np.full((3, 4), 600, np.uint16)), (2, 2, 2)),
        ("float.tiff", Image.fromarray(np.full((3, 4), 0.5, np.float32)), (128, 128, 128)),
        ("cmyk.jpg", solid("CMYK", (0, 255, 255, 0)), (255, 0, 0)),
    ],
)
def test_golden_colours(tmp_path, name, image, expected):
    got = read_image(save(tmp_path / name, image))
    assert got.dtype == np.uint8 and got.shape == (3, 4, 3)
    assert np.abs(got[1, 1].astype(int) - expected).max() <= (3 if name.endswith("jpg") else 1), got[1, 1]


def test_palette(tmp_path):
    image = solid("P", 1)
    image.putpalette([0, 0, 0, *RED])
    assert tuple(read_image(save(tmp_path / "x.png", image))[0, 0]) == RED


def test_palette_with_transparency_lies_on_white(tmp_path):
    image = solid("P", 0)
    image.putpalette([9, 9, 9] * 256)
    assert (read_image(save(tmp_path / "x.png", image, transparency=0)) == 255).all()


def test_16_bit_rgb(tmp_path):
    rows = b"".join(b"\x00" + struct.pack(">6H", *([0x6400, 0xC800, 0x0100] * 2)) for _ in range(2))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    (tmp_path / "x.png").write_bytes(data)
    assert np.abs(read_image(tmp_path / "x.png")[0, 0].astype(int) - (100, 200, 1)).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path, orientation):
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8] = 255  # top left
    undo = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, 1), 8: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    got = read_image(save(tmp_path / "x.png", stored, exif=exif))
    assert np.array_equal(got, upright)


def test_animation_gives_its_first_picture(tmp_path):
    first, second = solid("RGB", (255, 0, 0)), solid("RGB", (0, 0, 255))
    path = save(tmp_path / "x.webp", first, save_all=True, append_images=[second], lossless=True)
    assert tuple(read_image(path)[0, 0]) == (255, 0, 0)


def png_header(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"")


def broken(tmp_path, kind):
    path = tmp_path / "x.png"
    if kind == "cut":
        save(tmp_path / "whole.jpg", Image.effect_noise((64, 64), 80))
        path.write_bytes((tmp_path / "whole.jpg").read_bytes()[:900])
    elif kind == "huge":
        path.write_bytes(png_header(60000, 60000) + b"\x00" * 64)
    elif kind == "large":
        path.write_bytes(png_header(10000, 10000) + b"\x00" * 64)
    elif kind == "text":
        path.write_text("<html>not a picture</html>")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "dangling":
        path.symlink_to(tmp_path / "nowhere")
    return path


@pytest.mark.parametrize(
    "kind", ["cut", "huge", "large", "text", "empty", "folder", "fifo", "dangling", "missing"]
)
def test_unreadable_images_are_one_kind_of_error(tmp_path, kind):
    with pytest.raises(BadFileError) as caught:
        read_image(broken(tmp_path, kind))
    assert "\n" not in str(caught.value)
    assert ("64 megapixels" in caught.value.expected) == (kind in ("huge", "large"))


@pytest.mark.parametrize(
    ("height", "width", "first"), [(300, 500, "across"), (700, 400, "down"), (90, 40, "down")]
)
def test_pictures_are_resized_alike_by_any_pillow(height, width, first):
    """Its versions differ in which direction comes first, and by that in the last place."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    bilinear = Image.Resampling.BILINEAR
    between = (96, height) if first == "across" else (width, 64)
    expected = np.array(Image.fromarray(image).resize(between, bilinear).resize((96, 64), bilinear))
    assert np.array_equal(to_uint8(fit_image(image, 64, 96)[:, None] + 1e-4)[0], expected)


def test_fit_image_range_and_crop():
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 20:60] = 255  # the middle square is white
    assert fit_image(image, 16, 16, crop=True)[:, :, 1:-1].min() == 1
    stretched = fit_image(image, 16, 16)
    assert stretched.shape == (3, 16, 16) and stretched.min() == -1 and stretched.max() == 1


def test_to_uint8_truncates_and_clamps():
    video = torch.tensor([-9.0, -1.0, 0.0, 0.999, 1.0, 9.0]).view(1, 6, 1, 1).expand(3, 6, 2, 2)
    assert to_uint8(video)[:, 0, 0, 0].tolist() == [0, 0, 127, 254, 255, 255]
    assert len(to_uint8(video, loop=True)) == 5


def clip(frames=6, height=32, width=48):
    t, y, x = np.mgrid[0:frames, 0:height, 0:width]
    return np.stack([x * 5 % 256, y * 7 % 256, (t * 30 + x) % 256], -1).astype(np.uint8)


def test_video_round_trip(tmp_path):
    frames = np.full((5, 32, 48, 3), (30, 160, 200), np.uint8)
    write_video(tmp_path / "a.mp4", frames, comment='{"prompt": "ein Bär 🐻"}')
    got = read_frames(tmp_path / "a.mp4")
    assert got.shape == frames.shape and np.abs(got.astype(int) - frames).max() < 6
    assert read_comment(tmp_path / "a.mp4") == '{"prompt": "ein Bär 🐻"}'
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_the_same_frames_give_the_same_file(tmp_path):
    rng, path, files = np.random.default_rng(0), tmp_path / "a.mp4", set()
    for _ in range(60):  # x264's defaults fail this: they read memory that was not written
        write_video(path, clip(16, 64, 48))
        files.add(path.read_bytes())
        _ = [rng.integers(0, 255, rng.integers(100, 60_000), dtype=np.uint8) for _ in range(30)]
    assert len(files) == 1


def test_odd_sizes_are_refused(tmp_path):
    with pytest.raises(UsageError, match="48x31"):
        write_video(tmp_path / "a.mp4", clip(height=31))
    assert not list(tmp_path.iterdir())


def test_a_video_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError):
        write_video(tmp_path / "file" / "a.mp4", clip())


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "missing"])
def test_broken_videos(tmp_path, damage):
    path = tmp_path / "a.mp4"
    write_video(path, clip())
    data = path.read_bytes()
    {
        "empty": lambda: path.write_bytes(b""),
        "cut": lambda: path.write_bytes(data[: len(data) // 2]),
        "text": lambda: path.write_text("no video"),
        "missing": path.unlink,
    }[damage]()
    with pytest.raises(BadFileError):
        read_frames(path)


def test_a_film_names_its_colours(tmp_path):
    """Of (210, 30, 30) BT.601 has luma 0.299 R + 0.587 G + 0.114 B, BT.709 0.2126 R + 0.7152 G + 0.0722 B."""
    levels = np.array([210, 30, 30]) / 255
    for height, width in ((64, 64), (1024, 576), (98, 50)):
        frames = np.full((2, height, width, 3), (210, 30, 30), np.uint8)
        for name, (matrix, transfer), weights, depth in (
            ("a.mp4", (6, 13), (0.299, 0.587, 0.114), 8),
            ("a.mov", (1, 1), (0.2126, 0.7152, 0.0722), 10),
        ):
            write_video(tmp_path / name, frames)
            with av.open(str(tmp_path / name)) as container:
                context = container.streams.video[0].codec_context
                frame = next(container.decode(video=0))
            assert (context.colorspace, context.color_trc, context.color_primaries) == (matrix, transfer, 1)
            assert context.color_range == 1 and frame.colorspace == matrix
            luma = np.frombuffer(bytes(frame.planes[0]), np.uint8 if depth == 8 else np.uint16)[0]
            assert luma / 2 ** (depth - 8) == pytest.approx(16 + 219 * levels @ weights, abs=1)
            assert np.abs(read_frames(tmp_path / name).astype(int) - frames).max() <= 2


def test_reading_is_not_darker(tmp_path):
    frames = np.arange(0, 256, 8, dtype=np.uint8).repeat(8)[None, None, :, None] * np.ones(
        (2, 16, 1, 3), np.uint8
    )
    write_video(tmp_path / "a.mp4", frames, crf=1)
    assert abs((read_frames(tmp_path / "a.mp4").astype(int) - frames).mean()) < 0.3


@pytest.mark.parametrize("crf", [0, 1, 10, 51])
def test_every_quality_is_in_a_profile_that_players_have(tmp_path, crf):
    write_video(tmp_path / "a.mp4", clip(), crf=crf)
    with av.open(str(tmp_path / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.profile, context.pix_fmt) == ("High", "yuv420p")
