"""The zigzag: identity and closed form, an oracle, calls counted by hand, off switches bit for bit."""

import math

import numpy as np
import pytest
import torch

from edg.diffusion.ddim import ddim, ddim_plan
from edg.diffusion.noise_levels import NoiseLevel, NoiseLevels, at_level_of, move, renoise, signal_at
from edg.diffusion.prediction import x0_from
from edg.diffusion.schedule import make_schedule, timesteps
from edg.diffusion.schedule_spec import ScheduleSpec
from edg.diffusion.zigzag import (
    RELEASED_PLAN,
    Zigzag,
    calls,
    guidance_curve,
    image_model_is_used,
    parse_plan,
    walk,
)
from edg.networks.latent_video.presets import DYNAMICRAFTER_512, DYNAMICRAFTER_1024, VIDEOCRAFTER_2

PLAIN = make_schedule(ScheduleSpec(0.00085, 0.012, False, None), "eps")
LEVELS = NoiseLevels.of(PLAIN)
STEPS = timesteps("linspace", 50)[::-1].tolist()


def constant(steps, **options):
    return Zigzag(image_guidance=[4.0] * steps, video_guidance=[4.0] * steps, **options)


def eps_denoiser(eps_of, levels=LEVELS):
    """(leg) -> denoiser of x0 from eps_of(leg, x); eps may be a constant."""

    def of(leg):
        source = levels[leg.source]

        def denoise(x, t_B):
            assert t_B.tolist() == [leg.t] * len(x)
            return x0_from(eps_of(leg, x), x, source.signal, source.noise, "eps")

        return denoise

    return of


def drawn(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def run(zigzag, step, x, of):
    return [
        leg for leg in walk(x, zigzag.legs(step, STEPS), of, LEVELS, lambda leg: drawn(leg.index, *x.shape))
    ]


@pytest.mark.parametrize("step", [0, 7, 25, 47])
@pytest.mark.parametrize("levels", ["grid", "stride"])
def test_one_noise_without_guidance_is_the_identity(step, levels):
    x, eps = drawn(0, 2, 4, 3, 5, 5), drawn(1, 2, 4, 3, 5, 5)
    states = run(constant(50, levels=levels), step, x, eps_denoiser(lambda leg, x: eps))
    assert len(states) == 4 and (states[0][1] - x).abs().max() > 1e-3
    torch.testing.assert_close(states[-1][1], x, atol=1e-10, rtol=0)


def test_the_closed_form_of_the_released_loop():
    """z_after - z_before = (A - B)(u_I - u_V) + (A + B)(g_i d_I + g_v d_V), for constant u and d."""
    shape = (1, 4, 2, 3, 3)
    u, d = ({name: drawn(seed + k, *shape) for k, name in enumerate("IV")} for seed in (10, 20))
    x, step = drawn(0, *shape), 20
    zigzag = Zigzag(image_guidance=[3.0] * 50, video_guidance=[5.0] * 50)
    of = eps_denoiser(lambda leg, x: u[leg.model] + leg.weight * d[leg.model])
    after = run(zigzag, step, x, of)[-1][1]
    s_t, s_p, s_q = (LEVELS[STEPS[step + k]].ratio for k in range(3))
    a, b = s_p - s_t, s_q - s_p
    change = (a - b) * (u["I"] - u["V"]) + (a + b) * (3 * d["I"] + 5 * d["V"])
    signal = LEVELS[STEPS[step]].signal
    torch.testing.assert_close((after - x) / signal, change, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(
    "plan",
    [RELEASED_PLAN, ("V+", "V+", "V-", "V-"), ("V+", "I+", "I-", "V-"), ("I-", "I-", "I-", "V+", "V+", "I+")],
)
def test_an_oracle_of_the_clean_sample_stays_on_its_line(plan):
    """Whatever the plan, a latent whose clean sample both models know keeps it and its noise."""
    x0, eps = drawn(3, 1, 4, 2, 4, 4), drawn(4, 1, 4, 2, 4, 4)
    level = LEVELS[STEPS[10]]
    x = level.signal * x0 + level.noise * eps
    states = list(walk(x, constant(50, plan=plan).legs(10, STEPS), lambda leg: lambda x, t: x0, LEVELS, None))
    assert len(states) == len(plan)
    for leg, state in states:
        target = LEVELS[leg.target]
        torch.testing.assert_close(state, target.signal * x0 + target.noise * eps, atol=1e-10, rtol=0)


def test_fresh_noise_has_the_variance_of_the_level():
    x0, noise = torch.full((200_000,), 0.7, dtype=torch.float64), drawn(5, 200_000)
    source, target = LEVELS[300], LEVELS[600]
    x = source.signal * x0 + source.noise * drawn(6, 200_000)
    moved = renoise(x, noise, source, target)
    assert float(moved.mean()) == pytest.approx(0.7 * target.signal, abs=0.01)
    assert float(moved.std()) == pytest.approx(target.noise, abs=0.01)


def gaussian(leg):
    """The best denoiser of data of variance 1/4."""
    source = LEVELS[leg.source]
    return lambda x, t_B: source.signal * x / (source.signal**2 + 4 * source.noise**2)


def test_the_error_of_a_loop_falls_with_the_square_of_the_step():
    """The exact result for a denoiser that both models share is no change."""
    errors = []
    for steps in (50, 100, 200):
        visited = timesteps("linspace", steps)[::-1].tolist()
        step = next(k for k, t in enumerate(visited) if t < 500)
        x = drawn(7, 1, 4, 2, 8, 8)
        zigzag = Zigzag(image_guidance=[0.0] * steps, video_guidance=[0.0] * steps)
        after = list(walk(x, zigzag.legs(step, visited), gaussian, LEVELS, None))[-1][1]
        errors.append(float((after - x).abs().max()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.3) and errors[1] / errors[2] == pytest.approx(
        4, rel=0.3
    )


@pytest.mark.parametrize("every, images", [(1, 0), (2, 50), (3, 68), (1000, 100)])
def test_calls_of_the_released_loop(every, images):
    counted = calls(constant(50, image_every=every, still=True), STEPS)
    assert counted["I"] == images and counted["I"] + counted["V"] == 4 * 50
    assert sum(image_model_is_used(i, every) for i in range(50)) == images // 2


def test_legs_that_do_not_move_are_left_out():
    assert [len(constant(50).legs(step, STEPS)) for step in (47, 48, 49)] == [4, 2, 0]
    assert len(constant(50, still=True).legs(49, STEPS)) == 4


def test_no_loop_outside_the_interval_or_without_a_plan():
    zigzag = constant(50, interval=(10, 12))
    assert [bool(zigzag.legs(step, STEPS)) for step in (9, 10, 12, 13)] == [False, True, True, False]
    assert (
        constant(50, plan=()).legs(0, STEPS) == [] and constant(50, interval=(30, 10)).legs(20, STEPS) == []
    )


def test_the_legs_of_the_released_loop_at_a_step():
    """D = 1000 // steps, and the query k levels down is at t - 1000 k // steps."""
    visited = [999 - 40 * k for k in range(25)]
    zigzag = constant(25, levels="stride", published_queries=True)
    found = [(leg.model, leg.t, leg.source, leg.target, leg.weight) for leg in zigzag.legs(12, visited)]
    assert visited[12] == 519
    assert found == [
        ("I", 519, 519, 479, 4.0),
        ("V", 479, 479, 439, 4.0),
        ("I", 439, 439, 479, -4.0),
        ("V", 479, 479, 519, -4.0),
    ]
    legacy = constant(25, levels="stride", published_queries=True, order="animatediff_legacy").legs(
        12, visited
    )
    assert [(leg.model, leg.t, leg.source, leg.target) for leg in legacy[:2]] == [
        ("I", 479, 479, 439),
        ("V", 519, 519, 479),
    ]
    six = [999, 799, 599, 400, 200, 0]
    assert [leg.t for leg in constant(6, levels="stride", published_queries=True).legs(1, six)] == [
        799,
        633,
        466,
        633,
    ]
    assert [leg.t for leg in constant(6, levels="stride").legs(1, six)] == [799, 633, 467, 633]


@pytest.mark.parametrize(
    "plan", [("I-",), ("V+", "V+", "V-"), ("X-", "X+"), ("R-", "V+"), ("I", "I+"), ("",)]
)
def test_bad_plans(plan):
    with pytest.raises(ValueError):
        parse_plan(plan)


def test_guidance_curves():
    found = guidance_curve(6, 2, 7.0, 50)
    assert [found[k] for k in (0, 10, 25, 49)] == pytest.approx([6, 4.86042, 3.50009, 2], abs=1e-4)
    assert guidance_curve(6, 2, 1 / 7, 50)[25] == pytest.approx(5.41873, abs=1e-4)
    assert guidance_curve(3, 3, 7.0, 1) == pytest.approx([3])


# ---- two schedules -----------------------------------------------------------------------------------------


def test_levels_of_published_models_in_timesteps_of_stable_diffusion():
    """Reaches and timesteps as in the specification of the method."""
    assert LEVELS.largest == pytest.approx(14.6146, abs=1e-3)
    reaches = {}
    for spec in (DYNAMICRAFTER_512, DYNAMICRAFTER_1024, VIDEOCRAFTER_2):
        levels = NoiseLevels.of(make_schedule(spec.schedule, spec.parameterization))
        reaches[spec.name] = levels.largest_inside(LEVELS)
        assert levels.largest_inside(levels) == 999
    assert list(reaches.values()) == [841, 711, 937]
    large = NoiseLevels.of(make_schedule(DYNAMICRAFTER_1024.schedule, "v"))
    assert LEVELS.t_at(large[399].ratio) == pytest.approx(752, abs=1)
    assert math.isnan(LEVELS.t_at(large[999].ratio)) and LEVELS.t_at(1e-6) == 0.0


def test_a_level_between_two_timesteps():
    scaled = NoiseLevels.of(make_schedule(DYNAMICRAFTER_512.schedule, "v"))
    for levels in (LEVELS, scaled):
        for t in (0, 41, 400, 700):
            assert levels.t_at(levels[t].ratio) == pytest.approx(t, abs=1e-6)
        between = signal_at(levels, 500.5)
        assert levels.signal[501] < between < levels.signal[500]
    halfway = math.exp((LEVELS.log_ratio[500] + LEVELS.log_ratio[501]) / 2)
    assert LEVELS.t_at(halfway) == pytest.approx(500.5) and signal_at(LEVELS, 500.5) == pytest.approx(
        1 / math.sqrt(1 + halfway**2)
    )


def test_a_denoiser_is_asked_at_the_same_level_in_its_own_scaling():
    """Of the same Gaussian data, both schedules' best denoisers give the same clean sample."""
    scaled = NoiseLevels.of(make_schedule(DYNAMICRAFTER_512.schedule, "v"))

    def best(x, t_B):
        s = np.array([math.exp(np.interp(float(t), np.arange(1000), LEVELS.log_ratio)) for t in t_B])
        a = 1 / np.sqrt(1 + s**2)
        return torch.tensor(a)[:, None, None] * x  # E[x0 | x] of unit-variance data, a^2 + b^2 = 1

    x, t_B = drawn(8, 2, 3, 4), torch.tensor([700, 300])
    found = at_level_of(best, LEVELS, scaled)(x, t_B)
    a, b = (torch.tensor(part[[700, 300]])[:, None, None] for part in (scaled.signal, scaled.noise))
    torch.testing.assert_close(found, a * x / (a**2 + b**2), atol=1e-6, rtol=1e-6)
    with pytest.raises(ValueError):
        at_level_of(best, LEVELS, scaled)(x, torch.tensor([900, 300]))


def test_the_map_is_a_step_of_ddim():
    schedule = make_schedule(VIDEOCRAFTER_2.schedule, "eps")
    levels, plan = NoiseLevels.of(schedule), ddim_plan(schedule, 10, "leading", 0.0)
    x = drawn(9, 1, 4, 2, 3, 3).float()

    def denoise(x, t_B):
        return 0.3 * x + 0.1

    (state,) = ddim(denoise, x, plan[:1], lambda step, shape: torch.zeros(shape))
    here, there = levels[plan[0].t], levels[plan[1].t]
    # the network's x0 is scale times the clean sample
    moved = move(x, denoise(x, None) / plan[0].scale, here, there)
    torch.testing.assert_close(state.x, moved, atol=1e-5, rtol=1e-5)
    assert NoiseLevel(0.0, 1.0).ratio == math.inf
