"""Films as players show them, by every reader: place, stream, colour, time. Truth: the pictures encoded, the
eight orientations, YCbCr by the standards' own factors."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from edg.core.errors import BadFileError
from edg.core.films import Film, evenly, frames_at
from edg.core.formats import read_timed
from edg.core.video import read_clip, read_rate, write_video
from edg.data.clips import CaptionedVideo, ClipDataset, ClipSettings
from edg.data.readers import open_video
from edg.data.transforms import choose_frames

CASES = Path(__file__).parent / "films"
BACKENDS = ("auto", "pyav", "decord")
RED, YELLOW, GREY = (210, 30, 30), (230, 200, 20), (90, 90, 90)
UNITY = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
# (a, b, c, d) of the display matrix -> what it does with a picture
ORIENTATIONS = {
    (1, 0, 0, 1): lambda a: a,
    (-1, 0, 0, 1): lambda a: a[:, ::-1],
    (1, 0, 0, -1): lambda a: a[::-1],
    (-1, 0, 0, -1): lambda a: a[::-1, ::-1],
    (0, 1, 1, 0): lambda a: a.swapaxes(0, 1),
    (0, 1, -1, 0): lambda a: np.rot90(a, -1),
    (0, -1, 1, 0): lambda a: np.rot90(a, 1),
    (0, -1, -1, 0): lambda a: np.rot90(a, 2).swapaxes(0, 1),
}
# Kr, Kb of the matrices by FFmpeg's numbers: BT.709, FCC, BT.601 (625 and 525 lines), SMPTE 240M, BT.2020
FACTORS = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087)}
FACTORS |= {9: (0.2627, 0.0593)}


def shown(path, indices, backend):
    """Frames by a reader. decord may refuse what it would show otherwise."""
    if backend == "decord":
        pytest.importorskip("decord")
        try:
            reader = open_video(path, backend)
        except BadFileError:
            return None
    else:
        reader = open_video(path, backend)
    frames = reader.get(indices)
    assert frames.shape[1:3] == reader.size
    return frames


def near(colour, expected, levels=4):
    return np.abs(np.asarray(colour, int) - expected).max() <= levels


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "name, size, corners",  # upper left, upper right, lower left
    [
        ("turned_90.mp4", (256, 144), (YELLOW, GREY, RED)),
        ("mirrored_left_right.mp4", (144, 256), (YELLOW, RED, GREY)),
        ("pixels_2_to_1.mp4", (144, 256), (RED, YELLOW, GREY)),
        ("cover_first.mkv", (144, 256), (RED, YELLOW, GREY)),
        ("two_streams.mp4", (144, 256), (RED, YELLOW, GREY)),
        ("two_rates.mp4", (144, 256), (RED, YELLOW, GREY)),
        ("mpeg4_part2.mp4", (144, 256), (RED, YELLOW, GREY)),
    ],
)
def test_reported_films(name, size, corners, backend):
    frames = shown(CASES / name, [0, 23], backend)
    if frames is not None:
        assert frames.shape == (2, *size, 3)
        for at, colour in zip(((10, 10), (10, -10), (-10, 10)), corners, strict=True):
            assert near(frames[1][at], colour), (at, frames[1][at])
    whole, _ = read_clip(CASES / name)  # of score and report
    assert whole.shape == (24, *size, 3) and all(near(whole[0][10, 10], corners[0]) for _ in [0])


# ---- place -------------------------------------------------------------------------------------------------


def with_matrix(path, matrix, scale=1 << 16):
    data = bytearray(path.read_bytes())
    at = data.index(UNITY, data.index(b"tkhd"))
    a, b, c, d = (value * scale for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("matrix", ORIENTATIONS)
@pytest.mark.parametrize("ending", ["mp4", "mov"])
def test_all_orientations(tmp_path, films, matrix, ending, backend):
    path = with_matrix(films.encode(tmp_path / f"a.{ending}", count=4), matrix)
    frames = shown(path, [3], backend)
    expected = ORIENTATIONS[matrix](films.picture(3, 48, 64))
    assert (frames is None) == (backend == "decord" and matrix != (1, 0, 0, 1))
    if frames is not None:
        assert frames[0].shape == expected.shape
        assert np.median(np.abs(frames[0].astype(int) - expected)) <= 4
    assert np.median(np.abs(read_clip(path)[0][3].astype(int) - expected)) <= 4


def test_orientation_in_matroska(films):
    frame = open_video(CASES / "turned_and_mirrored.mkv").get([3])[0]
    expected = ORIENTATIONS[0, -1, -1, 0](films.picture(3, 48, 64))
    assert frame.shape == expected.shape and np.median(np.abs(frame.astype(int) - expected)) <= 4


@pytest.mark.parametrize("degrees, turns", [("90", -1), ("180", 2), ("-90", 1), ("0", 0), ("left", 0)])
def test_a_rotate_tag(tmp_path, films, degrees, turns):
    path = remux(tmp_path / "a.mkv", films.encode(tmp_path / "a.mp4", count=2), rotate=degrees)
    expected = np.rot90(films.picture(1, 48, 64), turns)
    assert open_video(path).size == expected.shape[:2]
    assert np.median(np.abs(read_clip(path)[0][1].astype(int) - expected)) <= 4


def remux(path, source, until=None, **tags):
    """The packets of a film in another container, with tags of the stream."""
    with av.open(str(source)) as given, av.open(str(path), "w") as made:
        stream = given.streams.video[0]
        copy = made.add_stream_from_template(stream)
        copy.metadata.update(tags)
        for packet in given.demux(stream):
            if packet.size:
                packet.stream = copy
                made.mux(packet)
    return path


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ending, codec", [("mp4", "libx264"), ("mkv", "libx264"), ("avi", "mpeg4")])
@pytest.mark.parametrize(
    "ratio, size",
    [("2", (48, 128)), ("1/2", (96, 64)), ("1", (48, 64)), ("16/11", (48, 93)), ("0", (48, 64))],
)
def test_pixels_that_are_not_square(tmp_path, films, ratio, size, ending, codec, backend):
    path = encode(tmp_path / f"a.{ending}", [films.picture(n, 48, 64) for n in range(3)], codec, ratio=ratio)
    frames = shown(path, [1], backend)
    if backend != "decord":
        assert abs(frames.shape[1] - size[0]) <= 1 and abs(frames.shape[2] - size[1]) <= 1
        half = frames.shape[1] // 2, frames.shape[2] // 2
        assert near(frames[0][half[0] // 2, half[1] // 2], (200, 0, 0), 12)
        assert near(frames[0][half[0] // 2, half[1] + half[1] // 2], (0, 200, 0), 12)
        assert read_clip(path)[0].shape[1:3] == frames.shape[1:3]
    elif frames is not None:
        assert frames.shape[1:3] == (48, 64)


@pytest.mark.parametrize("ratio", ["11", "1/11", "200", "65535/1"])
def test_absurd_pixels_are_not_believed(tmp_path, films, ratio):
    path = encode(tmp_path / "a.mp4", [films.picture(0, 48, 64)] * 2, ratio=ratio)
    assert open_video(path).size == (48, 64)


def encode(path, pictures, codec="libx264", ratio=None, times=None, pixels="yuv420p", tags=None, **options):
    """Pictures, or frames, to a file; times in 1/240 s. tags: (matrix, range) of the stream."""
    with av.open(
        str(path), "w", options={"video_track_timescale": "24000"} if path.suffix == ".mp4" else {}
    ) as made:
        add(made, pictures, codec, ratio, times, pixels, tags, **options)
    return path


def add(made, pictures, codec="libx264", ratio=None, times=None, pixels="yuv420p", tags=None, **options):
    stream = made.add_stream(codec, rate=24, options=options)
    first = pictures[0]
    height, width = (first.height, first.width) if isinstance(first, av.VideoFrame) else first.shape[:2]
    stream.width, stream.height, stream.pix_fmt = width, height, pixels
    stream.codec_context.thread_count = 1
    stream.codec_context.time_base = Fraction(1, 240) if times else Fraction(1, 24)
    if ratio is not None:
        stream.codec_context.sample_aspect_ratio = Fraction(ratio)
    if tags:
        stream.codec_context.colorspace, stream.codec_context.color_range = tags
    for index, picture in enumerate(pictures):
        frame = (
            picture if isinstance(picture, av.VideoFrame) else av.VideoFrame.from_ndarray(picture, "rgb24")
        )
        frame.pts, frame.time_base = (times[index], Fraction(1, 240)) if times else (index, Fraction(1, 24))
        made.mux(stream.encode(frame))
    made.mux(stream.encode(None))
    return stream


# ---- streams -----------------------------------------------------------------------------------------------


def flat(colour, size=(48, 64), count=4):
    return [np.full((*size, 3), colour, np.uint8)] * count


COVER, DEFAULT = 1024, 1  # FFmpeg's dispositions


@pytest.mark.parametrize(
    "streams, picked",  # (frames, codec, disposition) each; red, green, blue by turns
    [
        ([(4, "libx264", 0), (4, "libx264", DEFAULT)], 1),
        ([(4, "libx264", DEFAULT), (4, "libx264", 0)], 0),
        ([(4, "libx264", DEFAULT), (4, "libx264", DEFAULT)], 0),
        ([(4, "libx264", 0), (4, "libx264", 0)], 0),
        ([(1, "mjpeg", DEFAULT), (4, "libx264", 0)], 1),
        ([(1, "mjpeg", DEFAULT), (1, "mjpeg", DEFAULT), (4, "libx264", DEFAULT)], 2),
        ([(4, "mjpeg", DEFAULT), (4, "libx264", 0)], 0),
    ],
)
def test_the_stream_that_a_player_picks(tmp_path, streams, picked):
    path, colours = tmp_path / "a.mkv", [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    with av.open(str(path), "w") as made:
        kept = []
        for (count, codec, disposition), colour in zip(streams, colours, strict=False):
            pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream = made.add_stream(codec, rate=24)
            stream.width, stream.height, stream.pix_fmt, stream.disposition = 64, 48, pixels, disposition
            kept.append((stream, flat(colour, count=count)))
        for stream, pictures in kept:
            for index, picture in enumerate(pictures):
                frame = av.VideoFrame.from_ndarray(picture, "rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 24)
                made.mux(stream.encode(frame))
            made.mux(stream.encode(None))
    for backend in BACKENDS:
        frames = shown(path, [0], backend)
        assert frames is None or near(frames[0][20, 20], colours[picked], 8), (backend, frames[0][20, 20])
    assert len(read_clip(path)[0]) == streams[picked][0]


@pytest.mark.parametrize("cover", [False, True])
def test_sound_without_a_picture(tmp_path, cover):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as made:
        sound = made.add_stream("aac", rate=8000)
        if cover:
            image = made.add_stream("mjpeg", rate=1)
            image.width, image.height, image.pix_fmt, image.disposition = 64, 48, "yuvj420p", COVER
            frame = av.VideoFrame.from_ndarray(flat((9, 9, 200))[0], "rgb24")
            frame.pts = 0
            packets = [*image.encode(frame), *image.encode(None)]
            made.mux(packets)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 8000, 0
        made.mux([*sound.encode(frame), *sound.encode(None)])
    for read in (open_video, read_clip, read_rate, read_timed):
        with pytest.raises(BadFileError):
            read(path)


# ---- colour ------------------------------------------------------------------------------------------------

COLOUR = (200, 60, 40)


def ycbcr(matrix, full, bits=8):
    red, blue = FACTORS[matrix]
    r, g, b = np.array(COLOUR) / 255
    y = red * r + (1 - red - blue) * g + blue * b
    cb, cr, unit = (b - y) / (2 - 2 * blue), (r - y) / (2 - 2 * red), 2 ** (bits - 8)
    if full:
        most, middle = 2**bits - 1, 2 ** (bits - 1)
        return [round(y * most), round(cb * most + middle), round(cr * most + middle)]
    return [round(unit * value) for value in (16 + 219 * y, 128 + 224 * cb, 128 + 224 * cr)]


def planes(values, pixels, height, width=64):
    frame = av.VideoFrame(width, height, pixels)
    for plane, value in zip(frame.planes, values, strict=True):
        kind = np.uint16 if "10" in pixels else np.uint8
        plane.update(np.full(plane.buffer_size // kind().itemsize, value, kind).tobytes())
    return frame


@pytest.mark.parametrize(
    "name, codec, pixels, lines, tags, matrix, full",
    [
        ("a.mp4", "libx264", "yuv420p", 48, (2, 0), 5, False),
        ("a.mp4", "libx264", "yuv420p", 718, (2, 0), 5, False),
        ("a.mp4", "libx264", "yuv420p", 720, (2, 0), 1, False),
        ("a.mp4", "libx264", "yuv420p", 720, (6, 1), 6, False),
        ("a.mp4", "libx264", "yuv420p", 720, (5, 0), 5, False),
        ("a.mp4", "libx264", "yuv420p", 48, (1, 1), 1, False),
        ("a.mp4", "libx264", "yuv420p", 48, (1, 2), 1, True),
        ("a.mp4", "libx264", "yuv420p", 48, (2, 2), 5, True),
        ("a.mp4", "libx264", "yuv420p", 48, (9, 1), 9, False),
        ("a.mp4", "libx264", "yuv420p", 48, (7, 1), 7, False),
        ("a.mp4", "libx264", "yuv420p", 48, (4, 1), 4, False),
        ("a.mp4", "libx264", "yuv444p", 48, (1, 1), 1, False),
        ("a.mp4", "libx264", "yuv420p10le", 48, (2, 0), 5, False),
        ("a.mp4", "libx264", "yuv420p10le", 48, (1, 2), 1, True),
        ("a.mkv", "ffv1", "yuv422p", 720, (2, 0), 1, False),
        ("a.mkv", "ffv1", "yuv420p10le", 48, (9, 1), 9, False),
        ("a.webm", "libvpx-vp9", "yuv420p", 48, (1, 1), 1, False),
        ("a.webm", "libvpx-vp9", "yuv420p", 720, (2, 0), 1, False),
        ("a.mpg", "mpeg2video", "yuv420p", 48, (2, 0), 5, False),
        ("a.mov", "mjpeg", "yuvj420p", 720, (2, 2), 5, True),
    ],
)
def test_matrix_and_range(tmp_path, name, codec, pixels, lines, tags, matrix, full):
    bits = 10 if "10" in pixels else 8
    frames = []
    for _ in range(2):
        frame = planes(ycbcr(matrix, full, bits), pixels, lines)
        frame.colorspace, frame.color_range = tags
        frames.append(frame)
    path = encode(tmp_path / name, frames, codec, pixels=pixels, tags=tags)
    for backend in BACKENDS:
        frames = shown(path, [1], backend)
        assert frames is None or near(frames[0][lines // 2, 32], COLOUR, 3), (
            backend,
            frames[0][lines // 2, 32],
        )
    assert near(read_clip(path)[0][0][lines // 2, 32], COLOUR, 3)


def test_lines_are_counted_before_turning(tmp_path):
    """As browsers do (measured): 720 shown lines of 64 stored ones are BT.601, and the other way round."""
    for height, width, matrix in ((64, 720, 5), (720, 64, 1)):
        frames = [planes(ycbcr(matrix, False), "yuv420p", height, width) for _ in range(2)]
        path = with_matrix(encode(tmp_path / f"{height}.mp4", frames), (0, 1, -1, 0))
        film = Film(path)
        assert film.size == (width, height) and near(film.get([0])[0][30, 30], COLOUR, 3)


@pytest.mark.parametrize(
    "codec, range_tag, stored, seen",
    [("ffv1", 2, 128, 128), ("ffv1", 1, 16, 0), ("ffv1", 1, 235, 255), ("ffv1", 0, 128, 128)],
)
def test_grey_films(tmp_path, codec, range_tag, stored, seen):
    frames = [planes([stored], "gray", 48) for _ in range(2)]
    for frame in frames:
        frame.color_range = range_tag
    path = encode(tmp_path / "a.mkv", frames, codec, pixels="gray", tags=(2, range_tag))
    assert near(read_clip(path)[0][0][20, 20], (seen,) * 3, 1)


@pytest.mark.parametrize(
    "name, codec, pixels", [("a.mov", "qtrle", "argb"), ("a.mov", "png", "rgba"), ("a.mkv", "ffv1", "bgra")]
)
def test_transparent_films_lie_on_white(tmp_path, name, codec, pixels):
    clear = np.zeros((48, 64, 4), np.uint8)
    clear[:, :32] = (200, 60, 40, 255)
    clear[:, 32:, :3] = np.random.default_rng(0).integers(0, 255, (48, 32, 3))
    frames = [av.VideoFrame.from_ndarray(clear, "rgba").reformat(format=pixels) for _ in range(2)]
    found = read_clip(encode(tmp_path / name, frames, codec, pixels=pixels))[0][1]
    assert near(found[20, 10], COLOUR, 1) and (found[:, 33:] == 255).all()


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_alpha_beside_the_pictures_of_a_webm(tmp_path, codec):
    clear = np.full((48, 64, 4), (*COLOUR, 255), np.uint8)
    clear[:, 32:] = 0, 0, 0, 0
    frames = [av.VideoFrame.from_ndarray(clear, "rgba").reformat(format="yuva420p") for _ in range(9)]
    path = encode(tmp_path / "a.webm", frames, codec, pixels="yuva420p", **{"auto-alt-ref": "0", "g": "4"})
    found = read_clip(path)[0]
    assert len(found) == 9 and near(found[:, 10:40, 5:25], COLOUR, 6) and near(found[:, :, 40:], 255, 2)
    assert np.array_equal(open_video(path).get([7, 2]), found[[7, 2]])
    assert len(read_clip(CASES / "deep_and_clear.webm")[0]) == 2  # of 10 bits


@pytest.mark.parametrize(
    "name, codec, pixels",
    [("a.mp4", "libx264rgb", "rgb24"), ("a.mkv", "ffv1", "bgr0"), ("a.mov", "png", "rgb24")],
)
def test_films_of_rgb(tmp_path, films, name, codec, pixels):
    pictures = [films.picture(n, 48, 64) for n in range(2)]
    frames = [av.VideoFrame.from_ndarray(p, "rgb24").reformat(format=pixels) for p in pictures]
    found = read_clip(
        encode(tmp_path / name, frames, codec, pixels=pixels, **({"crf": "0"} if "264" in codec else {}))
    )
    assert np.array_equal(found[0], pictures)


# ---- time --------------------------------------------------------------------------------------------------

TWO_RATES = [10 * n for n in range(12)] + [120 + 40 * n for n in range(12)]  # 24 a second, then 6, in 1/240 s


def test_a_changing_rate_is_trained_on_by_times():
    """12 frames at 24 a second, then 12 at 6: with fixed_fps 6 the frames are 1/6 s apart all the way."""
    film = Film(CASES / "two_rates.mp4")
    times = np.array([n / 24 for n in range(12)] + [0.5 + n / 6 for n in range(12)])
    assert not film.steady and np.abs(film.times - times).max() < 1e-3
    assert film.fps == pytest.approx(23 / times[-1], rel=1e-3) and film.end == pytest.approx(2.5, abs=0.01)
    video = [CaptionedVideo(CASES / "two_rates.mp4", "")]
    for draw in range(8):
        item = ClipDataset(video, ClipSettings(8, 36, 64, (1, 1), fixed_fps=6), draw)[0, 0]
        assert item["fps"] == 6 and item["fps_true"] == pytest.approx(6)
    clip = ClipSettings(8, 36, 64, (1, 1), fixed_fps=6, random_start=False)
    chosen = choose_frames(film, clip, generator())
    assert list(chosen) == [0, 4, 8, 12, 13, 14, 15, 16] and chosen.fps == pytest.approx(6)


def generator():
    from edg.core.seeding import generator

    return generator(0, "clip")


@pytest.mark.parametrize("stride", [1, 2, 5])
@pytest.mark.parametrize("fixed", [None, 4.0, 100.0])
def test_clips_of_a_changing_rate_tell_their_true_rate(stride, fixed):
    film = Film(CASES / "two_rates.mp4")
    for frames in (1, 2, 8, 24):
        clip = ClipSettings(frames, 36, 64, (stride, stride), fixed_fps=fixed)
        chosen = choose_frames(film, clip, generator())
        assert len(chosen) == frames and chosen.start == chosen[0]
        at = film.times[chosen.start] + np.arange(frames) / chosen.fps
        assert at[-1] <= film.times[-1] + 1e-6
        assert list(chosen) == [int(np.sum(film.times <= time + 2e-3)) - 1 for time in at]
        wanted = stride / min(fixed or film.fps, film.fps)
        if frames > 1 and wanted * (frames - 1) <= film.times[-1]:
            assert chosen.fps == pytest.approx(1 / wanted)
    with pytest.raises(BadFileError):
        choose_frames(film, ClipSettings(25, 36, 64), generator())


def test_a_changing_rate_is_scored_in_even_steps():
    frames, fps = read_timed(CASES / "two_rates.mp4")
    each = read_clip(CASES / "two_rates.mp4")[0]
    assert fps == pytest.approx(24, rel=1e-3) and len(frames) == 60
    expected = list(range(12)) + [12 + n // 4 for n in range(48)]
    assert np.array_equal(frames, each[expected])


def test_even_steps_are_bounded():
    times = np.array([0, 0.01, 60, 120])
    chosen, fps = evenly(times, 121.0, 4 / 121, 256)
    assert fps == pytest.approx(4 / 121) and len(chosen) == 4
    assert frames_at(times, np.array([0.0, 0.02, 59.99, 60.0, 500.0])).tolist() == [0, 1, 1, 2, 3]


def test_a_steady_film_is_chosen_as_ever(tmp_path, films):
    film = Film(films.encode(tmp_path / "a.mp4", count=40))
    clip = ClipSettings(8, 36, 64, (2, 2), fixed_fps=10, random_start=False)
    chosen = choose_frames(film, clip, generator())
    assert film.steady and list(chosen) == list(range(0, 40, 5)) and chosen.fps == 5 and chosen.stride == 5


@pytest.mark.parametrize("lost", [(), (17,), (5, 6, 7)])
def test_jitter_is_no_change_of_rate(tmp_path, films, lost):
    """Phones' frames wander by a few milliseconds; one that was dropped is a change."""
    numbers = [n for n in range(30) if n not in lost]
    times = [10 * n + (n * 7 % 5 - 2) for n in numbers]
    times = [time - times[0] for time in times]
    film = Film(encode(tmp_path / "a.mp4", [films.picture(n, 48, 64) for n in numbers], times=times, bf="0"))
    assert film.steady == (not lost) and film.fps == pytest.approx(24, rel=0.2)


@pytest.mark.parametrize("claimed", [9000, 2, 48])
def test_a_rate_that_the_frames_do_not_keep(tmp_path, films, claimed):
    """Of a film whose stream claims a rate, the times of the frames decide."""
    path = films.encode(tmp_path / "a.mkv", count=20, fps=25)
    data = bytearray(path.read_bytes())
    at = data.index(b"\x23\xe3\x83") + 4  # DefaultDuration, nanoseconds
    size = data[at - 1] & 0x7F
    data[at : at + size] = round(1e9 / claimed).to_bytes(size, "big")
    path.write_bytes(data)
    with av.open(str(path)) as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(claimed, rel=0.01)
    for found in (open_video(path).fps, read_rate(path), read_timed(path)[1]):
        assert found == pytest.approx(25, rel=0.01)


@pytest.mark.parametrize("shift", [-3, -0.04, 0.04, 3, 1e4])
def test_times_that_do_not_begin_at_nought(tmp_path, films, shift):
    source = films.encode(tmp_path / "a.mp4", count=20)
    with av.open(str(source)) as given, av.open(str(tmp_path / "b.ts"), "w") as made:
        stream = given.streams.video[0]
        copy = made.add_stream_from_template(stream)
        for packet in given.demux(stream):
            if packet.size:
                moved = round((shift + 4) / stream.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts + moved, packet.dts + moved, copy
                made.mux(packet)
    film = Film(tmp_path / "b.ts")
    assert film.frames == 20 and film.times[0] == 0 and film.times[-1] == pytest.approx(19 / 25, abs=1e-3)
    assert film.steady and film.web_ending == ""


def test_a_recording_that_begins_between_keyframes(tmp_path, films):
    """What cannot be decoded at its beginning is left out, as players do."""
    source = films.encode(tmp_path / "a.mp4", count=40, keyframes=12)
    with av.open(str(source)) as given, av.open(str(tmp_path / "b.ts"), "w") as made:
        stream = given.streams.video[0]
        copy = made.add_stream_from_template(stream)
        for number, packet in enumerate(given.demux(stream)):
            if packet.size and number >= 5:
                packet.stream = copy
                made.mux(packet)
    film = open_video(tmp_path / "b.ts")
    assert film.frames == 28 and len(read_clip(tmp_path / "b.ts")[0]) == 28
    assert round(float(np.median(film.get([0])[0][-12:-4, -12:-4])) / 4) == 12


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
def test_a_last_packet_that_is_cut(tmp_path, films, ending):
    plain = films.encode(tmp_path / "a.mp4", count=30)
    with av.open(str(plain)) as given:
        last = [packet.size for packet in given.demux(video=0) if packet.size][-1]
    whole = tmp_path / f"b.{ending}"
    with (
        av.open(str(plain)) as given,
        av.open(str(whole), "w", options={"movflags": "faststart"} if ending == "mp4" else {}) as made,
    ):
        copy = made.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.size:
                packet.stream = copy
                made.mux(packet)
    data = whole.read_bytes()
    end = data.rindex(b"\x1c\x53\xbb\x6b") if ending == "mkv" else len(data)  # Cues come last
    whole.write_bytes(data[: end - last // 2])
    frames = read_clip(whole)[0]
    assert 28 <= len(frames) <= 30 and Film(whole).frames == len(frames)
    whole.write_bytes(data[: len(data) // 2])
    if ending == "mp4":
        with pytest.raises(BadFileError):
            read_clip(whole)


@pytest.mark.parametrize("size", [(37, 51), (1, 1), (3, 64)])
def test_odd_sizes(tmp_path, size):
    path = encode(tmp_path / "a.mkv", flat(COLOUR, size), "ffv1", pixels="yuv444p")
    assert open_video(path).size == size and near(read_clip(path)[0][1][0, 0], COLOUR, 3)


def test_interlaced_films_are_reported(tmp_path, films, caplog):
    options = {"x264-params": "tff=1", "flags": "+ildct+ilme"}
    pictures = [films.picture(n, 64, 64) for n in range(20)]
    lined = encode(tmp_path / "a.mp4", pictures, **options)
    plain = encode(tmp_path / "b.mp4", pictures)
    for path, count in ((lined, 1), (plain, 0)):
        film = Film(path)
        film.get(range(4))
        assert len(film.warnings) == count
        caplog.clear()
        read_clip(path)
        assert len(caplog.records) == count
        caplog.clear()
        data = ClipDataset([CaptionedVideo(path, "")], ClipSettings(8, 32, 32), 0)
        assert data[0, 0]["path"] == data[1, 0]["path"] and len(caplog.records) == count  # once


@pytest.mark.parametrize("curve, count", [("smpte2084", 1), ("arib-std-b67", 1), ("bt709", 0)])
def test_films_of_high_dynamic_range_are_reported(tmp_path, films, curve, count):
    named = {"x264-params": f"transfer={curve}:colorprim=bt2020:colormatrix=bt2020nc"}
    film = Film(encode(tmp_path / "a.mp4", [films.picture(n, 48, 64) for n in range(4)], **named))
    film.get([0, 3])
    assert len(film.warnings) == count


# ---- browsers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, codec, pixels, options, ending",
    [
        ("a.mp4", "libx264", "yuv420p", {}, ".mp4"),
        ("a.m4v", "libx264", "yuv420p", {}, ".mp4"),
        ("a.mp4", "libx264", "yuv444p", {}, ""),
        ("a.mp4", "libx264", "yuv422p", {}, ""),
        ("a.mp4", "libx264", "yuv420p10le", {}, ""),
        ("a.mp4", "libx264", "yuv420p", {"crf": "0"}, ""),  # High 4:4:4 Predictive
        ("a.mp4", "mpeg4", "yuv420p", {}, ""),
        ("a.mov", "libx264", "yuv420p", {}, ""),
        ("a.mov", "prores_ks", "yuv422p10le", {}, ""),
        ("a.mkv", "libx264", "yuv420p", {}, ""),
        ("a.webm", "libvpx-vp9", "yuv420p", {}, ".webm"),
        ("a.webm", "libvpx-vp9", "yuv444p", {}, ""),
        ("a.webm", "libvpx", "yuv420p", {}, ".webm"),
        ("a.mkv", "libvpx-vp9", "yuv420p", {}, ""),
        ("a.mp4", "libvpx-vp9", "yuv420p", {}, ".mp4"),
        ("a.avi", "mpeg4", "yuv420p", {}, ""),
    ],
)
def test_what_browsers_play_as_it_is(tmp_path, films, name, codec, pixels, options, ending):
    path = encode(
        tmp_path / name, [films.picture(n, 48, 64) for n in range(4)], codec, pixels=pixels, **options
    )
    assert Film(path).web_ending == ending
    renamed = path.rename(tmp_path / "other.webm")  # the name says nothing
    assert Film(renamed).web_ending == ending


def test_a_film_of_ours_is_played_as_it_is(tmp_path):
    write_video(tmp_path / "a.mp4", np.zeros((8, 32, 32, 3), np.uint8))
    assert Film(tmp_path / "a.mp4").web_ending == ".mp4"
    write_video(tmp_path / "still.mp4", np.zeros((1, 32, 32, 3), np.uint8))
    assert Film(tmp_path / "still.mp4").web_ending == ".mp4"
    for name in ("turned_90.mp4", "pixels_2_to_1.mp4", "two_streams.mp4", "two_rates.mp4", "mpeg4_part2.mp4"):
        assert Film(CASES / name).web_ending == ""


# ---- colour samples ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv422p", "yuv411p", "yuv420p10le"])
def test_a_sample_of_colour_is_repeated(tmp_path, pixels):
    """Two halves of other colours, their edge where a sample ends: no colour in between."""
    from edg.core.video import read_frames

    frame = np.full((32, 64, 3), (200, 40, 40), np.uint8)
    frame[:, 32:] = (40, 60, 200)
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 32, pixels
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
        for packet in (
            *stream.encode(picture.reformat(format=pixels, interpolation="AREA")),
            *stream.encode(),
        ):
            container.mux(packet)
    (seen,) = read_frames(tmp_path / "a.mkv")
    for left, right in ((28, 32), (32, 36)):
        assert np.ptp(seen[:, left:right].reshape(-1, 3), axis=0).max() <= 1
