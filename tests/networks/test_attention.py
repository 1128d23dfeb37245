"""Attention and the gated feed-forward by their formulas in float64, whichever way they are computed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edg.networks.latent_video import attention
from edg.networks.latent_video.attention import (
    GEGLU,
    MAX_SHORT_KV,
    RelativePosition,
    attend,
    merge_heads,
    split_heads,
)


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


def tensors(queries, keys, heads=3, dim=MAX_SHORT_KV, **how):
    """q, k, v as views of what linear layers make."""
    return [
        split_heads(torch.randn(5, length, heads * dim, **how), heads) for length in (queries, keys, keys)
    ]


def by_formula(q, k, v, causal=False):
    q, k, v = (part.double() for part in (q, k, v))
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("keys, dim", [(1, 16), (8, 16), (16, 7), (17, 16), (8, 17), (64, 64)])
@pytest.mark.parametrize("queries", [1, 8, 100])
def test_attention_is_its_formula(queries, keys, dim):
    q, k, v = tensors(queries, keys, dim=dim)
    torch.testing.assert_close(attend(q, k, v).double(), by_formula(q, k, v), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("keys", "size", "limit"), [(1, 1, 1e-3), (8, 1, 6e-3), (16, 10, 1.5e-2)])
def test_in_bfloat16_scores_and_weights_are_rounded(keys, size, limit):
    """Which the fused kernel does not do: there it is 1 to 5 times as close, for larger scores more."""
    q, k, v = tensors(100, keys, dtype=torch.bfloat16)
    found, exact = attend(size * q, k, v), by_formula(size * q, k, v)
    assert found.dtype == torch.bfloat16
    assert (found - exact).norm() <= limit * exact.norm()


@pytest.mark.parametrize("keys", [8, 32])
def test_its_gradients_are_the_formula_s(keys):
    found, expected = [
        torch.autograd.grad(way(*parts).sum().float(), parts)
        for parts in [[part.detach().requires_grad_() for part in tensors(9, keys)]]
        for way in (lambda *p: attend(*p).square(), lambda *p: by_formula(*p).square())
    ]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_its_gradients_in_bfloat16():
    """As training under autocast has them."""
    parts = [part.detach().requires_grad_() for part in tensors(9, 8, dtype=torch.bfloat16)]
    found, expected = [
        torch.autograd.grad(way(*parts).double().square().sum(), parts) for way in (attend, by_formula)
    ]
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 0.02 * other.norm()


@pytest.mark.parametrize(
    "fused, keys, how",
    [
        (False, MAX_SHORT_KV, {}),
        (True, MAX_SHORT_KV + 1, {}),
        (True, 8, {"dim": MAX_SHORT_KV + 1}),
        (False, 8, {"dtype": torch.bfloat16}),
        (True, 8, {"dtype": torch.float16}),
        (True, 8, {"device": "meta"}),  # stands for a GPU
    ],
)
def test_few_keys_alone_are_not_left_to_the_fused_kernel(monkeypatch, fused, keys, how):
    calls = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(
        attention.F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or kernel(*a, **k)
    )
    attend(*tensors(9, keys, **how))
    assert bool(calls) == fused


def test_causal_attention_to_few_keys():
    q, k, v = tensors(8, 8)
    found, expected = attend(q, k, v, causal=True).double(), by_formula(q, k, v, causal=True)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert merge_heads(attend(q, k, v)).shape == (5, 8, 3 * MAX_SHORT_KV)


@pytest.mark.parametrize("stands_in", [False, True])
def test_the_gated_feed_forward(stands_in):
    layer, x = GEGLU(6, 10), torch.randn(2, 5, 6)
    if stands_in:  # as LoRA's layers do: without the way to have it in parts
        plain = nn.Linear(6, 20)
        plain.load_state_dict(layer.proj.state_dict())
        layer.proj = plain
    assert [*layer.state_dict()] == ["proj.weight", "proj.bias"]
    value, gate = (x.double() @ layer.proj.weight.double().T + layer.proj.bias.double()).chunk(2, -1)
    expected, kept = value * F.gelu(gate), x.clone()
    with torch.no_grad():
        torch.testing.assert_close(layer(x).double(), expected.detach(), rtol=1e-5, atol=1e-6)
    learned = layer(x)
    torch.testing.assert_close(learned.double(), expected, rtol=1e-5, atol=1e-6)
    learned.sum().backward()
    assert layer.proj.weight.grad.abs().sum() > 0 and torch.equal(x, kept)


@pytest.mark.parametrize("frames, reach", [(6, 2), (5, 1), (3, 4)])
def test_relative_positions_beyond_the_reach_are_the_outermost(frames, reach):
    """Key minus query, from -reach (row 0 of the table) to +reach (Shaw et al. 2018, equation 5)."""
    position = RelativePosition(1, reach)
    with torch.no_grad():
        position.embeddings_table.copy_(torch.arange(-reach, reach + 1.0)[:, None])
    found = position(frames)[..., 0].tolist()
    assert found == [[max(-reach, min(reach, j - i)) for j in range(frames)] for i in range(frames)]
