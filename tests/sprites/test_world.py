"""The sprites world draws what its numbers say."""

import dataclasses

import numpy as np
import pytest

from edg.core.errors import UsageError
from edg.sprites.world import (
    COLOURS,
    DIRECTIONS,
    FRAMES,
    PACES,
    SHAPES,
    SIZE,
    SPEEDS,
    Motion,
    Words,
    all_captions,
    caption,
    clips,
    coverage,
    half_extents,
    held_out,
    parse_caption,
    render,
    words_of,
)


def test_a_clip_depends_on_split_seed_and_number_alone():
    first, again = list(clips("base", 7, 5)), list(clips("base", 7, 3))
    assert first[:3] == again
    assert list(clips("base", 8, 3)) != again and list(clips("tuned", 7, 3)) != again
    a, b = render(first[0])[0], render(again[0])[0]
    assert a.dtype == np.float32 and np.array_equal(a, b)


@pytest.mark.parametrize("split", SPEEDS)
def test_shapes_stay_inside_the_frame(split):
    for clip in clips(split, 0, 200):
        left, right, up, down = half_extents(clip.sprite.shape, clip.sprite.radius)
        for t in (0, FRAMES - 1):
            x, y = np.array([clip.sprite.x, clip.sprite.y]) + t * clip.motion.velocity
            assert x - left >= 0 and x + right <= SIZE and y - up >= 0 and y + down <= SIZE


def test_mean_speeds_are_those_of_the_documentation():
    wanted = {"base": 1.1, "tuned": 0.65, "tuned_equal": 1.1, "tuned_fast": 1.4}
    means = {split: np.mean([clip.motion.speed for clip in clips(split, 1, 2000)]) for split in SPEEDS}
    assert means == pytest.approx(wanted, abs=0.03)


def test_a_split_that_is_none_is_refused():
    with pytest.raises(UsageError, match="'tuned'"):
        next(clips("tunde", 0, 1))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_has_the_area_and_the_centroid_it_is_asked_for(shape):
    cover = coverage(shape, 5.0, 15.3, 16.8)
    at = np.arange(SIZE) + 0.5
    assert cover.sum() == pytest.approx(np.pi * 25, rel=0.01)
    assert (cover.sum(0) @ at / cover.sum(), cover.sum(1) @ at / cover.sum()) == pytest.approx(
        (15.3, 16.8), abs=0.05
    )


def test_the_shape_has_its_colour_and_the_background_is_grey():
    clip = next(iter(clips("base", 3, 1)))
    frames, cover = render(clip)
    inside, outside = frames[cover > 0.999], frames[cover == 0]
    assert np.allclose(inside, COLOURS[clip.sprite.colour], atol=1e-3)
    assert np.abs(outside - outside.mean(-1, keepdims=True)).max() < 1e-6


def test_captions_round_trip():
    told, silent = all_captions(True), all_captions(False)
    assert (
        len(set(told)) == len(COLOURS) * len(SHAPES) * len(DIRECTIONS) * len(PACES) and len(set(silent)) == 18
    )
    assert all(caption(parse_caption(text)) == text for text in told + silent)
    assert parse_caption("A red circle.") == Words("red", "circle")
    assert parse_caption("a blue bar moves up slowly") == Words("blue", "bar", "up", "slowly")


@pytest.mark.parametrize(
    "text", ["a rde circle", "a red circle runs left slowly", "red circle", "a red circle moves left slow"]
)
def test_words_of_another_world_are_refused(text):
    with pytest.raises(UsageError):
        parse_caption(text)


def test_a_misspelt_word_is_named_with_the_nearest_one():
    with pytest.raises(UsageError, match="'circle'"):
        parse_caption("a red cirle")


@pytest.mark.parametrize("split", [split for split in SPEEDS if split != "base"])
def test_captions_tell_the_motion_that_is_drawn(split):
    for clip in clips(split, 0, 100):
        words = words_of(clip, split)
        low, high = SPEEDS[split][PACES.index(words.pace)]
        assert low <= clip.motion.speed <= high and words.direction == clip.motion.direction


def test_held_out_clips_are_balanced_and_do_not_give_the_direction_away():
    chosen = held_out(5, 64)
    assert {d: sum(c.motion.direction == d for c in chosen) for d in DIRECTIONS} == dict.fromkeys(
        DIRECTIONS, 16
    )
    for clip in chosen:
        for direction in DIRECTIONS:
            fast = Motion(direction, sum(SPEEDS["tuned"][1]) / 2)
            x, y = np.array([clip.sprite.x, clip.sprite.y]) + (FRAMES - 1) * fast.velocity
            left, right, up, down = half_extents(clip.sprite.shape, clip.sprite.radius)
            assert (
                x - left >= -1e-6 and x + right <= SIZE + 1e-6 and y - up >= -1e-6 and y + down <= SIZE + 1e-6
            )
    assert dataclasses.replace(chosen[0]) in held_out(5, 8)
