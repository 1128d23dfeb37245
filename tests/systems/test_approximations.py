"""Approximations, each on its own: off they change nothing, on they do what they say."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from edg.core.errors import UsageError
from edg.diffusion.ddim import ddim_plan
from edg.diffusion.schedule import make_schedule
from edg.networks.latent_video.deepcache import DeepFeature, deep_feature
from edg.networks.latent_video.load import load_model
from edg.networks.latent_video.presets import SPRITES
from edg.runner.sample import Watcher
from edg.sprites import WEIGHTS
from edg.sprites.data import clip_tensors
from edg.sprites.world import held_out
from edg.systems.base import Placement, Request
from edg.systems.edg.condition import Condition
from edg.systems.edg.generate import generate
from edg.systems.edg.options import SamplingOptions
from edg.systems.edg.parameter_sets import load_sets
from edg.weights.store import open_weights

FRAMES = SPRITES.frames
OPTIONS = SamplingOptions(steps=6, guidance_scale=3.0)
MULTISTEP = pytest.mark.parametrize("solver", ["dpmpp", "unipc"])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Two parameter sets of the embedded model, and an image of their world."""
    sets = {name: open_weights(WEIGHTS / f"{name}.safetensors") for name in ("base", "tuned")}
    image = tmp_path_factory.mktemp("image") / "0.png"
    frame = clip_tensors(held_out(2000, 1), "tuned")["frames"][0, :, 0]
    Image.fromarray(((frame + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()).save(image)
    tuned = {name: sets["tuned"][name] for name in sets["tuned"]}
    other = {name: value * (1.01 if "input_blocks" in name else 1) for name, value in tuned.items()}
    return load_sets(
        SPRITES, {"dyn": other, "con": tuned}, Placement(torch.device("cpu"), torch.float32)
    ), image


def sample(model, watch=None, **options):
    sets, image = model
    request = Request("0", "red circle moving left", 1, 8, 32, 32, replace(OPTIONS, **options), image)
    (result,) = generate(sets, [request], Watcher(lambda *_, **__: None, watch))
    assert not result.error
    return result.frames


class Counted:
    """How many conditions the last stage and the middle one were run for, at each of their runs."""

    def __init__(self, model):
        self.calls = {"all": [], "deep": []}
        unet = model[0].network(0).unet
        self.hooks = [
            stage.register_forward_hook(lambda _, given, __, name=name: self.count(name, given[0]))
            for name, stage in (("all", unet.output_blocks[-1]), ("deep", unet.middle_block))
        ]

    def count(self, name, x_NCHW):
        self.calls[name].append(len(x_NCHW) // FRAMES)

    def __enter__(self):
        return self.calls

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()


@pytest.mark.slow
def test_an_approximation_that_approximates_nothing_is_bit_equal(model):
    plain = sample(model)
    assert np.array_equal(plain, sample(model, guidance_interval=(0, 1000), reuse=1, solver="ddim"))
    assert np.array_equal(plain, sample(model, watch=lambda *_: None))


def test_guidance_outside_its_interval_is_not_computed(model):
    with Counted(model) as calls:
        inside = sample(model, guidance_interval=(400, 700))
    plan = ddim_plan(model[0].schedule, 6)
    guided = [400 <= step.t <= 700 for step in plan]
    assert 0 < sum(guided) < 6 and not np.array_equal(inside, sample(model))
    assert calls["all"] == [2 if g else 1 for g in guided]
    assert np.array_equal(sample(model, guidance_interval=(0, 0)), sample(model, guidance_scale=1.0))


def test_reuse_runs_the_deep_levels_at_the_first_and_every_nth_step_of_each_set(model):
    with Counted(model) as calls:
        assert not np.array_equal(
            sample(model, reuse=2, guidance_scale=1.0), sample(model, guidance_scale=1.0)
        )
    assert calls == {"all": [1] * 12, "deep": [1] * (4 + 6)}  # three steps with each set: full, short, full


def test_reuse_begins_anew_where_the_interval_changes_the_conditions(model):
    with Counted(model) as calls:
        sample(model, reuse=3, guidance_interval=(400, 700))
    assert calls["all"] == [1, 1, 2] + [2, 1, 1]
    assert calls["deep"] == [1, 2] + [2, 1]
    told = {"reuse": 3, "guidance_interval": (0, 0)}
    assert np.array_equal(sample(model, **told), sample(model, reuse=3, guidance_scale=1.0))


@pytest.mark.slow
def test_one_deep_feature_serves_a_stack_of_conditions(spec, weights, inputs):
    network = load_model(spec, weights).eval()
    x, t, context, concat, _ = inputs
    several = [Condition(told, None, concat, None) for told in (context, context.flip(1))]

    def two_steps(predict):
        denoise = predict(network, DeepFeature({20: 20, 10: 20, 700: 700, 690: 700}))
        return denoise(x, t), denoise(0.9 * x, t - 10)

    with torch.no_grad():
        together = two_steps(partial(Condition.predict_all, several))
        alone = zip(*(two_steps(condition.predict) for condition in several), strict=True)
    for all_at_once, parts in zip(together, alone, strict=True):
        torch.testing.assert_close(all_at_once, torch.stack(parts), atol=1e-4, rtol=1e-4)


def test_a_deep_feature_is_of_one_full_step():
    steps = ddim_plan(make_schedule(SPRITES.schedule), 6)
    assert deep_feature(steps, 1) is None
    feature, given = deep_feature(steps, 3), []
    for step in steps:
        feature.enter(torch.tensor([step.t, step.t]))
        given.append(feature.value)
        feature.value = step.t if feature.value is None else feature.value
    assert given == [None, steps[0].t, steps[0].t, None, steps[3].t, steps[3].t]
    feature.enter(torch.tensor([steps[1].t, steps[1].t]))
    assert feature.value is None  # back at a step of another full one
    feature.value = 1
    feature.enter(torch.tensor([steps[0].t, steps[4].t]))
    assert feature.value is None  # not of all samples
    feature.enter(torch.tensor([-5]))
    assert feature.value is None


def test_the_network_on_its_own_deep_feature_is_itself(spec, weights, inputs):
    model = load_model(spec, weights).eval()
    x, t, context, concat, _ = inputs
    with torch.no_grad():
        feature = DeepFeature({})
        full = model.predict(x, t, context, concat)
        assert torch.equal(model.predict(x, t, context, concat, reuse=feature), full)
        assert torch.equal(model.predict(x, t, context, concat, reuse=feature), full)
        later = model.predict(x + 0.1, t - 10, context, concat, reuse=feature)
        assert 0 < (later - model.predict(x + 0.1, t - 10, context, concat)).abs().max() < full.abs().max()


@pytest.mark.slow
@MULTISTEP
def test_a_set_of_its_own_history(model, solver):
    """Each set begins with a step of first order: with one step for each, both are deterministic DDIM."""
    both = [sample(model, steps=2, solver=name, eta=0.0) for name in ("ddim", solver)]
    assert np.array_equal(*both)
    assert np.array_equal(sample(model, solver=solver, eta=0.0), sample(model, solver=solver, eta=1.0))
    others = {"ddim", "dpmpp", "unipc"} - {solver}
    ours = sample(model, solver=solver)
    assert not any(np.array_equal(ours, sample(model, solver=name, eta=0.0)) for name in others)


@pytest.mark.slow
@MULTISTEP
def test_more_steps_lead_to_the_clip_of_ddim(model, solver):
    far, near = (
        np.abs(sample(model, solver=solver, steps=steps).astype(float) - exact).mean()
        for exact in [sample(model, eta=0.0, steps=40).astype(float)]
        for steps in (4, 16)
    )
    assert near < far


def test_previews_show_the_clip_six_times(model):
    told = []
    frames = sample(model, watch=lambda request, moment, small: told.append((request.id, moment, small)))
    assert [moment for _, moment, _ in told] == [f"t = {s.t}" for s in ddim_plan(model[0].schedule, 6)]
    assert all(small.shape == (8, 8, 8, 3) and small.dtype == np.uint8 for _, _, small in told)
    shrunk = frames.reshape(8, 8, 4, 8, 4, 3).mean((2, 4))
    errors = [np.abs(small - shrunk).mean() for _, _, small in told]
    one_colour = np.abs(shrunk.mean((0, 1, 2)) - shrunk).mean()
    assert errors[-1] < errors[0] and errors[-1] < one_colour


@pytest.mark.parametrize(
    "change, word",
    [
        ({"guidance_interval": (700, 200)}, "interval 700 200"),
        ({"guidance_interval": (0, 1001)}, "interval"),
        ({"reuse": 0}, "reuse is 0"),
    ],
)
def test_settings_out_of_range(change, word):
    with pytest.raises(UsageError, match=word):
        replace(SamplingOptions(), **change).check()
