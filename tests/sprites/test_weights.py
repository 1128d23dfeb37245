"""The weights that come with the package."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edg.data.prompts import read_folder
from edg.networks.latent_video import load
from edg.networks.latent_video.keys import is_adapter
from edg.networks.latent_video.presets import SPRITES
from edg.sprites import WEIGHTS
from edg.sprites.data import psnr_on_shape, stills
from edg.sprites.tracker import track
from edg.sprites.world import caption, held_out, parse_caption, render, words_of
from edg.systems.base import Placement, Request
from edg.systems.edg.generate import generate
from edg.systems.edg.options import SamplingOptions
from edg.systems.edg.parameter_sets import load_sets
from edg.weights.store import open_weights

PROMPTS = Path(__file__).parents[2] / "prompts" / "sprites"


def test_both_files_are_complete_small_and_in_16_bits():
    base, tuned = (open_weights(WEIGHTS / f"{name}.safetensors") for name in ("base", "tuned"))
    assert sum(p.stat().st_size for p in WEIGHTS.glob("*.safetensors")) < 30e6
    assert base.metadata["spec"] == tuned.metadata["spec"] == "sprites"
    assert {n for n in tuned if n not in base} == {n for n in tuned if is_adapter(n)} != set()
    assert all(w[n].dtype == torch.float16 for w in (base, tuned) for n in w)
    vae = [n for n in base if n.startswith("first_stage_model.")]
    assert all(torch.equal(base[n], tuned[n]) for n in vae)


def test_the_towers_are_the_ones_they_were_trained_with():
    drawn = load.tower_tensor(
        SPRITES.towers_seed, "cond_stage_model.model.token_embedding.weight", (49408, 64)
    )
    assert drawn[320, :3].tolist() == pytest.approx(TOWER, abs=1e-6)


TOWER = [0.004887850, 0.016552240, -0.014144625]


def test_the_autoencoder_keeps_the_shape():
    model = load.load_model(SPRITES, open_weights(WEIGHTS / "base.safetensors"))
    test = stills(77, 32, shape_weight=2.0)
    with torch.no_grad():
        decoded = model.first_stage_model.decode(model.first_stage_model.encode(test["frames"]).mean)
    assert psnr_on_shape(decoded, test["frames"], test["weight"][:, 0] - 1) > 30


@pytest.mark.slow
def test_a_short_sample_moves_as_told(tmp_path):
    clips = held_out(2000, 4)
    options = SamplingOptions(steps=10, guidance_scale=1.0, switch_at=())
    requests = []
    for k, clip in enumerate(clips):
        path = tmp_path / f"{k}.png"
        Image.fromarray(np.round(render(clip)[0][0] * 255).astype(np.uint8)).save(path)
        requests.append(Request(str(k), caption(words_of(clip)), 123, 8, 32, 32, options, path))
    placement = Placement(torch.device("cpu"), torch.float32, 4)
    model = load_sets(SPRITES, {"tuned": open_weights(WEIGHTS / "tuned.safetensors")}, placement)
    found = [track(r.frames, c.sprite) for r, c in zip(generate(model, requests), clips, strict=True)]
    assert np.mean([t.speed for t in found]) > 0.2
    assert sum(t.direction == c.motion.direction for t, c in zip(found, clips, strict=True)) >= 2


def test_the_prompt_folder_is_of_this_world():
    pairs = read_folder(PROMPTS)
    assert len(pairs) == 8
    for pair in pairs:
        words = parse_caption(pair.prompt)
        assert words.direction and pair.image.stem.endswith(f"{words.colour}-{words.shape}")
        assert np.asarray(Image.open(pair.image)).shape == (32, 32, 3)
