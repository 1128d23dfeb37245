"""Module kinds of tensors, by name."""

import pytest

from edg.networks.latent_video import keys

UNET = "model.diffusion_model."


@pytest.mark.parametrize(
    "name, expected",
    [
        ("input_blocks.1.1.transformer_blocks.0.attn2.to_k_ip.weight", {"spatial"}),
        ("input_blocks.1.2.transformer_blocks.0.attn1.to_q.weight", {"temporal"}),
        ("middle_block.1.proj_in.weight", {"spatial"}),
        ("middle_block.2.proj_in.weight", {"temporal"}),
        ("middle_block.3.in_layers.0.weight", {"resblock"}),
        ("output_blocks.5.3.conv.weight", {"resample"}),
        ("output_blocks.2.1.conv.weight", {"resample"}),
        ("input_blocks.3.0.op.weight", {"resample"}),
        ("input_blocks.0.0.weight", {"in"}),
        ("input_blocks.1.0.temopral_conv.conv1.2.weight", {"resblock", "temporal_conv"}),
        ("init_attn.0.proj_in.weight", {"init_attn"}),
        ("out.2.bias", {"out"}),
        ("fps_embedding.0.bias", {"time"}),
    ],
)
def test_module_kinds_of_the_network(name, expected):
    assert keys.kinds(UNET + name) == expected | {"unet"}


def test_other_kinds():
    assert keys.kinds(f"{UNET}input_blocks.1.2.cc_projection.bias") == {"adapter", "temporal", "unet"}
    assert keys.kinds(f"{UNET}init_attn.0.cc_projection.bias") == {"adapter", "init_attn", "unet"}
    assert keys.kinds("queries") == {"adapter"} == keys.kinds("qformer.to_out.0.bias")
    assert keys.kinds("scale_arr") == {"buffer"} and keys.kinds("foreign.weight") == set()
    assert keys.kinds("image_proj_model.latents") == {"image_proj"}
    assert keys.kinds("cond_stage_model.model.x") == {"text"} and keys.kinds("embedder.model.x") == {"image"}
