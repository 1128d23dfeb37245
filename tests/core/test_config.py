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
    "change, given, fix",
    [
        ({"nmae": 1}, "nmae", "name"),
        ({"inner": {"size": 3, "rte": 1}}, "inner.rte", "rate"),
        ({"inner": {}}, "size", ""),
        ({"inner": 3}, "inner", ""),
        ({"inner": {"size": 1.5}}, "inner.size", ""),
        ({"inner": {"size": True}}, "inner.size", ""),
        ({"kind": "c"}, "kind", ""),
        ({"mult": 3}, "mult", ""),
        ({"mult": [1, "x"]}, "mult[1]", ""),
        ({"pair": [1]}, "pair", ""),
        ({"maybe": "x"}, "maybe", ""),
        ({"flag": 1}, "flag", ""),
    ],
)
def test_the_wrong_key_is_named(change, given, fix):
    with pytest.raises(UsageError) as raised:
        build(Outer, {**GOOD, **change})
    assert given in raised.value.given and fix in raised.value.fix and (fix or raised.value.expected)


@pytest.mark.parametrize(
    "text, named", [("a: [1", ""), ("- 1\n- 2", ""), ("hello", "hello"), ("hello:", "hello"), ("", None)]
)
def test_not_a_mapping(tmp_path, text, named):
    (tmp_path / "a.yaml").write_text(text)
    if named is None:
        assert read_yaml(tmp_path / "a.yaml") == {}
    else:
        with pytest.raises(UsageError) as raised:
            read_yaml(tmp_path / "a.yaml")
        assert "a.yaml" in raised.value.given and named in raised.value.given


def test_missing_file(tmp_path):
    with pytest.raises(BadFileError):
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
    with pytest.raises(UsageError):
        read_yaml(tmp_path / "a.yaml", [text])
