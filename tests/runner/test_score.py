"""`edg score` over folders of drawn clips, and what it leaves there."""

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import given_of

from edg import systems
from edg.cli.main import main
from edg.core.config import to_dict
from edg.core.files import write_json
from edg.core.formats import FORMATS, clip_path, write_clip
from edg.core.hashing import hash_value, sha256_file
from edg.core.options import settings as settings_of
from edg.core.video import fit_image, read_frames, write_image, write_video
from edg.metrics import motion
from edg.metrics.catalogue import METRICS, SETS
from edg.report.collect import collect
from edg.sprites import WEIGHTS
from edg.sprites.world import caption, held_out, render, words_of
from edg.systems.edg.options import SamplingOptions

ROOT = Path(__file__).parents[2]
CHEAP = "motion_degree,motion_top5,temporal_flickering,first_frame_psnr"


def make(folder, count=4, prompt=None):
    """Held-out sprites with records as `edg sample` writes them."""
    spec = systems.find("sprites")[1]
    model = {"name": "sprites", "spec_sha256": hash_value(to_dict(spec))}
    for k, clip in enumerate(held_out(3, count)):
        frames, image = np.round(render(clip)[0] * 255).astype(np.uint8), folder / f"{k}.png"
        write_video(folder / f"{k:04d}.mp4", frames, 8)
        write_image(image, frames[0])
        said = prompt or caption(words_of(clip))
        settings = {
            "system": "edg",
            "model": model,
            "prompt": said,
            "seed": k,
            "image_sha256": sha256_file(image),
        }
        record = {"id": f"{k:04d}", "status": "done", "image": str(image), "settings": settings}
        write_json(
            folder / f"{k:04d}.json", record | {"set_paths": {"dyn": str(WEIGHTS / "base.safetensors")}}
        )
    return folder


def rows(folder):
    return [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]


def summary(folder):
    return json.loads((folder / "scores.json").read_text())


def run(capsys, *flags):
    code = main(["score", *map(str, flags)])
    return code, capsys.readouterr().err


def test_everything_that_needs_no_file(capsys, tmp_path):
    folder = make(tmp_path)
    code, err = run(capsys, folder)
    assert code == 0, err
    found, result = rows(folder), summary(folder)
    assert [row["clip"] for row in found] == [f"{k:04d}.mp4" for k in range(4)]
    assert [row["sha256"] for row in found] == [sha256_file(folder / row["clip"]) for row in found]
    assert (
        found[1]["prompt"].startswith("a ") and found[1]["seed"] == 1 and not any(r["failed"] for r in found)
    )
    left = result["protocol"]["left_out"]
    assert set(left) == {"camera_motion", "text_alignment", "reference_psnr", "reference_ssim"}
    assert (
        left["text_alignment"]
        == "the towers of this model are random"
        == result["metrics"]["i2v_subject"]["note"]
    )
    assert set(result["metrics"]) == set(METRICS) - set(left) == set(found[0]["scores"])
    one = motion.motion_degree(motion.flow(read_frames(folder / "0000.mp4")))
    assert found[0]["scores"]["motion_degree"] == pytest.approx(one)
    degree = result["metrics"]["motion_degree"]
    assert degree["mean"] == pytest.approx(np.mean([row["scores"]["motion_degree"] for row in found]))
    assert degree["low"] < degree["mean"] < degree["high"] and degree["clips"] == degree["prompts"] == 4
    assert result["metrics"]["first_frame_psnr"]["mean"] > 28  # what H.264 leaves of the very image
    with open(folder / "scores.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(line["motion_top5"]) for line in table] == [row["scores"]["motion_top5"] for row in found]


@pytest.mark.parametrize("format", FORMATS)
def test_clips_of_any_format_count_once(capsys, tmp_path, format):
    truth = make(tmp_path / "mp4", 2)
    folder = make(tmp_path / "other", 2)
    for path in sorted(folder.glob("*.mp4")):
        frames = read_frames(path)
        for one in {format, "gif"}:
            write_clip(clip_path(folder, path.stem, one), frames, one, fps=8, crf=10, tags={})
        if format != "mp4":
            path.unlink()
        record = json.loads((folder / f"{path.stem}.json").read_text())
        files = {clip_path(folder, path.stem, one).name: "" for one in (format, "gif")}
        write_json(folder / f"{path.stem}.json", record | {"files": files})
    for one in (truth, folder):
        assert run(capsys, one, "--metrics", CHEAP)[0] == 0
    found, expected = rows(folder), rows(truth)
    assert [row["clip"] for row in found] == [clip_path(folder, f"{k:04d}", format).name for k in range(2)]
    assert [row["id"] for row in found] == ["0000", "0001"]
    for row, other in zip(found, expected, strict=True):
        assert row["prompt"] == other["prompt"] and row["seed"] == other["seed"]
        assert row["scores"]["motion_top5"] == pytest.approx(other["scores"]["motion_top5"], rel=0.3)
    code, _ = run(capsys, truth, "--metrics", "reference_psnr", "--reference", folder)
    assert code == 0 and min(row["scores"]["reference_psnr"] for row in rows(truth)) > 25


def test_what_records_name_is_found_from_another_folder(capsys, tmp_path, monkeypatch):
    """Image and parameter sets as `edg sample` was given them, from where it was started."""
    folder = make(tmp_path / "home/output/1000", 1)
    (tmp_path / "home/images").mkdir()
    os.rename(folder / "0.png", tmp_path / "home/images/0.png")
    os.symlink(WEIGHTS, tmp_path / "home/weights")
    record = json.loads((folder / "0000.json").read_text())
    paths = {"image": "images/0.png", "set_paths": {"dyn": "weights/base.safetensors"}}
    write_json(folder / "0000.json", record | paths)
    monkeypatch.chdir(tmp_path)
    assert run(capsys, folder, "--metrics", "first_frame_psnr,i2v_subject")[0] == 0
    assert rows(folder)[0]["scores"]["first_frame_psnr"] > 28
    clip = collect([folder], [])[0].clips["0000"]
    assert clip.image.samefile(tmp_path / "home/images/0.png"), "and the report finds what it was"


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_the_input_image_is_compared_as_the_model_was_given_it(capsys, tmp_path, fit):
    picture = np.random.default_rng(0).integers(0, 256, (8, 16, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    write_image(tmp_path / "wide.png", picture)
    seen = fit_image(picture, 64, 64, crop=fit == "crop", pad=fit == "pad").permute(1, 2, 0).numpy()
    frames = np.round((seen + 1) * 127.5).astype(np.uint8)[None].repeat(2, 0)
    write_clip(tmp_path / "x", frames, "png", fps=8, crf=10, tags={})
    options = SamplingOptions(crop=fit == "crop", pad=fit == "pad")
    settings = {"image_sha256": sha256_file(tmp_path / "wide.png"), "options": settings_of(options)}
    record = {"id": "x", "image": str(tmp_path / "wide.png"), "settings": settings, "files": {"x": ""}}
    write_json(tmp_path / "x.json", record)
    assert run(capsys, tmp_path, "--metrics", "first_frame_psnr")[0] == 0
    assert rows(tmp_path)[0]["scores"]["first_frame_psnr"] == 100, "the very picture"


def test_a_broken_clip_fails_alone(capsys, tmp_path):
    folder = make(tmp_path)
    (folder / "0001.mp4").write_bytes(b"torn")
    (folder / "2.png").write_bytes((folder / "0.png").read_bytes())
    write_json(folder / "0009.json", {"status": "failed"})
    code, err = run(capsys, folder, "--metrics", CHEAP)
    assert code == 5 and "0001.mp4: motion_degree" in given_of(err)
    found, result = rows(folder), summary(folder)
    assert set(found[1]["failed"]) == set(CHEAP.split(",")) and found[1]["scores"]["motion_degree"] is None
    assert set(found[2]["failed"]) == {"first_frame_psnr"} and found[2]["scores"]["motion_degree"] > 0
    assert (
        result["metrics"]["motion_degree"]["clips"] == 3
        and result["metrics"]["first_frame_psnr"]["clips"] == 2
    )
    assert result["protocol"]["failed_in_run"] == ["0009"]


def test_names_prompts_and_records_that_are_none_do_not_end_the_folder(capsys, tmp_path):
    folder = make(tmp_path, 1)
    clip = (folder / "0000.mp4").read_bytes()
    bad = [
        {"image": 5},
        {"image": "\0bad"},
        {"image": ["a"]},
        {"set_paths": ["x"]},
        {"set_paths": {"dyn": 5}},
    ]
    bad += [{"video": [1]}, {"files": ["x"]}, {"id": {}, "settings": {"model": 5, "system": {}, "seed": [1]}}]
    for k, record in enumerate(bad):
        (folder / f"bad{k}.mp4").write_bytes(clip)
        write_json(folder / f"bad{k}.json", {"settings": {"prompt": "\ud800"}} | record)
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.mp4")).write_bytes(clip)
    write_clip(folder / "small", np.zeros((4, 2, 2, 3), np.uint8), "png", fps=8, crf=10, tags={})
    code, err = run(capsys, folder)
    assert code == 5 and "bad0.mp4" in given_of(err), err
    found = {row["clip"]: row for row in rows(folder)}
    assert len(found) == len(bad) + 3 and "\udcff.mp4" in found
    assert found["bad0.mp4"]["prompt"] == "\ud800" and found["bad0.mp4"]["scores"]["motion_degree"] > 0
    assert "a side of at least 3 px" in found["small"]["failed"]["camera_x"]
    assert not found["0000.mp4"]["failed"] and found["0000.mp4"]["scores"]["subject_consistency"] > 0


def test_a_metric_that_breaks_fails_alone(capsys, tmp_path, monkeypatch):
    folder, called = make(tmp_path, 2), []

    def broken(frames):
        called.append(1)
        raise ZeroDivisionError("by 0")

    monkeypatch.setattr(motion, "flicker", broken)
    code, err = run(capsys, folder, "--metrics", CHEAP)
    assert code == 5 and "0000.mp4: temporal_flickering: ZeroDivisionError" in given_of(err)
    assert len(called) == 2 and all(row["scores"]["motion_degree"] > 0 for row in rows(folder))


def test_videos_without_records(capsys, tmp_path):
    for k, clip in enumerate(held_out(3, 2)):
        write_video(tmp_path / f"{k}.mp4", np.round(render(clip)[0] * 255).astype(np.uint8), 8)
    assert run(capsys, tmp_path)[0] == 0
    left = summary(tmp_path)["protocol"]["left_out"]
    assert (
        left["i2v_subject"] == "no record names an input image"
        and "motion_degree" in rows(tmp_path)[0]["scores"]
    )
    assert "no record names the parameter sets" in left["subject_consistency"]
    code, err = run(capsys, tmp_path, "--metrics", "text_alignment")
    assert code == 2 and "text_alignment" in given_of(err)


def test_alignment_of_random_towers_only_when_asked(capsys, tmp_path):
    folder = make(tmp_path, 2)
    assert run(capsys, folder, "--metrics", "text_alignment,camera_motion")[0] == 0
    result = summary(folder)
    assert result["metrics"]["text_alignment"]["note"] == "the towers of this model are random"
    assert -1 <= rows(folder)[0]["scores"]["text_alignment"] <= 1
    assert rows(folder)[0]["scores"]["camera_motion"] is None and not rows(folder)[0]["failed"]
    assert result["protocol"]["clip"]["remarks"] == []


def test_prompts_that_the_text_tower_does_not_read_to_their_end(capsys, tmp_path):
    folder = make(tmp_path, 2, prompt="a red circle moves left and then away")
    code, err = run(capsys, folder, "--metrics", "text_alignment")
    (line,) = summary(folder)["protocol"]["clip"]["remarks"]
    assert code == 0 and "then away" in line and line in err


def test_every_picture_is_embedded_once(capsys, tmp_path, monkeypatch):
    from edg.systems.edg.clip_embedder import Towers

    seen, embed = [], Towers.embed_image
    monkeypatch.setattr(Towers, "embed_image", lambda self, x: (seen.append(len(x)), embed(self, x))[1])
    names = "i2v_subject,subject_consistency,text_alignment"
    assert run(capsys, make(tmp_path, 1), "--metrics", names)[0] == 0
    assert sorted(seen) == [1, 8], "the input image and the clip's frames"


def test_a_camera_prompt(capsys, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    frames = np.stack([picture[:, 4 * t : 4 * t + 128] for t in range(8)])  # the picture goes left
    for name, way in (("a", "right"), ("b", "left")):
        write_video(tmp_path / f"{name}.mp4", frames, 8)
        write_json(tmp_path / f"{name}.json", {"settings": {"prompt": f"tiles, camera pans {way}"}})
    assert run(capsys, tmp_path, "--metrics", "camera_motion,camera_x")[0] == 0
    found = rows(tmp_path)
    assert [row["scores"]["camera_motion"] for row in found] == [1, 0]
    assert "pan_right" in found[0]["labels"]["camera"]
    assert found[0]["scores"]["camera_x"] == pytest.approx(-4, abs=0.2)


class Colour(torch.nn.Module):
    """A clip's mean colour, or that of each frame."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=[2, 3] if x.dim() == 4 else [2, 3, 4])


@pytest.fixture
def network(tmp_path):
    torch.jit.script(Colour()).save(str(tmp_path / "colour.pt"))
    return tmp_path / "colour.pt"


def test_reference_and_distances(capsys, tmp_path, network):
    ours, real = make(tmp_path / "ours", 6), make(tmp_path / "real", 6)
    flags = [
        ours,
        "--reference",
        real,
        "--weights",
        f"features={network}",
        "--metrics",
        "reference_psnr,reference_ssim",
    ]
    code, err = run(capsys, *flags)
    assert code == 2 and "--trust-sha256" in err and not (ours / "scores.json").exists()
    flags += ["--trust-sha256", sha256_file(network), "--feature-size", 16]
    code, err = run(capsys, *flags)
    assert code == 0, err
    result = summary(ours)
    assert (
        result["metrics"]["reference_psnr"]["mean"] == 100
        and result["metrics"]["reference_ssim"]["mean"] == 1
    )
    assert set(result["sets"]) == set(SETS)
    distance = result["sets"]["frechet_distance"]
    assert distance["value"] == pytest.approx(0, abs=1e-6) and distance["features"]["sha256"] == sha256_file(
        network
    )
    assert (distance["clips"], distance["reference_clips"], distance["length"]) == (6, 6, 3)
    for path in real.glob("*.mp4"):
        write_video(path, np.clip(read_frames(path).astype(int) + 40, 0, 255).astype(np.uint8), 8)
    (real / "0002.mp4").unlink()
    code, err = run(capsys, *flags)
    assert code == 5 and "0002" in given_of(err)
    # all colours are 40 / 127.5 brighter, and a clip of six is gone
    assert summary(ours)["sets"]["frechet_distance"]["value"] == pytest.approx(3 * (40 / 127.5) ** 2, rel=0.5)


def test_a_network_for_the_subject(capsys, tmp_path, network):
    folder = make(tmp_path / "a", 2)
    flags = [folder, "--weights", f"dino={network}", "--trust-sha256", sha256_file(network)]
    assert run(capsys, *flags, "--metrics", "subject_consistency")[0] == 0
    assert summary(folder)["protocol"]["subject"]["sha256"] == sha256_file(network)


def test_vbench_layout(capsys, tmp_path):
    folder = make(tmp_path / "run", 3, prompt="a dog / a cat")
    code, err = run(capsys, folder, "--vbench-layout", tmp_path / "out")
    assert code == 0 and not (folder / "scores.json").exists()
    names = json.loads((tmp_path / "out/names.json").read_text())
    assert sorted(p.name for p in (tmp_path / "out/videos").iterdir()) == sorted(names)
    assert all(re.fullmatch(r"a dog   a cat [0-9a-f]{8}-[012]\.mp4", name) for name in names)
    for entry in names.values():
        assert entry["prompt"] == "a dog / a cat"
    first = next(iter(names))
    assert (tmp_path / "out/videos" / first).read_bytes() == (folder / "0000.mp4").read_bytes()
    (tmp_path / "out/videos/other.mp4").write_bytes(b"")
    code, err = run(capsys, folder, "--vbench-layout", tmp_path / "out")
    assert code == 2 and "other.mp4" in given_of(err)


def test_names_for_vbench():
    from edg.runner.vbench import safe_prompt

    assert safe_prompt("A boat, at sea: 3 o'clock?") == "A boat, at sea: 3 o'clock?"
    long = "ж" * 200
    assert len(safe_prompt(long).encode()) <= 247 and safe_prompt(long) != safe_prompt(long + "!")
    assert safe_prompt("a/b") != safe_prompt("a b")


@pytest.mark.parametrize(
    "flags, code, message",
    [
        (["--metrics", "motion_degre"], 2, "did you mean 'motion_degree'"),
        (["--metrics", ","], 2, "--metrics without a name"),
        (["--metrics", "reference_ssim"], 2, "needs --reference"),
        (["--weights", "rafd=x"], 2, "did you mean 'raft'"),
        (["--weights", "raft=/nowhere"], 3, "no file /nowhere"),
        (["--sha256", "raft=00"], 2, "without --weights raft=PATH"),
        (["--weights", f"raft={__file__}", "--sha256", "raft=00"], 3, "expected 00; it is another file"),
        (
            ["--weights", f"clip={WEIGHTS}", "--sha256", "clip=00"],
            2,
            "it is several files; expected one file",
        ),
        (["--weights", f"raft={__file__}"], 3, "expected raft-things.pth"),
        (["--weights", f"features={__file__}"], 2, "without --reference"),
        (["--weights", f"dino={__file__}", "--metrics", "subject_consistency"], 2, "is a program"),
        (["--device", "gpu"], 2, "unknown device"),
    ],
)
def test_mistakes_are_one_line(capsys, tmp_path, flags, code, message):
    make(tmp_path, 1)
    got, err = run(capsys, tmp_path, *flags)
    assert got == code and message in err and err.count("\n") == 1, err
    assert not (tmp_path / "scores.json").exists()


def test_no_clips(capsys, tmp_path):
    assert run(capsys, tmp_path / "none")[0] == 3
    make(tmp_path / "out/1000", 1)
    code, err = run(capsys, tmp_path / "out")
    assert code == 2 and str(tmp_path / "out/1000") in err


def test_every_metric_is_in_the_docs():
    text = (ROOT / "docs/metrics.md").read_text()
    assert all(f"`{name}`" in text for name in [*METRICS, *SETS])
    told = text.partition("said otherwise. ")[2].partition(" neither better nor")[0]
    assert re.findall(r"`(\w+)`", told) == [name for name, one in METRICS.items() if one.better != "higher"]
    assert "`frechet_distance` and `kernel_distance` are better when lower" in text and len(SETS) == 2


def test_frames_that_others_numbered(capsys, tmp_path):
    """ffmpeg counts from 1: the scores are those of frames from 0. A gap is the fault of one clip."""
    frames = np.round(render(held_out(3, 1)[0])[0] * 255).astype(np.uint8)
    for name, begin in (("a", 0), ("b", 1), ("c", 1)):
        for k, frame in enumerate(frames):
            write_image(
                tmp_path / f"in/{name}" / (f"{k:05d}.png" if name == "a" else f"f_{k + begin}.png"), frame
            )
    assert run(capsys, tmp_path / "in", "--metrics", CHEAP.rpartition(",")[0])[0] == 0
    first, *others = [row["scores"] for row in rows(tmp_path / "in")]
    assert others == [first, first]
    (tmp_path / "in/c/f_3.png").unlink()
    assert run(capsys, tmp_path / "in", "--metrics", CHEAP.rpartition(",")[0])[0] == 5
    assert [bool(row["failed"]) for row in rows(tmp_path / "in")] == [False, False, True]
    assert rows(tmp_path / "in")[1]["scores"] == first
    for folder in (tmp_path / "in/a", tmp_path):  # the clip itself, the folder above
        assert run(capsys, folder)[0] == 2
