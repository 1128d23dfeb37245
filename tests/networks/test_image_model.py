"""Image models: original files and folders, their text towers, frames by themselves."""

import json
from dataclasses import replace

import pytest
import torch

from edg.core.errors import BadFileError, EdgError, UsageError
from edg.networks.latent_video import diffusers_names, image_model
from edg.networks.latent_video.clip_encoders import TextEncoder
from edg.networks.latent_video.image_model import (
    HF_TEXT,
    SD_1,
    SD_2,
    UNET,
    ImageModel,
    hf_names,
    load_image_model,
)
from edg.networks.latent_video.presets import VIT_L_14
from edg.networks.latent_video.spec import TextSpec
from edg.verify.rules import fill
from edg.weights.writers import write_safetensors

TINY_CLIP = replace(
    VIT_L_14,
    embed_dim=24,
    vision=replace(VIT_L_14.vision, width=32, layers=1, head_width=16, image_size=28),
    text=replace(VIT_L_14.text, width=768, layers=3, heads=2, mlp_ratio=0.25),
)
TINY = replace(
    SD_1,
    unet=replace(
        SD_1.unet, model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(1,),
        num_heads=2,
    ),
    text=TextSpec(TINY_CLIP, "last", pad="end"),
)  # fmt: skip
CONFIG = {
    "in_channels": 4, "out_channels": 4, "block_out_channels": [32, 64], "norm_num_groups": 32,
    "layers_per_block": 1, "cross_attention_dim": 768, "attention_head_dim": 2,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return fill(ImageModel(TINY), 5).eval().requires_grad_(False)


def hf_text(model, start=""):
    """The text tower in transformers' layout: joined tensors taken apart."""
    state, found = model.cond_stage_model.model.state_dict(), {}
    for name, parts in hf_names(3).items():
        for part, tensor in zip(parts, state[name].chunk(len(parts)), strict=True):
            found[start + part] = tensor.contiguous()
    return found


def original(model):
    return {f"{UNET}{name}": t for name, t in model.unet.state_dict().items()} | hf_text(model, HF_TEXT)


def extra():
    return {
        "first_stage_model.encoder.conv_in.weight": torch.ones(1),
        f"{HF_TEXT}text_model.embeddings.position_ids": torch.arange(77)[None],
        "betas": torch.ones(1000),
    }


def folder_of(model, path, **scheduler):
    names = diffusers_names.diffusers_names(model.unet.state_dict(), TINY.unet)
    for part in ("unet", "text_encoder", "scheduler"):
        (path / part).mkdir(parents=True)
    unet = {names[name]: tensor for name, tensor in model.unet.state_dict().items()}
    write_safetensors(path / "unet/diffusion_pytorch_model.safetensors", unet)
    write_safetensors(path / "text_encoder/model.safetensors", hf_text(model))
    (path / "unet/config.json").write_text(json.dumps(CONFIG))
    settings = {"beta_schedule": "scaled_linear", "prediction_type": "epsilon", **scheduler}
    (path / "scheduler/scheduler_config.json").write_text(json.dumps(settings))
    return path


def inputs():
    random = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 5, 8, 8, generator=random)
    return x, torch.tensor([700.25, 20.0]), torch.randn(2, 77, 768, generator=random)


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_original_file_and_the_folder_are_one_model(model, tmp_path):
    write_safetensors(tmp_path / "a.safetensors", original(model) | extra())
    spec = replace(
        TINY, text=replace(TINY.text, clip=replace(TINY_CLIP, text=replace(TINY_CLIP.text, layers=9)))
    )
    read = load_image_model(tmp_path / "a.safetensors", spec=spec)
    assert same(read.state_dict(), model.state_dict())
    assert read.spec.text.clip.text.layers == 3, "as many as there are"
    whole = load_image_model(folder_of(model, tmp_path / "b"), spec=TINY)
    assert same(whole.state_dict(), model.state_dict())


def test_a_folder_tells_its_own_settings(model, tmp_path):
    spec, _ = image_model.from_folder(
        folder_of(model, tmp_path, prediction_type="v_prediction", beta_end=0.02), None
    )
    assert (spec.parameterization, spec.schedule.linear_end) == ("v", 0.02)
    assert (spec.unet.model_channels, spec.unet.context_dim, spec.unet.num_heads) == (32, 768, 2)


@pytest.mark.parametrize("settings", [{"prediction_type": "sample"}, {"beta_schedule": "linear"}])
def test_settings_that_are_not_known(model, tmp_path, settings):
    with pytest.raises(UsageError):
        image_model.from_folder(folder_of(model, tmp_path, **settings), None)


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "text", "nothing"])
def test_other_files_are_refused(model, tmp_path, change):
    state = original(model) | extra()
    if change == "missing":
        del state[f"{UNET}out.2.bias"]
    elif change == "unknown":
        state[f"{UNET}temporal.weight"] = torch.ones(2)
    elif change == "shape":
        state[f"{UNET}out.2.bias"] = torch.ones(5)
    elif change == "text":
        del state[f"{HF_TEXT}text_model.encoder.layers.1.mlp.fc1.weight"]
    else:
        state = {"a": torch.ones(2)}
    write_safetensors(tmp_path / "a.safetensors", state)
    with pytest.raises(EdgError) as error:
        load_image_model(tmp_path / "a.safetensors", spec=TINY)
    assert isinstance(error.value, UsageError if change == "nothing" else BadFileError)


def test_the_width_of_the_text_tells_the_version():
    for spec in (SD_1, SD_2):
        name = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
        assert image_model.identify({name: torch.empty(320, spec.unet.context_dim)}) is spec
    with pytest.raises(UsageError):
        image_model.identify({name: torch.empty(320, 2048)})


def test_every_frame_is_computed_by_itself(model):
    x, t, text = inputs()
    with torch.no_grad():
        whole = model.denoiser(text)(x, t)
        for chunk in (1, 2, 5):
            torch.testing.assert_close(model.denoiser(text, chunk)(x, t), whole, atol=1e-5, rtol=1e-5)
        order = [3, 0, 4, 1, 2]
        torch.testing.assert_close(
            model.denoiser(text)(x[:, :, order], t), whole[:, :, order], atol=1e-5, rtol=1e-5
        )
        alone = model.denoiser(text[1:])(x[1:, :, 2:3], t[1:])
    torch.testing.assert_close(alone, whole[1:, :, 2:3], atol=1e-5, rtol=1e-5)
    assert whole.dtype == torch.float32 and whole.shape == x.shape


def test_prompts_are_filled_up_with_the_end_token():
    encoder = TextEncoder.__new__(TextEncoder)
    torch.nn.Module.__init__(encoder)
    encoder.spec = TINY.text
    (tokens,) = encoder.tokenize(["a cat"])
    assert tokens[:4].tolist() == [49406, 320, 2368, 49407] and set(tokens[4:].tolist()) == {49407}
    encoder.spec = replace(TINY.text, pad="zero")
    (tokens,) = encoder.tokenize(["a cat"])
    assert tokens[3] == 49407 and set(tokens[4:].tolist()) == {0}
