"""Motion fidelity of tracks whose likeness is known; the released numbers are reference cases."""

import numpy as np
import pytest

from edg.metrics.motion_fidelity import motion_fidelity, motion_fidelity_released


def straight(*ways, frames=6):
    return np.stack([np.arange(frames)[:, None] * np.asarray(way, float) for way in ways])


def test_equal_tracks_are_one_and_opposite_ones_minus_one():
    right = straight((1, 0), (2, 0))
    assert motion_fidelity(right, right) == pytest.approx(1)
    assert motion_fidelity(right, -right) == pytest.approx(-1)
    assert motion_fidelity(right, straight((0, 1))) == pytest.approx(0, abs=1e-9)


def test_clips_of_other_length_and_points_that_stand_are_scored():
    right = straight((1, 0), frames=9)
    assert motion_fidelity(straight((3, 0)), right) == pytest.approx(1)
    assert motion_fidelity(straight((0, 0)), right) == 0
    assert np.isnan(motion_fidelity_released(straight((0, 0)), right))


def test_both_ways_count():
    """Every track of one finds its like in the other, but not the other way round."""
    one, other = straight((1, 0)), straight((1, 0), (0, 1))
    assert motion_fidelity(one, other) == pytest.approx((1 + 0.5) / 2) == motion_fidelity(other, one)
