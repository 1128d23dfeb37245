"""Dials as inverses of measured curves, by numbers that can be checked in the head."""

import pytest

from edg.core.errors import UsageError
from edg.core.hashing import sha256_file
from edg.merging.recipe import adjusted, load_recipe
from edg.sprites import WEIGHTS
from edg.systems.edg.dials import FOLDER, Dial, Dials, Point, find_dials


def curve(*points, wants="more", moves="dyn.alpha"):
    """A dial over (at, mean, certain) points."""
    found, before = [], None
    for at, mean, certain in points:
        change = None if before is None else sorted((0.5 * (mean - before), 1.5 * (mean - before)))
        if change and not certain:
            change = [change[0] - 9, change[1] + 9]
        found.append(Point(at, mean, mean - 0.1, mean + 0.1, change and tuple(change)))
        before = mean
    return Dial(moves, "speed", wants, tuple(found))


def places(dial):
    return [point.at for point in dial.range()]


def test_the_inverse_is_linear_in_what_was_measured():
    dial = curve((-1, 2.0, True), (0, 3.0, True), (2, 7.0, True))
    assert places(dial) == [-1, 0, 2]
    # wanted 2, 2.5, 3.25, 4.5, 7: one unit of motion takes one of strength, the other four take two
    assert [dial.strength(x) for x in (0, 0.1, 0.25, 0.5, 1)] == [-1, -0.5, 0.125, 0.75, 2]


def test_a_falling_curve_turns_the_other_way():
    dial = curve((0, 8.0, True), (300, 4.0, True), (500, 3.0, True))
    assert [dial.strength(x) for x in (0, 0.2, 1)] == [500, 300, 0]  # more of the figure is at T = 0
    dial = curve((0, 8.0, True), (300, 4.0, True), (500, 3.0, True), wants="less")
    assert [dial.strength(x) for x in (0, 0.4, 0.8, 1)] == [0, 150, 300, 500]


def test_a_plateau_is_left_out_at_both_ends():
    dial = curve((0, 1.0, True), (1, 1.01, False), (2, 2.0, True), (3, 3.0, True), (4, 3.02, False))
    assert places(dial) == [1, 2, 3]
    assert (dial.strength(0), dial.strength(1)) == (1, 3)


def test_of_two_stretches_the_larger_change_counts():
    dial = curve((0, 1.0, True), (1, 2.0, True), (2, 1.5, True), (3, -3.0, True), (4, -2.9, False))
    assert places(dial) == [1, 2, 3]
    dial = curve((0, 0.0, True), (1, 5.0, True), (2, 5.1, False), (3, 6.0, True))
    assert places(dial) == [0, 1]


def test_where_no_step_is_certain_there_is_no_dial():
    dial = curve((0, 0.97, True), (300, 0.99, False), (500, 1.0, False), (1000, 1.0, True), moves="T")
    assert dial.range() == ()
    with pytest.raises(UsageError, match="T 0 to 1000"):
        dial.strength(0.5)
    only = Dials("m", "edg", {}, {}, 300, "measure", curve((0, 1.0, True)), dial)
    with pytest.raises(UsageError, match="--hold"):
        only.strengths(None, 1.0)


def test_an_interval_of_the_change_that_touches_0_is_not_certain():
    dial = Dial("T", "speed", "more", (Point(0, 1, 1, 1), Point(1, 2, 2, 2, (0.0, 2.0))))
    assert dial.range() == ()
    turned = Dial("T", "speed", "more", (Point(0, 1, 1, 1), Point(1, 0.5, 0, 1, (0.1, 2.0))))
    assert turned.range() == ()  # a change and means that do not agree


def test_points_stand_in_their_order():
    with pytest.raises(UsageError, match="rising"):
        curve((1, 1.0, True), (0, 2.0, True))


def test_only_what_is_turned_is_set_and_only_from_0_to_1():
    line = curve((0, 0.0, True), (1, 1.0, True))
    switch = curve((0, 5.0, True), (1000, 1.0, True), wants="less", moves="T")
    dials = Dials("m", "edg", {}, {}, 300, "measure", line, switch)
    assert dials.strengths(0.25, None) == {"dyn.alpha": 0.25}
    assert dials.strengths(None, 0.5004) == {"T": 500} and isinstance(dials.strengths(None, 0.5)["T"], int)
    assert dials.strengths(1, 0) == {"dyn.alpha": 1, "T": 0}
    for wrong in (-0.01, 1.01, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="--motion"):
            dials.strengths(wrong, None)


def test_the_shipped_dials_are_of_the_shipped_files_and_recipe():
    dials = find_dials(None, "sprites")
    assert dials.inputs == {name: sha256_file(WEIGHTS / f"{name}.safetensors") for name in ("base", "tuned")}
    recipe = load_recipe(dials.recipe)
    assert dials.motion.moves != "T" and dials.hold.moves == "T"
    assert adjusted(recipe, dials.motion.moves, 0.25).outputs["dyn"][0].alpha == 0.25
    assert len(dials.motion.range()) > 2
    assert dials.strengths(0, None)[dials.motion.moves] < dials.strengths(1, None)[dials.motion.moves]


def test_dials_of_another_model_are_refused():
    assert find_dials(None, "dynamicrafter-512") is None
    with pytest.raises(UsageError, match="sprites"):
        find_dials(str(FOLDER / "sprites.yaml"), "dynamicrafter-512")
