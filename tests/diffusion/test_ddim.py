"""The DDIM loop: the Gaussian case solved by hand, cut plans, and step counts that used to give NaN."""

import numpy as np
import pytest
import torch

from edg.diffusion.ddim import SamplerStep, ddim, ddim_plan, ddim_step
from edg.diffusion.prediction import to_x0
from edg.diffusion.schedule import ScheduleSpec, make_schedule

SCHEDULE = make_schedule(ScheduleSpec(0.00085, 0.012, True, 0.7))
PLAIN = make_schedule(ScheduleSpec(0.00085, 0.012, False, None), "eps")


def network(x, t_B):
    return 0.3 * x + 0.05 * torch.sin(t_B.to(x) / 100).reshape(-1, 1, 1, 1, 1)


def noise(step: SamplerStep, shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(step.index))


X_T = torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(99))


def run(plan, x=X_T, schedule=SCHEDULE, kind="v"):
    return list(ddim(to_x0(network, schedule, kind), x, plan, noise))


def test_a_plan_walks_down_and_its_last_step_leads_to_the_first_entry():
    plan = ddim_plan(SCHEDULE, 10, eta=1.0)
    assert [step.index for step in plan] == list(range(10))
    assert [step.t for step in plan] == list(range(999, 0, -100))
    assert all(a.alpha_prev == b.alpha for a, b in zip(plan, plan[1:], strict=False))
    assert plan[0].alpha == 0 and plan[-1].alpha_prev == SCHEDULE.alphas_cumprod[0].item()
    assert plan[-1].scale == plan[-1].scale_prev
    assert all(step.scale == 1 for step in ddim_plan(PLAIN, 10))


def test_a_cut_plan_is_bit_equal_to_one_run():
    plan = ddim_plan(SCHEDULE, 12, eta=1.0)
    whole = run(plan)
    for k in (1, 5, 11):
        first = run(plan[:k])
        second = run(plan[k:], first[-1].x)
        for a, b in zip(whole, first + second, strict=True):
            assert a.step == b.step and torch.equal(a.x, b.x) and torch.equal(a.x0, b.x0)


def test_noise_is_asked_for_at_every_step_also_without_eta():
    asked = []
    plan = ddim_plan(SCHEDULE, 7, eta=0.0)
    for _ in ddim(
        to_x0(network, SCHEDULE, "v"), X_T, plan, lambda s, shape: asked.append(s.index) or torch.ones(shape)
    ):
        pass
    assert asked == list(range(7))
    assert torch.equal(run(plan)[-1].x, run(plan)[-1].x)


def test_deterministic_ddim_keeps_the_noise_of_a_known_image():
    """With the true x0 at every step and eta 0, x_t = sqrt(abar) x0 + sqrt(1 - abar) eps all the way down."""
    plan = ddim_plan(PLAIN, 20, eta=0.0)
    x0, eps = torch.randn(2, 1, 4, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = plan[0].alpha ** 0.5 * x0 + (1 - plan[0].alpha) ** 0.5 * eps
    for state in ddim(lambda x, t_B: x0, x, plan, noise):
        a = state.step.alpha_prev
        torch.testing.assert_close(state.x, a**0.5 * x0 + (1 - a) ** 0.5 * eps, rtol=0, atol=1e-10)


def test_ancestral_ddim_keeps_the_variance_of_noised_data():
    """For data N(0, s^2) the best x0 is known; eta 1 keeps var = abar s^2 + 1 - abar to O(1 / steps)."""
    s2, plan = 0.25, ddim_plan(PLAIN, 500, eta=1.0)
    variance = plan[0].alpha * s2 + 1 - plan[0].alpha
    one = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
    for step in plan:
        gain = step.alpha**0.5 * s2 / (step.alpha * s2 + 1 - step.alpha)  # E[x0 | x] = gain x
        moved, _ = ddim_step(one, gain * one, step, torch.zeros_like(one))
        variance = moved.item() ** 2 * variance + step.sigma**2
        assert variance == pytest.approx(step.alpha_prev * s2 + 1 - step.alpha_prev, rel=0.03)


def test_the_dynamic_rescale_scales_x0_alone():
    step = SamplerStep(0, 500, 0.25, 0.36, 0.0, 0.8, 0.9)
    x0, eps = torch.randn(2, 1, 1, 1, 1, 4, dtype=torch.float64)
    x = 0.5 * x0 + 0.75**0.5 * eps
    moved, scaled = ddim_step(x, x0, step, torch.zeros_like(x))
    torch.testing.assert_close(scaled, x0 * 0.9 / 0.8)
    torch.testing.assert_close(moved, 0.6 * scaled + 0.8 * eps)


@pytest.mark.parametrize("spacing", ["uniform", "uniform_trailing", "quad"])
@pytest.mark.parametrize("start", [1000, 940, 500, 113])
def test_clean_plans_have_finite_coefficients_for_every_number_of_steps(spacing, start):
    for steps in range(1, 101):
        for step in ddim_plan(SCHEDULE, steps, spacing, 1.0, start):
            assert 0 <= step.t < start
            assert np.isfinite([step.alpha, step.alpha_prev, step.sigma, step.scale]).all()
            assert step.alpha_prev >= step.alpha and 1 - step.alpha_prev - step.sigma**2 > -1e-12


@pytest.mark.parametrize("start", [1000, 940, 138])
def test_no_number_of_steps_gives_nan(start):
    x = X_T[:1, :1, :1]
    for steps in range(1, 101):
        *_, last = ddim(
            to_x0(network, SCHEDULE, "v"), x, ddim_plan(SCHEDULE, steps, eta=1.0, start=start), noise
        )
        assert torch.isfinite(last.x).all() and last.x.abs().max() < 100, steps


def test_more_eta_than_one_is_clamped_not_nan():
    assert torch.isfinite(run(ddim_plan(SCHEDULE, 10, eta=3.0))[-1].x).all()


def test_every_kind_of_prediction_and_precision_walks_to_the_end():
    for kind in ("eps", "x0"):
        assert torch.isfinite(run(ddim_plan(PLAIN, 10), schedule=PLAIN, kind=kind)[-1].x).all()
    assert run(ddim_plan(SCHEDULE, 3), X_T.double())[-1].x.dtype == torch.float64


def test_released_plans_read_minus_one_as_the_last_entry_and_refuse_what_is_out_of_range():
    plan = ddim_plan(SCHEDULE, 50, eta=0.0, start=113, released=True)
    assert plan[-1].t == -1 and plan[-1].alpha == 0 and plan[-1].scale == pytest.approx(0.7)
    with pytest.raises(ValueError, match="1000"):
        ddim_plan(SCHEDULE, 3, "uniform", released=True)
