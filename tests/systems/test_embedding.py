"""The shared space of the towers against open_clip's own model with the same tensors."""

import numpy as np
import pytest
import torch

from edg import systems
from edg.core.errors import BadFileError
from edg.networks.latent_video.clip_encoders import _clip, open_clip
from edg.networks.latent_video.load import TOWERS, build
from edg.systems.edg.clip_embedder import load_towers


@pytest.fixture(scope="module")
def complete(spec):
    """A parameter set with towers in it, all of them moved off their seed."""
    torch.manual_seed(1)
    state = build(spec, "cpu").state_dict()
    return {
        name: t + 0.02 * torch.randn_like(t) if name.startswith(TOWERS) else t for name, t in state.items()
    }


def peer(spec, tensors):
    """open_clip's model: the text half of one tower, the picture half of the other."""
    model = open_clip().CLIP(*_arguments(spec)).eval()
    text = {n[23:]: t for n, t in tensors.items() if n.startswith("cond_stage_model.model.")}
    image = {n[15:]: t for n, t in tensors.items() if n.startswith("embedder.model.visual.")}
    lost = model.load_state_dict(text | image, strict=False)
    assert not lost.unexpected_keys and set(lost.missing_keys) <= {"attn_mask"}
    return model


def _arguments(spec):
    caught = {}

    class Caught(Exception):
        pass

    def catch(**settings):
        caught.update(settings)
        raise Caught

    package = open_clip()
    original, package.CLIP = package.CLIP, catch
    try:
        _clip(spec.text.clip)
    except Caught:
        pass
    finally:
        package.CLIP = original
    return caught["embed_dim"], caught["vision_cfg"], caught["text_cfg"]


@torch.no_grad()
def test_features_are_open_clips(spec, complete):
    towers, model = load_towers(spec, complete), peer(spec, complete)
    assert towers.note == ""
    prompts = ["a red circle moves left", "a blue bar", "a photo of nothing at all, twice, and more of it"]
    text = model.encode_text(towers.cond_stage_model.tokenize(prompts), normalize=True)
    assert towers.embed_text(prompts) == pytest.approx(text.numpy(), abs=1e-5)
    frames = np.random.default_rng(0).integers(0, 256, (17, 20, 24, 3), dtype=np.uint8)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
    image = model.encode_image(towers.embedder.preprocess(pixels), normalize=True)
    found = towers.embed_image(frames)
    assert found == pytest.approx(image.numpy(), abs=1e-5)
    assert found.shape == (17, spec.image.clip.embed_dim) and np.allclose(np.linalg.norm(found, axis=1), 1)


def test_random_towers_say_so(spec, weights):
    towers = systems.get().part("embed")(spec, weights, "cpu")
    assert "random" in towers.note
    again = build(spec, "cpu").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in towers.state_dict().items())


def test_an_incomplete_set(spec, weights):
    less = dict(list(weights.items())[1:])
    with pytest.raises(BadFileError, match="1 missing"):
        load_towers(spec, less)
