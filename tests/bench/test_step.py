"""The exact steps are exact: every variant of the denoising step is the naive loop within rounding."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from bench import step
from edg.networks.latent_video import upsample
from edg.networks.latent_video.unet import UNet

KNOWN = step.models()


def small(name):
    """The model with fewer and narrower blocks, its conditions as they are."""
    known = KNOWN[name]
    unet = replace(
        known.spec.unet,
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(1, 2),
        num_head_channels=16,
        init_heads=2,
    )
    return replace(known, spec=replace(known.spec, unet=unet, frames=5), height=4, width=8)


@pytest.mark.parametrize("name", ["512", "sprites", "adapter"])
@pytest.mark.parametrize("variant", ["edg", "two calls", "telling anew"])
def test_a_step_is_the_naive_loops_within_rounding(name, variant):
    model = small("512" if name == "adapter" else name)
    if name == "adapter":
        model = replace(model, spec=model.spec.with_adapter())
    step_of = {
        which: step.make_step(step.Setting(model.name, which, "cpu", "fp32", 1, batch=2), model)
        for which in ("naive", variant)
    }
    with torch.no_grad():
        expected, found = (made() for made in step_of.values())
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["512", "sprites"])
def test_the_calls_of_an_approximate_clip(monkeypatch, name):
    """12 steps, every other one whole, two conditions from 300 to 700 alone; each clip pays all of it."""
    calls, forward, prepare = Counter(), UNet.forward, UNet.prepare_context

    def counted(self, x, t, context, fs, words, reuse):
        calls[f"{len(context.text)} conditions, {'whole' if reuse.value is None else 'short'}"] += 1
        return forward(self, x, t, context, fs, words, reuse)

    def prepared(self, *given):
        calls["prepared"] += 1
        return prepare(self, *given)

    monkeypatch.setattr(UNet, "forward", counted)
    monkeypatch.setattr(UNet, "prepare_context", prepared)
    model = small(name)
    setting = step.Setting(model.name, "approximate", "cpu", "fp32", 1)
    expected = {
        "1 conditions, whole": 4,
        "1 conditions, short": 3,
        "2 conditions, whole": 3,
        "2 conditions, short": 2,
        "prepared": 2,
    }
    with torch.no_grad():
        made = step.make_step(setting, model)
        for _ in range(2):
            calls.clear()
            assert made().isfinite().all() and calls == expected
    assert setting.stands_for == 50


def test_a_wrong_result_ends_the_run():
    right = torch.ones(3)
    step.check("edg", right * (1 + 5e-5), right, step.TOLERANCE)
    with pytest.raises(SystemExit, match="'edg' is 5.0e-04"):
        step.check("edg", right * (1 + 5e-4), right, step.TOLERANCE)


def test_in_16_bits_float32_is_held_to():
    made, exact = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.02])
    expected, limit = step.held_to(made, None)
    assert expected is made and limit == step.TOLERANCE == 1e-4
    expected, limit = step.held_to(made, exact)
    assert expected is exact and limit == pytest.approx(1.2 * 0.02 / 2.02, rel=1e-3)
    step.check("edg", exact - 0.023, expected, limit)
    with pytest.raises(SystemExit):
        step.check("edg", torch.stack([exact, exact - 0.025]), expected, limit)  # one prompt of two


@pytest.mark.parametrize(("variant", "fewer"), [("naive", False), ("edg", True)])
def test_the_loop_as_released_doubles_the_size_by_the_larger_convolution(monkeypatch, variant, fewer):
    model, counted = small("512"), []
    with torch.no_grad():
        made = step.make_step(step.Setting(model.name, variant, "cpu", "fp32", 1), model)
        for least in (1, 10**9):
            monkeypatch.setattr(upsample, "MIN_CELLS", least)
            monkeypatch.setattr(upsample, "MIN_SIDE", 1)
            counted.append(step.count_flops(made))
    assert (counted[0] < counted[1]) is fewer and counted[0] <= counted[1]


def test_autocast_surrounds_the_loop_as_released_alone():
    for variant, dtype, expected in [
        ("naive", "bf16", True),
        ("naive", "fp32", False),
        ("edg", "bf16", False),
    ]:
        with step.surroundings(step.Setting("sprites", variant, "cpu", dtype, 1)):
            assert torch.is_autocast_enabled("cpu") is expected
