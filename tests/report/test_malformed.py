"""Runs and report folders of somebody else: nothing of this machine gets into a page, nothing stops it."""

import base64
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from edg.core.files import read_json, write_json
from edg.core.formats import write_clip
from edg.core.video import write_image, write_video
from edg.report.collect import is_number, natural_key
from edg.runner.outputs import find_clips

SECRET = "TOP-SECRET-TOKEN"
DEEP = "[" * 900 + "]" * 900  # what JSON's reader takes and a walk through it does not
LONG = "1" + "0" * 400


def moving(frames=2, side=16):
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)
    return np.stack([np.roll(picture, t, axis=1) for t in range(frames)])


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    write_video(path := tmp_path_factory.mktemp("clip") / "clip.mp4", moving())
    return path


@pytest.fixture
def run(tmp_path, clip):
    """run(stem, record, **files) -> a folder with one clip; files: name with __ for its dot -> text."""

    def made(stem="a", record=None, **files):
        folder = tmp_path / "run"
        folder.mkdir()
        shutil.copyfile(clip, folder / f"{stem}.mp4")
        if record is not None:
            write_json(folder / f"{stem}.json", record)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text)
        return folder

    return made


def record_of(id="a", **more):
    return {"id": id, "status": "done", "settings": {"prompt": "p", "image_sha256": "0" * 64}, **more}


def page_of(out):
    text = (out / "index.html").read_text()
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


def holds(out, secret=SECRET):
    """True if any file of a report has the secret in it, plain or in a data URL."""
    pieces = [secret.encode(), *(base64.b64encode(b" " * n + secret.encode())[4:-4] for n in range(3))]
    return any(piece in path.read_bytes() for path in out.rglob("*") if path.is_file() for piece in pieces)


# ---- what stops the page -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["clip1²", "x①", "9" * 5000, "0" * 300 + "7"])
def test_digits_of_any_kind_and_length_have_an_order(name):
    assert sorted([f"10 {name}", f"9 {name}"], key=natural_key) == [f"9 {name}", f"10 {name}"]


def test_numbers_are_sorted_by_their_value():
    names = ["007", "8", "00", "10", "12345678901234567890", "9"]
    assert sorted(names, key=natural_key) == ["00", "007", "8", "9", "10", "12345678901234567890"]


@pytest.mark.parametrize("stem, id", [("x1²", "x1²"), ("a", "9" * 5000)])
def test_a_name_of_strange_digits_is_shown(command, run, tmp_path, stem, id):
    code, _ = command(["report", run(stem, record_of(id)), "--out", tmp_path / "r"])
    assert code == 0 and page_of(tmp_path / "r")["requests"][0]["id"] == id


@pytest.mark.parametrize("number, counts", [
    (1, True), (0.5, True), (1e99, True), (1e300, False), (10**400, False), (-(10**400), False),
    (float("nan"), False), (float("-inf"), False), ("1", False), (None, False),
])  # fmt: skip
def test_a_score_is_a_number_whose_square_is_one(number, counts):
    assert is_number(number) == counts


def test_scores_beyond_all_numbers_are_left_out(command, run, tmp_path):
    row = f'{{"clip": "a.mp4", "scores": {{"consistency": {LONG}, "good": 1}}}}\n'
    folder = run(scores__json=f'{{"metrics": {{"bad": {{"mean": {LONG}}}}}}}', scores__jsonl=row)
    assert command(["report", folder, "--out", tmp_path / "r"])[0] == 0
    assert page_of(tmp_path / "r")["requests"][0]["cells"][0]["scores"].keys() == {"good", "motion_degree"}


@pytest.mark.parametrize("name, text", [
    ("scores.jsonl", "[" * 100_000), ("scores.jsonl", f'{{"clip": "a.mp4", "scores": {{}}, "x": {DEEP}}}'),
    ("scores.json", f'{{"metrics": {{"m": {{"mean": 1, "what": {DEEP}}}}}}}'),
    ("point.json", f'{{"name": "p", "x": {DEEP}}}'), ("point.json", f'{{"name": {DEEP}}}'),
    ("a.json", f'{{"id": {DEEP}, "settings": {{}}}}'),
    ("a.json", '{"id": "a", "settings": ' + '{"x": ' * 900 + "1" + "}" * 901),
])  # fmt: skip
def test_json_that_is_nested_too_deep_is_named_and_the_rest_shown(command, run, tmp_path, name, text):
    code, err = command(["report", run(**{name.replace(".", "__"): text}), "--out", tmp_path / "r"])
    assert code == 5 and name in err
    assert page_of(tmp_path / "r")["requests"][0]["cells"][0]["video"]


def test_a_record_nested_deep_does_not_stop_the_scores(command, run):
    record = f'{{"id": {DEEP}, "settings": {{"prompt": {DEEP}, "seed": {DEEP}}}}}'
    folder = run(a__json=record)
    clip = find_clips(folder)[0]
    assert (clip.id, clip.prompt, clip.seed) == ("a", "", None)
    assert command(["score", folder, "--metrics", "temporal_flickering"])[0] == 0


IMAGES = ("/proc/self/pagemap", "/proc/cpuinfo", "/dev/zero", "secret.txt", "huge.png")


@pytest.mark.parametrize("image", IMAGES)
def test_what_a_record_calls_its_image_is_hashed_only_where_it_looks_like_one(
    command, run, tmp_path, image, monkeypatch
):
    folder = run(record=record_of(image=image), secret__txt=SECRET)
    with open(folder / "huge.png", "wb") as file:
        file.truncate(300_000_000)
    monkeypatch.setattr("edg.report.page.is_unchanged", lambda *_: pytest.fail("read"))
    assert command(["report", folder, "--out", tmp_path / "r"])[0] == 0
    assert image in page_of(tmp_path / "r")["requests"][0]["image_error"]
    code, _ = command(["score", folder, "--metrics", "first_frame_psnr"])
    assert code == 5 and image in (folder / "scores.jsonl").read_text()


def test_scores_whose_squares_are_no_numbers_draw_no_ellipse(command, run, tmp_path, clip):
    folder = run()
    rows = [{"clip": f"{n}.mp4", "scores": {"consist": 10.0 ** (200 + n)}} for n in range(4)]
    for row in rows:
        shutil.copyfile(clip, folder / row["clip"])
    (folder / "scores.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert command(["report", folder, "--out", tmp_path / "r"])[0] == 0
    assert page_of(tmp_path / "r")["plots"] == []


def test_a_pipe_called_webp_is_not_waited_for(command, run, tmp_path):
    os.mkfifo((folder := run()) / "b.webp")
    assert command(["report", folder, "--out", tmp_path / "r"])[0] == 0


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a/00001.png"])
def test_a_pipe_among_real_clips_is_not_waited_for(command, run, tmp_path, name):
    folder, pipe = run(), tmp_path / "real" / name
    pipe.parent.mkdir(parents=True)
    write_image(tmp_path / "real/a/00000.png", moving()[0]) if name == "a/00001.png" else None
    os.mkfifo(pipe)
    code, _ = command(["score", folder, "--metrics", "reference_psnr", "--reference", tmp_path / "real"])
    assert code == 5 and name in (folder / "scores.jsonl").read_text()


# ---- what gets into the page -------------------------------------------------------------------------------


@pytest.mark.parametrize("embed", [(), ("--embed",)])
@pytest.mark.parametrize(
    "name", ["a.json", "point.json", "scores.json", "scores.jsonl", "b.mp4", "b/00001.png"]
)
def test_links_out_of_a_run_are_named_and_not_shown(command, run, tmp_path, clip, name, embed):
    folder, home = run(), tmp_path / "home"
    home.mkdir()
    secret = {"id": SECRET, "settings": {"prompt": SECRET}, "name": SECRET, "clip": "a.mp4"}
    secret |= {"scores": {SECRET: 1}, "metrics": {SECRET: {"mean": 1}}}
    (home / "config.json").write_text(json.dumps(secret))
    shutil.copyfile(clip, home / "private.mp4")
    if name == "b/00001.png":
        write_clip(folder / "b", moving(), "png", fps=8, crf=10, tags={})
        write_image(home / "private.png", moving()[0])
        (folder / name).unlink()
    target = home / {".mp4": "private.mp4", ".png": "private.png"}.get(Path(name).suffix, "config.json")
    (folder / name).symlink_to(os.path.relpath(target, (folder / name).parent))
    code, err = command(["report", folder, "--out", tmp_path / "r", *embed])
    page = page_of(tmp_path / "r")
    assert code == 5 and name in err and not holds(tmp_path / "r")
    assert [row["id"] for row in page["requests"]] == ["a"] and len(page["problems"]) == 1


def test_links_inside_a_run_are_followed(command, run, tmp_path):
    (folder := run(record=record_of())).joinpath("b.mp4").symlink_to("a.mp4")
    assert command(["report", folder, "--out", tmp_path / "r"])[0] == 0
    assert [row["id"] for row in page_of(tmp_path / "r")["requests"]] == ["a", "b"]


@pytest.mark.parametrize("link", ["run", "run/a.mp4"])
def test_a_folder_with_nothing_but_links_says_so(command, tmp_path, clip, link):
    (tmp_path / "given").mkdir()
    if link == "run/a.mp4":
        (tmp_path / "given/run").mkdir()
    (tmp_path / "given" / link).symlink_to(clip if link == "run/a.mp4" else clip.parent)
    code, err = command(["report", tmp_path / "given", "--out", tmp_path / "r"])
    assert code == 3 and link in err and not (tmp_path / "r").exists()


@pytest.mark.parametrize("change", [
    {"video": "../../secret.txt"}, {"strip": "../../secret.txt"}, {"flow": "secret.txt"}, {"video": ["x"]},
    {"key": "f" * 32}, {"curve": "none"}, {"curve": [{}]}, {"n": None},
])  # fmt: skip
def test_a_report_folder_of_somebody_elses_brings_no_file_in(command, run, tmp_path, change):
    folder, media = run(), tmp_path / "r/media"
    assert command(["report", folder, "--out", tmp_path / "r"])[0] == 0
    facts = next(media.glob("*.facts.json"))
    made = read_json(facts)
    for place in (tmp_path, media):
        (place / "secret.txt").write_text(SECRET * 3)
    write_json(facts, made | change)
    assert command(["report", folder, "--out", tmp_path / "r", "--embed"])[0] == 0
    (media / "secret.txt").unlink()
    assert not holds(tmp_path / "r") and read_json(facts) == made, "made anew"


@pytest.mark.parametrize("part, kind", [
    ("mp4", "link"), ("strip.webp", "link"), ("record.json", "link"), ("facts.json", "link"),
    ("mp4", "pipe"), ("strip.webp", "pipe"), ("record.json", "pipe"),
])  # fmt: skip
def test_what_is_no_file_in_a_report_folder_is_made_anew(command, run, tmp_path, part, kind):
    folder, media = run(record=record_of()), tmp_path / "r/media"
    assert command(["report", folder, "--out", tmp_path / "r"])[0] == 0
    (tmp_path / "secret").write_text(SECRET * 3)
    path = next(media.glob(f"*.{part}"))
    before = path.read_bytes()
    path.unlink()
    path.symlink_to(tmp_path / "secret") if kind == "link" else os.mkfifo(path)
    assert command(["report", folder, "--out", tmp_path / "r", "--embed"])[0] == 0
    assert not holds(tmp_path / "r") and path.read_bytes() == before and not path.is_symlink()


def test_holds_finds_the_secret_in_a_data_url(tmp_path):
    for n in range(3):
        (tmp_path / "x").write_bytes(base64.b64encode(b"y" * n + SECRET.encode() + b"yyyy"))
        assert holds(tmp_path)
