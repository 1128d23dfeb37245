"""Real encoded videos, small ones: made once per session."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest

UNITY = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
# (a, b, c, d) of x' = a x + c y, y' = b x + d y with y downwards: the turn to the right that a player does.
TURNS = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}


def picture(index, height, width):
    """uint8 (H, W, 3): the frame's number in red (4 levels a frame), the top half green, the left one blue."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = index * 4 % 256
    image[: height // 2, :, 1] = 200
    image[:, : width // 2, 2] = 200
    return image


def encode(path, codec="libx264", count=40, size=(48, 64), fps=25, keyframes=12, **options):
    """`count` pictures to a file; size is (H, W)."""
    (height, width), rate = size, Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = width, height
        if codec == "libx265":
            stream.options = {"x265-params": "pools=none:frame-threads=1:log-level=none"}
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
def library(tmp_path_factory):
    """40 mp4 files, named in videos.csv with CIL's columns: 30 plain ones of all codecs, sizes and rates, 3
    turned ones, 7 bad ones (BAD: name -> reason)."""
    root = tmp_path_factory.mktemp("library")
    names = []
    for k in range(30):
        codec = "libsvtav1" if k == 29 else CODECS[k % len(CODECS)]
        size = SIZES[(k // 2) % len(SIZES)]
        if codec in ("libx265", "libsvtav1"):  # x265 writes beyond the end of frames 48 pixels wide
            size = (96, 64)
        name = f"v{k:02d}"
        count = 12 + 3 * (k % 13)
        rate = 25 if codec == "mpeg2video" and RATES[k % 6] < 24 else RATES[k % 6]  # MPEG-2 knows 24 to 60
        encode(root / f"{name}.mp4", codec, count, size, rate)
        names.append(name)
    for degrees in TURNS:
        turn(encode(root / f"turned{degrees}.mp4", count=30), degrees)
    truncate(encode(root / "cut-off.mp4", count=40), 0.6)
    truncate(encode(root / "half.mp4", count=60, movflags="faststart"), 0.7)
    encode(root / "short.mp4", count=5)
    (root / "empty.mp4").touch()
    (root / "text.mp4").write_text("not a video\n" * 50)
    (root / "folder.mp4").mkdir()
    names += [*ROTATED, *BAD]
    lines = ["videoid,contentUrl,page_dir,name"]
    lines += [f'{name},http://example.org/{name},0001_0050,"a, ""{name}"""' for name in names]
    (root / "videos.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert len(names) == 40
    return root
