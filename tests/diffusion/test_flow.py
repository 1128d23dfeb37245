"""Euler steps of a flow, and the noise of a jump between two resolutions."""

import pytest
import torch

from edg.diffusion import flow


def drawn(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_exact_velocity_takes_noise_to_the_sample_in_one_step_or_many():
    noise, sample = drawn(1, 2, 3, 1, 4, 4), drawn(2, 2, 3, 1, 4, 4)
    for places in ([1.0, 0.0], [1.0, 0.7, 0.2, 0.001, 0.0]):
        *_, end = flow.euler(lambda x, t: noise - sample, noise, [0.0] * (len(places) - 1), places)
        torch.testing.assert_close(end, sample)


def test_the_network_is_given_its_timestep_in_float32():
    seen = []

    def velocity(x, t_B):
        seen.append(t_B)
        return torch.zeros_like(x)

    list(flow.euler(velocity, drawn(1, 2, 1, 1, 2, 2), [999.5, 3.25], [1.0, 0.5, 0.0]))
    assert [t.tolist() for t in seen] == [[999.5, 999.5], [3.25, 3.25]] and seen[0].dtype == torch.float32


@pytest.mark.parametrize("gamma", [1 / 3, 0.2, 0.0])
def test_block_noise_has_its_covariance(gamma):
    n = flow.block_noise(drawn(3, 1, 1, 1, 600, 600), gamma)
    cells = n[0, 0, 0].unfold(0, 2, 2).unfold(1, 2, 2).reshape(-1, 4)
    wanted = (1 + gamma) * torch.eye(4, dtype=torch.float64) - gamma
    torch.testing.assert_close(torch.cov(cells.T), wanted, atol=0.03, rtol=0)
    if gamma == 1 / 3:
        assert cells.sum(dim=1).abs().max() < 1e-12


def test_a_jump_makes_white_noise_of_the_next_level():
    """Noise of level e, doubled, and the jump's: independent cells of one variance."""
    from edg.systems.pyramid_flow.stages import stages

    first, second, third = stages()
    for before, after in ((first, second), (second, third)):
        x = before.end * drawn(4, 1, 1, 1, 400, 400)
        jumped = flow.stage_jump(x, after.alpha, after.beta, drawn(5, 1, 1, 1, 800, 800))
        cells = jumped[0, 0, 0].unfold(0, 2, 2).unfold(1, 2, 2).reshape(-1, 4)
        covariance = torch.cov(cells.T)
        torch.testing.assert_close(
            covariance, after.start**2 * torch.eye(4, dtype=torch.float64), atol=0.02, rtol=0
        )


def test_sizes():
    x = drawn(6, 1, 2, 3, 8, 8)
    assert [level.shape[-1] for level in flow.pyramid(x)] == [2, 4, 8]
    torch.testing.assert_close(flow.half(flow.double(x)), x)
    assert float(flow.coarse_noise(drawn(7, 1, 1, 1, 400, 400)).std()) == pytest.approx(1, abs=0.02)
    table = drawn(8, 4, 6, 3)
    torch.testing.assert_close(flow.resized(table, 4, 6), table)
    torch.testing.assert_close(flow.resized(table, 2, 3), table.reshape(2, 2, 3, 2, 3).mean((1, 3)))
