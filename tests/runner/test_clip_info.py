"""`edg info` on clips: our own with and without their records, those of other programs, and broken ones."""

import json
import shutil

import numpy as np
import pytest
from fakes import FakeSystem, job, run

from edg.core.formats import clip_shape, write_clip
from edg.core.video import write_image, write_video
from edg.runner.clip_info import settings_inside

STEM = "0000-x_sample0"
FRAMES = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), dtype=np.uint8)


def fields(text):
    """Name -> value of the lines of `edg info`, without their indentation."""
    pairs = (line.strip().partition(" ") for line in text.splitlines())
    return {name: value.strip() for name, _, value in pairs}


@pytest.fixture
def clips(tmp_path):
    """A folder with one clip of ours as mp4, gif and a folder of frames, and its record."""
    folder = job(tmp_path, 1, formats=("mp4", "gif", "png"), fps=4)
    run(folder, FakeSystem(), lambda: None)
    return folder.outdir


@pytest.mark.parametrize("name", [f"{STEM}.mp4", f"{STEM}.gif", STEM])
@pytest.mark.parametrize("recorded", [True, False])
def test_our_clip_in_every_format(clips, command, name, recorded):
    if not recorded:
        (clips / f"{STEM}.json").unlink()
    assert command(["info", clips / name])[0] == 0
    found = fields(command.out)
    assert found["file"] != "" and found["prompt"] == "prompt 0" and found["seed"] == "1"
    assert "4 frames, 16x16" in found["clip"] and "4 frames/s" in found["clip"] and found["eta"] == "1.0"
    assert (found["record"] == str(clips / f"{STEM}.json")) == recorded == ("made" in found)
    assert ("image" in found) == recorded, "only the record names it"


def test_the_merge_of_a_set_and_its_files(clips, command):
    path = clips / f"{STEM}.json"
    record = json.loads(path.read_text())
    steps = {"late": [{"op": "extrapolate", "where": ["attention"], "alpha": 0.25, "of": ""}]}
    record["settings"]["sets"] = {"late": {"numbers_sha256": "ab" * 32}}
    record["set_paths"] = {"first": "first.ckpt"}
    path.write_text(json.dumps(record))
    assert command(["info", clips / f"{STEM}.mp4"])[0] == 0
    assert "abab" in fields(command.out)["late"], "without a merge: what identifies it"
    origin = {"output": "late", "recipe": {"outputs": steps}, "inputs": {"first": "cd" * 32}}
    path.write_text(json.dumps(record | {"set_origins": {"late": origin}, "warnings": ["too dark"]}))
    assert command(["info", clips / f"{STEM}.mp4"])[0] == 0
    assert fields(command.out)["late"] == 'extrapolate: where ["attention"], alpha 0.25'
    assert "first: first.ckpt  sha256 cdcd" in command.out and "too dark" in command.out


def test_verify_compares_with_the_record(clips, command):
    path = clips / f"{STEM}.mp4"
    assert command(["info", path, "--verify"])[0] == 0
    with open(path, "ab") as file:
        file.write(b"\0" * 8)
    assert command(["info", path])[0] == 0
    assert command(["info", path, "--verify"])[0] == 3


@pytest.mark.parametrize("flags", [["--names"], ["--table", "ema"]])
def test_flags_of_checkpoints(clips, command, flags):
    assert command(["info", clips / f"{STEM}.mp4", *flags])[0] == 2


def test_a_renamed_clip_is_not_described_by_another_ones_record(clips, command):
    shutil.copy(clips / f"{STEM}.json", clips / "other.json")
    write_video(clips / "other.mp4", FRAMES, fps=10)
    assert command(["info", clips / "other.mp4"])[0] == 0
    assert "prompt" not in fields(command.out) and "5 frames, 48x32" in command.out


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.gif", "a.webp"])
@pytest.mark.parametrize("beside", [None, "[1]", '{"title": "of another program"}', "{"])
def test_a_clip_of_another_program(tmp_path, command, name, beside):
    path = tmp_path / name
    write_clip(path, FRAMES, path.suffix[1:], fps=10, crf=20, tags={"title": "Ball", "comment": "mine"})
    if beside:
        (tmp_path / "a.json").write_text(beside)
    assert command(["info", path])[0] == 0
    found = fields(command.out)
    assert "5 frames, 48x32" in found["clip"] and "10 frames/s" in found["clip"]
    assert found["title"] == "Ball" and "prompt" not in found and "record" not in found


def test_frames_without_a_rate(tmp_path, command):
    for number in range(3):
        write_image(tmp_path / f"clip/{number:03d}.png", FRAMES[number])
    assert clip_shape(tmp_path / "clip") == (3, 32, 48, 0)
    assert command(["info", tmp_path / "clip"])[0] == 0
    assert "3 frames, 48x32" in command.out and "frames/s" not in command.out


@pytest.mark.parametrize("content", [None, b"", b"no video", b"\x00\x00\x00 ftypisom"])
@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_what_is_no_clip(tmp_path, command, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert command(["info", tmp_path / name])[0] == 3


NESTED = json.loads("[" * 400 + "]" * 400)


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"prompt": 5, "seed": NESTED, "sets": [1], "options": "x", "model": 3}},
        {"set_origins": {"a": 1, "b": {"inputs": 3, "recipe": {"outputs": {"[]": 3}}, "output": []}}},
        {
            "set_origins": [],
            "set_paths": {"a": 1},
            "command": [1, None, NESTED],
            "warnings": 3,
            "versions": 1,
        },
        {"image": NESTED, "made_at": {}, "more": NESTED, "warnings": [NESTED, "\x1b[2J"]},
    ],
)
def test_a_record_of_somebody_else(clips, command, change):
    path = clips / f"{STEM}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert command(["info", clips / f"{STEM}.mp4"])[0] == 0
    assert "\x1b" not in command.out


@pytest.mark.parametrize("comment", ["", "5", "[]", "{", "[" * 5000, '{"prompt": "p"}'])
def test_comments_that_are_no_settings(comment):
    assert settings_inside({"comment": comment}) == settings_inside({}) == {}
