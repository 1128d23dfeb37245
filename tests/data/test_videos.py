"""Catalogue, videos: damaged ones are made again or named, never counted; what cannot be written is told."""

import json
import sys
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from runs import given_of
from sampling import RED, sampler, save

from edg.core.hashing import sha256_file
from edg.core.video import write_video

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=\"window.hacked=1\"> & 'so'"


@pytest.fixture
def sample(command, monkeypatch):
    return sampler(command, monkeypatch)


@pytest.fixture
def prompts(tmp_path):
    for i in range(1, 3):
        save(tmp_path / f"in/{i}.png", Image.new("RGB", (8, 8), RED))
    (tmp_path / "in/p.txt").write_text("one\ntwo\n")
    return tmp_path / "in"


def moving(frames, seed=0):
    picture = np.random.default_rng(seed).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    return np.stack([np.roll(picture, t, axis=1) for t in range(frames)])


@pytest.mark.parametrize("damage", ["empty", "cut", "other bytes"])
def test_c88_damaged_video_is_made_again(sample, prompts, damage):
    _, _, out = sample(prompts)
    victim, other = (out / f"000{i}-{i + 1}_sample0.mp4" for i in (0, 1))
    before, untouched = sha256_file(victim), other.stat().st_mtime_ns
    data = victim.read_bytes()
    victim.write_bytes({"empty": b"", "cut": data[:300], "other bytes": data[:-9] + b"123456789"}[damage])
    assert sample(prompts).code == 0
    assert sha256_file(victim) == before and other.stat().st_mtime_ns == untouched


@pytest.fixture
def score(command, tmp_path):
    """score(clips, *flags) -> (exit code, stderr, scores.json, rows of scores.jsonl)."""
    folder = tmp_path / "clips"
    folder.mkdir()

    def scored(clips, *flags):
        for name, frames in clips.items():
            path = folder / f"{name}.mp4"
            path.write_bytes(frames) if isinstance(frames, bytes) else write_video(path, frames)
        code, err = command(["score", folder, *flags])
        rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
        return code, err, json.loads((folder / "scores.json").read_text())["metrics"], rows

    return scored


def test_c89_video_of_zero_bytes_is_in_no_mean(score):
    metric = ("--metrics", "temporal_flickering")
    whole = score({"a": moving(4), "c": moving(4, 1)}, *metric)
    code, err, metrics, rows = score({"b": b""}, *metric)
    assert whole[0] == 0 and code == 5 and "b.mp4: temporal_flickering" in given_of(err)
    assert metrics["temporal_flickering"]["mean"] == whole[2]["temporal_flickering"]["mean"]
    assert [row["clip"] for row in rows if row["failed"]] == ["b.mp4"]


def test_c89_a_report_shows_the_others(command, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/a.mp4").write_bytes(b"")
    write_video(tmp_path / "run/b.mp4", moving(2))
    code, err = command(["report", tmp_path / "run", "--out", tmp_path / "page"])
    assert code == 5 and "a.mp4" in given_of(err)
    assert (tmp_path / "page/index.html").exists()


def test_c90_one_frame_has_no_motion(score):
    """Told of the clip, the others are scored: 5, as for any clip that fails."""
    code, err, metrics, rows = score({"a": moving(1), "b": moving(4)}, "--metrics", "motion_degree")
    assert code == 5 and "a.mp4: motion_degree" in given_of(err)
    assert list(rows[0]["failed"]) == ["motion_degree"]
    assert metrics["motion_degree"]["mean"] == rows[1]["scores"]["motion_degree"]


def test_c90_lengths_that_differ(score, tmp_path):
    """Only what compares frame by frame minds."""
    (tmp_path / "real").mkdir()
    for name, frames in (("a", moving(5)), ("b", moving(4))):
        write_video(tmp_path / f"real/{name}.mp4", frames)
    names = "temporal_flickering,reference_psnr"
    clips = {"a": moving(4), "b": moving(4)}
    code, err, _, rows = score(clips, "--metrics", names, "--reference", tmp_path / "real")
    assert code == 5 and "a.mp4: reference_psnr" in given_of(err)
    assert [list(row["failed"]) for row in rows] == [["reference_psnr"], []]
    assert all(row["scores"]["temporal_flickering"] for row in rows)


class Container:
    """What av.open gives for writing, of an ffmpeg that fails at `where`."""

    def __init__(self, path, where, error):
        self.where, self.error, self.metadata = where, error, {}
        Path(path).write_bytes(b"half a video")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def reach(self, where):
        if where == self.where:
            raise self.error

    def add_stream(self, *_, **__):
        self.reach("add_stream")
        return self

    def encode(self, frame):
        self.reach("encode")

    def mux(self, packets):
        pass


@pytest.mark.parametrize(
    "where, error, told",
    [
        ("add_stream", av.codec.codec.UnknownCodecError("libx264"), "PyAV has no encoder libx264"),
        ("encode", av.error.ExternalError(-542398533, "in a library"), "_sample0.mp4 failed: in a library"),
        (
            "encode",
            av.error.MemoryError(12, "Cannot allocate memory"),
            "_sample0.mp4 failed: Cannot allocate memory",
        ),
    ],
)
def test_c91_encoder_that_is_not_there_or_dies(sample, prompts, monkeypatch, where, error, told):
    """The clips fail, told with the remedy (5); the pictures could still be had as another format."""
    real = av.open
    monkeypatch.setattr(
        av,
        "open",
        lambda path, mode="r", **more: Container(path, where, error) if mode == "w" else real(path),
    )
    code, err, out = sample(prompts)
    assert code == 5 and told in err and "--format" in err, err
    assert not list(out.glob("*.mp4")) and not list(out.glob(".edg-tmp*"))
    assert sample(prompts, "--format", "png").code == 0


def test_c91_without_pyav(sample, prompts, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    code, err, out = sample(prompts)
    assert code == 4 and "av" in given_of(err).split()
    assert not list(out.glob("*.mp4")) and not list(out.glob(".edg-tmp*"))


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, [name for name, _ in attributes if name.startswith("on")]))


def test_html_in_prompts_and_names_is_shown_and_not_run(sample, prompts, command, tmp_path):
    """No tag more than the page of the same run in plain words has; in a browser: tests/report."""
    pages = []
    for text in ("plain", HOSTILE):
        (prompts / "p.txt").write_text(f"{text}\ntwo\n")
        run = tmp_path / ("<b onload=x>" if text == HOSTILE else "run")
        assert sample(prompts, "--savedir", run).code == 0
        assert command(["report", run, "--out", tmp_path / "page"])[0] == 0
        pages.append(Tags((tmp_path / "page/index.html").read_text(encoding="utf-8")).found)
    assert pages[0] == pages[1] and not any(handlers for _, handlers in pages[1])
