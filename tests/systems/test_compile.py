"""`--compile`: one graph for all steps, contexts and parameter sets; a batch that lacks clips is filled."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch._dynamo.utils import counters

from edg.networks.latent_video import load
from edg.networks.latent_video.presets import SPRITES
from edg.systems.base import Placement, Request
from edg.systems.edg.generate import generate
from edg.systems.edg.options import SamplingOptions
from edg.systems.edg.parameter_sets import load_sets

pytestmark = pytest.mark.slow

UNET = replace(SPRITES.unet, channel_mult=(1,), attention_resolutions=(1,), num_res_blocks=1)
TINY = replace(SPRITES, unet=UNET)


@pytest.fixture(scope="module")
def sets():
    networks = {name: load.build(TINY, "cpu") for name in ("dyn", "con")}
    generator = torch.Generator().manual_seed(0)
    for network in networks.values():
        for p in network.unet.parameters():
            p.data = torch.randn(p.shape, generator=generator) / max(p[0].numel() if p.ndim else 1, 1) ** 0.5
    return {name: network.state_dict() for name, network in networks.items()}


def test_one_graph_serves_all_steps_contexts_and_sets(sets, tmp_path, monkeypatch):
    compile = torch.nn.Module.compile

    def traced(module, **how):  # the tracing and its guards, without the C++ compiler
        compile(module, backend="eager", **how)

    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(tmp_path / "image.png")
    options = SamplingOptions(steps=3, guidance_scale=3.0)
    requests = [
        Request(str(i), f"red circle {i}", i, 8, 32, 32, options, tmp_path / "image.png") for i in range(3)
    ]
    frames = {}
    for compiled in (False, True):
        torch._dynamo.reset(), counters.clear()
        placement = Placement(torch.device("cpu"), torch.float32, 2, compile=compiled)
        model = load_sets(TINY, sets, placement)
        frames[compiled] = [result.frames for result in generate(model, requests)]
        assert counters["stats"]["unique_graphs"] == int(compiled), (
            "two sets, two batches, the second not full"
        )
        assert not counters["graph_break"]
    for plain, other in zip(*frames.values(), strict=True):
        assert np.abs(plain.astype(int) - other).max() <= 1
    torch._dynamo.reset()
