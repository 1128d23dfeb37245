"""Catalogue, prompt folders: what does not pair is told before anything is made; names stay in the folder."""

import os
import time
import unicodedata
from pathlib import Path

import pytest
from PIL import Image
from runs import given_of
from sampling import RED, records, sampler, save

from edg.cli.main import parser_of
from edg.cli.sample import config_of
from edg.core.dist import World
from edg.runner.prepare import prepare
from edg.sprites import WEIGHTS

PICTURE = Image.new("RGB", (8, 8), RED)


@pytest.fixture
def sample(command, monkeypatch):
    return sampler(command, monkeypatch)


@pytest.fixture
def folder(tmp_path):
    """folder(names, text) -> a prompt folder; text None: no file, bytes: as they are."""

    def make(names, text="one\ntwo\n", name="prompts.txt"):
        path = tmp_path / "in"
        path.mkdir(exist_ok=True)
        for image in names:
            save(path / image, PICTURE, format="png")
        if text is not None:
            (path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return make


def refused(sample, path, *words, flags=()):
    """The run ends with 2, tells all of these words, and makes nothing."""
    code, err, out = sample(path, *flags)
    assert code == 2 and all(word in err for word in words), err
    assert not out.exists()


def made(sample, path, *flags):
    """Clip id -> record of a run that made them all."""
    code, err, out = sample(path, *flags)
    assert code == 0, err
    found = records(out)
    assert {name for name in found} == {clip.stem for clip in out.glob("*.mp4")}
    return found


def test_c44_counts_that_differ(sample, folder):
    refused(sample, folder(["a.png"]), "prompt 2 ('two') has no image", "2 prompts and 1 images")
    refused(sample, folder(["b.png", "c.png"]), "image c.png has no prompt", "2 prompts and 3 images")


def test_c45_blank_line(sample, folder):
    refused(sample, folder(["a.png", "b.png"], "one\n\ntwo\n"), "line 2 of", "prompts.txt is blank")


def test_c46_no_text_and_two(sample, folder):
    refused(sample, folder(["a.png"], None), "0 prompt files", "(none)")
    folder([], "one\n", "x.txt")
    refused(sample, folder([], "one\n", "y.txt"), "2 prompt files", "(x.txt, y.txt)")


@pytest.mark.parametrize(
    "data",
    [
        b"one\r\ntwo\r\n",
        b"\xef\xbb\xbfone\ntwo",
        "one\ntwo\n".encode("utf-16"),
        b"one\ntw\xff\n",
        "one\ntwo".encode("utf-16-be"),
    ],
    ids=["CRLF", "BOM", "UTF-16", "Latin-1", "UTF-16 without its mark"],
)
def test_c47_encodings(sample, folder, data):
    path = folder(["a.png", "b.png"], data)
    if b"\xff\n" in data:
        return refused(sample, path, "line 2 of", "is not valid UTF-8", "save it as UTF-8")
    if data.startswith(b"\x00"):
        return refused(sample, path, "line 1 of", "a NUL character")
    assert [record["settings"]["prompt"] for record in made(sample, path).values()] == ["one", "two"]


def test_c48_names_of_any_script(sample, folder):
    names = ["u\u0308 mit Raum.png", "日本語.png", "😀.png"]
    found = made(sample, folder(names, "one\ntwo\nthree\n"))
    stems = {unicodedata.normalize("NFC", Path(name).stem) for name in names}
    assert {name[5:].removesuffix("_sample0") for name in found} == stems


def test_c49_names_that_mean_something_elsewhere(sample, folder):
    names = ["-rf.png", "CON.png", "a..b.png", "x" * 251 + ".png", "😀" * 62 + ".png", ".hidden.png"]
    path = folder(names, "\n".join("abcde"))
    found = made(sample, path, "--format", "png,mp4,gif")  # a hidden file is none of the folder's
    assert sorted(Path(r["image"]).name for r in found.values()) == sorted(names[:-1])
    assert all(len(name.encode()) <= 185 and name[:4].isdigit() for name in found)
    assert {p.parent for p in path.parent.rglob("*.mp4")} == {path.parent / "in-out/1000"}


def test_c49_control_characters_and_bytes_that_are_no_text(sample, folder):
    path = folder(["a\nb\x1b[31m\u202e.png"], "one\ntwo\nthree\x1b[2J\x07\n")
    for name in (b"\xff\xfe.png", b'<img src=x onerror="1">.png'):
        save(path / "x.png", PICTURE).rename(os.fsdecode(os.fsencode(path) + b"/" + name))
    code, err, out = sample(path)
    found = records(out)
    assert code == 0 and len(found) == 3, err
    assert "\x1b" not in err and "\u202e" not in err and err.count("\n") == len(err.splitlines())
    assert not any(set(name) & set('\n\x1b\u202e<>"/') for name in found)
    assert all(os.path.exists(record["image"]) for record in found.values())


def test_c50_stems_that_are_there_twice(sample, folder):
    names = ["a.png", "a.jpg", "A.png", "a.1.png", "a.2.png"]
    found = made(sample, folder(names, "\n".join("abcde")))
    assert len({name.casefold() for name in found}) == 5
    assert sorted(Path(record["image"]).name for record in found.values()) == sorted(names)


@pytest.mark.parametrize("kind", ["mode 000", "dangling link", "link to itself", "folder", "pipe"])
def test_c51_unreadable(sample, folder, monkeypatch, kind):
    path = folder(["2.png"])
    bad = path / "1.png"
    {
        "mode 000": lambda: save(bad, PICTURE).chmod(0),
        "dangling link": lambda: bad.symlink_to(path / "nowhere"),
        "link to itself": lambda: bad.symlink_to(bad),
        "folder": bad.mkdir,
        "pipe": lambda: os.mkfifo(bad),
    }[kind]()
    if kind == "mode 000" and os.geteuid() == 0:  # root reads it all the same
        forbid(monkeypatch, bad)
    code, err, out = sample(path)
    assert code == 5 and "0000-1_sample0" in given_of(err)
    found = records(out)
    assert [found[f"000{i}-{i + 1}_sample0"]["status"] for i in (0, 1)] == ["failed", "done"]
    assert found["0000-1_sample0"]["error"] in err and [p.name for p in out.glob("*.mp4")] == [
        "0001-2_sample0.mp4"
    ]


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_c51_prompts_that_are_no_file(sample, folder, kind):
    path = folder(["1.png"], None)
    {"pipe": os.mkfifo, "folder": os.mkdir}[kind](path / "p.txt")
    code, err, out = sample(path)
    assert code == 3 and "p.txt" in given_of(err) and not out.exists()


def forbid(monkeypatch, path):
    """Nobody opens `path`."""
    real = open

    def opened(file, *args, **more):
        if str(file) == str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(file, *args, **more)

    monkeypatch.setattr("builtins.open", opened)


@pytest.mark.parametrize("name", ["1.png", "prompts.txt"])
def test_c63_link_out_of_the_folder(sample, folder, tmp_path, name):
    path = folder(["1.png", "2.png"])
    outside = tmp_path / f"elsewhere-{name}"
    (path / name).rename(outside)
    (path / name).symlink_to(outside)
    refused(sample, path, f"{name} in", f"links to {outside}", "--follow_links")
    assert len(made(sample, path, "--follow_links")) == 2


def test_c63_links_within_the_folder_and_to_the_folder(sample, folder, tmp_path):
    path = folder(["1.png"])
    (path / "2.png").symlink_to("1.png")
    (tmp_path / "link").symlink_to(path)
    assert len(made(sample, tmp_path / "link")) == 2


def test_c64_nothing_there(sample, folder, tmp_path):
    refused(sample, folder([], None), "no image in")
    code, err, _ = sample(tmp_path / "nowhere")
    assert code == 3 and str(tmp_path / "nowhere") in given_of(err)


def test_prompts_upper_and_what_is_passed_over(sample, folder):
    """A run pairs boat.TXT with boat.jpg, reads a bmp, names a heic, and warns of what is cut."""
    path = folder(["boat.jpg", "cat.bmp", "x.heic"], None)
    folder([], "a boat", "boat.TXT"), folder([], "a cat jumps over the fence and away", "cat.TXT")
    code, err, out = sample(path)
    assert code == 0 and "x.heic" in err and "Thumbs" not in err
    assert [r["settings"]["prompt"][:5] for r in records(out).values()] == ["a boat"[:5], "a cat"]
    assert [line for line in err.splitlines() if "away" in line]


def test_c65_ten_thousand_prompts(tmp_path):
    """Everything before the network, in seconds of this process (the machine may be busy)."""
    for i in range(10_000):
        (tmp_path / f"{i}.png").touch()
    (tmp_path / "p.txt").write_text("\n".join(f"prompt {i}" for i in range(10_000)))
    sets = ["--config", "sprites", "--sets", f"base={WEIGHTS / 'base.safetensors'}", "--device", "cpu"]
    parse = parser_of("sample").parse_args
    config = config_of(parse([*sets, "--prompt_dir", str(tmp_path)]))
    prepare(config_of(parse(sets)), World())  # what any run imports
    began = time.process_time()
    ready = prepare(config, World())
    assert time.process_time() - began < 5
    assert ready.requests[2345].prompt == "prompt 2345" and ready.requests[2345].image.stem == "2345"
