"""The tracker against motions that are known because they were drawn."""

import numpy as np
import pytest

from edg.sprites.tracker import look, track
from edg.sprites.world import DIRECTIONS, SHAPES, Motion, Sprite, SpriteClip, clips, held_out, render
from experiments.scoring import estimate, estimates, judge


@pytest.mark.parametrize("split", ["base", "tuned"])
def test_speed_and_direction_of_rendered_clips(split):
    for clip in clips(split, 11, 60):
        found = track(render(clip)[0], clip.sprite)
        assert found.speed == pytest.approx(clip.motion.speed, abs=0.1)
        assert found.direction == clip.motion.direction and found.intact and found.intact_frames == 1


def test_noise_and_8_bits_do_not_disturb_it():
    rng = np.random.default_rng(0)
    for clip in clips("base", 12, 30):
        frames = np.clip(render(clip)[0] + rng.normal(0, 0.04, (8, 32, 32, 3)), 0, 1)
        found = track(np.round(frames * 255).astype(np.uint8), clip.sprite)
        assert found.speed == pytest.approx(clip.motion.speed, abs=0.1) and found.intact


def test_a_shape_that_stands_still_has_no_direction():
    sprite = Sprite("red", "circle", 16.0, 16.0, 5.0, (0.4, 0.1, 0.0))
    found = track(render(SpriteClip(sprite, Motion("up", 0.0)))[0], sprite)
    assert found.direction == "still" and found.speed < 0.01 and found.intact


def test_another_colour_or_shape_is_not_intact():
    sprite = Sprite("red", "circle", 16.0, 16.0, 5.0, (0.4, 0.1, 0.0))
    for colour, shape in (("green", "circle"), ("red", "bar"), ("red", "pillar")):
        other = Sprite(colour, shape, 16.0, 16.0, 5.0, (0.4, 0.1, 0.0))
        assert not track(render(SpriteClip(other, Motion("left", 1.0)))[0], sprite).intact


def test_an_empty_frame_shows_nothing():
    assert look(np.full((32, 32, 3), 0.5), 5.0) is None
    found = track(np.full((8, 32, 32, 3), 0.5, np.float32), Sprite("red", "circle", 16, 16, 5, (0.5, 0, 0)))
    assert not found.intact and found.speed == 0 and found.direction == "still"


@pytest.mark.parametrize("shape", SHAPES)
def test_a_frame_tells_what_it_shows(shape):
    sight = look(
        render(SpriteClip(Sprite("teal", shape, 14.2, 17.7, 4.5, (0.3, 0.0, 0.2)), Motion("up", 0), 1))[0][0],
        4.5,
    )
    assert (sight.colour, sight.shape) == ("teal", shape)
    assert (sight.x, sight.y) == pytest.approx((14.2, 17.7), abs=0.15)


def uint8(frames):
    return np.round(frames * 255).astype(np.uint8)


def test_the_truth_is_judged_perfect_and_one_direction_for_all_chance():
    chosen = held_out(2, 16)
    truth = estimates([[judge(uint8(render(clip)[0]), clip) for clip in chosen]])
    assert truth["direction"].mean == truth["intact"].mean == 1 and truth["first_frame"].mean == 0
    assert truth["slowly"].mean == pytest.approx(0.4, abs=0.05)
    assert truth["quickly"].mean == pytest.approx(0.9, abs=0.05)
    left = [judge(uint8(render(SpriteClip(clip.sprite, Motion("left", 1.0)))[0]), clip) for clip in chosen]
    assert estimates([left])["direction"].mean == 1 / len(DIRECTIONS)


def test_the_first_frame_is_held_against_the_image():
    clip = held_out(2, 1)[0]
    video = uint8(render(clip)[0])
    video[0] = np.where(video[0] < 128, video[0] + 10, video[0] - 10)
    assert judge(video, clip).first_frame == pytest.approx(10)


def test_an_interval_is_that_of_the_mean_over_images():
    rng = np.random.default_rng(0)
    image = rng.normal(3.0, 1.0, 400)
    found = estimate([image, image])
    assert found.mean == pytest.approx(image.mean())
    half = 1.96 * image.std() / 20
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=0.02), (
        "a second seed that says the same adds nothing"
    )
    assert estimate([[1.0, float("nan"), 3.0]]).mean == 2.0
    assert np.isnan(estimate([[float("nan")]]).mean)


@pytest.mark.parametrize("speed", [1.6, 2.0, 2.5])
def test_a_shape_that_leaves_the_picture_is_followed_up_to_there(speed):
    for clip in held_out(4000, 8):
        moved = SpriteClip(clip.sprite, Motion(clip.motion.direction, speed))
        found = judge(uint8(render(moved)[0]), moved)
        assert found.speed == pytest.approx(speed, abs=0.1) and found.intact and found.direction
        assert found.along == pytest.approx(speed, abs=0.1)
