"""Which frames a clip takes, what rate is told, and that no bar appears."""

import numpy as np
import pytest
import torch

from edg.core.errors import BadFileError, UsageError
from edg.core.seeding import generator
from edg.data.transforms import ClipSettings, choose_times, fit_clip, rate_condition

SPEC = ClipSettings(frames=16, height=32, width=48)


def spec(**changes):
    return ClipSettings(**{"frames": 16, "height": 32, "width": 48, **changes})


def many(count, fps, clip, draws=400):
    return [choose_times(count, fps, clip, generator(0, "t", i)) for i in range(draws)]


def test_strides_and_starts_are_uniform():
    times = many(300, 25, SPEC)
    strides = [t.step for t in times]
    assert set(strides) == set(range(1, 7)) and all(40 <= strides.count(k) <= 100 for k in range(1, 7))
    assert all(len(t) == 16 and t[0] >= 0 and t[-1] < 300 for t in times)
    ones = [t.start for t in many(18, 25, spec(stride=(1, 1)))]
    assert set(ones) == {0, 1, 2} and all(100 <= ones.count(k) <= 170 for k in range(3))
    assert {t.start for t in many(300, 25, spec(random_start=False))} == {0}


@pytest.mark.parametrize("count, largest", [(16, 1), (30, 1), (31, 2), (76, 5), (90, 5), (91, 6)])
def test_a_short_video_gets_the_largest_stride_that_fits(count, largest):
    assert max(t.step for t in many(count, 25, SPEC)) == largest
    assert all(t[-1] < count for t in many(count, 25, SPEC))


def test_too_short():
    with pytest.raises(BadFileError):
        choose_times(15, 25, SPEC, generator(0))
    [only] = set(many(1, 25, spec(frames=1)))
    assert list(only) == [0] or len(only) == 1


@pytest.mark.parametrize("fps, stride", [(8, 1), (23.976, 3), (25, 3), (30, 4), (60, 8), (5, 1)])
def test_fixed_fps(fps, stride):
    assert {t.step for t in many(500, fps, spec(stride=(1, 1), fixed_fps=8), 5)} == {stride}


@pytest.mark.parametrize(
    "fps, stride, changes, told",
    [
        (25, 1, {}, 25),
        (25, 6, {}, 4),  # 4.17
        (29.97, 1, {}, 29),
        (30, 3, {}, 10),
        (24, 5, {}, 4),
        (60, 1, {"fps_max": 30}, 30),
        (5, 6, {}, 1),
        (30, 4, {"condition": "fs"}, 4),
    ],
)
def test_what_the_network_is_told(fps, stride, changes, told):
    assert rate_condition(fps, stride, spec(**changes)) == told


@pytest.mark.parametrize("size", [(64, 96), (32, 48), (90, 40), (20, 200), (7, 9), (200, 33)])
def test_no_bars(size):
    frames = np.full((3, *size, 3), (255, 130, 40), np.uint8)
    clip = fit_clip(frames, 32, 48)
    assert clip.shape == (3, 3, 32, 48) and clip.dtype == torch.float32
    expected = torch.tensor([255, 130, 40]) / 127.5 - 1
    assert torch.allclose(clip, expected[:, None, None, None].expand_as(clip), atol=1e-6)


def test_the_centre_is_kept_and_mirrored():
    frames = np.zeros((2, 32, 144, 3), np.uint8)  # three squares of 48: left red, middle ramp, right blue
    frames[:, :, :48, 0] = 255
    frames[:, :, 48:96] = np.arange(48, dtype=np.uint8)[:, None]
    frames[:, :, 96:, 2] = 255
    clip = fit_clip(frames, 32, 48)
    ramp = torch.arange(48) / 127.5 - 1
    assert torch.allclose(clip, ramp.expand_as(clip), atol=1e-6)
    assert torch.equal(fit_clip(frames, 32, 48, mirror=True), clip.flip(-1))


@pytest.mark.parametrize(
    "changes",
    [
        {"frames": 0},
        {"stride": (0, 2)},
        {"stride": (3, 2)},
        {"fixed_fps": 0.0},
        {"condition": "x"},
        {"fps_max": 0},
    ],
)
def test_specs_that_make_no_sense(changes):
    with pytest.raises(UsageError):
        spec(**changes)
