"""Camera motion: known flow fields, rendered affine motions, VBench's rule by hand."""

import affine
import numpy as np
import pytest

from edg.core.errors import UsageError
from edg.metrics import camera, motion


def grid(top=(0, 0), bottom=(0, 0), left=(0, 0), right=(0, 0)):
    """Tracks of two frames whose edges' middles go these ways (x, y)."""
    found = np.zeros((2, 10, 10, 2)) + 100
    for place, way in (((0, 5), top), ((9, 5), bottom), ((5, 0), left), ((5, 9), right)):
        found[1][place] += way
    return found


R, L, U, D = (9, 0), (-9, 0), (0, -9), (0, 9)
# In a picture of 400x600 a point moves from 2 px on (0.005 x 400), more than that; what stands goes the other
# way than the camera.
RULE = [
    (grid(L, L, L, L), ["pan_right"]),
    (grid(R, R, R, R), ["pan_left"]),
    (grid(D, D, D, D), ["tilt_up"]),
    (grid(U, U, U, U), ["tilt_down"]),
    (grid(U, D, L, R), ["zoom_in"]),
    (grid(D, U, R, L), ["zoom_out"]),
    (grid(), ["static"]),
    (grid((2, 0), (2, 0), (2, 0), (2, 0)), ["static"]),
    (grid((3, 0), (3, 0), (3, 0), (3, 0)), ["pan_left"]),
    (grid((-9, 9), (-9, 9), (-9, 9), (-9, 9)), ["pan_right", "tilt_up"]),
    (grid(L, L), ["pan_right"]),  # left and right stand: static is dropped
    (grid(U, L, R, U), []),  # no class at all
    (grid(U, D), ["zoom_in"]),
    (grid((0, 0), (0, 0), U, R), []),  # top and bottom stand, the others disagree: not static
    (grid(L, R, D, U), []),  # a turn is none of the classes
]


@pytest.mark.parametrize("tracks, classes", RULE)
def test_the_rule(tracks, classes):
    assert camera.camera_motions(tracks, 400, 600) == classes


@pytest.mark.parametrize("height, width", [(1000, 1600), (1600, 1000)])
@pytest.mark.parametrize(
    "pixels, horizontal, vertical", [(5, "static", "static"), (6, "pan_left", "tilt_up")]
)
def test_what_stands_in_a_large_picture(height, width, pixels, horizontal, vertical):
    """0.005 x 1000, the shorter side: up to 5 px a point stands, 6 px it moves."""
    for way, expected in (((pixels, 0), horizontal), ((0, pixels), vertical)):
        assert camera.camera_motions(grid(*[way] * 4), height, width) == [expected]


def test_the_similarity_solves_tukeys_equations():
    """Biweight of 4.685 (95 % efficiency) times 1.48 median residuals: the weighted residuals of the answer
    add up to nothing, and nothing of them grows with the place. 18 x 18 places of a picture of 20 x 20."""
    rng = np.random.default_rng(3)
    flow = rng.normal(0, 0.5, (20, 20, 2))
    flow[:7] += (4, 3)  # a third of the picture goes elsewhere, not so far that it counts nothing
    m, c = camera.similarity(flow.astype(np.float32))
    y, x = np.mgrid[1:19, 1:19]
    z, w = ((x - 9.5) + 1j * (y - 9.5)).ravel(), (flow[1:19, 1:19] @ (1, 1j)).ravel()
    residual = w - m - c * z
    limit = 4.685 * 1.48 * np.median(np.abs(residual))
    weight = np.maximum(0, 1 - (np.abs(residual) / limit) ** 2) ** 2
    share = weight / weight.sum()
    assert abs(share @ residual) < 0.01 and abs(share @ (residual * z.conj())) / 6 < 0.01


def test_what_moves_a_fifth_of_a_pixel_on_a_third_of_the_picture_does_not_pull():
    """The scale is 0.01 px at least where the rest agrees exactly."""
    flow = np.zeros((40, 40, 2), np.float32)
    flow[:13] = 0.2
    m, c = camera.similarity(flow)
    assert abs(m) < 1e-9 and abs(c) < 1e-9


def test_a_picture_of_two_pixels_has_no_camera():
    with pytest.raises(UsageError):
        camera.similarity(np.zeros((2, 2, 2), np.float32))


def test_tracks_are_cut_to_whole_pixels():
    tracks = grid()
    tracks[0] += 0.2
    tracks[1] = tracks[0] + (2.9, 0)  # 100.2 -> 103.1: 3 px
    assert camera.camera_motions(tracks, 400, 600) == ["pan_left"]
    tracks[1] = tracks[0] + (2.7, 0)  # 100.2 -> 102.9: 2 px
    assert camera.camera_motions(tracks, 400, 600) == ["static"]


def test_tracks_follow_the_flow():
    flow = np.zeros((3, 64, 128, 2), np.float32)
    flow[..., 0], flow[..., 1] = 1.5, -0.5
    tracks = camera.tracks(flow)
    assert tracks.shape == (4, 10, 10, 2)
    assert tracks[0, 0, 0] == pytest.approx([2, 2]) and tracks[0, -1, -1] == pytest.approx([126, 62])
    assert np.allclose(tracks[3] - tracks[0], (4.5, -1.5))


@pytest.mark.parametrize(
    "known, expected, classes",
    [
        ({"shift": (3, 0)}, (3, 0, 0, 0), ["pan_left"]),
        ({"shift": (0, -2)}, (0, -2, 0, 0), ["tilt_down"]),
        ({"matrix": affine.zoom(1.04)}, (0, 0, 4, 0), ["pan_left", "tilt_up", "zoom_in"]),
        ({"matrix": affine.zoom(0.98)}, (0, 0, -2, 0), ["zoom_out"]),
        ({"matrix": affine.turn(2)}, (0, 0, 100 * (np.cos(np.deg2rad(2)) - 1), 2), ["pan_right"]),
        ({"shift": (0, 0)}, (0, 0, 0, 0), ["static"]),
    ],
)
def test_rendered_motions(known, expected, classes):
    """The 6th of 10 points stands 7 px beside the middle of its edge, so in VBench's rule a turn is a pan
    (left and right edge go left by a pixel) and a strong zoom is also a pan and a tilt."""
    flow = motion.flow(affine.clip(**known)[0])
    found = camera.global_motion(flow)
    assert (found.x, found.y, found.zoom, found.roll) == pytest.approx(expected, abs=0.12)
    assert camera.camera_motions(camera.tracks(flow), 128, 128) == classes


def test_exact_field_with_a_thing_that_moves_otherwise():
    """40 % of the picture moves on its own; the rest zooms by 2 %, turns by 1 degree and shifts."""
    angle = np.deg2rad(1)
    y, x = np.mgrid[:90, :160] - np.array([44.5, 79.5])[:, None, None]
    flow = np.stack([1.25 + 0.02 * x - angle * y, -0.5 + angle * x + 0.02 * y], axis=-1)
    flow[20:80, 20:116] = (-6, 5)
    found = camera.global_motion(flow[None].astype(np.float32))
    assert (found.x, found.y, found.zoom, found.roll) == pytest.approx((1.25, -0.5, 2, 1), abs=1e-3)


@pytest.mark.parametrize(
    "prompt, asked",
    [
        ("a bird on a branch, camera pans left", "pan_left"),
        ("a bird, Camera zooms in", "zoom_in"),
        ("a hill, camera tilts down", "tilt_down"),
        ("a hill, camera static", "static"),
        ("a hill, camera pans up", None),
        ("a camera on a table", None),
        ("a red circle moves left", None),
    ],
)
def test_what_a_prompt_asks(prompt, asked):
    assert camera.asked_motion(prompt) == asked
