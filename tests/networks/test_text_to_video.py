"""VideoCrafter and ModelScope on the same network: names, the key map, and the reference's numbers."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from edg.core import config
from edg.core.errors import BadFileError, UsageError
from edg.networks import family_of
from edg.networks.latent_video import diffusers_names, published_yaml
from edg.networks.latent_video.diffusers_names import load_diffusers
from edg.networks.latent_video.keys import kinds
from edg.networks.latent_video.load import build, check
from edg.networks.latent_video.presets import (
    DYNAMICRAFTER_512,
    MODELSCOPE,
    TEXT_TO_VIDEO,
    VIDEOCRAFTER_1_1024,
    VIDEOCRAFTER_2,
)
from edg.networks.latent_video.spec import ModelSpec, UNetSpec
from edg.networks.latent_video.unet import UNet
from edg.verify import rules
from edg.verify.cases import read_tensors

FOLDER = Path(__file__).parents[1] / "reference" / "iv_mixed"
CASES = {case["name"]: case for case in json.loads((FOLDER / "index.json").read_text())["cases"]}
UNET = "model.diffusion_model."


def read(name):
    return json.loads(gzip.decompress((FOLDER / f"{name}.json.gz").read_bytes()))


def on_meta(spec):
    with torch.device("meta"):
        return UNet(spec)


@pytest.fixture(scope="module")
def videocrafter():
    return build(VIDEOCRAFTER_2)


def test_every_key_of_videocrafter_2_has_its_place_and_shape(videocrafter):
    wanted = read("keys_videocrafter2")
    found = {name: list(tensor.shape) for name, tensor in videocrafter.state_dict().items()}
    assert found == {name: shape for name, (shape, _) in wanted.items()}
    assert family_of(wanted).name == "latent_video" and "VideoCrafter" in family_of(wanted).title(wanted)


def test_every_key_of_modelscope_has_its_place_and_shape():
    wanted, unet = read("keys_modelscope_unet3d"), on_meta(MODELSCOPE.unet)
    names = diffusers_names.diffusers_names(unet.state_dict(), MODELSCOPE.unet)
    assert sorted(names.values()) == sorted(wanted)
    for name, tensor in unet.state_dict().items():
        shape = wanted[names[name]][0]
        assert shape + [1] * (tensor.ndim - len(shape)) == list(tensor.shape)
    assert family_of(wanted).name == "diffusers_unet"


def test_the_key_map_is_the_references(videocrafter):
    names = videocrafter.unet.state_dict()
    assert diffusers_names.diffusers_names(names, VIDEOCRAFTER_2.unet) == read("keymap_native_to_diffusers")
    images = read("keymap_sd15_native_to_diffusers")
    spec = config.build(UNetSpec, images["model_spec"], "spec")
    assert diffusers_names.diffusers_names(on_meta(spec).state_dict(), spec) == images["names"]


def test_kinds_are_the_same_under_both_names():
    for ours, theirs in read("keymap_native_to_diffusers").items():
        assert diffusers_names.kinds(theirs) == kinds(UNET + ours), ours


@pytest.mark.parametrize("name", ["vc_unet_a_open", "vc_unet_b_open"])
def test_native_network(name):
    case = CASES[name]
    spec = published_yaml.unet_spec(case["config"]["unet_config"])
    assert_output(case, rules.fill(on_meta(spec), case["seed"], case["key_prefix"]))


def test_network_in_diffusers_layout():
    case = CASES["net_unet3d_open"]
    unet = on_meta(diffusers_names.unet_spec(case["config"]["params"])).to_empty(device="cpu")
    names = diffusers_names.diffusers_names(unet.state_dict(), unet.spec)
    shapes = {names[name]: tensor.shape for name, tensor in unet.state_dict().items()}
    for name in ("transformer_in.proj_in.weight", "transformer_in.proj_out.weight"):
        shapes[name] = shapes[name][:2]
    assert len(shapes) == case["num_keys"]
    weights = {name: rules.weight(case["weight_seed"], name, shape) for name, shape in shapes.items()}
    load_diffusers(unet, weights)
    assert_output(case, unet)
    with pytest.raises(BadFileError):
        load_diffusers(unet, {**weights, "another": torch.ones(1)})
    with pytest.raises(BadFileError):
        load_diffusers(unet, {**weights, "conv_in.bias": torch.ones(2)})


def assert_output(case, unet):
    stored, wanted = (read_tensors(FOLDER / case["file"], part) for part in ("in/", "out/"))
    inputs = {
        name: stored[name] if about["stored"] else rules.input_tensor(case["seed"], name, about["shape"])
        for name, about in case["inputs"].items()
    }
    with torch.no_grad():
        y = unet.eval()(inputs["x"], inputs["timesteps"], inputs["context"], inputs.get("fps"))
    assert (y - wanted["y"]).abs().max() <= case["outputs"]["y"]["atol"]


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
