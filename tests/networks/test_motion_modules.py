"""AnimateDiff's motion modules on the UNet; its numbers are the reference's (tests/systems/iv_mixed)."""

from dataclasses import replace

import pytest
import torch

from edg.core.errors import BadFileError, UsageError
from edg.networks.latent_video import diffusers_names
from edg.networks.latent_video.attention import PositionTable
from edg.networks.latent_video.presets import STABLE_DIFFUSION_1
from edg.networks.latent_video.spec import MotionSpec
from edg.networks.latent_video.unet import UNet
from edg.verify.rules import fill

IMAGE = replace(
    STABLE_DIFFUSION_1,
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(1,),
    num_heads=2,
    context_dim=24,
)
MOVING = replace(IMAGE, motion=MotionSpec(2, 6, False))


@pytest.fixture(scope="module")
def unet():
    return fill(UNet(MOVING), 3).eval().requires_grad_(False)


def call(unet, x):
    context = torch.randn(1, 7, 24, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return unet(x, torch.tensor([300]), context)


def clip(frames):
    return torch.randn(1, 4, frames, 8, 8, generator=torch.Generator().manual_seed(1))


def test_frames_are_told_apart_by_their_positions(unet):
    x = clip(4)
    y, turned = call(unet, x), call(unet, x.flip(2)).flip(2)
    assert (y - turned).abs().max() > 1e-3
    with torch.no_grad():
        for module in unet.modules():
            if isinstance(module, PositionTable):
                kept, module.pe = module.pe, torch.zeros_like(module.pe)
                module.kept = kept
        torch.testing.assert_close(call(unet, x.flip(2)).flip(2), call(unet, x), atol=1e-4, rtol=1e-4)
        for module in unet.modules():
            if isinstance(module, PositionTable):
                module.pe = module.kept


def test_a_clip_is_no_longer_than_the_table(unet):
    assert call(unet, clip(6)).shape == (1, 4, 6, 8, 8)
    with pytest.raises(UsageError):
        call(unet, clip(7))


def test_modules_that_add_nothing_leave_the_image_model():
    image = fill(UNet(IMAGE), 5).eval()
    moving = UNet(MOVING).eval()  # proj_out is zero before training
    missing, unknown = moving.load_state_dict(image_names(image, moving), strict=False)
    assert not unknown and all("transformer_blocks" in n or "proj" in n or "norm" in n for n in missing)
    torch.testing.assert_close(call(moving, clip(3)), call(image, clip(3)), atol=1e-5, rtol=1e-5)


def image_names(image, moving):
    """The image model's tensors under the names that they have beside motion modules."""
    ours = diffusers_names.diffusers_names(image.state_dict(), IMAGE)
    theirs = {
        name: mine for mine, name in diffusers_names.diffusers_names(moving.state_dict(), MOVING).items()
    }
    return {theirs[ours[name]]: tensor for name, tensor in image.state_dict().items()}


def test_an_adapter_tells_its_positions_and_its_middle_block():
    names = diffusers_names.diffusers_names(UNet(MOVING).state_dict(), MOVING)
    adapter = {
        theirs: t
        for ours, t in UNet(MOVING).state_dict().items()
        if ".motion_modules." in (theirs := names[ours])
    }
    assert diffusers_names.with_motion(IMAGE, adapter).motion == MotionSpec(8, 6, False)
    middle = {name.replace("down_blocks.0.", "mid_block."): t for name, t in adapter.items()}
    assert diffusers_names.with_motion(IMAGE, middle).motion.in_middle
    with pytest.raises(BadFileError):
        diffusers_names.with_motion(IMAGE, {"a": torch.ones(1)})


def test_heads_of_image_models():
    config = {
        "in_channels": 4, "out_channels": 4, "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    }  # fmt: skip
    second = diffusers_names.unet_spec(config)
    assert (second.num_head_channels, second.use_linear, second.attention_resolutions) == (
        64,
        True,
        (4, 2, 1),
    )
    assert second.heads(640) == (10, 64)
    first = {**config, "attention_head_dim": 8, "cross_attention_dim": 768, "use_linear_projection": False}
    assert diffusers_names.unet_spec(first) == STABLE_DIFFUSION_1
    with pytest.raises(UsageError):
        diffusers_names.unet_spec({**config, "attention_head_dim": [5, 10, 20, 10]})
