"""The Python API: the same pixels as `edg sample`, images of every kind, files that say what they are."""

import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from edg import load
from edg.cli.main import main
from edg.core.errors import BadFileError, UsageError
from edg.core.formats import read_clip, read_tags
from edg.core.video import read_image

ROOT = Path(__file__).parents[1]
IMAGE = ROOT / "prompts/sprites/01-green-circle.png"
PROMPT = "a green circle moves right slowly"
QUICK = {"steps": 3, "device": "cpu"}


@pytest.fixture(scope="module")
def model():
    return load("sprites", **QUICK)


@pytest.fixture(scope="module")
def video(model):
    return model.animate(IMAGE, PROMPT)


@pytest.fixture
def prompts(tmp_path):
    """A prompt folder with the image alone."""
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / IMAGE.name).write_bytes(IMAGE.read_bytes())
    (folder / "prompts.txt").write_text(PROMPT + "\n")
    return folder


def sample(prompts, out, *more):
    flags = [
        "--prompt_dir",
        prompts,
        "--savedir",
        out,
        "--ddim_steps",
        3,
        "--device",
        "cpu",
        "--format",
        "png",
    ]
    assert main([str(arg) for arg in ("sample", *flags, *more)]) == 0
    name = f"0000-{IMAGE.stem}_sample0"
    return read_clip(out / "1000" / name), json.loads((out / "1000" / f"{name}.json").read_text())


SHIPPED = ("--config", "sprites", "--recipe", "edg_temporal_conv", "--unconditional_guidance_scale", 1)


@pytest.mark.slow
def test_the_same_pixels_and_record_as_edg_sample(video, prompts, tmp_path):
    frames, record = sample(prompts, tmp_path / "out", *SHIPPED, "--T", 300)
    assert np.array_equal(video.frames, frames)
    assert video.record["settings"] == record["settings"]
    assert video.record["settings_hash"] == record["settings_hash"]
    assert video.record["warnings"] == record["warnings"] == [] and video.record["info"] == {}


@pytest.mark.slow
def test_from_files_as_run_sh_does_it(video, prompts, tmp_path):
    out = tmp_path / "merged"
    weights = [f"--{name}={ROOT / f'edg/sprites/weights/{name}.safetensors'}" for name in ("base", "tuned")]
    assert main(["merge", "edg_temporal_conv", *weights, "--full", "--quiet", f"--out={out}"]) == 0
    dyn, con = (out / f"{name}.safetensors" for name in ("dyn", "con"))
    made = load("sprites", dyn=dyn, con=con, T=300, guidance=1.0, **QUICK).animate(IMAGE, PROMPT)
    assert np.array_equal(made.frames, video.frames)
    files = ("--dynamic_path", dyn, "--consistency_path", con, "--T", 300)
    frames, record = sample(prompts, tmp_path / "out", *files, "--unconditional_guidance_scale", 1)
    assert np.array_equal(made.frames, frames) and made.record["settings"] == record["settings"]


@pytest.mark.slow
def test_dials(model, video, prompts, tmp_path):
    turned = model.animate(IMAGE, PROMPT, motion=0.3)
    frames, record = sample(prompts, tmp_path / "out", *SHIPPED[:2], *SHIPPED[4:], "--motion", 0.3)
    assert np.array_equal(turned.frames, frames) and turned.record["dials"] == record["dials"]
    assert not np.array_equal(turned.frames, video.frames)
    with pytest.raises(UsageError, match="--motion 2"):
        model.animate(IMAGE, PROMPT, motion=2)


@pytest.mark.slow
def test_images_of_every_kind(model, video):
    name = f"0000-{IMAGE.stem}_sample0"
    for image in (str(IMAGE), Image.open(IMAGE), read_image(IMAGE)):  # the same picture
        again = model.animate(image, PROMPT, id=name)
        assert np.array_equal(again.frames, video.frames)
        assert again.record["settings"]["id"] == name
    other = model.animate(read_image(IMAGE), PROMPT)  # another name, other noise
    assert not np.array_equal(other.frames, video.frames)
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), 7):
        with pytest.raises(UsageError, match="image"):
            model.animate(wrong, PROMPT)
    with pytest.raises(BadFileError, match="nowhere.png"):
        model.animate("nowhere.png", PROMPT)


@pytest.mark.slow
def test_a_prompt_that_is_not_read_to_its_end(model, capsys):
    made = model.animate(IMAGE, f"{PROMPT} and away", steps=1)
    assert made.record["info"] == {"lost_text": {"prompt": "and away"}}
    (line,) = made.record["warnings"]
    assert "and away" in line and line in capsys.readouterr().err


@pytest.mark.slow
def test_flags_of_a_clip(model, video):
    assert not np.array_equal(model.animate(IMAGE, PROMPT, seed=7).frames, video.frames)
    assert model.animate(IMAGE, PROMPT, frames=10).frames.shape == (10, 32, 32, 3)
    assert model.animate(IMAGE, PROMPT, loop=True).frames.shape == (7, 32, 32, 3)
    assert model.animate(IMAGE, PROMPT, size="32x48", fit="pad").frames.shape == (8, 32, 48, 3)
    with pytest.raises(UsageError, match="'steps'"):
        model.animate(IMAGE, PROMPT, step=3)
    with pytest.raises(UsageError, match="savedir"):
        model.animate(IMAGE, PROMPT, savedir="x")
    with pytest.raises(UsageError, match="seed"):
        model.animate(IMAGE, PROMPT, seed="x")
    with pytest.raises(UsageError, match="'recipe'"):
        load("sprites", recipes="edg")


@pytest.mark.slow
def test_two_images(model):
    other = ROOT / "prompts/sprites/05-red-circle.png"
    one, two = (model.animate(IMAGE, PROMPT, last=last) for last in (IMAGE, other))
    assert not np.array_equal(one.frames, two.frames) and two.record["settings"]["last_image_sha256"]


@pytest.mark.parametrize("name, error", [("x.mp4", 3), ("x.mov", 3), ("x.gif", 12), ("x.webp", 0), ("x", 0)])
def test_save(video, tmp_path, name, error):
    path = video.save(tmp_path / name, fps=4)
    assert np.abs(read_clip(path).astype(int) - video.frames).mean() <= error
    tags = read_tags(path)
    assert tags["prompt"] == PROMPT and json.loads(tags["comment"])["fps"] == 4
    with pytest.raises(UsageError, match="x.avi"):
        video.save(tmp_path / "x.avi")


@pytest.mark.slow
def test_a_notebook_shows_it(video):
    import base64
    import io

    html = video._repr_html_()
    data = base64.b64decode(html.split("base64,")[1].split('"')[0])
    with Image.open(io.BytesIO(data)) as film:
        assert film.n_frames == 8 and film.size == (32, 32)
    assert 'width="192"' in html and "pixelated" in html
    assert repr(video) == f"Video({PROMPT!r}, 8 frames of 32x32, seed 123)"


def test_importing_it_is_instant_and_loading_says_nothing():
    code = (
        "import sys; from edg import load; load; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (run.stdout.strip(), run.stderr) == ("[]", "")


def test_a_folder_of_something_else_is_not_replaced(video, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/letters.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("kept", "file"):
        with pytest.raises(UsageError, match=name):
            video.save(tmp_path / name)
    assert (tmp_path / "kept/letters.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    video.save(tmp_path / "frames")
    video.save(tmp_path / "frames")  # its own frames it replaces
    assert np.array_equal(read_clip(tmp_path / "frames"), video.frames)


@pytest.mark.parametrize(
    "name, more, message",
    [
        ("x.mp4", {"fps": 0}, "--fps 0; expected 0.1"),
        ("x.mp4", {"fps": float("nan")}, "--fps nan"),
        ("x.gif", {"fps": 60}, "with gif"),
        ("x.mp4", {"crf": -5}, "--crf -5"),
        ("x.mp4", {"crf": "high"}, "--crf 'high'"),
        ("", {}, "is empty"),
        ("frames_v1.2", {}, "expected a name that ends in"),
    ],
)
def test_what_no_file_can_be(video, tmp_path, name, more, message):
    with pytest.raises(UsageError, match=message):
        video.save(tmp_path / name if name else "", **more)


def test_endings_in_capitals(video, tmp_path):
    for name in ("x.MOV", "x.GIF", "x.WEBP"):
        path = video.save(tmp_path / name)
        assert read_tags(path)["prompt"] == PROMPT
        assert read_clip(path).shape[1:] == video.frames.shape[1:]
    with av.open(str(tmp_path / "x.MOV")) as movie:
        assert movie.streams.video[0].codec_context.name == "prores"


@pytest.mark.slow
def test_what_the_user_chose_stands_beside_a_dial():
    def made(flags, **turned):
        model = load("sprites", steps=2, device="cpu", **flags)
        return model.animate(IMAGE, PROMPT, **turned).record["settings"]["options"]["switch_at"]

    assert made({"T": 600}, motion=1.0) == [600]
    assert made({}, motion=1.0) == [300]
    with pytest.raises(UsageError, match="--hold"):
        made({"T": 600}, hold=0.5)
    with pytest.raises(UsageError, match="--recipe"):
        made({"recipe": "edg"}, motion=1.0)


@pytest.mark.parametrize(
    "image, prompt, message",
    [
        (None, PROMPT, "image"),
        (7, PROMPT, "int"),
        (IMAGE, None, "NoneType"),
        (np.zeros((0, 8, 3), np.uint8), PROMPT, "image"),
    ],
)
def test_what_is_no_image_or_prompt(model, image, prompt, message):
    with pytest.raises(UsageError, match=message):
        model.animate(image, prompt)


def test_a_misspelt_model_is_named():
    with pytest.raises(UsageError, match="'spritez'.*'sprites'"):
        load("spritez").animate(IMAGE, PROMPT)
