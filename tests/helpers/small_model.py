"""A small model of the real classes, its weights moved off zero so that every part counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from edg.networks.latent_video.load import TOWERS, build
from edg.networks.latent_video.presets import SPRITES


@pytest.fixture(scope="session")
def spec():
    unet = replace(SPRITES.unet, model_channels=32, channel_mult=(1, 2), num_head_channels=16)
    return replace(SPRITES, name="small", unet=unet)


@pytest.fixture(scope="session")
def weights(spec):
    """A complete parameter set without adapter."""
    random = torch.Generator().manual_seed(5)
    model = build(spec, "cpu")
    return {
        name: value + 0.05 * torch.randn(value.shape, generator=random)
        for name, value in model.state_dict().items()
        if not name.startswith(TOWERS) and name not in model.buffer_names
    }


@pytest.fixture
def inputs(spec):
    """x, t, context, concat for a batch of two clips, and the text alone."""
    random = torch.Generator().manual_seed(6)

    def draw(*shape):
        return torch.randn(shape, generator=random)

    text = draw(2, spec.unet.text_tokens, spec.unet.context_dim)
    image = draw(2, spec.unet.image_tokens * spec.frames, spec.unet.context_dim)
    latent = (2, spec.latent_channels, spec.frames, 8, 8)
    return draw(*latent), torch.tensor([20, 700]), torch.cat([text, image], 1), draw(*latent), text
