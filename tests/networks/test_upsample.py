"""A convolution of twice the size is the same by whichever of its two ways."""

import pytest
import torch
import torch.nn.functional as F

from edg.networks.latent_video.upsample import MIN_CELLS, MIN_SIDE, UpsampleConv2d
from edg.networks.latent_video.vae import Upsample


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


@pytest.fixture
def phases(monkeypatch):
    """The shapes that go by phase."""
    made, real = [], UpsampleConv2d._by_phase
    monkeypatch.setattr(UpsampleConv2d, "_by_phase", lambda self, x: made.append(x.shape) or real(self, x))
    return made


def by_definition(layer, x):
    larger = F.interpolate(x.double(), scale_factor=2.0, mode="nearest")
    return F.conv2d(larger, layer.weight.double(), layer.bias.double(), padding=1)


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 4, 1, 5), (3, 5, 6, 7), (64, 2, 4, 4), (1, 8, 40, 33)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_it_is_its_definition(shape, layout):
    layer, x = UpsampleConv2d(shape[1]), torch.randn(shape).contiguous(memory_format=layout)
    for made in (layer(x), layer._by_phase(x)):
        torch.testing.assert_close(made.double(), by_definition(layer, x), rtol=1e-5, atol=1e-6)


def test_where_it_goes_by_phase(phases):
    layer, enough = UpsampleConv2d(4), torch.randn(MIN_CELLS // 16, 4, 4, 4)
    layer(enough).sum().backward()
    with torch.no_grad():
        layer(enough[1:])
        layer(torch.randn(MIN_CELLS, 4, MIN_SIDE - 1, MIN_SIDE))
        UpsampleConv2d(4).bfloat16()(enough.bfloat16())
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(enough).dtype == torch.bfloat16
        assert not phases, "where gradients are taken, for few cells or short edges, in 16 bits"
        layer(enough)
    assert len(phases) == 1
    learned = layer.weight.grad.clone()
    layer.weight.grad = None
    by_definition(layer, enough).sum().backward()
    torch.testing.assert_close(layer.weight.grad, learned, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_compiled_it_is_one_graph(phases):
    layer, x = Upsample(4), torch.randn(1, 4, 32, 32)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
    assert phases
