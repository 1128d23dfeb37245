"""Clips in every format: frames and tags read back, files complete or not at all."""

import av
import numpy as np
import pytest
from PIL import Image

from edg.core.errors import BadFileError, MachineError, UsageError
from edg.core.formats import (
    FORMATS,
    digest,
    durations,
    is_clip,
    parse_formats,
    place,
    read_clip,
    read_tags,
    read_timed,
    stem_of,
    write_clip,
)
from edg.core.records import remove_leftovers

TAGS = {"prompt": "ein röter 圆 “x”", "seed": "7", "comment": '{"long": "' + "ü" * 3000 + '"}'}


def clip(count=8):
    """Smooth colours that move a pixel with each frame."""
    x = np.add.outer(np.arange(count), np.add.outer(np.arange(32), np.arange(48)))
    return (128 + 90 * np.sin(x[..., None] / 30 + np.array([0, 2, 4]))).astype(np.uint8)


def write(folder, format, frames=None, **more):
    path = place(folder, "0000-x", format)
    frames = clip() if frames is None else frames
    write_clip(path, frames, format, **{"fps": 8, "crf": 10, "tags": TAGS, **more})
    return path


# Mean error in levels: png and webp are exact, gif has 256 colours, mp4 and mov fewer pixels for colour.
@pytest.mark.parametrize("format, error", [("png", 0), ("webp", 0), ("mov", 1.5), ("mp4", 2), ("gif", 8)])
def test_frames_and_tags_read_back(tmp_path, format, error):
    path = write(tmp_path, format)
    found = read_clip(path)
    assert found.shape == clip().shape and found.dtype == np.uint8
    assert np.abs(found.astype(int) - clip()).mean() <= error
    tags = read_tags(path)
    assert {name: tags[name] for name in TAGS} == TAGS


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_frames_give_the_same_file(tmp_path, format):
    first = digest(write(tmp_path, format))
    assert digest(write(tmp_path, format)) == first
    assert digest(write(tmp_path, format, clip()[::-1])) != first
    assert [p.name for p in tmp_path.iterdir()] == [place(tmp_path, "0000-x", format).name]


@pytest.mark.parametrize(
    "format, codec, pixels", [("mp4", "h264", "yuv420p"), ("mov", "prores", "yuv422p10le")]
)
def test_what_a_player_finds(tmp_path, format, codec, pixels):
    with av.open(str(write(tmp_path, format, fps=12.5))) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == (codec, pixels)
        assert float(stream.average_rate) == 12.5 and stream.frames == 8
        assert container.metadata["seed"] == "7"


def test_crf_makes_mp4_smaller(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    sizes = [write(tmp_path, "mp4", noise, crf=crf).stat().st_size for crf in (0, 40)]
    assert sizes[1] < sizes[0] / 2


def test_a_gif_has_one_palette_and_the_right_speed(tmp_path):
    with Image.open(write(tmp_path, "gif", clip(16))) as film:
        total, palettes = 0, set()
        for index in range(film.n_frames):
            film.seek(index)
            total += film.info["duration"]
            palettes.add(bytes(film.palette.palette) if film.palette else b"")
        assert film.n_frames == 16 and total == 2000 and film.info["loop"] == 0
        assert len(palettes) == 1


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("fps", [8, 12.5, 24])
def test_frames_that_viewers_formats_join_come_back(tmp_path, format, fps):
    frames = clip()[[0, 1, 1, 2, 3, 4, 4, 4, 5]]
    tags = {"comment": f'{{"fps": {fps}}}'}
    found, rate = read_timed(write(tmp_path, format, frames, fps=fps, tags=tags))
    assert len(found) == 9 and rate == pytest.approx(fps, rel=0.02)
    assert np.abs(found.astype(int) - frames).mean() <= 8
    if format in ("gif", "webp"):
        assert len(read_clip(place(tmp_path, "0000-x", format))) == 6


def test_a_long_pause_does_not_become_a_thousand_frames(tmp_path):
    first, *rest = [Image.fromarray(frame) for frame in clip(3)]
    first.save(tmp_path / "x.gif", save_all=True, append_images=rest, duration=[10, 60_000, 10])
    found, rate = read_timed(tmp_path / "x.gif")
    assert len(found) == 3 and rate == pytest.approx(3 / 60.02, rel=0.01)


def test_frames_of_several_sizes_are_told(tmp_path):
    path = write(tmp_path, "png")
    Image.fromarray(clip()[0][:8]).save(path / "00003.png")
    with pytest.raises(BadFileError, match="0000-x are of 2 sizes"):
        read_timed(path)


def test_what_is_a_clip(tmp_path):
    for format in FORMATS:
        path = write(tmp_path, format)
        assert is_clip(path) and stem_of(path) == "0000-x"
    dotted = place(tmp_path, "0001-a.b", "png")
    write_clip(dotted, clip(), "png", fps=8, crf=10, tags={})
    assert stem_of(dotted) == "0001-a.b" and stem_of(place(tmp_path, "0001-a.b", "mp4")) == "0001-a.b"
    for name in ("still.webp", "still.png", "other/x.png", ".hidden.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(clip()[0]).save(tmp_path / name)
        assert not is_clip(tmp_path / name)
    assert not is_clip(tmp_path / "other") and not is_clip(tmp_path / "none.webp")


def test_durations_do_not_drift():
    assert durations(4, 8, 10) == [120, 130, 130, 120] and durations(2, 8, 1) == [125, 125]
    assert sum(durations(48, 24, 10)) == 2000 and min(durations(9, 240, 10)) == 10


def test_png_frames_are_there_completely_or_not_at_all(tmp_path):
    path = write(tmp_path, "png")
    before = digest(path)
    assert sorted(p.name for p in path.iterdir()) == [f"{i:05d}.png" for i in range(8)]
    with pytest.raises(ValueError):  # the second frame is no picture
        write_clip(path, [clip()[0], "x"], "png", fps=8, crf=10, tags={})
    assert digest(path) == before and list(tmp_path.iterdir()) == [path]
    write(tmp_path, "png", clip(3))
    assert len(read_clip(path)) == 3 and list(tmp_path.iterdir()) == [path]


def test_leftover_folders_go(tmp_path):
    old = tmp_path / ".edg-tmp-00000000-1-x"
    old.mkdir()
    (old / "00000.png").write_bytes(b"x")
    import os

    os.utime(old, (0, 0))
    assert remove_leftovers(tmp_path) == 1 and not old.exists()


@pytest.mark.parametrize("format", FORMATS)
def test_a_folder_that_cannot_be_written(tmp_path, format):
    (tmp_path / "file").write_text("x")
    with pytest.raises(MachineError, match="cannot write"):
        write(tmp_path / "file", format)


@pytest.mark.parametrize("format", FORMATS)
def test_damaged_clips_are_told(tmp_path, format):
    path = write(tmp_path, format)
    victim = path / "00003.png" if path.is_dir() else path
    victim.write_bytes(victim.read_bytes()[:60])
    for reader in (read_clip, read_tags):
        with pytest.raises(BadFileError):
            reader(path)


def test_names_of_formats():
    assert parse_formats("mp4, .GIF,mp4") == ("mp4", "gif")
    with pytest.raises(UsageError, match="format 'web'.*did you mean 'webp'"):
        parse_formats("mp4,web")
