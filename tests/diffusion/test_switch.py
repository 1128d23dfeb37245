"""Switching and blending networks by timestep."""

import pytest
import torch

from edg.diffusion.ddim import ddim_plan
from edg.diffusion.guidance import guided, side_by_side
from edg.diffusion.schedule import ScheduleSpec, make_schedule
from edg.diffusion.switch import blend, phases, set_index, switch

X = torch.arange(12.0).reshape(3, 1, 1, 2, 2)


class Times:
    def __init__(self, factor):
        self.factor, self.calls = factor, 0

    def __call__(self, x, t_B):
        self.calls += 1
        return self.factor * x


def test_the_boundary_itself_belongs_to_the_next_set():
    assert [set_index(t, (500,)) for t in (999, 501, 500, 0)] == [0, 0, 1, 1]
    assert [set_index(t, (700, 300)) for t in (701, 700, 301, 300, -1)] == [0, 1, 1, 2, 2]
    assert set_index(5, ()) == 0


def test_every_sample_is_judged_by_its_own_timestep():
    a, b, c = Times(1), Times(10), Times(100)
    out = switch([a, b, c], (700, 300))(X, torch.tensor([999, 500, 300]))
    assert torch.equal(out, X * torch.tensor([1.0, 10.0, 100.0]).reshape(3, 1, 1, 1, 1))
    assert (a.calls, b.calls, c.calls) == (1, 1, 1)


def test_a_network_that_is_not_needed_is_not_called():
    dyn, con = Times(1), Times(2)
    denoise = switch({"dyn": dyn, "con": con}, (500,))
    assert torch.equal(denoise(X, torch.full((3,), 501)), X) and con.calls == 0
    assert torch.equal(denoise(X, torch.full((3,), 500)), 2 * X) and dyn.calls == 1


def test_boundaries_must_fit_and_fall():
    with pytest.raises(ValueError, match="boundaries"):
        switch([Times(1), Times(2)], ())
    with pytest.raises(ValueError, match="fall"):
        switch([Times(1), Times(2), Times(3)], (300, 700))


def test_equal_boundaries_leave_a_set_no_timestep():
    with pytest.raises(ValueError):
        switch([Times(1), Times(2), Times(3)], (500, 500))


def test_phases_cut_a_plan_where_the_set_changes():
    plan = ddim_plan(make_schedule(ScheduleSpec(0.00085, 0.012, True, 0.7)), 50)
    halves = phases(plan, (500,))
    assert [(k, len(steps)) for k, steps in halves] == [(0, 25), (1, 25)]
    assert [step for _, steps in halves for step in steps] == plan
    assert [k for k, _ in phases(plan, (1000,))] == [1]
    assert [k for k, _ in phases(plan, (0,))] == [0]
    assert phases(plan, ()) == [(0, plan)]


def test_phases_and_switch_agree():
    plan = ddim_plan(make_schedule(ScheduleSpec(0.00085, 0.012, True, 0.7)), 37)
    networks = [Times(1), Times(2), Times(3)]
    denoise = switch(networks, (640, 210))
    for k, steps in phases(plan, (640, 210)):
        for step in steps:
            assert torch.equal(denoise(X, torch.full((3,), step.t)), networks[k](X, None))


def test_blend_weights_each_sample_by_its_timestep():
    out = blend(Times(1), Times(3))(X, torch.tensor([0, 500, 1000]))
    torch.testing.assert_close(out, X * torch.tensor([3.0, 2.0, 1.0]).reshape(3, 1, 1, 1, 1))
    half = blend(Times(1), Times(3), lambda t_B: torch.full_like(t_B, 0.5, dtype=torch.float32))
    torch.testing.assert_close(half(X, torch.tensor([0, 1, 2])), 2 * X)


def test_a_guided_blend_is_the_released_soft_switch():
    """w1 = s t/1000, w2 = s - w1: v = u + w1 (c1 - u1) + w2 (c2 - u2), u the weighted mean of u1 and u2."""
    s, t = 7.5, 321
    c1, u1, c2, u2 = (
        torch.randn(1, 4, 2, 2, 2, generator=torch.Generator().manual_seed(k)) for k in range(4)
    )
    w1 = s * t / 1000
    w2 = s - w1
    want = (w1 * u1 + w2 * u2) / s + w1 * (c1 - u1) + w2 * (c2 - u2)
    constants = [lambda x, t_B, v=v: v for v in (c1, u1, c2, u2)]
    cond, uncond = blend(constants[0], constants[2]), blend(constants[1], constants[3])
    got = guided(side_by_side(cond, uncond), [s, 1 - s])(torch.zeros_like(c1), torch.tensor([t]))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
