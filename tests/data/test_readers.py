"""Frames by number, against the pictures that were encoded: any codec, turned, cut, broken."""

import numpy as np
import pytest

from edg.core.errors import BadFileError, MachineError
from edg.core.films import Film
from edg.data import readers
from edg.data.readers import open_video, read_frames_at

BACKENDS = ("auto", "pyav")


def numbers(frames):
    """The numbers of the frames, as their grey quarter tells."""
    return [round(float(np.median(frame[-12:-4, -12:-4])) / 4) for frame in frames]


def close(a, b, levels):
    """A median, since the colours run over the edges of the halves."""
    return np.median(np.abs(a.astype(int) - b.astype(int))) <= levels


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "name, codec, size, tune",
    [
        ("a.mp4", "libx264", (48, 64), {}),
        ("a.mp4", "libx264", (64, 48), {}),  # decord gives four channels for this size
        ("a.mp4", "libx264", (48, 64), {"x264-params": "open-gop=1:keyint=12:min-keyint=12:b-adapt=0"}),
        ("a.mp4", "libx265", (96, 64), {}),
        ("a.mp4", "mpeg4", (48, 64), {}),
        ("a.avi", "mpeg4", (48, 64), {}),
        ("a.mkv", "libx264", (48, 64), {}),
        ("a.webm", "libvpx-vp9", (48, 64), {}),
        ("a.mpg", "mpeg2video", (48, 64), {}),
        ("a.ts", "libx264", (48, 64), {}),
        ("a.mov", "mjpeg", (48, 64), {}),
    ],
)
def test_frames_are_the_ones_asked_for(tmp_path, films, backend, name, codec, size, tune):
    reader = open_video(films.encode(tmp_path / name, codec, 50, size, 25, tune=tune), backend)
    assert (reader.frames, reader.size) == (50, size) and reader.fps == pytest.approx(25)
    asked = [30, 31, 3, 49, 0, 24]
    frames = reader.get(asked)
    assert frames.dtype == np.uint8 and frames.shape == (6, *size, 3)
    tolerance = codec == "mjpeg"  # coarse, and every frame stands for itself
    assert all(abs(a - b) <= tolerance for a, b in zip(numbers(frames), asked, strict=True)), numbers(frames)
    for frame, index in zip(frames, asked, strict=True):
        assert close(frame, films.picture(index, *size), 4)


def test_both_readers_agree(tmp_path, films):
    pytest.importorskip("decord")
    path = films.encode(tmp_path / "a.mp4", count=60, fps=30000 / 1001)
    one, other = open_video(path, "decord"), open_video(path, "pyav")
    assert (one.name, other.name) == ("decord", "pyav") and open_video(path).name == "pyav"
    assert one.fps == pytest.approx(other.fps) == pytest.approx(29.97, abs=1e-3)
    asked = range(2, 60, 7)
    assert close(one.get(asked), other.get(asked), 3)  # decord takes swscale's quick way


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(48, 64), (64, 64), (128, 224)])
@pytest.mark.parametrize("degrees, turns", [(90, -1), (180, 2), (270, 1)])
def test_turned_videos_stand_upright(tmp_path, films, backend, size, degrees, turns):
    path = films.turn(films.encode(tmp_path / "a.mp4", count=8, size=size), degrees)
    reader = open_video(path, backend)
    assert reader.size == (size if degrees == 180 else size[::-1])
    [frame] = reader.get([5])
    assert close(frame, np.rot90(films.picture(5, *size), turns), 4)


@pytest.mark.parametrize("start", [0.2, 0.8, 1.4])
def test_a_cut_without_encoding_begins_where_it_is_shown(tmp_path, films, start):
    path = films.cut(tmp_path / "cut.mp4", films.encode(tmp_path / "a.mp4", count=60), start)
    reader = open_video(path)
    first = round(start * 25)
    shown = numbers(reader.get(range(reader.frames)))
    assert shown == list(range(first, 60))


def test_a_trimmed_video_ends_where_it_is_shown(tmp_path, films):
    path = films.trim(films.encode(tmp_path / "a.mp4", count=60), 1.0)
    reader = open_video(path)
    assert reader.frames == 25
    assert numbers(reader.get(range(25))) == list(range(25))


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_files_say_why(library, backend):
    for name, reason in library.bad.items():
        if name != "short":
            with pytest.raises(BadFileError, match=reason):
                open_video(library.root / f"{name}.mp4", backend)


def test_a_damaged_middle_is_no_crash(tmp_path, films):
    path = films.encode(tmp_path / "a.mp4", count=60)
    data = bytearray(path.read_bytes())
    begin = data.index(b"mdat") + 4
    middle, end = (begin + len(data)) // 2, begin + (len(data) - begin) * 3 // 4
    data[middle:end] = np.random.default_rng(0).bytes(end - middle)
    path.write_bytes(data)
    for backend in BACKENDS:
        with pytest.raises(BadFileError):
            read_frames_at(path, lambda reader: range(reader.frames), backend)


def test_sound_alone_is_no_video(tmp_path):
    import av

    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 8000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(BadFileError):
        open_video(path)


def test_without_decord(tmp_path, films, monkeypatch):
    path = films.encode(tmp_path / "a.mp4")
    monkeypatch.setattr(readers, "_decord", lambda: None)
    assert open_video(path).name == "pyav"
    with pytest.raises(MachineError) as error:
        open_video(path, "decord")
    assert "decord" in error.value.fix


def test_times_that_say_nothing(tmp_path, films, monkeypatch):
    """Where packets carry no times, frames are counted from the beginning."""
    reader = Film(films.encode(tmp_path / "a.mp4"))
    reader._times = None
    assert numbers(reader.get([0, 17, 39])) == [0, 17, 39]
