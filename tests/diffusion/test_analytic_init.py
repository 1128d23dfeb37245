"""Analytic-Init: the start has the mean and variance of noised data."""

import pytest
import torch

from edg.diffusion.analytic_init import analytic_init
from edg.diffusion.schedule import ScheduleSpec, make_schedule

SCHEDULE = make_schedule(ScheduleSpec(0.00085, 0.012, True, 0.7))
SHAPE = (1, 4, 2, 5, 8)


def test_from_pure_noise_it_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    expectation, eps = torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)
    assert torch.equal(analytic_init(expectation, torch.tensor([1.14]), SCHEDULE, 1000, eps), eps)


def test_mean_and_variance_are_those_of_noised_data():
    """Data N(mu, c): x_{M-1} = s x0 + sqrt(1 - s^2) eps has mean s mu and variance s^2 c + 1 - s^2."""
    mu, c, s = 2.0, 3.0, SCHEDULE.sqrt_alphas_cumprod[299].double()
    eps = torch.randn(200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = analytic_init(torch.full_like(eps, mu), c, SCHEDULE, 300, eps)
    assert x.mean().item() == pytest.approx((s * mu).item(), abs=0.02)
    assert x.var().item() == pytest.approx((s**2 * c + 1 - s**2).item(), rel=0.02)


def test_start_must_be_a_timestep():
    for start in (0, 1001):
        with pytest.raises(ValueError, match="1..1000"):
            analytic_init(torch.zeros(SHAPE), 1.0, SCHEDULE, start, torch.zeros(SHAPE))
