"""The method end to end on a tiny model: what must not change pixels does not, what must does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from edg.core.errors import BadFileError, UsageError
from edg.systems.base import Request
from edg.systems.edg.clip_state import start
from edg.systems.edg.condition import conditions
from edg.systems.edg.generate import generate
from edg.systems.edg.options import SamplingOptions
from edg.systems.edg.parameter_sets import ParameterSets
from edg.systems.edg.sampling_schedule import check, schedule_of_sets
from edg.systems.edg.verify.pipeline import rule_weights

OPTIONS = SamplingOptions(steps=3, guidance_scale=3.0, perframe_ae=True)


@pytest.fixture(scope="module")
def spec(pipe_spec):
    return pipe_spec


@pytest.fixture(scope="module")
def weights(spec):
    return {"dyn": rule_weights(spec, 1), "con": rule_weights(spec, 2)}


@pytest.fixture(scope="module")
def sets(spec, weights):
    return ParameterSets(spec, weights)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    paths = [folder / f"{i}.png" for i in range(3)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    return paths


def request_for(spec, image, name="0000-a_sample0", options=OPTIONS, prompt="a red ball"):
    return Request(name, prompt, 123, spec.frames, 64, 64, options, image)


def frames(sets, requests):
    results = list(generate(sets, requests))
    assert [r.request for r in results] == list(requests)
    assert not any(r.error for r in results), [r.error for r in results]
    return [r.frames for r in results]


@pytest.mark.slow
def test_frames_do_not_depend_on_order_chunk_or_residency(spec, sets, weights, images):
    a, b = (request_for(spec, images[i], f"000{i}-x_sample0") for i in (0, 1))
    alone = frames(sets, [a])[0]
    assert alone.shape == (16, 64, 64, 3) and alone.dtype == np.uint8
    assert np.array_equal(alone, frames(sets, [b, a])[1])
    resident = ParameterSets(spec, weights, resident=True)
    assert np.array_equal(alone, frames(resident, [a])[0])
    assert resident.resident and not sets.resident


@pytest.mark.slow
def test_a_batch_of_two_agrees_to_one_level(spec, weights, images):
    requests = [request_for(spec, images[i], f"000{i}-x_sample0") for i in (0, 1)]
    single = frames(ParameterSets(spec, weights), requests)
    batched = frames(ParameterSets(spec, weights, batch_size=2), requests)
    for one, two in zip(single, batched, strict=True):
        difference = np.abs(one.astype(int) - two.astype(int))
        assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


@pytest.mark.slow
def test_seed_name_prompt_and_each_set_matter(spec, sets, weights, images):
    base = request_for(spec, images[0])
    pictures = [
        base,
        replace(base, seed=124),
        replace(base, id="0000-a_sample1"),
        replace(base, prompt="something else"),
        replace(base, options=replace(OPTIONS, switch_at=(1000,))),
        replace(base, options=replace(OPTIONS, switch_at=(0,))),
    ]
    made = [frames(sets, [request])[0] for request in pictures]
    for i, one in enumerate(made):
        assert all(not np.array_equal(one, other) for other in made[i + 1 :]), pictures[i]


def test_plan_takes_dyn_strictly_above_t(sets):
    plan = schedule_of_sets(sets, SamplingOptions(switch_at=(500,)))
    assert [use for use, _ in plan] == [[0], [1]]
    assert [len(steps) for _, steps in plan] == [25, 25]
    on_the_boundary = plan[1][1][0].t
    later = schedule_of_sets(sets, SamplingOptions(switch_at=(on_the_boundary,)))
    assert [len(steps) for _, steps in later] == [25, 25]
    assert [use for use, _ in schedule_of_sets(sets, SamplingOptions(switch_at=(1000,)))] == [[1]]


@pytest.mark.slow
def test_three_sets_and_wrong_counts(spec, weights, images):
    three = ParameterSets(spec, {**weights, "end": rule_weights(spec, 3)})
    options = replace(OPTIONS, switch_at=(700, 400))
    assert [use for use, _ in schedule_of_sets(three, options)] == [[0], [1], [2]]
    assert frames(three, [request_for(spec, images[0], options=options)])[0].any()
    with pytest.raises(UsageError, match="3 parameter sets and 1 switch"):
        schedule_of_sets(three, OPTIONS)


@pytest.mark.slow
def test_soft_blend_needs_both_sets_in_memory(spec, sets, weights, images):
    soft = request_for(spec, images[0], options=replace(OPTIONS, blend="soft"))
    with pytest.raises(UsageError, match="--resident"):
        list(generate(sets, [soft]))
    resident = ParameterSets(spec, weights, resident=True)
    assert not np.array_equal(
        frames(resident, [soft])[0], frames(resident, [request_for(spec, images[0])])[0]
    )


@pytest.mark.slow
def test_a_failed_clip_does_not_stop_the_others(spec, sets, images, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    good = request_for(spec, images[0])
    results = list(generate(sets, [request_for(spec, broken, "0001-broken_sample0"), good]))
    assert "broken.png" in results[0].error and results[0].frames is None
    assert np.array_equal(results[1].frames, frames(sets, [good])[0])


@pytest.mark.slow
def test_infinite_weights_are_named_by_step_and_set(spec, weights, images):
    con = {name: tensor.clone() for name, tensor in weights["con"].items()}
    con["model.diffusion_model.out.2.bias"][0] = float("inf")
    result = next(generate(ParameterSets(spec, {**weights, "con": con}), [request_for(spec, images[0])]))
    assert result.frames is None
    assert result.error.endswith("with con") and "timestep 332" in result.error


def test_what_cannot_work_is_told_before_anything_is_read(spec, weights, images):
    good = [request_for(spec, images[0])]
    check(spec, weights, good)
    short = {name: tensor for name, tensor in weights["con"].items() if not name.endswith("out.2.bias")}
    for refused in (lambda sets: check(spec, sets, good), lambda sets: ParameterSets(spec, sets)):
        with pytest.raises(BadFileError, match="1 missing .*out.2.bias"):
            refused({"dyn": weights["dyn"], "con": short})
    with pytest.raises(UsageError, match="2 parameter sets and 0 switch"):
        check(spec, weights, [request_for(spec, images[0], options=replace(OPTIONS, switch_at=()))])
    beyond = replace(OPTIONS, steps=3, spacing="uniform", timesteps="released")
    with pytest.raises(UsageError, match="timestep 1000"):
        check(spec, weights, [request_for(spec, images[0], options=beyond)])


@pytest.mark.slow
def test_a_scaled_schedule_in_a_later_set_changes_nothing(spec, sets, weights, images):
    scaled = {n: 0.9 * t if n.startswith(("alphas", "sqrt_")) else t for n, t in weights["con"].items()}
    request = request_for(spec, images[0])
    again = ParameterSets(spec, {"dyn": weights["dyn"], "con": scaled})
    assert np.array_equal(frames(again, [request])[0], frames(sets, [request])[0])


@pytest.mark.slow
def test_loop_drops_the_last_frame_and_marks_both_ends(spec, sets, images):
    loop = request_for(spec, images[0], options=replace(OPTIONS, loop=True))
    assert frames(sets, [loop])[0].shape[0] == spec.frames - 1


def test_branches_of_guidance(spec, sets, images):
    network = sets.network(0)
    clip = start(sets, request_for(spec, images[0]))
    concat = torch.zeros(1, 4, spec.frames, 8, 8)

    def branches(**options):
        return conditions(network, ["a cat"], clip.image_13HW, concat, replace(OPTIONS, **options))

    assert set(branches(guidance_scale=1.0)) == {"full"}
    assert set(branches()) == {"full", "null"}
    three = branches(image_guidance_scale=2.0)
    assert set(three) == {"full", "null", "image"}
    text, image = slice(0, 77), slice(77, None)
    full, null, picture = (three[name].context_BLD for name in ("full", "null", "image"))
    assert torch.equal(picture[:, text], null[:, text]) and not torch.equal(full[:, text], null[:, text])
    assert torch.equal(picture[:, image], full[:, image])
    assert not torch.equal(null[:, image], full[:, image])


@pytest.mark.parametrize("trace", [torch.tensor([0.4]), torch.tensor(0.4), 0.4])
def test_analytic_init_from_a_file(spec, sets, images, tmp_path, trace):
    path = tmp_path / "initial_noise.pt"
    torch.save({"Expectation_X0": torch.full((1, 4, spec.frames, 8, 8), 3.0), "Tr_Cov_d": trace}, path)
    plain, begun = (
        start(sets, request_for(spec, images[0], options=replace(OPTIONS, start=500, analytic_init=file)))
        for file in (None, str(path))
    )
    signal = float(sets.schedule.sqrt_alphas_cumprod[499])
    spread = (1 - signal**2 + signal**2 * 0.4) ** 0.5
    assert torch.allclose(begun.x_1CTHW, signal * 3.0 + spread * plain.x_1CTHW, atol=1e-5)
    torch.save({"Expectation_X0": torch.ones(1, 4, 3, 8, 8), "Tr_Cov_d": trace}, path)
    with pytest.raises(UsageError, match="shape"):
        start(sets, request_for(spec, images[0], options=replace(OPTIONS, analytic_init=str(path))))
    torch.save({"other": torch.ones(2)}, path)
    with pytest.raises(BadFileError, match="Expectation_X0"):
        start(sets, request_for(spec, images[0], options=replace(OPTIONS, analytic_init=str(path))))


def test_released_options_change_what_con_sees(spec, sets, images):
    ours, published = (
        frames(sets, [request_for(spec, images[0], options=options)])[0]
        for options in (OPTIONS, OPTIONS.as_released())
    )
    assert not np.array_equal(ours, published)


@pytest.mark.parametrize(
    "change, word",
    [
        ({"start": 0}, "M is 0"),
        ({"start": 10}, "ddim_steps"),
        ({"switch_at": (1001,)}, "T is 1001"),
        ({"eta": -1.0}, "eta"),
        ({"guidance_scale": float("nan")}, "guidance scale"),
    ],
)
def test_settings_out_of_range(change, word):
    with pytest.raises(UsageError, match=word):
        replace(SamplingOptions(), **change).check()
