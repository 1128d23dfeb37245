"""eps, v and x0 into one another, in float64."""

import pytest
import torch

from edg.diffusion.prediction import at, eps_from_x0, rates, target, to_x0, x0_from
from edg.diffusion.schedule import ScheduleSpec, make_schedule

SCHEDULE = make_schedule(ScheduleSpec(0.00085, 0.012, True, 0.7))


def draws(seed=0, batch=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, batch, 4, 2, 3, 3, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("kind", ["v", "eps", "x0"])
@pytest.mark.parametrize("angle", [0.05, 0.7, 1.5])
def test_round_trip(kind, angle):
    x0, eps = draws()
    signal, noise = torch.cos(torch.tensor(angle).double()), torch.sin(torch.tensor(angle).double())
    x = signal * x0 + noise * eps
    back = x0_from(target(x0, eps, signal, noise, kind), x, signal, noise, kind)
    torch.testing.assert_close(back, x0, rtol=0, atol=1e-12)
    torch.testing.assert_close(eps_from_x0(back, x, signal, noise), eps, rtol=0, atol=1e-12)


def test_rates_are_taken_per_sample_and_minus_one_is_the_last():
    signal, noise = rates(SCHEDULE, torch.tensor([0, 500, -1]), draws()[0])
    assert signal.shape == (3, 1, 1, 1, 1) and signal.dtype == torch.float64
    assert signal[2] == 0 and noise[2] == 1
    torch.testing.assert_close(signal**2 + noise**2, torch.ones_like(signal), rtol=0, atol=1e-6)
    assert at(SCHEDULE.betas, torch.tensor([3]), draws()[0]).item() == SCHEDULE.betas[3]


@pytest.mark.parametrize("kind", ["v", "eps", "x0"])
def test_a_perfect_network_gives_x0_in_the_dtype_of_x(kind):
    x0, eps = draws()
    t_B = torch.tensor([10, 400, 900])
    signal, noise = rates(SCHEDULE, t_B, x0)
    x = (signal * x0 + noise * eps).float()

    def network(x, t_B):
        return target(x0, eps, signal, noise, kind).half()

    got = to_x0(network, SCHEDULE, kind)(x, t_B)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), x0, rtol=0, atol=0.2 if kind == "eps" else 2e-2)


def test_unknown_kind():
    with pytest.raises(ValueError, match="parameterization"):
        x0_from(torch.zeros(1), torch.zeros(1), 1.0, 0.0, "flow")
    with pytest.raises(ValueError, match="parameterization"):
        target(torch.zeros(1), torch.zeros(1), 1.0, 0.0, "flow")
