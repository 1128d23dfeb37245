"""Attention and the gated feed-forward by their formulas in float64, whichever way they are computed."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edg.systems.edg import attention
from edg.systems.edg.attention import (
    FEW,
    GEGLU,
    AttentionToFew,
    Context,
    SpatialAttention,
    attend,
    merge_heads,
    split_heads,
)


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


def tensors(queries, keys, heads=3, dim=FEW, dtype=torch.float32):
    """q, k, v as views of what linear layers make."""
    return [
        split_heads(torch.randn(5, length, heads * dim, dtype=dtype), heads)
        for length in (queries, keys, keys)
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


@pytest.mark.parametrize("keys", [8, 32])
def test_its_gradients_are_the_formula_s(keys):
    found, expected = [
        torch.autograd.grad(way(*parts).sum().float(), parts)
        for parts in [[part.detach().requires_grad_() for part in tensors(9, keys)]]
        for way in (lambda *p: attend(*p).square(), lambda *p: by_formula(*p).square())
    ]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "fused, keys, how",
    [
        (False, FEW, {}),
        (True, FEW + 1, {}),
        (True, 8, {"dim": FEW + 1}),
        (True, 8, {"dtype": torch.bfloat16}),
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
    assert merge_heads(attend(q, k, v)).shape == (5, 8, 3 * FEW)


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


def told(heads, tokens, image, per_frame, frames=3, clips=2, width=48):
    """(layer, x, context) of clips whose frames attend to the text and to image tokens."""
    layer = SpatialAttention(width, 20, heads, width // heads, 0.0, image)
    if image == "learned":
        nn.init.constant_(layer.alpha, 0.3)
    from_image = (
        torch.randn(clips * frames if per_frame else clips, tokens[1], 20) if image != "none" else None
    )
    context = Context(frames, torch.randn(clips, tokens[0], 20), from_image)
    return layer, torch.randn(clips * frames, 7, width), context


@pytest.mark.parametrize(
    "image, per_frame", [("none", False), ("fixed", True), ("learned", True), ("fixed", False)]
)
@torch.no_grad()
def test_attention_to_few_known_tokens_is_attention(image, per_frame):
    layer, x, context = told(4, (5, 3), image, per_frame)
    known = layer.tell(context)
    assert isinstance(known, AttentionToFew)
    expected = layer(x, context)
    torch.testing.assert_close(known(x), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(layer(x, replace(context, known={layer: known})), known(x))
    other = layer(x, replace(context, text=context.text + 1))
    assert not torch.allclose(expected, other, atol=1e-3), "the tokens count"


@pytest.mark.parametrize(
    "heads, tokens, change",
    [
        (3, (FEW, 1), None),  # many tokens
        (8, (4, 3), None),  # of all heads more than numbers in a token
        (4, (5, 3), lambda layer: layer.bfloat16()),
        (4, (5, 3), lambda layer: setattr(layer, "to_q", nn.Sequential(layer.to_q))),
        (4, (5, 3), lambda layer: layer.to_out.__setitem__(0, nn.Sequential(layer.to_out[0]))),
    ],
)
@torch.no_grad()
def test_where_keys_and_values_stay_what_they_are(heads, tokens, change):
    layer, x, context = told(heads, tokens, "fixed", True)
    change and change(layer)
    dtype = layer.to_k.weight.dtype
    context = replace(context, text=context.text.to(dtype), image=context.image.to(dtype))
    known = layer.tell(context)
    assert not isinstance(known, AttentionToFew) and len(known) == 4
    there, here = (layer(x.to(dtype), one) for one in (context, replace(context, known={layer: known})))
    assert torch.equal(there, here)
