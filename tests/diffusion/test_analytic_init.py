"""Analytic-Init: the start has the mean and variance of noised data."""

import pytest
import torch

from edg.diffusion.analytic_init import Moments, analytic_init
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


# ---- the estimate ------------------------------------------------------------------------------------------

LATENT = (4, 3, 5, 8)
COUNT = 2000


@pytest.fixture(scope="module")
def known():
    """(samples (COUNT, *LATENT), mean, trace of the covariance / d): correlated Gaussian data, x = mu + A u,
    with A different for every channel, so that neither a shared variance nor an average over elements is
    right by accident."""
    random = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=random, dtype=torch.float64)

    d = LATENT[1] * LATENT[2] * LATENT[3]
    mix = torch.stack([(channel + 0.5) * draw(d, d) / d**0.5 for channel in range(LATENT[0])])
    mean = 3 + 2 * draw(*LATENT)
    x = torch.einsum("cij,ncj->nci", mix, draw(COUNT, LATENT[0], d)).view(COUNT, *LATENT) + mean
    return x, mean, float((mix**2).sum() / (LATENT[0] * d)), (mix**2).sum(2).view(LATENT)


def streamed(x, sizes, variance=None):
    found, at = Moments(), 0
    for size in sizes:
        found.add(x[at : at + size], None if variance is None else variance[at : at + size])
        at += size
    assert at == len(x) == found.count
    return found


def test_trace_and_mean_of_known_data(known):
    x, mean, trace, variance = known
    found = streamed(x.float(), [50] * 40)
    assert found.trace_cov_per_dim == pytest.approx(trace, rel=0.01)
    error = (found.expectation[0].double() - mean) / (variance / COUNT).sqrt()
    assert found.expectation.shape == (1, *LATENT) and found.expectation.dtype == torch.float32
    assert (error.abs() < 3).double().mean() > 0.99  # 480 elements: a few beyond 3 sigma are to be expected
    assert error.abs().max() < 4.5 and float((error**2).mean()) == pytest.approx(1, rel=0.3)


def test_the_split_into_batches_changes_the_rounding_only(known):
    x = known[0].float() + 1000  # a mean far from zero, where E[x^2] - E[x]^2 in float32 has no digits left
    whole = streamed(x, [COUNT])
    merged = streamed(x[:700], [700])
    merged.merge(streamed(x[700:], [1] * 100 + [700, 500]))
    for other in (streamed(x, [1] * 400 + [1600]), streamed(x, [7, 0, 993, 1000]), merged):
        assert other.count == whole.count
        assert torch.allclose(other.mean, whole.mean, rtol=1e-12, atol=0)
        assert other.trace_cov_per_dim == pytest.approx(whole.trace_cov_per_dim, rel=1e-10)
    assert whole.trace_cov_per_dim == pytest.approx(float(x.double().var(0).mean()), rel=1e-10)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_variance_that_is_not_finite_is_refused(value):
    found = Moments()
    with pytest.raises(ValueError):
        found.add(torch.zeros(2, 3), torch.full((2, 3), value))
    assert found.count == 0


def test_own_variance_counts_as_infinitely_many_draws(known):
    """Against drawing: x + sqrt(v) eps has the trace of x plus the mean of v."""
    x = known[0]
    random = torch.Generator().manual_seed(2)
    v = 2 * torch.rand(x.shape, generator=random, dtype=torch.float64)
    told = streamed(x, [300, 700, 1000], v).trace_cov_per_dim
    drawn = streamed(x + v.sqrt() * torch.randn(x.shape, generator=random, dtype=torch.float64), [COUNT])
    assert told == pytest.approx(drawn.trace_cov_per_dim, rel=0.01)
    assert told == pytest.approx(streamed(x, [COUNT]).trace_cov_per_dim + float(v.mean()), rel=1e-10)


def test_what_cannot_be_estimated():
    found = Moments()
    with pytest.raises(ValueError, match="no samples"):
        _ = found.expectation
    found.add(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="1 samples have no covariance"):
        _ = found.trace_cov_per_dim
    with pytest.raises(ValueError, match="shape"):
        found.add(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="NaN"):
        found.add(torch.tensor([[1.0, float("nan")]]))
    assert found.count == 1
