"""VideoCrafter and ModelScope on the same network: names, the key map, and the reference's numbers."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from edg.core import config
from edg.core.errors import BadFileError, UsageError
from edg.networks import family_of
from edg.networks.latent_video import diffusers_names
from edg.networks.latent_video.diffusers_names import load_diffusers
from edg.networks.latent_video.keys import kinds
from edg.networks.latent_video.load import build, check
from edg.networks.latent_video.presets import (
    DYNAMICRAFTER_512,
    TEXT_TO_VIDEO,
    VIDEOCRAFTER_1_1024,
    VIDEOCRAFTER_2,
)
from edg.networks.latent_video.spec import ModelSpec, UNetSpec
from edg.networks.latent_video.unet import UNet

FOLDER = Path(__file__).parents[1] / "reference" / "iv_mixed"
CASES = {case["name"]: case for case in json.loads((FOLDER / "index.json").read_text())["cases"]}
UNET = "model.diffusion_model."


def read(name):
    return json.loads(gzip.decompress((FOLDER / f"{name}.json.gz").read_bytes()))


def on_meta(spec):
    with torch.device("meta"):
        return UNet(spec)


@pytest.mark.parametrize(
    "name, family", [("keys_videocrafter2", "latent_video"), ("keys_modelscope_unet3d", "diffusers_unet")]
)
def test_the_family_of_a_checkpoint(name, family):
    found = family_of(read(name))
    assert found.name == family
    assert family != "latent_video" or "VideoCrafter" in found.title(read(name))


def test_the_key_map_of_stable_diffusion():
    images = read("keymap_sd15_native_to_diffusers")
    spec = config.build(UNetSpec, images["model_spec"], "spec")
    assert diffusers_names.diffusers_names(on_meta(spec).state_dict(), spec) == images["names"]


def test_kinds_are_the_same_under_both_names():
    for ours, theirs in read("keymap_native_to_diffusers").items():
        assert diffusers_names.kinds(theirs) == kinds(UNET + ours), ours


def test_other_tensors_in_diffusers_layout_are_refused():
    unet = UNet(diffusers_names.unet_spec(CASES["net_unet3d_open"]["config"]["params"]))
    names = diffusers_names.diffusers_names(unet.state_dict(), unet.spec)
    weights = {names[name]: tensor for name, tensor in unet.state_dict().items()}
    load_diffusers(unet, weights)
    for wrong in ({"another": torch.ones(1)}, {"conv_in.bias": torch.ones(2)}):
        with pytest.raises(BadFileError):
            load_diffusers(unet, {**weights, **wrong})
    with pytest.raises(BadFileError):
        load_diffusers(unet, {name: t for name, t in weights.items() if name != "conv_in.bias"})


def test_specs_survive_a_round_trip_and_refuse_half_an_image_path():
    for spec in TEXT_TO_VIDEO.values():
        assert config.build(ModelSpec, config.to_dict(spec), "spec") == spec
    for values in ({"image": DYNAMICRAFTER_512.image}, {"unet": DYNAMICRAFTER_512.unet}):
        with pytest.raises(UsageError):
            config.build(ModelSpec, config.to_dict(VIDEOCRAFTER_2) | config.to_dict(values), "spec")


def test_a_scale_without_repetition_is_taken():
    """VideoCrafter1-1024 stores one value per timestep; the others 400 more, which no timestep means."""
    model = build(VIDEOCRAFTER_1_1024)
    state = dict(model.state_dict())
    for entries in (1000, 1400):
        check(model, state | {"scale_arr": torch.empty(entries, device="meta")})
    with pytest.raises(BadFileError):
        check(model, state | {"scale_arr": torch.empty(999, device="meta")})
