"""A folder made by edg is the folder that the loop as released makes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bench import scale

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made():
    """What a way makes of two prompts in two steps."""
    wanted = scale.requests(2, scale.sampling(2))

    def make(way, wanted=wanted):
        with torch.no_grad():
            return scale.share(way, wanted)[1]

    return make


@pytest.mark.parametrize(
    "how", [{"batch": 2}, {"batch": 2, "dtype": torch.bfloat16}, {"naive": True, "dtype": torch.bfloat16}]
)
def test_every_way_makes_the_same_clips(made, how):
    way, released = scale.Way("another", **how), scale.Way("as released", naive=True)
    assert scale.difference(way, made(way), made(released)) < 1


def test_other_clips_end_the_run(made):
    way = scale.Way("edg", batch=2)
    expected = made(way)
    others = [replace(one, seed=7) for one in scale.requests(2, scale.sampling(2))]
    with pytest.raises(SystemExit, match="the frames of 'edg' differ"):
        scale.difference(way, made(way, others), expected)
    off = [np.where(np.arange(clip.size).reshape(clip.shape) == 5, 255 - clip, clip) for clip in expected]
    with pytest.raises(SystemExit):
        scale.difference(way, off, expected)
