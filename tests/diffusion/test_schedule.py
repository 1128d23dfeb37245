"""Schedules against hand-derived identities; timestep lists over all step counts."""

import numpy as np
import pytest
import torch

from edg.diffusion.schedule import Schedule, ScheduleSpec, linear_betas, make_schedule, timesteps

SPEC_512 = ScheduleSpec(0.00085, 0.012, zero_terminal_snr=True, base_scale=0.7)
SPEC_256 = ScheduleSpec(0.00085, 0.012, zero_terminal_snr=False, base_scale=None)
SPACINGS = ("uniform", "uniform_trailing", "quad")
STARTS = (1, 2, 7, 100, 113, 201, 500, 940, 980, 999, 1000)


def test_zero_terminal_snr_ends_in_zero_and_keeps_the_first_entry():
    plain, zero = make_schedule(SPEC_256), make_schedule(SPEC_512)
    assert zero.alphas_cumprod[-1] == 0 and plain.alphas_cumprod[-1] > 0
    torch.testing.assert_close(zero.alphas_cumprod[0], plain.alphas_cumprod[0])
    assert zero.betas[-1] == 1
    assert all(torch.isfinite(tensor).all() for tensor in zero.buffers().values())


def test_square_roots_of_plain_betas_are_equally_spaced():
    steps = np.diff(np.sqrt(linear_betas(SPEC_256)))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-9)


@pytest.mark.parametrize("spec", [SPEC_512, SPEC_256, ScheduleSpec(1e-4, 2e-2, True, 0.3, 50, 20)])
def test_posterior_is_the_gaussian_product_of_prior_and_step(spec):
    """q(x_{t-1} | x_t, x0) by Bayes' rule from q(x_t | x_{t-1}) and q(x_{t-1} | x0), in float64."""
    schedule, betas = make_schedule(spec, "eps"), linear_betas(spec)
    abar = np.cumprod(1 - betas)
    for t in (1, spec.timesteps // 2, spec.timesteps - 2):
        precision = (1 - betas[t]) / betas[t] + 1 / (1 - abar[t - 1])
        from_x0 = np.sqrt(abar[t - 1]) / (1 - abar[t - 1]) / precision
        from_xt = np.sqrt(1 - betas[t]) / betas[t] / precision
        assert schedule.posterior_variance[t].item() == pytest.approx(1 / precision, rel=1e-5)
        assert schedule.posterior_mean_coef1[t].item() == pytest.approx(from_x0, rel=1e-5)
        assert schedule.posterior_mean_coef2[t].item() == pytest.approx(from_xt, rel=1e-5)
        assert schedule.posterior_log_variance_clipped[t].item() == pytest.approx(
            -np.log(precision), rel=1e-5
        )


def test_dynamic_rescale_falls_to_base_scale_at_the_turning_step():
    scale = make_schedule(ScheduleSpec(0.00085, 0.012, True, 0.3, turning_step=100)).scale_arr
    assert scale.shape == (1100,) and scale[0] == 1
    torch.testing.assert_close(scale[99:], torch.full((1001,), 0.3))
    assert (scale[:100].diff() < 0).all()


def test_buffers_round_trip_and_name_what_is_missing():
    schedule = make_schedule(SPEC_512)
    again = Schedule.from_buffers({**schedule.buffers(), "something.else": torch.zeros(1)})
    assert all(torch.equal(again.buffers()[name], tensor) for name, tensor in schedule.buffers().items())
    assert "scale_arr" not in make_schedule(SPEC_256).buffers()
    with pytest.raises(ValueError, match="betas"):
        Schedule.from_buffers({})


def test_variational_weights():
    assert (make_schedule(SPEC_512).lvlb_weights("v") == 1).all()
    weights = make_schedule(SPEC_256, "eps").lvlb_weights("eps")
    assert weights[0] == weights[1] and torch.isfinite(weights).all()
    with pytest.raises(ValueError, match="parameterization"):
        make_schedule(SPEC_256).lvlb_weights("flow")


def test_variational_weights_of_x0_and_the_clipped_variance_by_hand():
    """abar_0 = 1 - 0.00085, abar_1 = abar_0 (1 - beta_1); the first posterior has no variance: log 1e-20."""
    schedule = make_schedule(SPEC_256, "x0")
    beta = (0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) / 999) ** 2
    abar = 0.99915 * (1 - beta)
    assert schedule.lvlb_weights("x0")[1].item() == pytest.approx(abar**0.5 / (2 * (2 - abar)), rel=1e-6)
    assert schedule.posterior_log_variance_clipped[0].item() == pytest.approx(-46.0517, abs=1e-3)


def test_more_uniform_steps_than_timesteps_visit_each_once():
    assert timesteps("uniform", 20, 10).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_hand_sized_lists():
    assert timesteps("uniform_trailing", 5).tolist() == [199, 399, 599, 799, 999]
    assert timesteps("uniform", 5).tolist() == [1, 201, 401, 601, 801]
    assert timesteps("quad", 3).tolist() == [1, 201, 801]
    assert timesteps("uniform_trailing", 2, start=5, released=True).tolist() == [1, 4]  # 2.5 rounds to 2


def test_released_lists_keep_their_defects():
    assert timesteps("uniform_trailing", 50, 113, released=True)[0] == -1
    assert timesteps("uniform", 3, 1000, released=True)[-1] == 1000
    assert len(timesteps("uniform", 50, 940, released=True)) == 53
    assert (np.diff(timesteps("quad", 100, released=True)) == 0).any()


@pytest.mark.parametrize("spacing", SPACINGS)
def test_clean_lists_never_leave_the_schedule_or_repeat(spacing):
    for start in STARTS:
        for steps in range(1, 101):
            visited = timesteps(spacing, steps, start)
            assert len(visited) and visited[0] >= 0 and visited[-1] <= start - 1, (start, steps)
            assert (np.diff(visited) > 0).all(), (start, steps)
            if spacing == "uniform_trailing" and steps <= start:
                assert len(visited) == steps and visited[-1] == start - 1, (start, steps)


def test_clean_equals_released_where_that_has_no_defect():
    for spacing in SPACINGS:
        for start, steps in [(1000, 50), (1000, 25), (940, 50), (1000, 10), (980, 20)]:
            released = timesteps(spacing, steps, start, released=True)
            if (np.diff(released) > 0).all() and released[0] >= 0 and released[-1] < start:
                assert timesteps(spacing, steps, start).tolist() == released.tolist()


def test_bad_arguments():
    with pytest.raises(ValueError, match="spacing"):
        timesteps("karras", 10)
    with pytest.raises(ValueError, match="at least 1"):
        timesteps("uniform", 0)
    with pytest.raises(ValueError, match="do not fit"):
        timesteps("uniform", 20, 10, released=True)
