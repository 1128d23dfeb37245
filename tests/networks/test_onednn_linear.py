"""Linear layers give the same numbers by either library, and are counted, compiled and learned alike."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from edg.networks.latent_video import onednn_linear
from edg.networks.latent_video.onednn_linear import MIN_ELEMENTS, JoinedLinear, Linear, SplitLinear


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


@pytest.fixture
def calls(monkeypatch):
    """One entry for each product that oneDNN makes."""
    made, real = [], onednn_linear.by_onednn
    monkeypatch.setattr(onednn_linear, "by_onednn", lambda *args: made.append(args[1].shape) or real(*args))
    return made


@pytest.mark.skipif(
    not onednn_linear.ONEDNN, reason="PyTorch is built without MKL or oneDNN: there is one way only"
)
@pytest.mark.parametrize("shape", [(128,), (7, 128), (2, 9, 128), (0, 128)])
@pytest.mark.parametrize("bias", [True, False])
def test_onednn_is_the_formula(calls, shape, bias):
    layer, x = Linear(128, 200, bias=bias), torch.randn(shape)
    with torch.no_grad():
        expected = F.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
        found = layer(x)
    assert calls == [(200, 128)]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(
    not onednn_linear.ONEDNN, reason="PyTorch is built without MKL or oneDNN: there is one way only"
)
def test_who_is_left_to_pytorch(calls):
    small, large = Linear(64, 64), Linear(128, MIN_ELEMENTS // 128)
    x = torch.randn(3, 128)
    with torch.no_grad():
        small(x[:, :64])
        large.half()(x.half())
        large.to("meta")(x.to("meta"))
        with torch.backends.mkldnn.flags(enabled=False):
            Linear(128, MIN_ELEMENTS // 128)(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert Linear(128, MIN_ELEMENTS // 128)(x).dtype == torch.bfloat16
        assert not calls
        Linear(128, MIN_ELEMENTS // 128)(x)
        assert len(calls) == 1
    Linear(128, MIN_ELEMENTS // 128)(x).sum().backward()
    assert len(calls) == 1


def test_a_bias_whose_numbers_do_not_lie_together():
    x, weight = torch.randn(3, 128), torch.randn(200, 128)
    for bias in (torch.randn(400)[::2], torch.full((1,), 3.0).expand(200)):
        with torch.no_grad():
            torch.testing.assert_close(onednn_linear.linear(x, weight, bias), F.linear(x, weight, bias))


def test_weights_in_part():
    """Rows of a weight, and columns, which do not lie together."""
    split, joined = SplitLinear(128, 512), JoinedLinear(128 + 256, 128)
    x, words = torch.randn(5, 128), torch.randn(5, 256)
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(split(x, parts=2), -1), split(x))
        parts = joined(x, part="y") + joined(words, part="adapter")
        torch.testing.assert_close(parts, joined(torch.cat([x, words], -1)))


def test_operations_are_counted():
    layer, x = Linear(128, 200), torch.randn(3, 5, 128)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        layer(x)
    assert counter.get_total_flops() == 2 * 15 * 128 * 200


def test_compiled_it_is_one_graph(calls):
    layer, x = Linear(128, 200), torch.randn(6, 128)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), layer(x))
        layer.weight.mul_(2)  # another parameter set: no constant of the graph
        torch.testing.assert_close(compiled(x), layer(x))
    assert len(calls) == (4 if onednn_linear.ONEDNN else 0)
