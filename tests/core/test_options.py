"""Options declared once: the parser, values from elsewhere, records and command lines agree."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from edg.core.arguments import Parser
from edg.core.config import PathText
from edg.core.errors import UsageError
from edg.core.options import (
    NamedPath,
    add_flags,
    as_flags,
    converted,
    declared,
    from_values,
    names,
    option,
    settings,
    typed_values,
)


@dataclass(frozen=True)
class Options:
    steps: int = option(50, "how many", flags=("--ddim_steps",), names=("n",), low=1, high=1000)
    scale: float = option(7.5, low=-10, high=10)
    kind: Literal["soft", "hard"] = option("hard")
    loop: bool = option(False)
    points: tuple[int, ...] = option((), low=0, high=9)
    between: tuple[int, int] | None = option(None)
    text: str = option("", bare="")
    noise: PathText | None = option(None)
    sets: tuple[NamedPath, ...] = option((), pixels=False)
    inner: int = option(3, flags=None)
    later: int = option(1, since=2)


def parsed(*argv):
    add_flags(parser := Parser(), Options)
    return converted(Options, typed_values(parser.parse_args(list(argv)), Options))


ALIKE = {
    "steps": (["--ddim_steps", "7"], {"n": 7}, 7),
    "scale": (["--scale=1"], {"scale": "1"}, 1.0),
    "kind": (["--kind", "soft"], {"kind": "soft"}, "soft"),
    "loop": (["--loop"], {"loop": 1}, True),
    "points": (["--points", "3", "2"], {"points": [3, 2]}, (3, 2)),
    "between": (["--between", "1", "2"], {"between": (1, 2)}, (1, 2)),
    "text": (["--text"], {"text": ""}, ""),
    "noise": (["--noise", "a.pt"], {"noise": Path("a.pt")}, "a.pt"),
    "sets": (["--sets", "a=b", "c=d"], {"sets": ["a=b", "c=d"]}, ("a=b", "c=d")),
}


@pytest.mark.parametrize("name", ALIKE)
def test_flags_and_values_give_the_same(name):
    argv, values, expected = ALIKE[name]
    assert parsed(*argv) == converted(Options, values) == {name: expected}
    assert parsed(*as_flags(Options, {name: expected})) == {name: expected}, "and back to flags"


def test_what_is_not_given_is_not_there():
    assert parsed() == {} == converted(Options, {"steps": None})
    assert from_values(Options, {}) == Options()


def test_a_switch_may_be_denied():
    assert (
        parsed("--no-loop") == {"loop": False} == parsed("--loop", "0") == converted(Options, {"loop": "no"})
    )


def test_numbers_of_other_libraries():
    found = converted(Options, {"steps": np.int64(5), "scale": np.float32(0.5)})
    assert found == {"steps": 5, "scale": 0.5} and type(found["steps"]) is int


WRONG = {
    "unknown": ({"stpes": 1}, "stpes"),
    "not for users": ({"inner": 1}, "inner"),
    "too small": ({"steps": 0}, "--ddim_steps 0"),
    "too large": ({"steps": 1001}, "--ddim_steps 1001"),
    "no number": ({"steps": "many"}, "steps"),
    "half": ({"steps": 1.5}, "steps"),
    "a truth as a number": ({"steps": True}, "steps"),
    "nan": ({"scale": float("nan")}, "--scale nan"),
    "infinite": ({"scale": "inf"}, "--scale inf"),
    "one of several": ({"points": [1, 10]}, "--points 10"),
    "too few": ({"between": [1]}, "between"),
    "no choice": ({"kind": "medium"}, "kind"),
    "no truth": ({"loop": 2}, "loop"),
    "two names": ({"n": 1, "ddim-steps": 2}, "ddim-steps"),
    "a NUL": ({"noise": "a\0b"}, "noise"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_values_name_the_option(case):
    values, given = WRONG[case]
    with pytest.raises(UsageError) as caught:
        converted(Options, values)
    assert given in caught.value.given


def test_a_record_holds_what_decides_pixels(tmp_path):
    (tmp_path / "noise").write_bytes(b"noise")
    found = settings(Options(noise=str(tmp_path / "noise"), sets=("a=b",), points=(1,)))
    assert found["noise"] == hashlib.sha256(b"noise").hexdigest() and found["points"] == [1]
    assert "sets" not in found and "later" not in found and found["inner"] == 3
    assert settings(Options(later=2))["later"] == 2 and settings(Options())["noise"] is None


def test_names_are_fields_flags_and_more():
    assert names(Options)["n"] == names(Options)["ddim_steps"] == names(Options)["steps"] == "steps"
    assert "inner" not in names(Options) and declared(Options)["inner"].option.flags is None


def test_help_shows_the_default(capsys):
    add_flags(parser := Parser(prog="x"), Options)
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    shown = capsys.readouterr().out
    assert "(50)" in shown and "(hard)" in shown and "inner" not in shown
