"""Merging by numbers small enough for the hand."""

import math

import pytest
import torch
from torch import Tensor, tensor

from edg.weights import ops
from edg.weights.masks import BLOCK, keep_mask

P, S = tensor([1.0, 2.0, -4.0]), tensor([2.0, 2.0, 0.0])
MASK = tensor([True, False, True])


def same(found: Tensor, *expected: float) -> bool:
    return torch.equal(found, tensor(expected))


def test_linear_average_extrapolate_task_vectors():
    assert same(ops.task_vector(S, P), 1, 0, 4)
    assert same(ops.linear([P, S], [2, -1]), 0, 2, -8)
    assert same(ops.average([P, S]), 1.5, 2, -2)
    assert same(ops.extrapolate(P, S, 0.5), 0.5, 2, -6)
    assert same(ops.add_task_vectors(P, [S - P, S - P], 0.5), 2, 2, 0)
    assert same(ops.add_task_vectors(P, [S - P, S - P], [1.0, -2.0]), 0, 2, -8)


def test_dare_and_its_density_rules():
    assert same(ops.dare(P, MASK, 0.5), 2, 0, -8)
    assert same(ops.dare(P, MASK, 1.0), 1, 2, -4)
    assert same(ops.dare(P, MASK, 0.0), 0, 0, 0)
    assert same(ops.dare(P, None, 0.5), 1, 2, -4)
    assert same(ops.dare(P, None, -0.1), 0, 0, 0)  # 1-d too
    assert not ops.needs_mask(1, 0.5) and ops.needs_mask(2, 0.5) and ops.needs_mask(4, 0.5)
    assert ops.needs_mask(0, 0.5) and not ops.needs_mask(0, 0.5, mask_scalars=False)
    assert not ops.needs_mask(2, 1.0) and not ops.needs_mask(2, 0.0)


def test_edg_formulas():
    # X = P + .5 (P - S) = [.5, 2, -6]; D(X - P) = [-1, 0, -4]; dyn = P + .5 D
    assert same(ops.dynamic(P, S, MASK, 0.5, 0.5, 0.5), 0.5, 2, -6)
    # D(S - P) = [2, 0, 8]
    assert same(ops.consistent(P, S, MASK, 0.5, 1.0, 0.25), 2.5, 2, 2)
    assert same(ops.consistent(P, S, MASK, 0.5, 2.0, 0.25), 4.5, 4, 2)
    assert same(ops.consistent(P, S, MASK, 0.5, 2.0, 0.25, anchored=True), 3.5, 2, 6)


def test_out_is_used_and_inputs_stay():
    p, s, out = P.clone(), S.clone(), torch.empty(3)
    for result in (
        ops.dynamic(p, s, MASK, 0.5, 0.5, 0.5, out=out),
        ops.consistent(p, s, MASK, 0.5, 0.9, 0.5, out=out),
        ops.extrapolate(p, s, 0.5, out=out),
        ops.linear([p, s], [1, 2], out=out),
        ops.average([p, s], out=out),
        ops.add_task_vectors(p, [s], 0.5, out=out),
    ):
        assert result.data_ptr() == out.data_ptr()
    assert torch.equal(p, P) and torch.equal(s, S)


def test_magnitude():
    x = tensor([[1.0, -5.0], [3.0, -2.0]])
    assert torch.equal(ops.magnitude(x, 0.5), tensor([[0.0, -5.0], [3.0, 0.0]]))
    assert torch.equal(ops.magnitude(x, 0.3), tensor([[0.0, -5.0], [0.0, 0.0]]))
    assert torch.equal(ops.magnitude(x, 1.0), x) and torch.equal(ops.magnitude(P, 0.5), P)
    assert not ops.magnitude(x, 0.1).any() and not ops.magnitude(x, 0.0).any()


def test_svd_rank():
    x = torch.diag(tensor([3.0, 2.0, 1.0]))
    assert torch.allclose(ops.svd_rank(x, rank=1), torch.diag(tensor([3.0, 0.0, 0.0])), atol=1e-6)
    assert torch.allclose(ops.svd_rank(x, density=0.7), torch.diag(tensor([3.0, 2.0, 0.0])), atol=1e-6)
    assert torch.equal(ops.svd_rank(x, density=1.0), x) and torch.equal(ops.svd_rank(P, density=0.5), P)
    assert not ops.svd_rank(x, density=0.0).any() and not ops.svd_rank(x, rank=0).any()
    assert ops.svd_rank(torch.randn(4, 3, 2), rank=2).shape == (4, 3, 2)


def test_ties_by_hand():
    a, b = tensor([5.0, -1.0, 3.0, 0.1]), tensor([-2.0, -4.0, 3.0, 0.2])
    # half is trimmed: int(4 * .5) + 1 = 3 values survive as released
    assert ops.ties_rank(4, 0.5) == 2
    trimmed = [ops.ties_trim(a, 1.0), ops.ties_trim(b, 2.0)]
    assert same(trimmed[0], 5, -1, 3, 0) and same(trimmed[1], -2, -4, 3, 0)
    # sums 3, -5, 6, 0; votes 1 - 1 + 1 = 1; means of what agrees: 5, -2.5, 3, nothing
    assert ops.ties_sign_votes(trimmed) == 1
    assert same(ops.ties_merge(trimmed, 1.0), 5, -2.5, 3, 0)


def test_ties_exact_ties_take_the_majority_sign():
    trimmed = [tensor([2.0]), tensor([-2.0])]
    assert same(ops.ties_merge(trimmed, 1.0), 2) and same(ops.ties_merge(trimmed, -1.0), -2)


def test_ties_percentage_quirk():
    assert ops.ties_rank(1000, 0.0) == 990  # K = 1 is read as 1 %
    assert ops.ties_rank(10, 1.0) == 10 and ops.ties_rank(1, 0.5) == 1


@pytest.mark.parametrize("k", [1, 2, 17, 500, 999, 1000])
def test_kth_smallest_equals_sorting(k):
    values = torch.randn(1000) * torch.logspace(-30, 30, 1000)
    values[3] = values[4] = 0.0
    search = ops.KthSmallest(k)
    for _ in range(2):
        for block in values.split(300):
            search.update(block)
        if search.upper is None:
            search.next_pass()
    assert search.value() == values.abs().kthvalue(k).values.item()


def test_masks_belong_to_the_tensor():
    count = 2 * BLOCK + 1001
    whole = keep_mask(5, "a.weight", "adt", 0.3, 0, count)
    parts = [keep_mask(5, "a.weight", "adt", 0.3, s, min(BLOCK, count - s)) for s in range(0, count, BLOCK)]
    assert torch.equal(whole, torch.cat(parts))
    assert math.isclose(whole.float().mean().item(), 0.3, abs_tol=2e-3)
    for other in ((6, "a.weight", "adt"), (5, "b.weight", "adt"), (5, "a.weight", "deg")):
        assert not torch.equal(whole[:100], keep_mask(*other, 0.3, 0, 100))
    with pytest.raises(ValueError):
        keep_mask(5, "a", "adt", 0.3, 7, 10)


def test_masks_stay_what_they_were():
    """Recorded values: a file made today can be made again with any later version."""
    found = keep_mask(123, "model.diffusion_model.out.2.weight", "deg", 0.3, 0, 24).int().tolist()
    assert found == RECORDED


RECORDED = [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 1, 1, 0, 0, 0, 0, 1, 0, 1, 1, 0, 0, 0]
