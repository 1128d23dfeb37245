"""What the page is made of: folders read, statistics, escaping, media found again, damage named."""

import colorsys
import json
import os
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from edg.cli.main import main
from edg.core.errors import BadFileError, SomeFailedError, UsageError
from edg.core.files import write_json
from edg.core.formats import FORMATS, read_timed, write_clip
from edg.core.video import read_frames, read_image, write_image, write_video
from edg.metrics.table import Row, summary
from edg.report import flow_pictures, page
from edg.report.collect import collect
from edg.report.page import fill, safe_json, write_report
from edg.report.summary import ellipse, summaries


def data_of(path):
    text = path.read_text().split('<script type="application/json" id="data">')[1]
    return json.loads(text.split("</script>")[0])


# ---- folders -----------------------------------------------------------------------------------------------


def test_runs_are_aligned_by_id_and_named_by_what_differs(make, tmp_path):
    first, second = make.run(tmp_path / "out/slow/1000"), make.run(tmp_path / "out/fast/1000", 3, clips=2)
    data = data_of(write_report([first, second], tmp_path / "report"))
    assert [run["name"] for run in data["runs"]] == ["slow", "fast"]
    assert [request["id"][:4] for request in data["requests"]] == ["0000", "0001", "0002"]
    assert [bool(cell) for cell in data["requests"][2]["cells"]] == [True, False]
    slow, fast = (cell["scores"]["motion_degree"] for cell in data["requests"][0]["cells"])
    assert slow == pytest.approx(1, abs=0.3) and fast > 2 * slow
    assert len(data["requests"][0]["cells"][0]["curve"]) == 7


def test_other_prompts_and_images_under_one_id_are_noted(make, tmp_path):
    first, second = make.run(tmp_path / "a"), make.run(tmp_path / "b", prompt="else")
    (second / "images/thing.png").write_bytes((first / "images/thing.png").read_bytes()[:-1] + b"x")
    make.record(second, "0000-thing_sample0", "a thing moves right 0", second / "images/thing.png")
    cells = [r["cells"][1] for r in data_of(write_report([first, second], tmp_path / "r"))["requests"]]
    assert "image" in cells[0]["note"] and "prompt" not in cells[0]["note"]
    assert "prompt" in cells[1]["note"] and "image" not in cells[1]["note"]


def test_the_only_folder_of_clips_inside_is_taken(make, tmp_path):
    run = make.run(tmp_path / "out/1000", clips=1)
    assert collect([tmp_path / "out"], [])[0].folder == run
    assert collect([tmp_path / "out"], [])[0].name == "out"
    make.run(tmp_path / "out/500", clips=1)
    with pytest.raises(BadFileError) as raised:
        collect([tmp_path / "out"], {})
    assert str(tmp_path / "out/1000") in raised.value.fix


def test_a_bare_folder_of_videos_works(make, tmp_path):
    write_video(tmp_path / "clips/b 10.mp4", make.moving(1), 8)
    write_video(tmp_path / "clips/b 9.mp4", make.moving(2), 8)
    data = data_of(write_report([tmp_path / "clips"], tmp_path / "report"))
    assert [request["id"] for request in data["requests"]] == ["b 9", "b 10"], "2 comes before 10"
    assert data["runs"][0]["settings"] is None and data["runs"][0]["name"] == "clips"


def test_the_recipe_is_what_the_records_share(make, tmp_path):
    run = make.run(tmp_path / "a", options={"eta": 1.0}, sets={"dyn": {"sha256": ["ab"]}})
    write_json(run / "point.json", {"name": "motion 0.7", "options": {"motion": 0.7}})
    one = collect([run], [])[0]
    assert one.recipe["settings"] == {"seed": 1, "options.eta": 1.0} and one.name == "motion 0.7"
    make.record(run, "0000-thing_sample0", "x", run / "images/thing.png", options={"eta": 0.5})
    assert collect([run], [])[0].recipe["settings"]["options.eta"] == "2 values"


@pytest.mark.parametrize("runs, code", [
    (["{0}/none"], 3), (["{0}"], 3), (["{0}/a", "{0}/../{1}/a"], 2),
])  # fmt: skip
def test_mistakes_are_one_line(make, tmp_path, capsys, runs, code):
    (tmp_path / "empty").mkdir()
    if len(runs) > 1:
        make.run(tmp_path / "a", clips=1)
    argv = [
        "report",
        *(run.format(tmp_path, tmp_path.name) for run in runs),
        "--out",
        str(tmp_path / "report"),
    ]
    assert main(argv) == code
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and not (tmp_path / "report").exists()


# ---- damage ------------------------------------------------------------------------------------------------


def test_damage_is_named_and_the_rest_goes_on(make, tmp_path):
    run = make.run(tmp_path / "a", clips=5)
    (run / "0000-thing_sample0.json").write_text("{torn")
    (run / "0001-thing_sample0.mp4").write_bytes(b"no video")
    (run / "0002-thing_sample0.mp4").unlink()
    (run / "scores.jsonl").write_text('{"clip": 3}\n')
    record = json.loads((run / "0003-thing_sample0.json").read_text())
    write_json(run / "0003-thing_sample0.json", record | {"status": "failed", "error": "no memory"})
    (run / "0003-thing_sample0.mp4").unlink()
    with pytest.raises(SomeFailedError) as raised:
        write_report([run], tmp_path / "r")
    assert len(raised.value.failed) == 4
    data = data_of(tmp_path / "r/index.html")
    assert len(data["problems"]) == 4
    for name in ("0000-thing_sample0.json", "0001-thing_sample0.mp4", "0002-thing_sample0", "scores.jsonl"):
        assert any(name in problem for problem in data["problems"]), name
    cells = [request["cells"][0] for request in data["requests"]]
    assert [bool(cell.get("video")) for cell in cells] == [True, False, False, False, True]
    assert cells[3]["error"] == "no memory" and cells[2]["error"]


def test_an_image_that_changed_is_not_shown(make, tmp_path):
    run = make.run(tmp_path / "a", clips=1)
    (run / "images/thing.png").write_bytes(b"another")
    row = data_of(write_report([run], tmp_path / "r"))["requests"][0]
    assert not row["image"] and str(run / "images/thing.png") in row["image_error"]


# ---- media -------------------------------------------------------------------------------------------------


def test_media_are_found_again_without_decoding(make, tmp_path, monkeypatch):
    run = make.run(tmp_path / "a")
    first = data_of(write_report([run], tmp_path / "r"))
    monkeypatch.setattr(flow_pictures, "read_timed", lambda path: pytest.fail("decoded"))
    os.rename(run, tmp_path / "moved")
    again = data_of(write_report([tmp_path / "moved"], tmp_path / "r"))
    assert [r["cells"][0]["flow"] for r in again["requests"]] == [
        r["cells"][0]["flow"] for r in first["requests"]
    ]


@pytest.mark.parametrize("lost", ["*.flow.webp", "*.strip.webp", "*.facts.json", "*.mp4"])
def test_what_is_missing_is_made_again(make, tmp_path, lost):
    run = make.run(tmp_path / "a", clips=1)
    write_report([run], tmp_path / "r")
    path = next((tmp_path / "r/media").glob(lost))
    path.unlink()
    write_report([run], tmp_path / "r")
    assert path.stat().st_size


def test_pictures_of_an_older_version_are_made_again(make, tmp_path, monkeypatch):
    run = make.run(tmp_path / "a", clips=1)
    write_report([run], tmp_path / "r")
    monkeypatch.setattr(flow_pictures, "VERSION", flow_pictures.VERSION + 1)
    write_report([run], tmp_path / "r")
    facts = json.loads(next((tmp_path / "r/media").glob("*.facts.json")).read_text())
    assert facts["version"] == flow_pictures.VERSION


def test_media_of_an_earlier_page_go_and_other_files_stay(make, tmp_path):
    run = make.run(tmp_path / "a", clips=2)
    write_report([run], tmp_path / "r")
    (tmp_path / "r/media/mine.mp4").write_text("mine")
    before = len(list((tmp_path / "r/media").iterdir()))
    for suffix in ("mp4", "json"):
        (run / f"0001-thing_sample0.{suffix}").unlink()
    write_report([run], tmp_path / "r")
    left = {path.name for path in (tmp_path / "r/media").iterdir()}
    assert "mine.mp4" in left and len(left) == before - 5, "clip, strip, flow, facts, record"


def test_videos_that_browsers_do_not_play_are_written_again(make, tmp_path):
    write_video(tmp_path / "x.mp4", make.moving(1), 8)
    video = tmp_path / "a/x.mov"
    video.parent.mkdir()
    os.rename(tmp_path / "x.mp4", video)
    facts = flow_pictures.clip_media(video, tmp_path)
    assert facts["video"].endswith(".mp4") and facts["fps"] == 8
    assert read_frames(tmp_path / facts["video"]).shape == (8, 32, 32, 3)


@pytest.mark.parametrize("format", FORMATS)
def test_a_run_of_any_one_format_is_shown(make, tmp_path, format):
    run = make.run(tmp_path / "a", clips=2, format=format)
    data = data_of(write_report([run], tmp_path / "r"))
    assert data["problems"] == [] and data["runs"][0]["clips"] == 2
    for request in data["requests"]:
        (cell,) = request["cells"]
        assert (cell["n"], cell["fps"], cell["w"], len(cell["curve"])) == (8, 8, 32, 7)
        assert cell["video"].endswith(".mp4"), "what every browser plays in step"
        assert read_frames(tmp_path / "r/media" / cell["video"]).shape == (8, 32, 32, 3)
        assert cell["scores"]["motion_degree"] == pytest.approx(1, abs=0.3)
    again = {path: path.stat().st_mtime_ns for path in (tmp_path / "r/media").iterdir()}
    write_report([run], tmp_path / "r")
    assert again == {path: path.stat().st_mtime_ns for path in (tmp_path / "r/media").iterdir()}


def test_several_formats_of_a_record_are_one_clip(make, tmp_path):
    run = make.run(tmp_path / "a", clips=1, format="gif,png,mp4,webp")
    (one,) = collect([run], [])[0].clips.values()
    assert one.video == run / "0000-thing_sample0.mp4" and one.id == "0000-thing_sample0"
    one.video.unlink()
    (one,) = collect([run], [])[0].clips.values()
    assert one.video == run / "0000-thing_sample0.gif"
    (run / "0000-thing_sample0.json").unlink()
    assert len(collect([run], [])[0].clips) == 3, "without a record they may be three clips"


def test_pictures_are_no_clips(make, tmp_path):
    run = make.run(tmp_path / "a", clips=1)
    write_image(run / "still.webp", make.moving(1)[0])
    write_image(run / "0000-thing_sample0.preview.png", make.moving(1)[0])
    assert list(collect([run], [])[0].clips) == ["0000-thing_sample0"]
    still = make.moving(0)
    write_clip(run / "0000-thing_sample0.webp", still, "webp", fps=8, crf=10, tags={})
    record = json.loads((run / "0000-thing_sample0.json").read_text())
    write_json(run / "0000-thing_sample0.json", record | {"files": {"0000-thing_sample0.webp": ""}})
    (run / "0000-thing_sample0.mp4").unlink()
    cell = data_of(write_report([run], tmp_path / "r"))["requests"][0]["cells"][0]
    assert cell["video"] and cell["n"] == 1, "a clip that stands still is a picture to WebP, and still a clip"


def test_colours_of_flow_are_those_of_hsv():
    angle = np.linspace(0, 2 * np.pi, 25)[:-1]
    for speed in (0.0, 0.3, 1.0, 4.0):
        flow = speed * np.stack([np.cos(angle), np.sin(angle)], axis=-1).astype(np.float32)
        value = min(1.0, speed / 2) ** 0.5
        truth = [colorsys.hsv_to_rgb(a / (2 * np.pi) % 1, 0.9, value) for a in angle]
        assert np.abs(flow_pictures.flow_colours(flow, 2.0) - 255 * np.array(truth)).max() <= 0.51
    wheel = flow_pictures.colour_wheel(101)
    assert wheel[50, 50].max() <= 40 and wheel[50, 100].argmax() == 0, "black in the middle, red to the right"


def still_and_moving(make, crf, path):
    """A clip with a texture of 8 grey levels whose upper part stands still; the lower runs 2 px/frame."""
    rng = np.random.default_rng(0)
    ground = cv2.GaussianBlur(rng.standard_normal((128, 128)).astype(np.float32), (0, 0), 2)
    ground = np.clip(110 + 8 * ground / ground.std(), 0, 255).astype(np.uint8)
    frames = [np.concatenate([ground[:96], np.roll(ground[96:], 2 * t, axis=1)]) for t in range(6)]
    write_video(path, np.stack(frames)[..., None].repeat(3, axis=-1), 8, crf)


@pytest.mark.parametrize("crf", [10, 23])
def test_what_stands_still_is_black_and_what_moves_is_not(make, tmp_path, crf):
    still_and_moving(make, crf, tmp_path / "a.mp4")
    found = flow_pictures.clip_flow(read_frames(tmp_path / "a.mp4"))
    floor = flow_pictures.noise_floor(128)
    shown = flow_pictures.flow_colours(found, 0.05 * 128, floor).max(axis=-1)
    assert np.mean(shown[:, 8:64, 8:-8] == 0) > 0.98, "codec noise"
    assert np.mean(shown[:, 108:-8, 8:-8] > 0) > 0.98
    assert np.mean(flow_pictures.flow_colours(found, 0.05 * 128)[:, 8:64, 8:-8].max(axis=-1) == 0) < 0.98


def test_the_floor_grows_with_clips_that_are_measured_smaller():
    sides = (32, flow_pictures.WORKING_SIDE, 2 * flow_pictures.WORKING_SIDE)
    floors = [flow_pictures.noise_floor(side) for side in sides]
    assert floors == [flow_pictures.FLOOR, flow_pictures.FLOOR, 2 * flow_pictures.FLOOR]


@pytest.mark.parametrize("side, exact", [(120, True), (128, False)])
def test_pictures_of_small_clips_are_kept_without_loss(tmp_path, side, exact):
    frames = np.random.default_rng(0).integers(0, 256, (2, side, side, 3)).astype(np.uint8)
    write_clip(tmp_path / "a", frames, "png", fps=8, crf=10, tags={})
    facts = flow_pictures.clip_media(tmp_path / "a", tmp_path)
    strip = read_image(tmp_path / facts["strip"])
    assert (strip == np.concatenate(frames, axis=1)).all() == exact


def test_flow_of_large_clips_is_in_their_own_pixels(make):
    frames = make.moving(8, side=960, frames=2)
    flow = flow_pictures.clip_flow(frames)
    assert flow.shape[1] == flow_pictures.WORKING_SIDE
    assert np.median(flow[..., 0]) == pytest.approx(8, abs=0.8) and abs(np.median(flow[..., 1])) < 0.2


# ---- figures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 8, 40])
def test_the_ellipse_covers_the_mean_as_often_as_it_says(count):
    rng = np.random.default_rng(count)
    shape, truth, inside, draws = np.array([[2.0, 0.0], [1.5, 0.4]]), np.array([3.0, -1.0]), 0, 2000
    for _ in range(draws):
        found = ellipse(rng.standard_normal((count, 2)) @ shape.T + truth)
        inside += np.linalg.norm(np.linalg.solve(np.array(found["root"]), truth - found["mean"])) <= 1
    assert inside / draws == pytest.approx(0.95, abs=0.02)


def test_few_points_have_no_ellipse():
    assert ellipse(np.empty((0, 2))) is None
    assert ellipse(np.array([[1.0, 2.0], [3.0, 4.0]])) == {"mean": [2.0, 3.0], "root": None}


def test_intervals_are_those_of_the_scores_else_over_prompts(make, tmp_path):
    run = make.run(tmp_path / "a", clips=4)
    make.scores(run, alignment=0.5)
    one = collect([run], [])[0]
    values = {key: {"alignment": 9.0, "own": float(k)} for k, key in enumerate(one.clips)}
    found = summaries(one, values)
    assert found["alignment"] == {"mean": 0.5, "low": 0.4, "high": 0.6}
    assert found["own"]["mean"] == 1.5 and 0 <= found["own"]["low"] < 1.5 < found["own"]["high"] <= 3


def test_a_mean_is_that_of_edg_score(make, tmp_path):
    """Values 1 and 2 of one prompt and 4 of another: (1.5 + 4) / 2."""
    run = make.run(tmp_path / "a", clips=3)
    make.record(run, "0001-thing_sample0", "a thing moves right 0", run / "images/thing.png")
    (one,) = collect([run], [])
    clips = list(one.clips.values())
    values = {clip.id: {"own": value} for clip, value in zip(clips, (1.0, 2.0, 4.0), strict=True)}
    rows = [Row(c.id, c.id, c.prompt, 1, values[c.id], {}, {}) for c in reversed(clips)]
    expected = summary(rows, ["own"])["own"]
    assert expected["mean"] == 2.75 and (expected["clips"], expected["prompts"]) == (3, 2)
    assert summaries(one, values)["own"] == {key: expected[key] for key in ("mean", "low", "high")}


def test_scores_of_a_clip_that_changed_are_left_out(make, tmp_path, capsys):
    """Made again under its name: neither its row nor the means that it is in are shown; scored again, they
    are."""
    run = make.run(tmp_path / "a", clips=3)
    score = ["score", str(run), "--metrics", "temporal_flickering"]

    def page():
        data = data_of(write_report([run], tmp_path / "r"))
        assert data["metrics"][1]["unit"] == "share"
        cells = [request["cells"][0] for request in data["requests"]]
        shown = [cell["scores"].get("temporal_flickering") for cell in cells]
        return shown, cells[1].get("note"), data["runs"][0]["scores"]["temporal_flickering"]

    assert main(score) == 0
    before, note, mean = page()
    assert None not in before and note is None and mean["mean"] == pytest.approx(np.mean(before))
    assert f"{run}: " not in capsys.readouterr().err
    write_video(run / "0001-thing_sample0.mp4", make.moving(4, seed=9), 8)
    shown, note, mean = page()
    assert shown == [before[0], None, before[2]] and note
    assert mean["mean"] == pytest.approx((before[0] + before[2]) / 2)
    assert f"{run}: " in capsys.readouterr().err
    assert main(score) == 0
    after, note, mean = page()
    assert None not in after and after[1] != before[1] and note is None
    assert mean["mean"] == pytest.approx(np.mean(after))


def test_one_prompt_has_no_interval(make, tmp_path):
    run = make.run(tmp_path / "a", clips=1)
    write_json(
        run / "scores.json", {"metrics": {"x": {"mean": 1, "low": None, "high": None}, "y": {"mean": None}}}
    )
    scores = data_of(write_report([run], tmp_path / "r"))["runs"][0]["scores"]
    assert scores["x"] == {"mean": 1, "low": None, "high": None} and "y" not in scores
    assert scores["motion_degree"]["mean"] > 0 and scores["motion_degree"]["low"] is None


def test_trade_offs_are_drawn_where_there_are_scores(make, tmp_path):
    run = make.run(tmp_path / "a", clips=4)
    assert data_of(write_report([run], tmp_path / "r"))["plots"] == []
    make.scores(run, subject_consistency=0.9, text_alignment=0.3)
    plots = data_of(write_report([run], tmp_path / "r"))["plots"]
    assert [plot["y"] for plot in plots] == ["subject_consistency", "text_alignment"]
    assert plots[0]["runs"][0]["root"]


# ---- the file ----------------------------------------------------------------------------------------------


def test_json_stays_in_its_script(make):
    value = {"a": make.hostile, "b": "\u2028<!--", "c": [float("nan"), float("inf"), 1.5], "d": "\ud800"}
    text = safe_json(value)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == value | {"c": [None, None, 1.5]}


def test_a_prompt_and_a_name_that_are_no_text_are_written_as_escapes(make, tmp_path):
    run = make.run(tmp_path / "a", clips=1, prompt="x\ud800")
    make.scores(run, motion_degree=7.0)
    os.rename(os.fsencode(run), os.fsencode(tmp_path) + b"/\xff")
    data = data_of(write_report([Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))], tmp_path / "r"))
    assert data["requests"][0]["prompt"] == "x\ud800" and data["title"] == "\udcff"


def test_a_title_and_data_that_look_like_the_template_stay_text():
    text = fill({"title": "<b>{{script}}", "runs": ["{{style}}"]})
    assert "<title>&lt;b&gt;{{script}}</title>" in text and '"{{style}}"' in text


def test_embedding_has_an_end_that_it_names(make, tmp_path, monkeypatch):
    run = make.run(tmp_path / "a", clips=1)
    monkeypatch.setattr(page, "LARGEST", 1000)
    with pytest.raises(UsageError) as raised:
        write_report([run], tmp_path / "r", embed=True)
    assert "--embed" in raised.value.fix
    assert not (tmp_path / "r/index.html").exists()


def test_an_embedded_page_is_one_file(make, tmp_path):
    path = write_report([make.run(tmp_path / "a", clips=1)], tmp_path / "r", embed=True)
    assert [p.name for p in path.parent.iterdir() if not p.name.startswith(".")] == ["index.html"]
    data = data_of(path)
    assert data["media"][data["requests"][0]["cells"][0]["video"]].startswith("data:video/mp4;base64,")


def test_a_page_with_damage_raises_at_the_end(make, tmp_path):
    run = make.run(tmp_path / "a", clips=2)
    (run / "0001-thing_sample0.mp4").write_bytes(b"")
    with pytest.raises(SomeFailedError) as raised:
        write_report([run], tmp_path / "r")
    assert list(raised.value.failed) == [str(run / "0001-thing_sample0.mp4")]
    assert (tmp_path / "r/index.html").exists()


# ---- films of others ---------------------------------------------------------------------------------------

FILMS = Path(__file__).parents[1] / "data/films"


@pytest.mark.parametrize(
    "name, size, frames, left",  # shown, colour at the upper left
    [
        ("turned_90.mp4", (144, 256), 24, (230, 200, 20)),
        ("mirrored_left_right.mp4", (256, 144), 24, (230, 200, 20)),
        ("pixels_2_to_1.mp4", (256, 144), 24, (210, 30, 30)),
        ("two_streams.mp4", (256, 144), 24, (210, 30, 30)),
        ("cover_first.mkv", (256, 144), 24, (210, 30, 30)),
        ("two_rates.mp4", (256, 144), 60, (210, 30, 30)),
        ("mpeg4_part2.mp4", (256, 144), 24, (210, 30, 30)),
    ],
)
def test_films_that_browsers_show_otherwise_are_written_again(tmp_path, name, size, frames, left):
    """The film of the page, its strip and its facts are of one picture."""
    facts = flow_pictures.clip_media(FILMS / name, tmp_path)
    film = tmp_path / facts["video"]
    assert (facts["w"], facts["h"], facts["n"]) == (*size, frames) and facts["fps"] == pytest.approx(24)
    with av.open(str(film)) as container:
        [stream] = container.streams.video
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    shown, rate = read_timed(film)
    assert shown.shape == (frames, size[1], size[0], 3) and rate == pytest.approx(24)
    strip = read_image(tmp_path / facts["strip"])
    for picture in (shown[0], strip):
        assert np.abs(picture[10, 10].astype(int) - left).max() <= 12, picture[10, 10]


def test_what_browsers_play_is_linked_whatever_its_name(tmp_path, make):
    write_video(tmp_path / "a.mp4", make.moving(1), 8)
    os.link(tmp_path / "a.mp4", tmp_path / "b.mov")
    for name in ("a.mp4", "b.mov"):
        (tmp_path / name[0]).mkdir()
        facts = flow_pictures.clip_media(tmp_path / name, tmp_path / name[0])
        film = tmp_path / name[0] / facts["video"]
        assert film.suffix == ".mp4" and film.samefile(tmp_path / "a.mp4")


def test_sets_of_the_page_are_their_numbers_with_their_origin():
    from edg.report.collect import _sets

    sets, made = {"dyn": {"numbers_sha256": "a"}}, {"dyn": {"output": "dyn", "recipe": {"seed": 1}}}
    assert _sets({"settings": {"sets": sets}, "set_origins": made}) == {"dyn": {**sets["dyn"], **made["dyn"]}}
    assert _sets({"settings": {"sets": made}}) == made
    assert _sets({"settings": None}) is None
    assert _sets({"settings": {"sets": ["x"]}, "set_origins": {"dyn": 1}}) == ["x"]
