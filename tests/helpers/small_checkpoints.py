"""Small checkpoints with the published names, as every builder of them would save them."""

import pytest
import torch

UNET = "model.diffusion_model."
SHAPES = {
    f"{UNET}time_embed.0.weight": (8, 4),
    f"{UNET}init_attn.0.proj_in.weight": (6, 4, 1),
    f"{UNET}input_blocks.1.0.in_layers.2.weight": (4, 4, 3, 3),
    f"{UNET}input_blocks.1.0.temopral_conv.conv1.2.weight": (4, 4, 3, 1, 1),
    f"{UNET}input_blocks.1.1.proj_in.weight": (4, 4),
    f"{UNET}input_blocks.1.2.proj_in.weight": (4, 4),
    f"{UNET}input_blocks.1.2.norm.weight": (4,),
    f"{UNET}out.2.bias": (4,),
    "first_stage_model.quant_conv.weight": (8, 8, 1, 1),
    "cond_stage_model.model.logit_scale": (),
    "embedder.model.visual.proj": (4, 6),
    "image_proj_model.latents": (1, 4, 4),
    "betas": (10,),
}
ADAPTER = {
    f"{UNET}input_blocks.1.2.cc_projection.weight": (4, 10),
    f"{UNET}input_blocks.1.2.cc_projection.bias": (4,),
    "queries": (3, 6),
    "qformer.to_q.weight": (6, 6),
}


def make_state(seed, shapes):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def base():
    return make_state(0, SHAPES)


@pytest.fixture
def tuned(base):
    """Fine-tuned: everything moved but the frozen parts."""
    moved = make_state(1, SHAPES)
    frozen = ("first_stage_model", "cond_stage", "embedder", "betas")
    return {n: t.clone() if n.startswith(frozen) else t + 0.1 * moved[n] for n, t in base.items()}


@pytest.fixture
def adapted(tuned):
    """Fine-tuned together with the text adapter."""
    return tuned | make_state(2, ADAPTER)


@pytest.fixture
def files(tmp_path, base, tuned):
    """(base.ckpt, tuned.ckpt) as torch.save writes them."""
    torch.save({"state_dict": base}, tmp_path / "base.ckpt")
    torch.save({"state_dict": tuned}, tmp_path / "tuned.ckpt")
    return tmp_path / "base.ckpt", tmp_path / "tuned.ckpt"
