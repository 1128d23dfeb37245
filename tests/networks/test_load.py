"""Loading: strict, in place, and forgiving only where nothing can be lost."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from edg.core.errors import BadFileError
from edg.networks.latent_video import load
from edg.networks.latent_video.identify import identify
from edg.networks.latent_video.load import assign, build, load_model, rebuild_towers, with_adapter_of
from edg.networks.latent_video.presets import PRESETS, SPRITES
from edg.weights.store import open_weights

REFERENCE = Path(__file__).parents[1] / "reference"


class Manifest(dict):
    """A published checkpoint's names and shapes, as the store shows them before anything is read."""

    def info(self, name):
        return SimpleNamespace(shape=tuple(self[name][0]))


def manifest(name):
    return Manifest(json.loads(gzip.decompress((REFERENCE / f"keys_{name}.json.gz").read_bytes())))


def unet_of(model):
    return {k: v for k, v in model.state_dict().items() if k.startswith("model.")}


@pytest.mark.parametrize("name", ["256", "512", "1024"])
@pytest.mark.slow
def test_names_and_shapes_are_the_published_ones(name):
    ours = {k: list(v.shape) for k, v in build(PRESETS[f"dynamicrafter-{name}"]).state_dict().items()}
    assert ours == {k: v[0] for k, v in manifest(name).items()}


def test_adapter_names_and_shapes_are_the_published_ones():
    spec = PRESETS["dynamicrafter-512"].with_adapter()
    ours = {k: list(v.shape) for k, v in build(spec).state_dict().items()}
    assert ours == {k: v[0] for k, v in manifest("512_adapter").items()}


def test_every_tensor_arrives(spec, weights):
    model = load_model(spec, weights)
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in weights.items())
    assert not any(p.is_meta for p in [*model.parameters(), *model.buffers()])
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_missing_unexpected_and_misshapen_are_counted_and_named(spec, weights):
    broken = dict(weights)
    del broken["model.diffusion_model.out.2.bias"], broken["first_stage_model.quant_conv.bias"]
    broken["model.diffusion_model.stranger"] = torch.zeros(1)
    broken["image_proj_model.latents"] = torch.zeros(1, 2, 3)
    with pytest.raises(BadFileError) as caught:
        load_model(spec, broken)
    text = str(caught.value)
    for part in ("2 missing", "out.2.bias", "1 unexpected", "stranger", "1 of another shape", "(1, 2, 3)"):
        assert part in text
    assert "\n" not in text


@pytest.mark.slow
def test_a_set_that_does_not_fit_changes_nothing(spec, weights):
    model = load_model(spec, weights)
    broken = {k: v + 1 for k, v in weights.items() if not k.endswith("out.2.bias")}
    with pytest.raises(BadFileError):
        assign(model, broken)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["lora_unet_down_blocks_0.lora_up.weight"], "LoRA"),
        (
            ["model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.time_stack.0"],
            "Stable Video",
        ),
        (
            ["model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.x", "first_stage_model.y"],
            "Diffusion",
        ),
        (["text_model.encoder.layers.0.weight"], "text encoder"),
        (["encoder.conv_in.weight", "decoder.conv_in.weight"], "autoencoder"),
        (["unet.down_blocks.0.weight", "up_blocks.0.weight"], "diffusers"),
        ([], "no tensors"),
    ],
)
def test_foreign_files_are_recognised(spec, names, kind):
    with pytest.raises(BadFileError, match=kind):
        load_model(spec, {name: torch.zeros(1) for name in names})


def test_old_names_and_ema_copies(spec, weights):
    old = {k.replace("fps_embedding", "framestride_embed"): v for k, v in weights.items()}
    assert old.keys() != weights.keys()
    old["model_ema.decay"] = torch.zeros(())
    new, other = load_model(spec, weights), load_model(spec, old)
    assert all(torch.equal(a, b) for a, b in zip(new.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_files_are_read_straight_into_the_model(spec, weights, tmp_path, dtype):
    torch.save({"state_dict": weights}, tmp_path / "model.ckpt")
    model = load_model(spec, open_weights(tmp_path / "model.ckpt"), dtype=dtype)
    state = model.state_dict()
    assert all(torch.equal(state[name], value.to(dtype)) for name, value in weights.items())


def test_assign_keeps_the_storage(spec, weights):
    model = load_model(spec, weights)
    before = {name: value.data_ptr() for name, value in model.state_dict().items()}
    assign(model, {name: value + 1 for name, value in weights.items()})
    assert before == {name: value.data_ptr() for name, value in model.state_dict().items()}
    assert torch.equal(model.unet.out[2].bias, weights["model.diffusion_model.out.2.bias"] + 1)


def test_buffers_of_a_file_override_the_spec_unless_they_are_16_bits(spec, weights):
    own = build(spec).schedule_buffers()
    other = {name: value * 0.5 for name, value in own.items()}
    assert torch.equal(load_model(spec, weights).schedule.betas, own["betas"])
    model = load_model(spec, {**weights, **other}, dtype=torch.bfloat16)
    assert torch.equal(model.schedule.betas, other["betas"]) and model.betas.dtype == torch.float32
    narrow = {name: value.half() for name, value in other.items()}
    assert torch.equal(load_model(spec, {**weights, **narrow}).schedule.betas, own["betas"])
    assign(model, weights)
    assert torch.equal(model.schedule.betas, own["betas"])


def test_towers_come_from_the_seed_and_survive_a_swap(spec, weights):
    one, two = load_model(spec, weights), load_model(spec, weights)
    text = one.encode_text(["a red circle moves left"])
    assert torch.equal(text, two.encode_text(["a red circle moves left"]))
    assign(two, {name: value + 1 for name, value in weights.items()})
    assert torch.equal(text, two.encode_text(["a red circle moves left"]))
    assert not torch.equal(text, one.encode_text(["a blue square"]))
    rebuild_towers(one)
    assert torch.equal(text, one.encode_text(["a red circle moves left"]))


@pytest.mark.slow
def test_towers_are_drawn_once_for_all_sets_without(spec, weights, monkeypatch):
    drawn, real = [], load.rebuild_towers
    monkeypatch.setattr(load, "rebuild_towers", lambda model: drawn.append(model) or real(model))
    model = load_model(spec, weights)
    text = model.encode_text(["a red circle moves left"])
    assign(model, weights)
    assert len(drawn) == 1
    assign(model, {name: value + 1 for name, value in model.state_dict().items()})  # towers of its own
    assert len(drawn) == 1 and not torch.equal(text, model.encode_text(["a red circle moves left"]))
    assign(model, weights)
    assert len(drawn) == 2 and torch.equal(text, model.encode_text(["a red circle moves left"]))


@pytest.mark.slow
def test_a_set_without_adapter_is_the_identity(spec, weights, inputs):
    x, t, context, concat, text = inputs
    plain = load_model(spec, weights)
    adapted = load_model(spec.with_adapter(), weights)
    told = adapted.temporal_context(text)
    assert plain.temporal_context(text) is None and told.shape == (2, spec.frames, spec.unet.adapter_width)
    with torch.no_grad():
        expected = plain.predict(x, t, context, concat)
        got = adapted.predict(x, t, context, concat, None, told)
    assert torch.equal(expected, got)


def test_adapter_of_any_set_is_kept_and_never_half_of_it(spec, weights):
    with_adapter = dict(build(spec.with_adapter(), "cpu").state_dict())
    assert with_adapter_of(spec, [weights]).adapter is None
    assert with_adapter_of(spec, [weights, with_adapter]).adapter is not None
    with pytest.raises(BadFileError):
        load_model(spec, with_adapter)
    del with_adapter["queries"]
    with pytest.raises(BadFileError, match="queries"):
        load_model(spec.with_adapter(), with_adapter)


@pytest.mark.slow
def test_swap_between_a_set_with_adapter_and_one_without(spec, weights, inputs):
    x, t, context, concat, text = inputs
    tuned = {name: value + 0.1 for name, value in build(spec.with_adapter(), "cpu").state_dict().items()}
    model = load_model(spec.with_adapter(), tuned)
    assign(model, weights)
    with torch.no_grad():
        got = model.predict(x, t, context, concat, None, model.temporal_context(text))
        expected = load_model(spec, weights).predict(x, t, context, concat)
    assert torch.equal(expected, got)


@pytest.mark.parametrize(("name", "spec_name"), [("256", "dynamicrafter-256"), ("512", "dynamicrafter-512")])
def test_identify_published(name, spec_name):
    entries = manifest(name)
    entries.pop("scale_arr", None)
    found, reason = identify(entries)
    assert found == spec_name and reason


@pytest.mark.parametrize(("end", "spec_name"), [(0.7, "dynamicrafter-512"), (0.3, "dynamicrafter-1024")])
def test_identify_tells_512_from_1024_by_scale_arr(end, spec_name):
    class WithScale(Manifest):
        def __getitem__(self, name):
            return torch.full((1400,), end) if name == "scale_arr" else super().__getitem__(name)

    found, reason = identify(WithScale(manifest("512")))
    assert found == spec_name and "scale_arr" in reason


def test_identify_sprites_and_strangers():
    sprites = {name: value for name, value in build(SPRITES).state_dict().items()}
    assert identify(sprites)[0] == "sprites"
    found, reason = identify({"a.lora_A.weight": torch.zeros(1)})
    assert found is None and "LoRA" in reason
