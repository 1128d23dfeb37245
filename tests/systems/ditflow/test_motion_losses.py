"""Motion losses on features whose motion is known, and their invariances."""

import pytest
import torch

from edg.systems.ditflow.motion_losses import (
    Grid,
    flow_loss,
    hard_flow,
    mean_logits,
    moft_loss,
    motion_channels,
    moving,
    smm_loss,
    soft_flow,
)

GRID = Grid(3, 4, 5)


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one_hot(dx=0, dy=0, grid=GRID):
    """q = k of a scene that moves by (dx, dy) tokens a frame, with every token its own direction."""
    scene = torch.eye(grid.sites).reshape(grid.height, grid.width, grid.sites)
    frames = [scene.roll((t * dy, t * dx), dims=(0, 1)) for t in range(grid.frames)]
    return 100 * torch.stack(frames).reshape(1, grid.frames * grid.sites, grid.sites)


def by_pair(flow, grid=GRID):
    return flow.reshape(grid.frames, grid.frames, grid.height, grid.width, 2)


def test_what_stands_still_has_no_flow():
    q = one_hot()
    assert not hard_flow(q, q, GRID).any() and soft_flow(q, q, GRID).abs().max() < 1e-5
    assert not moving(hard_flow(q, q, GRID)).any()


@pytest.mark.parametrize("dx, dy", [(1, 0), (0, 1), (-1, 1)])
def test_a_scene_that_moves_gives_its_displacement(dx, dy):
    q = one_hot(dx, dy)
    found = by_pair(hard_flow(q, q, GRID))
    inside = found[0, 1, 1:-1, 1:-1]
    assert (inside == torch.tensor([dx, dy])).all()
    back = found[1, 0].roll((-dy, -dx), dims=(0, 1))[1:-1, 1:-1]
    assert (back == -inside).all(), "the way back, seen from where it went"
    torch.testing.assert_close(by_pair(soft_flow(q, q, GRID)), found, atol=1e-4, rtol=0)


def test_without_any_preference_flow_goes_to_the_middle():
    q = torch.zeros(2, GRID.frames * GRID.sites, 8)
    flow = by_pair(soft_flow(q, q, GRID))
    for y in range(4):
        for x in range(5):
            assert flow[0, 2, y, x].tolist() == pytest.approx([2 - x, 1.5 - y], abs=1e-5)


def test_mean_logits_are_one_product_over_all_heads():
    q, k = drawn(1, 3, 12, 8), drawn(2, 3, 12, 8)
    wanted = torch.stack([a @ b.T / 8**0.5 for a, b in zip(q, k, strict=True)]).mean(0)
    torch.testing.assert_close(mean_logits(q, k), wanted, atol=1e-6, rtol=1e-6)
    assert mean_logits(q.half(), k.half()).dtype == torch.float32


def test_a_high_temperature_is_the_hard_flow():
    q, k = drawn(3, 2, 60, 16), drawn(4, 2, 60, 16)
    torch.testing.assert_close(soft_flow(q, k, GRID, 1e5), hard_flow(q, k, GRID), atol=1e-3, rtol=0)


def test_the_loss_looks_where_the_reference_moves():
    reference = torch.zeros(9, 20, 2)
    reference[2, 3] = torch.tensor([1.0, 0.0])
    generated = torch.full((9, 20, 2), 0.5, requires_grad=True)
    assert flow_loss(generated, reference).item() == pytest.approx(0.25)
    assert flow_loss(generated, reference, masked=False).item() == pytest.approx(0.25)
    nothing = flow_loss(generated, torch.zeros(9, 20, 2))
    nothing.backward()
    assert nothing.item() == 0 and not generated.grad.any(), "no NaN where nothing moves"


def test_features_of_the_same_motion_have_no_loss():
    features, still = drawn(5, 4, 40, 3, 3), drawn(6, 1, 40, 3, 3)
    channels = motion_channels(features, 0.1)
    assert len(channels) == 4 and channels.tolist() == sorted(channels.tolist())
    assert len(motion_channels(features, 0.001)) == 1
    assert moft_loss(features, features, channels).item() == pytest.approx(0, abs=1e-6)
    assert moft_loss(features + still, features, channels).item() == pytest.approx(0, abs=1e-5)
    assert moft_loss(-features, features, channels).item() == pytest.approx(2, abs=1e-5)
    assert smm_loss(features, features).item() == pytest.approx(0, abs=1e-6)
    assert smm_loss(3 * features + still, features).item() == pytest.approx(0, abs=1e-5)
    assert smm_loss(features, features, with_self=True).item() == pytest.approx(1 / 4, abs=1e-6)
