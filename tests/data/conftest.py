"""Real encoded videos, small ones: made once per session."""

import struct
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest

UNITY = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
# (a, b, c, d) of x' = a x + c y, y' = b x + d y with y downwards: the turn to the right that a player does.
TURNS = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}


def picture(index, height, width):
    """uint8 (H, W, 3): red, green and blue quarters, the last one (bottom right) grey, 4 levels per frame."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2] = (200, 0, 0)
    image[: height // 2, width // 2 :] = (0, 200, 0)
    image[height // 2 :, : width // 2] = (0, 0, 200)
    image[height // 2 :, width // 2 :] = index * 4 % 256
    return image


def encode(path, codec="libx264", count=40, size=(48, 64), fps=25, keyframes=12, tune=(), **options):
    """`count` pictures to a file; size is (H, W), tune the encoder's options, options the container's."""
    (height, width), rate = size, Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = width, height
        if codec in ("mpeg4", "mpeg2video", "mjpeg"):  # fine enough to tell neighbouring frames apart
            stream.bit_rate, stream.codec_context.qmin, stream.codec_context.qmax = 4_000_000, 1, 2
            stream.codec_context.max_b_frames = 0 if codec == "mjpeg" else 2
        if codec == "libx265":
            stream.options = {"x265-params": "pools=none:frame-threads=1:log-level=none"}
        stream.options = {**stream.options, **dict(tune)}
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.thread_count, stream.codec_context.gop_size = 1, keyframes
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(picture(index, height, width), format="rgb24")
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turn(path, degrees):
    """Write a rotation into the display matrix of an mp4's track header, as phones do."""
    data = bytearray(path.read_bytes())
    at = data.index(UNITY, data.index(b"tkhd"))
    a, b, c, d = (value << 16 for value in TURNS[degrees])
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def cut(path, source, start):
    """The packets of `source` from the keyframe before `start` (seconds), shown from `start` on only: what a
    cut without encoding gives."""
    with av.open(str(source)) as given, av.open(str(path), "w") as made:
        stream = given.streams.video[0]
        copy = made.add_stream_from_template(stream)
        first = round(start / stream.time_base)
        for packet in given.demux(stream):
            if packet.size:
                packet.pts, packet.dts, packet.stream = packet.pts - first, packet.dts - first, copy
                made.mux(packet)
    return path


def trim(path, seconds):
    """Shorten what an mp4's edit list shows, all frames stay in the file."""
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 12
    data[at : at + 4] = struct.pack(">I", round(seconds * 1000))
    path.write_bytes(data)
    return path


def truncate(path, share):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


BAD = {
    "cut-off": "Invalid data|moov",
    "half": "cut short",
    "short": "too short: 5 frames",
    "empty": "empty",
    "text": "Invalid data",
    "missing": "No such file",
    "folder": "not a file",
}
ROTATED = ("turned90", "turned180", "turned270")
CODECS = ("libx264", "mpeg4", "libvpx-vp9", "libx265", "mpeg2video")
SIZES = ((48, 64), (64, 48), (40, 96), (72, 72), (50, 66))
RATES = (8, 15, 24, 30000 / 1001, 25, 50)


@pytest.fixture(scope="session")
def films():
    """The makers of videos above, for tests that need one of their own."""
    return SimpleNamespace(encode=encode, turn=turn, cut=cut, trim=trim, truncate=truncate, picture=picture)


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """Small mp4 files of all codecs, sizes and rates, and two lists of 40 of them with CIL's columns:
    csv: 30 plain ones, 3 turned ones, 7 bad ones of all kinds (BAD: name -> reason);
    real: only encoded ones, 35 plain, 3 turned, one truncated (half), one too short (short)."""
    root = tmp_path_factory.mktemp("library")
    plain = []
    for k in range(35):
        codec = "libsvtav1" if k == 29 else CODECS[k % len(CODECS)]
        size = SIZES[(k // 2) % len(SIZES)]
        if codec in ("libx265", "libsvtav1"):  # x265 writes beyond the end of frames 48 pixels wide
            size = (96, 64)
        name = f"v{k:02d}"
        count = 12 + 3 * (k % 13)
        rate = 25 if codec == "mpeg2video" and RATES[k % 6] < 24 else RATES[k % 6]  # MPEG-2 knows 24 to 60
        encode(root / f"{name}.mp4", codec, count, size, rate)
        plain.append(name)
    for degrees in TURNS:
        turn(encode(root / f"turned{degrees}.mp4", count=30), degrees)
    truncate(encode(root / "cut-off.mp4", count=40), 0.6)
    truncate(encode(root / "half.mp4", count=60, movflags="faststart"), 0.7)
    encode(root / "short.mp4", count=5)
    (root / "empty.mp4").touch()
    (root / "text.mp4").write_text("not a video\n" * 50)
    (root / "folder.mp4").mkdir()
    names = [*plain[:30], *ROTATED, *BAD]
    for file, listed in (("videos.csv", names), ("real.csv", [*plain, *ROTATED, "half", "short"])):
        assert len(listed) == 40
        lines = ["videoid,contentUrl,page_dir,name"]
        lines += [f'{name},http://example.org/{name},0001_0050,"a, ""{name}"""' for name in listed]
        (root / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return SimpleNamespace(root=root, csv=root / "videos.csv", real=root / "real.csv", bad=BAD, names=names)
