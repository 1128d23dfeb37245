"""DPM-Solver++(2M) against the exact solution for Gaussian data, against diffusers, and cut plans."""

import math

import pytest
import torch

from edg.diffusion.ddim import State, Step, ddim, ddim_plan
from edg.diffusion.dpm import dpmpp, relative_length
from edg.diffusion.prediction import to_x0
from edg.diffusion.schedule import ScheduleSpec, make_schedule

ZERO = make_schedule(ScheduleSpec(0.00085, 0.012, True, None))
RESCALED = make_schedule(ScheduleSpec(0.00085, 0.012, True, 0.7))
PLAIN = make_schedule(ScheduleSpec(0.00085, 0.012, False, None), "eps")
SCHEDULES = {"zero": ZERO, "rescaled": RESCALED, "plain": PLAIN}
MEAN, VARIANCE = 0.7, 0.3  # of the data
X = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]


def no_noise(step, shape):
    return torch.zeros(shape)


def last(states):
    *_, state = states
    return state.x


def moments(alpha, scale):
    """Mean and standard deviation of x = scale sqrt(abar) x0 + sqrt(1 - abar) eps, x0 ~ N(MEAN, VARIANCE)."""
    signal = scale * alpha**0.5
    return signal * MEAN, (signal**2 * VARIANCE + 1 - alpha) ** 0.5


def best(plan):
    """The exact network, scale E[x0 | x]."""
    steps = {step.t: step for step in plan}

    def denoise(x, t_B):
        step = steps[int(t_B[0])]
        mean, std = moments(step.alpha, step.scale)
        return step.scale * (MEAN + step.scale * step.alpha**0.5 * VARIANCE / std**2 * (x - mean))

    return denoise


def error(solver, schedule, steps):
    """Largest distance to the exact end of the probability flow: (x - mean) / std never changes on it."""
    plan = ddim_plan(schedule, steps, eta=0.0)
    mean, std = moments(plan[0].alpha, plan[0].scale)
    mean_end, std_end = moments(plan[-1].alpha_prev, plan[-1].scale_prev)
    exact = mean_end + (X - mean) / std * std_end
    return (last(solver(best(plan), X, plan)) - exact).abs().max().item()


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_order_of_convergence(schedule):
    def order(solver):
        return math.log2(error(solver, schedule, 100) / error(solver, schedule, 200))

    assert order(lambda *walk: ddim(*walk, no_noise)) == pytest.approx(1, abs=0.1)
    assert order(dpmpp) > 1.5
    for steps in (8, 12, 20, 50):
        found = error(dpmpp, schedule, steps)
        assert found < 0.5 * error(lambda *walk: ddim(*walk, no_noise), schedule, steps)
        assert found < 0.55 * error(lambda *walk: dpmpp(*walk, reach=math.inf), schedule, steps)


def network(x, t_B):
    return 0.3 * x + 0.05 * torch.sin(t_B.to(x) / 100).reshape(-1, 1, 1, 1, 1)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_cut_plan_is_bit_equal_to_one_run_that_is_told_the_state_before(schedule):
    plan = ddim_plan(schedule, 12, eta=0.0)
    x = torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(99))
    denoise = to_x0(network, schedule, "v")
    whole = list(dpmpp(denoise, x, plan))
    for k in (1, 2, 6, 11):
        first = list(dpmpp(denoise, x, plan[:k]))
        second = list(dpmpp(denoise, first[-1].x, plan[k:], first[-1]))
        for a, b in zip(whole, first + second, strict=True):
            assert a.step == b.step and torch.equal(a.x, b.x) and torch.equal(a.x0, b.x0)
        anew = list(dpmpp(denoise, first[-1].x, plan[k:]))
        assert k == 1 or k == 11 or not torch.equal(anew[0].x, second[0].x)


def test_the_first_step_is_that_of_ddim_and_so_is_the_one_after_alpha_0():
    plan = ddim_plan(ZERO, 10, eta=0.0)
    x = torch.randn(1, 4, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    denoise = to_x0(network, ZERO, "v")
    ours, plain = list(dpmpp(denoise, x, plan)), list(ddim(denoise, x, plan, no_noise))
    assert all(torch.equal(ours[i].x, plain[i].x) for i in (0, 1))
    assert not torch.equal(ours[2].x, plain[2].x)


# DPMSolverMultistepScheduler of diffusers 0.42.1: beta_start 0.00085, beta_end 0.012, scaled_linear,
# solver_order 2, dpmsolver++, midpoint, prediction_type "sample", lower_order_final False,
# final_sigmas_type "sigma_min", timestep_spacing "trailing"; x = (1.5, -0.25, 0.5, -2),
# x0 = 0.6 x + 0.3 sin(3 x + t / 250), in float64.
DIFFUSERS = {
    5: [0.893027, 0.316045, 0.90012, -0.504668],
    10: [-0.174575, 0.332039, 0.751246, -0.372215],
}


@pytest.mark.parametrize("steps", DIFFUSERS)
def test_the_published_solver_agrees_with_diffusers(steps):
    x = torch.tensor([1.5, -0.25, 0.5, -2.0], dtype=torch.float64)[:, None]
    plan = ddim_plan(PLAIN, steps, eta=0.0)

    def denoise(x, t_B):
        return 0.6 * x + 0.3 * torch.sin(3 * x + t_B[:, None] / 250)

    found = last(dpmpp(denoise, x, plan, reach=math.inf))[:, 0]
    torch.testing.assert_close(found, torch.tensor(DIFFUSERS[steps], dtype=torch.float64), rtol=0, atol=2e-5)


def test_the_history_is_in_units_of_the_clean_sample():
    """A network that always sees the same clean image is followed exactly, whatever the rescale does."""
    clean = torch.randn(9, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    plan = ddim_plan(RESCALED, 10, eta=0.0)
    scales = {step.t: step.scale for step in plan}
    states = list(dpmpp(lambda x, t_B: scales[int(t_B[0])] * clean, X, plan))
    for state in states:
        torch.testing.assert_close(state.x0, state.step.scale_prev * clean)
        expected = state.step.alpha_prev**0.5 * state.x0 + (1 - state.step.alpha_prev) ** 0.5 * X
        torch.testing.assert_close(state.x, expected)


def test_no_plan_gives_nan():
    x = torch.ones(1, 1, 1, 2, 2)
    for steps in (1, 2, 3, 50, 113):
        for start in (1000, 113):
            plan = ddim_plan(RESCALED, steps, eta=0.0, start=start)
            assert torch.isfinite(last(dpmpp(to_x0(network, RESCALED, "v"), x, plan))).all()
    plan = ddim_plan(PLAIN, 7, "uniform", 0.0)
    assert torch.isfinite(last(dpmpp(to_x0(network, PLAIN, "v"), x, plan))).all()
    once = Step(0, 5, 0.5, 0.5, 0.0, 1.0, 1.0)
    assert relative_length(once, once) == 0


def test_noise_is_refused():
    with pytest.raises(ValueError, match="eta 0"):
        next(dpmpp(network, X, ddim_plan(PLAIN, 5, eta=1.0)))
    assert isinstance(next(dpmpp(best(p := ddim_plan(PLAIN, 5, eta=0.0)), X, p)), State)
