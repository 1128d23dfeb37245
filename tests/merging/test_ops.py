"""Merging by numbers small enough for the hand."""

import math

import pytest
import torch
from torch import Tensor, tensor

from edg.merging import ops, recipe, steps
from edg.merging.masks import BLOCK, keep_mask

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


def test_svd_of_more_than_two_dimensions_is_of_first_by_all_others():
    """A 3x3 kernel in time or space: rows are output channels. Truth by numpy, term by term."""
    import numpy as np

    for shape in ((4, 3, 2), (2, 3, 3, 3), (5, 2, 3, 1, 1), (3, 4)):
        x = torch.randn(shape, generator=torch.manual_seed(len(shape)))
        rows = x.numpy().reshape(shape[0], -1)
        u, s, v = np.linalg.svd(rows, full_matrices=False)
        for rank in range(1, min(rows.shape)):
            wanted = sum(s[k] * np.outer(u[:, k], v[k]) for k in range(rank)).reshape(shape)
            assert np.allclose(ops.svd_rank(x, rank=rank).numpy(), wanted, atol=1e-5), (shape, rank)
        assert torch.equal(ops.svd_rank(x, rank=min(rows.shape)), x)
    wide = torch.randn(2, 3, 3, generator=torch.manual_seed(1))  # smaller side 2: a density of 0.5 is rank 1
    assert torch.equal(ops.svd_rank(wide, density=0.5), ops.svd_rank(wide, rank=1))


SHAPE = (2, 3)
BASE, TUNED = tensor([[1.0, 2.0, -4.0], [0.0, 8.0, 1.0]]), tensor([[2.0, 2.0, 0.0], [4.0, -8.0, 1.0]])
KEPT = tensor([[True, False, True], [False, True, True]])


def block(tensors=None, mask=KEPT, ndim=2, **more):
    """A block whose masks are given by hand; asks are noted as (stream, keep)."""
    asked = []

    def source(stream, keep):
        asked.append((stream, keep))
        return mask

    made = steps.MergeBlock(tensors or {"base": BASE.clone(), "tuned": TUNED.clone()}, ndim, source, **more)
    return made, asked


@pytest.mark.parametrize(
    "step, wanted, stream",
    [
        # S - P = [[1, 0, 4], [4, -16, 0]]; thinned by half: [[2, 0, 8], [0, -32, 0]]
        (steps.Consistent(alpha=1, beta=0.25, drop_rate=0.5), [[2.5, 2, 2], [4, -16, 1]], "adt"),
        (steps.Consistent(alpha=2, beta=0.25, drop_rate=0.5), [[4.5, 4, 2], [8, -24, 2]], "adt"),
        (
            steps.Consistent(alpha=1, beta=0.25, drop_rate=0.5, form="anchored"),
            [[2.5, 2, 2], [4, -16, 1]],
            "adt",
        ),
        (
            steps.Consistent(alpha=2, beta=0.25, drop_rate=0.5, form="anchored"),
            [[3.5, 2, 6], [8, -32, 1]],
            "adt",
        ),
        (
            steps.Consistent(alpha=0, beta=0.5, drop_rate=0.5, form="anchored"),
            [[2, 2, 0], [0, -8, 1]],
            "adt",
        ),
        (steps.Dynamic(alpha=0.5, beta=0.25, drop_rate=0.5), [[0.75, 2, -5], [0, 12, 1]], "deg"),
        (steps.TaskArithmetic(scaling=0.5, drop_rate=0.5), [[2, 2, 0], [0, -8, 1]], "dare0"),
        (steps.TaskArithmetic(scaling=(3,)), [[4, 2, 8], [12, -40, 1]], None),
        (steps.TaskArithmetic(scaling=0.5, drop_rate=0.5, dare_scale=2), [[3, 2, 4], [0, -24, 1]], "dare0"),
        (steps.Extrapolate(alpha=0.5), [[0.5, 2, -6], [-2, 16, 1]], None),
        (steps.LinearCombination(weights=(2, -1)), [[0, 2, -8], [-4, 24, 1]], None),
        (steps.Average(of=("base", "tuned")), [[1.5, 2, -2], [2, 0, 1]], None),
        (steps.Average(), [[2, 2, 0], [4, -8, 1]], None),
        (steps.Magnitude(density=0.34, scaling=0.5), [[1, 2, -2], [0, 0, 1]], None),
        (steps.Copy(), [[1, 2, -4], [0, 8, 1]], None),
        (steps.Copy(of="tuned"), [[2, 2, 0], [4, -8, 1]], None),
    ],
)
def test_every_step_by_hand(step, wanted, stream):
    for out in (None, torch.empty(SHAPE)):
        made, asked = block(out=out)
        assert torch.equal(step.run(made), tensor(wanted, dtype=torch.float32)), step
        assert asked == ([(stream, 0.5)] if stream else [])
        assert torch.equal(made.tensors["base"], BASE) and torch.equal(made.tensors["tuned"], TUNED)


def test_steps_take_the_inputs_that_they_name():
    three = {"base": tensor([[1.0, 1.0]]), "a": tensor([[2.0, 3.0]]), "b": tensor([[5.0, 7.0]])}
    for step, wanted in (
        (steps.Extrapolate(alpha=1, of="b"), [[-3, -5]]),
        (steps.Consistent(alpha=1, beta=0, of="b"), [[5, 7]]),
        (steps.Consistent(alpha=1, beta=0), [[2, 3]]),
        (steps.TaskArithmetic(scaling=(2, 1)), [[1 + 2 + 4, 1 + 4 + 6]]),
        (steps.TaskArithmetic(of=("b",)), [[5, 7]]),
        (steps.TaskArithmetic(scaling=2), [[1 + 2 + 8, 1 + 4 + 12]]),
        (steps.Average(), [[3.5, 5]]),
    ):
        found = step.run(block(dict(three), None)[0])
        assert torch.equal(found, tensor(wanted, dtype=torch.float32)), step


def test_masks_of_several_models_have_streams_of_their_own():
    three = {"base": BASE, "a": TUNED, "b": TUNED}
    made, asked = block(three)
    steps.TaskArithmetic(drop_rate=0.25).run(made)
    assert asked == [("dare0", 0.75), ("dare1", 0.75)]


NAMES = ["base", "tuned", "third"]


@pytest.mark.parametrize(
    "step, source",
    [
        (steps.Copy(), "base"), (steps.Copy(of="third"), "third"), (steps.Extrapolate(alpha=0), "base"),
        (steps.Extrapolate(alpha=1), None), (steps.LinearCombination(weights=(0, 1, 0)), "tuned"),
        (steps.LinearCombination(weights=(0, 2, 0)), None),
        (steps.LinearCombination(weights=(1, 1, 0)), None),
        (steps.Dynamic(alpha=0), "base"), (steps.Dynamic(beta=0), "base"), (steps.Dynamic(), None),
        (steps.Consistent(beta=0), "tuned"), (steps.Consistent(beta=0, of="third"), "third"),
        (steps.Consistent(), None), (steps.Consistent(beta=0, alpha=2), None),
        (steps.Consistent(beta=0, alpha=1, form="anchored"), "tuned"),
        (steps.Consistent(beta=0, alpha=0, form="anchored"), "base"),
        (steps.Consistent(beta=0, alpha=0), None),
        (steps.Consistent(beta=0, alpha=0.5, form="anchored"), None),
    ],
)  # fmt: skip
def test_what_is_a_copy_whatever_the_values(step, source):
    assert step.copies(NAMES) == source
    if source and len(getattr(step, "weights", ())) != 3 and source != "third":
        found = step.run(block()[0])
        assert torch.equal(found, {"base": BASE, "tuned": TUNED}[source])


def test_where_all_are_equal_a_step_says_whether_the_base_stays():
    equal = {"base": BASE, "tuned": BASE.clone()}
    for step in (
        steps.Consistent(), steps.Consistent(alpha=3, form="anchored"), steps.Consistent(alpha=2),
        steps.Consistent(alpha=0.5), steps.Dynamic(), steps.LinearCombination(weights=(1, 1)),
        steps.Extrapolate(alpha=2), steps.TaskArithmetic(scaling=2), steps.Magnitude(density=0.5),
    ):  # fmt: skip
        kept = torch.allclose(step.run(block(dict(equal))[0]), BASE)
        assert step.keeps_equal == kept, step


def test_the_published_pair_and_its_anchored_form():
    for con in ("released", "anchored"):
        made = recipe.edg_recipe("p", "s", con=con, con_alpha=0.5)
        assert made.outputs["con"] == (steps.Consistent(alpha=0.5, beta=0.25, drop_rate=0.7, form=con),)
        assert made.outputs["dyn"] == (steps.Dynamic(alpha=0.25, beta=0.75, drop_rate=0.7),)
        assert made.mask_scalars == (con == "released") and made.seed == 123
    shipped = recipe.load_recipe("edg_anchored")
    assert shipped.outputs["con"][0].form == "anchored" and not shipped.mask_scalars


@pytest.mark.parametrize("sign, majority", [(1, 1.0), (-1, -1.0), (0, 0.0)])
def test_ties_statistics_by_hand(sign, majority):
    """Half of three entries is trimmed: the threshold is the second smallest; what is left votes."""
    zero = torch.zeros(3)
    for first in ([5.0, 6.0, 1.0], [1.0, 7.0, 5.0]):
        other = tensor(first) * (sign or -1)
        models = {"base": zero, "a": tensor(first) * (sign or 1), "b": other}
        step = steps.Ties(drop_rate=0.5)
        found = steps.ties_statistics(step, 3, lambda models=models: iter([block(models, None, 1)[0]]))
        assert found == steps.TiesStatistics((5.0, 5.0), majority)
