"""Clips in every format: frames and tags read back, files complete or not at all."""

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from edg.core.errors import BadFileError, MachineError, UsageError
from edg.core.files import remove_leftovers
from edg.core.formats import (
    FORMATS,
    clip_path,
    clip_sha256,
    clip_stem,
    durations,
    frame_files,
    is_clip,
    parse_formats,
    read_clip,
    read_tags,
    read_timed,
    write_clip,
)
from edg.data.captions import SUFFIXES

TAGS = {"prompt": "ein röter 圆 “x”", "seed": "7", "comment": '{"long": "' + "ü" * 3000 + '"}'}


def clip(count=8):
    """Smooth colours that move a pixel with each frame."""
    x = np.add.outer(np.arange(count), np.add.outer(np.arange(32), np.arange(48)))
    return (128 + 90 * np.sin(x[..., None] / 30 + np.array([0, 2, 4]))).astype(np.uint8)


def write(folder, format, frames=None, **more):
    path = clip_path(folder, "0000-x", format)
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
    first = clip_sha256(write(tmp_path, format))
    assert clip_sha256(write(tmp_path, format)) == first
    assert clip_sha256(write(tmp_path, format, clip()[::-1])) != first
    assert [p.name for p in tmp_path.iterdir()] == [clip_path(tmp_path, "0000-x", format).name]


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
        assert len(read_clip(clip_path(tmp_path, "0000-x", format))) == 6


def test_a_long_pause_does_not_become_a_thousand_frames(tmp_path):
    first, *rest = [Image.fromarray(frame) for frame in clip(3)]
    first.save(tmp_path / "x.gif", save_all=True, append_images=rest, duration=[10, 60_000, 10])
    found, rate = read_timed(tmp_path / "x.gif")
    assert len(found) == 3 and rate == pytest.approx(3 / 60.02, rel=0.01)


def test_frames_of_several_sizes_are_told(tmp_path):
    path = write(tmp_path, "png")
    Image.fromarray(clip()[0][:8]).save(path / "00003.png")
    with pytest.raises(BadFileError, match="0000-x"):
        read_timed(path)


def test_what_is_a_clip(tmp_path):
    for format in FORMATS:
        path = write(tmp_path, format)
        assert is_clip(path) and clip_stem(path) == "0000-x"
    dotted = clip_path(tmp_path, "0001-a.b", "png")
    write_clip(dotted, clip(), "png", fps=8, crf=10, tags={})
    assert clip_stem(dotted) == "0001-a.b" and clip_stem(clip_path(tmp_path, "0001-a.b", "mp4")) == "0001-a.b"
    for name in ("still.webp", "still.png", "other/x.png", ".hidden.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(clip()[0]).save(tmp_path / name)
        assert not is_clip(tmp_path / name)
    assert not is_clip(tmp_path / "other") and not is_clip(tmp_path / "none.webp")
    assert all(is_clip(tmp_path / f"a{ending}") for ending in SUFFIXES)  # all that training reads


def test_durations_do_not_drift():
    assert durations(4, 8, 10) == [120, 130, 130, 120] and durations(2, 8, 1) == [125, 125]
    assert sum(durations(48, 24, 10)) == 2000 and min(durations(9, 240, 10)) == 10


def test_png_frames_are_there_completely_or_not_at_all(tmp_path):
    path = write(tmp_path, "png")
    before = clip_sha256(path)
    assert sorted(p.name for p in path.iterdir()) == [f"{i:05d}.png" for i in range(8)]
    with pytest.raises(ValueError):  # the second frame is no picture
        write_clip(path, [clip()[0], "x"], "png", fps=8, crf=10, tags={})
    assert clip_sha256(path) == before and list(tmp_path.iterdir()) == [path]
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
    with pytest.raises(MachineError):
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
    with pytest.raises(UsageError) as raised:
        parse_formats("mp4,web")
    assert "'web'" in raised.value.given and "webp" in raised.value.fix


# ---- transparent animations --------------------------------------------------------------------------------

CLEAR = Path(__file__).parent / "clear_hidden.webp"


def squares(count=4, ground=0, half=False):
    """RGBA: a red square that moves over a clear ground of noise; in `half` the square is half clear."""
    frames = []
    for n in range(count):
        frame = np.random.default_rng(n).integers(0, 255, (32, 48, 4)).astype(np.uint8)
        frame[..., 3] = ground
        frame[8:20, 4 * n : 4 * n + 12] = (200, 30, 40, 128 if half else 255)
        frames.append(frame)
    return frames


def on_white(frame):
    alpha = frame[..., 3:] / 255
    return np.round(frame[..., :3] * alpha + 255 * (1 - alpha))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    "name, options",
    [
        ("a.webp", {"lossless": True, "exact": True}),
        ("a.webp", {"lossless": True}),
        ("a.webp", {"lossless": True, "background": (0, 255, 0, 255)}),
        ("a.png", {"disposal": 0, "blend": 0}),
        ("a.png", {"disposal": 1, "blend": 0}),
        ("a.apng", {"format": "PNG", "disposal": 2, "blend": 0}),
        ("a.png", {"default_image": True}),
    ],
)
def test_transparent_animations_lie_on_white(tmp_path, name, options, half):
    frames = squares(half=half)
    first, *rest = [Image.fromarray(frame) for frame in frames]
    path = tmp_path / name
    first.save(path, save_all=True, append_images=rest, duration=125, **options)
    frames = frames[1:] if "default_image" in options else frames
    assert is_clip(path)
    for found in (read_clip(path), read_timed(path)[0]):
        assert len(found) == len(frames)
        for one, frame in zip(found, frames, strict=True):
            assert np.abs(one - on_white(frame)).max() <= 1
    assert read_timed(path)[1] == pytest.approx(8)


def test_opaque_parts_of_a_clear_canvas(tmp_path):
    """libwebp cuts frames down to what is not clear: no frame has alpha then, the canvas has."""
    frames = []
    for n in range(3):
        frame = np.zeros((32, 48, 4), np.uint8)
        frame[8:20, 4 * n : 4 * n + 12] = (200, 30, 40, 255)
        frames.append(frame)
    first, *rest = [Image.fromarray(frame) for frame in frames]
    first.save(tmp_path / "a.webp", save_all=True, append_images=rest, duration=125, lossless=True)
    assert np.array_equal(read_clip(tmp_path / "a.webp"), [on_white(frame) for frame in frames])


@pytest.mark.parametrize(
    "ending, kind, disposal",
    [(*one, disposal) for one in (("gif", "RGBA"), ("gif", "P")) for disposal in (0, 1, 2)]
    + [("png", "P", 0), ("webp", "P", 0)],
)
def test_palettes_with_transparency(tmp_path, ending, kind, disposal):
    """Frames that are parts of the canvas, kept or taken away before the next one."""
    frames, pictures = [], []
    for n in range(3):
        index = np.zeros((32, 48), np.uint8)
        index[8:20, 4 * n : 4 * n + 12] = 1
        palette = Image.fromarray(index, "P")
        palette.putpalette([0, 0, 0, 200, 30, 40] + [0, 255, 0] * 254)
        palette.info["transparency"] = 0
        frames.append(np.where(index[..., None], (200, 30, 40), 255))
        pictures.append(palette if kind == "P" else palette.convert("RGBA"))
    more = {"lossless": True} if ending == "webp" else {"disposal": disposal}
    if ending == "png":
        more["transparency"], more["blend"] = 0, 0
    first, *rest = pictures
    path = tmp_path / f"a.{ending}"
    first.save(path, save_all=True, append_images=rest, duration=120, **more)
    found = read_clip(path)
    kept = np.minimum.accumulate(frames)  # a palette's frames over each other, where nothing is taken away
    over = ending == "gif" and disposal != 2
    assert np.array_equal(found, kept if over else frames)


def test_the_reported_animation_scores_as_its_stills_do(tmp_path):
    with Image.open(CLEAR) as film:
        count = film.n_frames
        for index in range(count):
            film.seek(index)
            (tmp_path / "a").mkdir(exist_ok=True)
            film.save(tmp_path / f"a/{index:05d}.png")
    found = read_clip(CLEAR)
    assert len(found) == count and np.array_equal(found, read_clip(tmp_path / "a"))
    assert (found[:, 0, 0] == 255).all()


def test_what_moves(tmp_path):
    first, *rest = [Image.fromarray(frame) for frame in squares()]
    for name in ("still.png", "still.apng", "still.webp"):
        first.save(tmp_path / name, format="PNG" if "png" in name else None)
        assert not is_clip(tmp_path / name)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert not is_clip(tmp_path / "text.png") and not is_clip(tmp_path / "cut.png")


# ---- folders of frames -------------------------------------------------------------------------------------


def folder(path, names):
    """A folder of frames, each of one grey: 10 times its place in `names`."""
    path.mkdir()
    for index, name in enumerate(names):
        Image.new("RGB", (8, 6), (10 * index,) * 3).save(path / name)
    return path


@pytest.mark.parametrize(
    "names",
    [
        [f"{n:05d}.png" for n in range(8)],
        [f"{n:05d}.png" for n in range(1, 9)],
        [f"frame_{n:04d}.png" for n in range(1, 13)],
        [f"{n}.png" for n in range(1, 13)],
        [f"{n}.jpg" for n in range(12)],
        [f"shot2-take_{n}.jpeg" for n in range(98, 103)],
        [f"{n}_left.PNG" for n in range(8, 12)],
        [f"img ({n}).bmp" for n in range(1, 12)],
        [f"f{n}.webp" for n in range(0, 40, 5)],
        [f"f{n}.tif" for n in range(9, 11)],
        ["f9.png", "f10.jpg"],
    ],
)
def test_frames_numbered_in_any_way(tmp_path, names):
    path = folder(tmp_path / "clip", names)
    (path / ".DS_Store").write_text("x")
    (path / "notes.md").write_text("x")
    assert is_clip(path) and clip_stem(path) == "clip"
    assert [file.name for file in frame_files(path)] == names
    for found in (read_clip(path), read_timed(path)[0]):
        assert found.shape == (len(names), 6, 8, 3)
        assert np.abs(found[:, 3, 3, 0] - 10.0 * np.arange(len(names))).max() <= 2
    assert read_timed(path)[1] == 8 and read_tags(path) == {} and clip_sha256(path)


@pytest.mark.parametrize(
    "names",
    [
        ["1.png", "2.png", "4.png"],
        ["frame_1.png", "frame_2.png", "cover.png"],
        ["frame_1.png", "frame_2.png", "depth_1.png", "depth_2.png"],
        ["1.png", "2.png", "2.jpg"],
        ["1.png", "01.png", "2.png"],
        [*(f"{n:05d}.png" for n in range(3)), "00004.png"],
    ],
)
def test_frames_that_are_unclear_are_named(tmp_path, names):
    path = folder(tmp_path / "clip", names)
    assert is_clip(path)
    for read in (read_clip, read_timed, read_tags):
        with pytest.raises(BadFileError):
            read(path)


def test_folders_that_are_no_clips(tmp_path):
    assert not is_clip(folder(tmp_path / "one", ["frame_0001.png"]))
    assert not is_clip(folder(tmp_path / "names", ["cat.png", "dog.png"]))
    prompts = folder(tmp_path / "prompts", ["1.png", "2.png"])
    (prompts / "prompts.txt").write_text("a\nb\n")
    assert not is_clip(prompts)
    previews = folder(tmp_path / "previews", [f"0000-x_sample{n}.preview.png" for n in range(3)])
    assert not is_clip(previews)
    for format in ("webp", "gif", "mp4", "mov", "png"):
        run = tmp_path / f"run_{format}"
        run.mkdir()
        for n in range(2):
            write_clip(clip_path(run, f"x_sample{n}", format), clip(), format, fps=8, crf=10, tags={})
            Image.new("RGB", (8, 6)).save(run / f"x_sample{n}.preview.png")
        assert not is_clip(run)
    for empty in (tmp_path / "empty", tmp_path / "names"):
        empty.mkdir(exist_ok=True)
        with pytest.raises(BadFileError):
            frame_files(empty)


def test_frames_are_read_as_stills_are(tmp_path):
    """Turned by EXIF, laid on white."""
    path, exif = tmp_path / "clip", Image.Exif()
    path.mkdir()
    exif[0x0112] = 6
    for n in (1, 2):
        Image.new("RGBA", (8, 6), (200, 30, 40, 0)).save(path / f"{n}.png", exif=exif)
    found = read_clip(path)
    assert found.shape == (2, 8, 6, 3) and (found == 255).all()


@pytest.mark.parametrize("crf", [-1, 52, 10.5, "10", True, None])
def test_a_quality_that_no_film_has(tmp_path, crf):
    with pytest.raises(UsageError):
        write(tmp_path, "mp4", crf=crf)
    assert not list(tmp_path.iterdir())
