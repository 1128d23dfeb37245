"""DPM-Solver++(2M), UniPC-2: the exact solution for Gaussian data, diffusers, quadrature, cut plans."""

import math
from dataclasses import replace

import pytest
import torch

from edg.diffusion.ddim import SamplerStep, State, ddim, ddim_plan
from edg.diffusion.multistep import corrector_weights, dpmpp, relative_length, unipc
from edg.diffusion.prediction import to_x0
from edg.diffusion.schedule import ScheduleSpec, make_schedule

ZERO = make_schedule(ScheduleSpec(0.00085, 0.012, True, None))
RESCALED = make_schedule(ScheduleSpec(0.00085, 0.012, True, 0.7))
PLAIN = make_schedule(ScheduleSpec(0.00085, 0.012, False, None), "eps")
SCHEDULES = {"zero": ZERO, "rescaled": RESCALED, "plain": PLAIN}
MEAN, VARIANCE = 0.7, 0.3  # of the data
X = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]


BOTH = pytest.mark.parametrize("solver", [dpmpp, unipc])


def no_noise(step, shape):
    return torch.zeros(shape)


def plain_ddim(*walk):
    return ddim(*walk, no_noise)


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


def error(solver, plan):
    """Largest distance to the exact end of the probability flow: (x - mean) / std never changes on it."""
    mean, std = moments(plan[0].alpha, plan[0].scale)
    mean_end, std_end = moments(plan[-1].alpha_prev, plan[-1].scale_prev)
    exact = mean_end + (X - mean) / std * std_end
    return (last(solver(best(plan), X, plan)) - exact).abs().max().item()


def even(steps):
    """A plan of steps of one length in lambda, from -3 to 3."""
    lambdas = [6 * k / steps - 3 for k in range(steps + 1)]
    alpha = [1 / (1 + math.exp(-2 * value)) for value in lambdas]
    return [SamplerStep(k, k, alpha[k], alpha[k + 1], 0.0, 1.0, 1.0) for k in range(steps)]


@pytest.mark.parametrize("solver, order", [(plain_ddim, 1), (dpmpp, 2), (unipc, 3)])
def test_the_order_of_convergence(solver, order):
    assert math.log2(error(solver, even(40)) / error(solver, even(80))) == pytest.approx(order, abs=0.05)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_at_equal_steps_each_solver_is_closer_than_the_one_before(schedule):
    for steps in (5, 8, 12, 20, 50):
        plan = ddim_plan(schedule, steps, eta=0.0)
        found = {solver: error(solver, plan) for solver in (plain_ddim, dpmpp, unipc)}
        assert found[dpmpp] < 0.6 * found[plain_ddim]
        assert found[unipc] < 0.95 * found[dpmpp]
        assert error(unipc, plan[:-1]) < 0.8 * error(dpmpp, plan[:-1])  # the last step is not corrected


@BOTH
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_reach_keeps_the_last_step_from_overshooting(schedule, solver):
    for steps in (8, 12, 20, 50):
        plan = ddim_plan(schedule, steps, eta=0.0)
        assert error(solver, plan) < 0.55 * error(lambda *walk: solver(*walk, reach=math.inf), plan)


def network(x, t_B):
    return 0.3 * x + 0.05 * torch.sin(t_B.to(x) / 100).reshape(-1, 1, 1, 1, 1)


@BOTH
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_cut_plan_is_bit_equal_to_one_run_that_is_told_the_states_before(schedule, solver):
    plan = ddim_plan(schedule, 12, eta=0.0)
    x = torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(99))
    denoise = to_x0(network, schedule, "v")
    whole = list(solver(denoise, x, plan))
    for k in (1, 2, 6, 11):
        first = list(solver(denoise, x, plan[:k]))
        second = list(solver(denoise, first[-1].x, plan[k:], first[-2:]))
        for a, b in zip(whole, first + second, strict=True):
            assert a.step == b.step and torch.equal(a.x, b.x) and torch.equal(a.x0, b.x0)
        anew = list(solver(denoise, first[-1].x, plan[k:]))
        nothing_to_tell = solver is dpmpp and k == 1 and schedule is not PLAIN  # the step after alpha = 0
        assert torch.equal(anew[0].x, second[0].x) == nothing_to_tell


@BOTH
def test_the_network_is_asked_once_a_step(solver):
    plan, asked = ddim_plan(ZERO, 10, eta=0.0), []

    def denoise(x, t_B):
        asked.append(t_B.tolist())
        return 0.5 * x

    list(solver(denoise, X, plan))
    assert asked == [[step.t] * len(X) for step in plan]


@BOTH
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_first_step_is_that_of_ddim(schedule, solver):
    plan = ddim_plan(schedule, 10, eta=0.0)
    ours, plain = (next(iter(walk(best(plan), X, plan))) for walk in (solver, plain_ddim))
    assert torch.equal(ours.x, plain.x) and torch.equal(ours.x0, plain.x0)


def test_dpmpp_takes_the_step_after_alpha_0_like_ddim():
    plan = ddim_plan(ZERO, 10, eta=0.0)
    x = torch.randn(1, 4, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    denoise = to_x0(network, ZERO, "v")
    ours, plain = list(dpmpp(denoise, x, plan)), list(ddim(denoise, x, plan, no_noise))
    assert torch.equal(ours[1].x, plain[1].x)
    assert not torch.equal(ours[2].x, plain[2].x)


def test_the_step_from_alpha_0_is_corrected_with_the_mean_of_both_predictions():
    plan, (first, second) = ddim_plan(ZERO, 10, eta=0.0), ddim_plan(ZERO, 10, eta=0.0)[:2]
    states = list(unipc(best(plan), X, plan[:2]))
    x0 = best(plan)(states[0].x, torch.tensor([second.t]))
    x = first.alpha_prev**0.5 * (states[0].x0 + x0) / 2 + (1 - first.alpha_prev) ** 0.5 * X
    eps = (x - second.alpha**0.5 * x0) / (1 - second.alpha) ** 0.5
    expected = second.alpha_prev**0.5 * x0 + (1 - second.alpha_prev) ** 0.5 * eps
    torch.testing.assert_close(states[1].x, expected)
    assert first.alpha == 0


@pytest.mark.parametrize("h", [0.05, 1.0, 4.0])
@pytest.mark.parametrize("ratio", [0.3, 1.0, 5.0])
def test_the_corrector_is_exact_for_a_parabola(h, ratio):
    """The mean of f(u) = u and u^2 over 0..1, weighted by exp(h u), from f(-1 / ratio), f(0) and f(1)."""
    of_new, of_old = corrector_weights(h, ratio)
    u = (torch.arange(10**5, dtype=torch.float64) + 0.5) / 10**5
    for power in (1, 2):
        mean = ((h * u).exp() * u**power).sum() / (h * u).exp().sum()
        assert of_new - of_old * (-1 / ratio) ** power == pytest.approx(mean.item(), abs=1e-9)


# DPMSolverMultistepScheduler (dpmsolver++, midpoint) and UniPCMultistepScheduler (bh2, predict_x0) of
# diffusers 0.42.1: beta_start 0.00085, beta_end 0.012, scaled_linear, solver_order 2, prediction_type
# "sample", lower_order_final False, final_sigmas_type "sigma_min", timestep_spacing "trailing";
# x = (1.5, -0.25, 0.5, -2), x0 = 0.6 x + 0.3 sin(3 x + t / 250), in float64.
DIFFUSERS = {
    (dpmpp, 5): [0.893027, 0.316045, 0.90012, -0.504668],
    (dpmpp, 10): [-0.174575, 0.332039, 0.751246, -0.372215],
    (unipc, 5): [0.919778, 0.32784, 0.907583, -0.507394],
    (unipc, 10): [-0.230727, 0.333885, 0.751393, -0.376637],
}


@pytest.mark.parametrize("solver, steps", DIFFUSERS)
def test_the_published_solver_agrees_with_diffusers(solver, steps):
    x = torch.tensor([1.5, -0.25, 0.5, -2.0], dtype=torch.float64)[:, None]
    plan = ddim_plan(PLAIN, steps, eta=0.0)

    def denoise(x, t_B):
        return 0.6 * x + 0.3 * torch.sin(3 * x + t_B[:, None] / 250)

    found = last(solver(denoise, x, plan, reach=math.inf))[:, 0]
    expected = torch.tensor(DIFFUSERS[solver, steps], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


@BOTH
def test_the_history_is_in_units_of_the_clean_sample(solver):
    """A network that always sees the same clean image is followed exactly, whatever the rescale does."""
    clean = torch.randn(9, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    plan = ddim_plan(RESCALED, 10, eta=0.0)
    scales = {step.t: step.scale for step in plan}
    states = list(solver(lambda x, t_B: scales[int(t_B[0])] * clean, X, plan))
    for state in states:
        torch.testing.assert_close(state.x0, state.step.scale_prev * clean)
        expected = state.step.alpha_prev**0.5 * state.x0 + (1 - state.step.alpha_prev) ** 0.5 * X
        torch.testing.assert_close(state.x, expected)


@BOTH
def test_no_plan_gives_nan(solver):
    x = torch.ones(1, 1, 1, 2, 2)
    for steps in (1, 2, 3, 50, 113):
        for start in (1000, 113):
            plan = ddim_plan(RESCALED, steps, eta=0.0, start=start)
            assert torch.isfinite(last(solver(to_x0(network, RESCALED, "v"), x, plan))).all()
    plan = ddim_plan(PLAIN, 7, "uniform", 0.0)
    assert torch.isfinite(last(solver(to_x0(network, PLAIN, "v"), x, plan))).all()
    back = [replace(step, sigma=0.0) for step in ddim_plan(ZERO, 61, eta=0.0, released=True)]  # one is nan
    assert back[-1].t == -1 and back[-1].alpha == 0  # the last step but one leads to alpha = 0
    twice = ddim_plan(ZERO, 31, "quad", 0.0, released=True)
    assert len({step.t for step in twice}) < len(twice)
    for plan in (back, twice):
        assert torch.isfinite(last(solver(to_x0(network, ZERO, "v"), x, plan))).all()
    once = SamplerStep(0, 5, 0.5, 0.5, 0.0, 1.0, 1.0)
    assert relative_length(once, once) == 0


@BOTH
def test_noise_is_refused(solver):
    with pytest.raises(ValueError, match="eta 0"):
        next(solver(network, X, ddim_plan(PLAIN, 5, eta=1.0)))
    assert isinstance(next(solver(best(p := ddim_plan(PLAIN, 5, eta=0.0)), X, p)), State)
