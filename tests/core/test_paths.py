"""Paths and names as users give them, and texts that YAML takes for numbers."""

import os
from argparse import ArgumentTypeError
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from edg.core import config
from edg.core.arguments import as_path, named_path, number, whole
from edg.core.errors import LONGEST, EdgError, SomeFailedError, UsageError, nearest, visible
from edg.core.paths import file_stem, user_path
from edg.core.written import plain, text_of


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_home(home):
    assert user_path("~") == str(home) and user_path("~/a/~") == f"{home}/a/~"
    assert user_path("~root/x") == os.path.expanduser("~root/x")
    assert user_path("a/~/b") == "a/~/b" and user_path("a~") == "a~" and user_path("/~") == "/~"
    for literal in (
        "./~",
        ".//~/x",
        "./~root",
    ):  # given again (a sweep's folder becomes a flag), it is the same
        once = user_path(literal)
        assert once == os.path.abspath(literal) == user_path(once) == user_path(Path(once))
    assert as_path("~/x") == f"{home}/x" and named_path("a=~/x=1") == f"a={home}/x=1"
    assert named_path("a") == "a" and named_path("~=b") == "~=b"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a\0b",
        "\0",
        "a/\ud800",
        "x" * 256,
        "é" * 128,
        "a/" * 3000,
        "~nobody-of-that-name/x",
        3,
        None,
        b"x",
    ],
)
def test_no_path(text):
    with pytest.raises(UsageError):
        user_path(text)


def test_names_that_are_bytes_are_names():
    text = os.fsdecode(b"\xff" * 255)
    assert user_path(text) == text


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "a ",
        ".",
        "..",
        ".a",
        "a/b",
        "/a",
        "a\\b",
        "a\0b",
        "a\nb",
        "\x7f",
        "\ud800",
        "x" * 201,
        7,
        None,
    ],
)
def test_no_stem(name):
    with pytest.raises(UsageError):
        file_stem(name, "name")


def test_stems():
    for name in ("con", "a.b", "007", "~", "x" * 200, "ü b", "-a", "a=1"):
        assert file_stem(name, "name") == name


# ---- YAML --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    out: Path = Path("o")
    name: str = "n"
    init: config.PathText | None = None
    count: int = 1
    rate: float = 1.0
    flag: bool = False
    kind: Literal["on", "none", 3] = "none"
    many: tuple[str, ...] = ()
    data: dict | None = None


TEXTS = (
    "2024_06_01",
    "007",
    "on",
    "yes",
    "Off",
    "1_0",
    "1e3",
    "12:30",
    "true",
    "True",
    "1.50",
    "0x1F",
    ".5",
    "+1",
    "-0",
)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_stays_a_text(tmp_path, text):
    file = tmp_path / "a.yaml"
    file.write_text(f"out: {text}\nname: {text}\nmany: [a, {text}]\ninit: {text}\n")
    expected = Run(out=Path(text), name=text, init=text, many=("a", text))
    assert config.load(Run, file) == expected
    given = [f"{key}={text}" for key in ("out", "name", "init")] + [f"many=[a, {text}]"]
    file.write_text("count: 2\nwritten: &x 3\n" if text == "on" else "count: 2\n")
    values = config.read_yaml(file, given)
    values.pop("written", None)
    assert config.build(Run, values) == Run(**{**vars(expected), "count": 2})


def test_numbers_stay_numbers(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        "count: 1_0\nrate: 1e3\nflag: yes\nkind: on\nbase: 010\nname: ${base}\nout: runs/${base}/${rate}\n"
    )
    values = config.read_yaml(file)
    assert plain(values) == values == {
        "count": 10, "rate": 1000.0, "flag": True, "kind": True, "base": 8, "name": 8,
        "out": "runs/010/1000.0",
    }  # fmt: skip
    assert text_of(values["flag"]) == "yes" and type(plain(values)["flag"]) is bool
    values.pop("base")
    made = config.build(Run, values)
    assert made == Run(Path("runs/010/1000.0"), "010", None, 10, 1000.0, True, "on")
    assert [type(getattr(made, name)) for name in ("count", "rate", "flag")] == [int, float, bool]
    assert config.to_dict({"a": values["flag"]})["a"] is True


def test_quotes_tags_anchors_and_aliases(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("name: &n 007\ninit: *n\nmany: ['1', !!str 2, \"on\", *n]\ndata: {a: !!int 3, b: 1_0}\n")
    made = config.load(Run, file)
    assert (made.name, made.init, made.many) == ("007", "007", ("1", "2", "on", "007"))
    assert made.data == {"a": 3, "b": 10}


def test_letters_for_private_use_are_letters(tmp_path):
    (tmp_path / "a.yaml").write_text("name: 007\ninit: \ue0f00\ue0f1\nmany: [1_0]\n", encoding="utf-8")
    made = config.build(Run, config.read_yaml(tmp_path / "a.yaml", ["out=x\ue0f09\ue0f1"]))
    assert (made.name, made.init, made.many) == ("007", "\ue0f00\ue0f1", ("1_0",))
    assert made.out == Path("x\ue0f09\ue0f1")


@pytest.mark.parametrize("value", ["null", "[a]", "{a: b}", "", '""', '"a\\0b"', "x" * 300])
def test_what_is_no_path_names_the_setting(tmp_path, value):
    (tmp_path / "a.yaml").write_text("count: 1\n")
    text = f"out={value}"
    with pytest.raises(UsageError) as caught:
        config.build(Run, config.read_yaml(tmp_path / "a.yaml", [text]), "a.yaml", [text])
    assert caught.value.given.startswith(text[:200]) and caught.value.expected


# ---- numbers, and what is shown ----------------------------------------------------------------------------


def test_ranges():
    assert whole(0, 5)("5") == 5 and number(0, 5)("2.5") == 2.5
    for read, texts in (
        (whole(1, 5), ("0", "6", "1e0", "1000000000000", "9" * 5000, "")),
        (number(0, 5), ("nan", "inf", "-1", "x")),
    ):
        for text in texts:
            with pytest.raises(ArgumentTypeError):
                read(text)


def test_what_is_long_is_shortened():
    name = "x" * 10**6
    error = EdgError(f"no {name} here", expected=name, fix=name)
    assert max(map(len, (error.given, error.expected, error.fix))) < LONGEST < len(str(error)) < 4 * LONGEST
    assert error.given.startswith("no xxx") and error.given.endswith("x here")
    assert len(visible(name)) < 5 * LONGEST and visible("a" * LONGEST) == "a" * LONGEST
    assert nearest(name, ["a"]) == "" and nearest("ab", [name, "abc"])
    failed = SomeFailedError("x", failed={name: name}).as_dict()["failed"][0]
    assert max(len(failed["item"]), len(failed["reason"])) < LONGEST
