"""What the networks compute, beyond the reference cases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edg.core.errors import UsageError
from edg.networks.latent_video.adapter import begin, over_frames
from edg.networks.latent_video.attention import Context, TemporalAttention
from edg.networks.latent_video.clip_encoders import blur_before_shrinking
from edg.networks.latent_video.load import build, load_model
from edg.networks.latent_video.unet import UNet, sinusoid
from edg.systems.edg.condition import Condition


@pytest.mark.slow
def test_two_at_once_equal_each_alone(spec, weights, inputs):
    x, t, context, concat, _ = inputs
    model = load_model(spec, weights)
    with torch.no_grad():
        both = model.predict(x, t, context, concat)
        each = [model.predict(*(part[i : i + 1] for part in (x, t, context, concat))) for i in (0, 1)]
    torch.testing.assert_close(both, torch.cat(each), atol=2e-5, rtol=1e-5)


@pytest.mark.slow
def test_default_fs_is_the_spec_s(spec, weights, inputs):
    x, t, context, concat, _ = inputs
    model = load_model(spec, weights)
    given = torch.full((2,), spec.unet.default_fs)
    with torch.no_grad():
        assert torch.equal(model.predict(x, t, context, concat), model.predict(x, t, context, concat, given))
        assert not torch.equal(
            model.predict(x, t, context, concat), model.predict(x, t, context, concat, given + 5)
        )


def test_queries_become_frames_exactly_or_linearly():
    queries = torch.randn(2, 5, 3)
    assert over_frames(queries, 5) is queries
    got = over_frames(queries, 9)
    where = np.linspace(0, 4, 9)
    for b in range(2):
        for d in range(3):
            expected = np.interp(where, np.arange(5), queries[b, :, d].numpy())
            np.testing.assert_allclose(got[b, :, d].numpy(), expected, atol=1e-6)
    assert torch.allclose(got[:, [0, -1]], queries[:, [0, -1]])


def test_image_tokens_belong_to_frames_only_at_the_exact_length(spec):
    unet = spec.unet
    per_frame = torch.arange(unet.text_tokens + 3 * unet.image_tokens).float().view(1, -1, 1)
    split = Context.split(per_frame, 3, unet)
    assert split.text.shape == (1, unet.text_tokens, 1) and split.image.shape == (3, unet.image_tokens, 1)
    assert split.image[1, 0, 0] == unet.text_tokens + unet.image_tokens
    shared = Context.split(per_frame[:, :-1], 3, unet)
    assert shared.image.shape == (1, 3 * unet.image_tokens - 1, 1)  # one set of tokens, for every frame
    alone = Context.split(per_frame, 3, replace(unet, image_cross_attention=False))
    assert alone.image is None and torch.equal(alone.text, split.text)


def test_relative_positions_of_zero_change_nothing():
    torch.manual_seed(0)
    plain, relative = (TemporalAttention(32, 2, 16, 0.0, True, reach) for reach in (None, 4))
    relative.load_state_dict(plain.state_dict(), strict=False)
    for table in (relative.relative_position_k, relative.relative_position_v):
        torch.nn.init.zeros_(table.embeddings_table)
    x = torch.randn(3, 6, 32)
    torch.testing.assert_close(plain(x), relative(x), atol=1e-6, rtol=1e-5)


def test_causal_frames_do_not_see_the_future():
    torch.manual_seed(0)
    attention = TemporalAttention(32, 2, 16, 0.0, True, 4)
    x = torch.randn(1, 6, 32)
    changed = x.clone()
    changed[:, 4:] += 1
    assert torch.equal(attention(x)[:, :4], attention(changed)[:, :4])


def test_sinusoid_is_cosines_then_sines_in_float32():
    waves = sinusoid(torch.tensor([0, 999]), 32)
    frequencies = np.exp(-np.log(1e4) * np.arange(16) / 16)
    expected = np.concatenate([np.cos(999 * frequencies), np.sin(999 * frequencies)])
    assert waves.dtype == torch.float32 and waves[0].tolist() == [1.0] * 16 + [0.0] * 16
    np.testing.assert_allclose(waves[1].numpy(), expected, atol=2e-4)


@pytest.mark.parametrize(
    "option",
    [
        {"resblock_updown": True},
        {"conv_resample": False},
        {"use_scale_shift_norm": True},
        {"transformer_depth": 2},
        {"use_linear": False},
        {"temporal_conv": False},
        {"tempspatial_aware": True},
        {"temporal_attention": False},
        {"addition_attention": False, "num_head_channels": -1, "num_heads": 4},
        {"image_cross_attention": False},
        {"fs_condition": False},
        {"attention_resolutions": (2,)},
    ],
    ids=lambda option: next(iter(option)),
)
@pytest.mark.slow
def test_options_of_the_published_constructor(spec, inputs, option):
    x, t, context, concat, _ = inputs
    network = UNet(replace(spec.unet, **option)).eval()
    with torch.no_grad():
        y = network(torch.cat([x, concat], 1), t, context)
    assert y.shape == x.shape and torch.isfinite(y).all()


def test_sizes_and_conditions_that_do_not_fit_are_told(spec, weights, inputs):
    x, t, context, concat, text = inputs
    model = load_model(spec.with_adapter(), weights)
    with pytest.raises(UsageError, match="7x8"):
        model.predict(x[..., :7, :], t, context, concat[..., :7, :], None, model.temporal_context(text))
    with pytest.raises(UsageError, match="temporal_context none"):
        model.predict(x, t, context, concat)


@pytest.mark.slow
def test_every_parameter_of_denoiser_and_adapter_learns(spec, weights, inputs):
    x, t, context, concat, text = inputs
    model = build(spec.with_adapter(), "cpu").train()
    model.load_state_dict(weights, strict=False)
    begin(model, torch.Generator().manual_seed(1))
    with torch.no_grad():  # one step on, the projections hear the text
        for module in model.modules():
            if hasattr(module, "cc_projection"):
                module.cc_projection.weight.add_(0.01)
    model.predict(x, t, context, concat, None, model.temporal_context(text)).square().mean().backward()
    trained = [*model.unet.parameters(), model.queries, *model.qformer.parameters()]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)


@pytest.mark.slow
def test_adapter_training_starts_at_the_base_model(spec, weights, inputs):
    x, t, context, concat, text = inputs
    plain, adapted = load_model(spec, weights), load_model(spec.with_adapter(), weights)
    begin(adapted, torch.Generator().manual_seed(1))
    told = adapted.temporal_context(text)
    assert told.std() > 0.1
    with torch.no_grad():
        assert torch.equal(
            plain.predict(x, t, context, concat), adapted.predict(x, t, context, concat, None, told)
        )


def test_decoding_in_chunks_and_scale(spec, weights):
    model = load_model(replace(spec, scale_factor=0.5), weights)
    z = torch.randn(1, 4, 5, 8, 8)
    with torch.no_grad():
        frames = model.decode_latents(z)
        torch.testing.assert_close(frames, model.decode_latents(z, chunk=2), atol=1e-5, rtol=1e-5)
        alone = model.first_stage_model.decode(z[:, :, 3] / 0.5)
    assert frames.shape == (1, 3, 5, 32, 32)
    torch.testing.assert_close(frames[:, :, 3], alone, atol=1e-5, rtol=1e-5)


def test_half_precision_stays_near_and_returns_float32(spec, weights, inputs):
    x, t, context, concat, _ = inputs
    with torch.no_grad():
        exact = load_model(spec, weights).predict(x, t, context, concat)
        near = load_model(spec, weights, dtype=torch.bfloat16).predict(x, t, context, concat)
    assert near.dtype == torch.float32
    assert (near - exact).norm() / exact.norm() < 0.05


def test_blur_only_before_shrinking():
    image = torch.randn(1, 3, 20, 30)
    assert blur_before_shrinking(image, 20, 40) is image
    blurred = blur_before_shrinking(image, 20, 10)
    assert blurred.shape == image.shape
    assert blurred.std() < image.std()
    flat = torch.ones(1, 3, 20, 30)
    torch.testing.assert_close(blur_before_shrinking(flat, 5, 5), flat)


def test_prompts_are_tokens_with_start_end_and_padding(spec):
    encoder = build(spec).cond_stage_model
    tokens = encoder.tokenize(["a red circle", " ".join(["left"] * 40)])
    assert tokens.shape == (2, spec.unet.text_tokens) and tokens[:, 0].tolist() == [49406, 49406]
    assert tokens[0, 4:].tolist() == [49407] + [0] * (spec.unet.text_tokens - 5)
    assert tokens[1, -1] == 49407


def test_branches_of_guidance_share_what_comes_before_the_first_token(spec, weights, inputs):
    model = load_model(spec, weights).eval()
    x, t, context, concat, _ = inputs
    branches = [Condition(told, None, concat, None) for told in (context, context.flip(1), 0 * context)]
    down, seen = model.unet.input_blocks, {}
    block = down[1][1].transformer_blocks[0]
    layers = {"conv": down[0], "init": model.unet.init_attn, "res": down[1][0]}
    layers |= {"self": block.attn1, "told": block.attn2}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda _, given, name=name: seen.update({name: len(given[0])}))
    with torch.no_grad():
        together = Condition.predict_all(branches, model)(x, t)
        frames = len(x) * x.shape[2]
        assert seen == {"conv": frames, "init": frames, "res": frames, "self": frames, "told": 3 * frames}
        apart = [model.predict(x, t, branch.context_BLD, concat) for branch in branches]
    torch.testing.assert_close(together, torch.stack(apart), atol=1e-4, rtol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-3
