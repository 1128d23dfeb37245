"""YAML to dataclasses, strictly."""

from dataclasses import dataclass
from typing import Literal

import pytest

from edg.core.config import build, load, read_yaml, to_dict, to_yaml
from edg.core.errors import BadFileError, UsageError


@dataclass(frozen=True)
class Inner:
    size: int
    rate: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    mult: tuple[int, ...] = (1, 2)
    kind: Literal["a", "b"] = "a"
    maybe: int | None = None
    pair: tuple[int, float] = (1, 2.0)
    flag: bool = False


GOOD = {"name": "x", "inner": {"size": 3}}


def test_fill_and_back(tmp_path):
    value = build(Outer, {**GOOD, "mult": [1, 4], "pair": [3, 4], "kind": "b"})
    assert value == Outer("x", Inner(3), (1, 4), "b", None, (3, 4.0))
    (tmp_path / "a.yaml").write_text(to_yaml(value))
    assert load(Outer, tmp_path / "a.yaml") == value
    assert to_dict(value)["inner"] == {"size": 3, "rate": 0.5}


def test_scientific_notation_is_a_number():
    assert build(Inner, {"size": 1, "rate": "1e-4"}).rate == 1e-4


@pytest.mark.parametrize(
    "change, message",
    [
        ({"nmae": 1}, "unknown key 'nmae'.*did you mean 'name'"),
        ({"inner": {"size": 3, "rte": 1}}, r"unknown key 'inner\.rte'.*did you mean 'rate'"),
        ({"inner": {}}, "inner has no size"),
        ({"inner": 3}, "inner is 3; expected a mapping"),
        ({"inner": {"size": 1.5}}, r"inner\.size is 1\.5; expected a whole number"),
        ({"inner": {"size": True}}, "expected a whole number"),
        ({"kind": "c"}, "kind is 'c'; expected one of a, b"),
        ({"mult": 3}, "mult is 3; expected a list"),
        ({"mult": [1, "x"]}, r"mult\[1\] is 'x'"),
        ({"pair": [1]}, "expected 2 values"),
        ({"maybe": "x"}, "maybe is 'x'; expected a whole number"),
        ({"flag": 1}, "flag is 1; expected true or false"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    with pytest.raises(UsageError, match=message):
        build(Outer, {**GOOD, **change})


@pytest.mark.parametrize(
    "text, told",
    [
        ("a: [1", "is not valid YAML"),
        ("- 1\n- 2", "holds a list; expected a mapping of settings"),
        ("hello", "holds only 'hello'; expected a mapping of settings"),
        ("hello:", "holds only 'hello'; expected a mapping of settings"),
        ("", ""),
    ],
)
def test_not_a_mapping(tmp_path, text, told):
    (tmp_path / "a.yaml").write_text(text)
    if text:
        with pytest.raises(UsageError, match=f"a.yaml {told}"):
            read_yaml(tmp_path / "a.yaml")
    else:
        assert read_yaml(tmp_path / "a.yaml") == {}


def test_missing_file(tmp_path):
    with pytest.raises(BadFileError, match="cannot read"):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "overrides, found",
    [
        (["data={kind: cache, path: x}"], {"data": {"kind": "cache", "path": "x"}}),
        (
            ["data.kind=cache"],
            {"data": {"kind": "videos", "root": "v", "stride": [1, 6]} | {"kind": "cache"}},
        ),
        (["data={kind: cache}", "data.path=x"], {"data": {"kind": "cache", "path": "x"}}),
        (["data.stride=[2]"], {"data": {"kind": "videos", "root": "v", "stride": [2]}}),
        (
            ["train.lr=1e-5", "new.deep.key=a=b"],
            {"train": {"lr": 1e-5, "steps": 3}, "new": {"deep": {"key": "a=b"}}},
        ),
        (["train={}", "data=null"], {"train": {}, "data": None}),
        (["train.lr=${train.steps}"], {"train": {"lr": 3, "steps": 3}}),
        (["train.lr="], {"train": {"lr": None, "steps": 3}}),
    ],
)
def test_settings_over_a_file_a_mapping_replaces(tmp_path, overrides, found):
    text = "data: {kind: videos, root: v, stride: [1, 6]}\ntrain: {lr: 1.0e-4, steps: 3}\n"
    (tmp_path / "a.yaml").write_text(text)
    assert read_yaml(tmp_path / "a.yaml", overrides) == read_yaml(tmp_path / "a.yaml") | found


@pytest.mark.parametrize("text", ["train", "=3", "train.lr={", "train.lr=${none}"])
def test_settings_that_are_none(tmp_path, text):
    (tmp_path / "a.yaml").write_text("train: {lr: 1.0e-4}\n")
    with pytest.raises(UsageError, match="among the settings|is not valid YAML"):
        read_yaml(tmp_path / "a.yaml", [text])
