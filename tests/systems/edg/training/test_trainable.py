"""What trains: chosen by pattern, nothing frozen among it, everything of the adapter reached by gradients."""

import builtins
from dataclasses import replace

import pytest
import torch

from edg.core.errors import MachineError, UsageError
from edg.networks.latent_video.adapter import begin_released
from edg.networks.latent_video.keys import is_adapter
from edg.networks.latent_video.load import build, load_model
from edg.networks.latent_video.presets import DYNAMICRAFTER_512, SPRITES
from edg.networks.latent_video.spec import ClipTextSpec
from edg.systems.edg.training.loss import Constants, Drops, Objective, denoising_loss
from edg.systems.edg.training.trainable import add_lora, choose, lora_layers, merge_lora, published_state
from edg.verify.rules import fill

TINY = replace(SPRITES, unet=replace(SPRITES.unet, channel_mult=(1,), attention_resolutions=(1,)))
FROZEN = ("first_stage_model.", "cond_stage_model.", "embedder.")


@pytest.fixture
def model():
    return fill(build(TINY.with_adapter(), "cpu"), 3)


def data(model, count=2, seed=0):
    spec, random = model.spec, torch.Generator().manual_seed(seed)
    return {
        "latents": torch.randn(count, 4, spec.frames, 4, 4, generator=random),
        "caption": ["a red circle rolls to the left", "the camera pans slowly"][:count],
        "image": torch.randn(count, 17, 64, generator=random),
        "fps": torch.full((count,), 8),
        "draw": torch.arange(count),
        "batch_draw": torch.zeros(count, dtype=torch.long),
    }


def loss_of(model, drops=None):
    objective = Objective(drops=drops or Drops(0.0, 0.0, 0.0))
    return denoising_loss(model, data(model), objective, Constants.of(model))[0].mean()


def test_all_is_the_paper_s_setting_on_the_published_model():
    """On the full 512 spec, in the optimiser itself: queries, Q-Former, projections, all of the UNet, the
    image projector, and nothing frozen."""
    model = build(DYNAMICRAFTER_512.with_adapter())  # shapes without storage
    chosen = choose(model, ["all"])
    held = torch.optim.AdamW(chosen.values()).param_groups[0]["params"]
    held = {id(parameter) for parameter in held}
    for part in (model.unet, model.image_proj_model, model.qformer):
        assert all(id(parameter) in held for parameter in part.parameters())
    assert id(model.queries) in held
    for part in (model.first_stage_model, model.cond_stage_model, model.embedder):
        assert not any(id(parameter) in held for parameter in part.parameters())
        assert not any(parameter.requires_grad for parameter in part.parameters())
    assert not any(name.startswith(FROZEN) for name in chosen)
    assert sum(".cc_projection.weight" in name for name in chosen) == 17, "16 blocks and init_attn"
    adapter = sum(p.numel() for name, p in chosen.items() if is_adapter(name))
    assert adapter == pytest.approx(30.2e6, rel=0.005)


def test_patterns_choose_what_they_say(model):
    adapter = set(choose(model, ["adapter"]))
    assert adapter == {name for name in dict(model.named_parameters()) if is_adapter(name)}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == adapter
    temporal = set(choose(model, ["temporal"]))
    assert temporal and all(".2." in name or ".3." in name or "middle_block.2" in name for name in temporal)
    assert set(choose(model, ["adapter", "temporal"])) == adapter | temporal
    assert {name.split(".")[0] for name in choose(model, ["image_proj"])} == {"image_proj_model"}
    assert set(choose(model, ["unet"])) == {
        f"model.diffusion_model.{n}" for n, _ in model.unet.named_parameters()
    }
    fast = choose(model, ["*.attn2.to_v.weight"])
    assert fast and all(name.endswith(".attn2.to_v.weight") for name in fast)
    everything = list(choose(model, ["all"]))
    assert everything == [n for n, _ in model.named_parameters() if not n.startswith(FROZEN)], "in order"
    assert set(choose(model, ["*"])) == set(everything), "a glob does not thaw the towers"


@pytest.mark.parametrize(
    "patterns, given, fix",
    [
        ([], "", ""),
        (["adaptor"], "adaptor", "adapter"),
        (["temporal", "vae"], "vae", ""),
        (["cond_stage_model.*"], "cond_stage_model.*", ""),
        (["queriez"], "queriez", "queries"),
        (["lora"], "lora", "LoRA"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(model, patterns, given, fix):
    with pytest.raises(UsageError) as error:
        choose(model, patterns)
    assert given in error.value.given and fix in error.value.fix


def test_the_adapter_of_a_model_without_one():
    with pytest.raises(UsageError) as error:
        choose(build(TINY), ["adapter"])
    assert "'adapter'" in error.value.given and "adapter:" in error.value.fix


@pytest.mark.slow
def test_gradients_reach_what_was_chosen_alone(model):
    chosen = choose(model, ["all"])
    loss_of(model, Drops(0.0, 0.5, 0.0)).backward()
    assert all(p.grad is not None for p in chosen.values()), "a trainer over many ranks insists on it"
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(chosen)


@pytest.mark.slow
def test_every_parameter_of_the_released_adapter_gets_a_gradient():
    """16 queries, 8 heads of 128, 77 tokens of 1024 made from captions by a text tower of the published width
    (two blocks deep); weights by the rule. In every tensor, more than 99 % of the elements."""
    clip = replace(
        SPRITES.text.clip,
        text=ClipTextSpec(
            context_length=77, vocab_size=49408, width=1024, heads=16, layers=2, mlp_ratio=0.25
        ),
    )
    unet = replace(TINY.unet, context_dim=1024, adapter_width=1024, text_tokens=77, temporal_length=16)
    spec = replace(
        TINY,
        unet=unet,
        text=replace(SPRITES.text, clip=clip),
        resampler=replace(SPRITES.resampler, output_dim=1024, video_length=16),
        adapter_design=DYNAMICRAFTER_512.adapter_design,
        frames=16,
        towers_seed=None,
    ).with_adapter()
    model = fill(build(spec, "cpu"), 3)
    assert model.queries.shape == (16, 1024) and model.qformer.to_k.weight.shape == (1024, 1024)
    chosen = choose(model, ["adapter"])
    loss_of(model).backward()
    assert {name.split(".")[0] for name in chosen} == {"queries", "qformer", "model"}
    for name, parameter in chosen.items():
        assert torch.isfinite(parameter.grad).all()
        assert (parameter.grad != 0).float().mean() > 0.99, name


def test_the_released_start_is_torch_s_own(model):
    begin_released(model, torch.Generator().manual_seed(0))
    layer = model.unet.init_attn[0].cc_projection.requires_grad_(False)
    bound = layer.in_features**-0.5
    for parameter in (layer.weight, layer.bias):
        assert 0.8 * bound < parameter.abs().max() <= bound
    assert layer.weight.std() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert model.queries.detach().std() == pytest.approx(1.0, abs=0.15)
    first = model.queries.clone()
    begin_released(model, torch.Generator().manual_seed(0))
    assert torch.equal(model.queries, first)


@pytest.mark.slow
def test_lora_starts_as_nothing_learns_and_merges(model):
    names, before = list(model.state_dict()), {n: t.clone() for n, t in model.state_dict().items()}
    start = loss_of(model).detach()
    added = add_lora(model, rank=3, alpha=6.0, seed=1)
    layers = lora_layers(model)
    assert all(".transformer_blocks." in n or n.endswith(("proj_in", "proj_out")) for n in layers)
    assert any("init_attn" in n for n in layers) and not any(is_adapter(f"{n}.weight") for n in layers)
    assert torch.equal(loss_of(model), start), "B is zero"
    chosen = choose(model, ["adapter", "lora"])
    assert set(added) < set(chosen)
    assert all(is_adapter(name) or name in added for name in chosen)
    assert list(published_state(model)) == names

    optimizer = torch.optim.Adam(chosen.values(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    learned = loss_of(model).detach()
    assert learned < start
    state = {n: t.clone() for n, t in published_state(model).items()}
    assert loss_of(model) == learned, "asking for the state changes nothing"

    name = next(iter(layers))
    low, high = (chosen[f"{name}.lora_{x}.default.weight"] for x in "AB")
    by_hand = before[f"{name}.weight"] + 2.0 * high.detach() @ low.detach()
    changed = merge_lora(model)
    torch.testing.assert_close(model.state_dict()[f"{name}.weight"], by_hand)
    assert list(model.state_dict()) == names and not lora_layers(model)
    assert all(torch.equal(state[n], t) for n, t in model.state_dict().items())
    torch.testing.assert_close(loss_of(model).detach(), learned, rtol=1e-4, atol=1e-5)
    moved = {n for n in names if not torch.equal(before[n], state[n])}
    assert set(changed) <= moved and all(is_adapter(n) for n in moved - set(changed))
    again = load_model(model.spec, state)
    torch.testing.assert_close(loss_of(again), learned, rtol=1e-4, atol=1e-5)


def test_lora_is_drawn_by_name_and_keeps_the_flags(model):
    choose(model, ["image_proj"])
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    first = add_lora(model, 2, patterns=["*.attn1.to_q.weight"], seed=4)
    assert all(".attn1.to_q.lora_" in name and p.requires_grad for name, p in first.items())
    assert all(p.requires_grad == flags[n] for n, p in model.named_parameters() if n in flags)
    other = add_lora(
        fill(build(TINY.with_adapter(), "cpu"), 3), 2, patterns=["temporal", "init_attn", "spatial"], seed=4
    )
    assert first.keys() < other.keys()
    assert all(torch.equal(first[name], other[name]) for name in first)
    with pytest.raises(UsageError):
        add_lora(model, 2)
    merge_lora(model)
    with pytest.raises(UsageError):
        add_lora(model, 0)
    with pytest.raises(UsageError):
        add_lora(model, 2, patterns=["adapter"])
    assert merge_lora(model) == []


def test_lora_without_peft_says_what_to_install(model, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "peft":
            raise ImportError("No module named 'peft'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MachineError) as error:
        add_lora(model, 2)
    assert "peft" in error.value.fix
