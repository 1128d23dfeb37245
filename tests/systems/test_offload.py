"""Where parameters lie: what is away is never computed with, and nothing of it shows in the frames."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edg.networks.latent_video.attention import SpatialAttention
from edg.networks.latent_video.load import with_adapter_of
from edg.networks.latent_video.onednn_linear import JoinedLinear
from edg.networks.latent_video.presets import SPRITES
from edg.sprites import WEIGHTS
from edg.systems.base import Request
from edg.systems.edg.generate import generate
from edg.systems.edg.offload import PHASES, parameters_of
from edg.systems.edg.options import SamplingOptions
from edg.systems.edg.parameter_sets import ParameterSets
from edg.systems.edg.verify.pipeline import rule_weights
from edg.weights.store import open_weights

pytestmark = pytest.mark.slow

OPTIONS = SamplingOptions(steps=2, guidance_scale=3.0, perframe_ae=True)


@pytest.fixture(scope="module")
def spec(pipe_spec):
    return pipe_spec.with_adapter()


@pytest.fixture(scope="module")
def weights(spec):
    return {"dyn": rule_weights(spec, 1), "con": rule_weights(spec, 2)}


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "0.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    return path


def frames(sets, image, options=OPTIONS, size=64):
    request = Request("0000-a_sample0", "a red ball", 123, sets.spec.frames, size, size, options, image)
    (result,) = generate(sets, [request])
    assert not result.error, result.error
    return result.frames


class Guard(TorchDispatchMode):
    """Refuses to compute with tensors at home; they may be carried away, looked at, or read from a file."""

    ALLOWED = ("aten.clone", "aten.copy_", "aten.detach", "aten.alias", "aten.view")

    def __init__(self, network):
        super().__init__()
        self.homes = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor))
        if any(tensor.untyped_storage().data_ptr() in self.homes for tensor in given):
            assert str(func).startswith(self.ALLOWED), f"{func} with a parameter that is not on the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("low_memory", [False, True])
def test_nothing_is_computed_with_parameters_that_are_away(spec, weights, image, low_memory):
    expected = frames(ParameterSets(spec, weights, low_memory=low_memory), image)
    sets = ParameterSets(spec, weights, low_memory=low_memory)
    sets.offloader.to_device = torch.clone  # another device, as far as storage goes
    with Guard(sets.network(0)):
        assert np.array_equal(frames(sets, image), expected)


def test_the_guard_sees_it(spec, weights):
    network = ParameterSets(spec, weights).network(0)
    with Guard(network), pytest.raises(AssertionError, match="not on the device"):
        network.encode_text(["a red ball"])


@pytest.mark.parametrize("perframe", [True, False])
def test_low_memory_only_rounds(spec, weights, image, perframe):
    """Bit-equal without guidance where frames are decoded one by one anyway. Branches and frames that are
    computed alone instead of together may round differently."""
    plain, low = (ParameterSets(spec, weights, low_memory=low) for low in (False, True))
    assert low.sequential_cfg and not plain.sequential_cfg
    differ_by_rounding(plain, low, image, replace(OPTIONS, perframe_ae=perframe))


def test_sprites_in_low_memory_are_the_same_frames(image):
    """The embedded model with the settings of the release, fewer steps."""
    weights = {name: open_weights(WEIGHTS / f"{name}.safetensors") for name in ("base", "tuned")}
    spec = with_adapter_of(SPRITES, weights.values())
    plain, low = (ParameterSets(spec, weights, low_memory=low) for low in (False, True))
    options = SamplingOptions(steps=4, guidance_scale=7.5, guidance_rescale=0.7)
    differ_by_rounding(plain, low, image, options, SPRITES.height)


def differ_by_rounding(plain, low, image, options, size=64):
    for made in (options, replace(options, guidance_scale=1.0)):
        there, here = (frames(sets, image, made, size).astype(int) for sets in (plain, low))
        if made.perframe_ae and not made.guided:
            assert np.array_equal(there, here)
        assert np.abs(there - here).max() <= 1 and (there != here).mean() < 1e-3


def test_what_moves_and_how_often(spec, weights, image):
    """In low memory a layer comes once for each branch of each step; keys and values of what the layers are
    told are made once for each branch and parameter set, so their layers come no more often than that."""
    sets = ParameterSets(spec, weights, low_memory=True)
    moved = Counter()
    sets.offloader.to_device = lambda host: moved.update([host.data_ptr()]) or host.clone()
    times = {"told": set(), "joined": set(), "other": set()}
    kinds = {}
    for layer in sets.network(0).unet.modules():
        if isinstance(layer, SpatialAttention) and layer.is_cross_attention:
            parts = [p for name, p in layer.named_parameters() if name.startswith(("to_k", "to_v"))]
            kinds |= {p.data_ptr(): "told" for p in parts}
        if isinstance(layer, JoinedLinear):
            kinds |= {p.data_ptr(): "joined" for p in layer.parameters()}
    steps, branches = 4, 2
    frames(sets, image, replace(OPTIONS, steps=steps))
    for parameter in sets.network(0).unet.parameters():
        home = parameter.data_ptr()
        times[kinds.get(home, "other")].add(moved[home])
    once, always = branches * len(weights), branches * steps
    assert times == {"told": {once}, "joined": {once + always}, "other": {always}}


def test_frames_one_by_one_are_the_same_latents(spec, weights):
    network = ParameterSets(spec, weights).network(0)
    pictures = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    together = network.encode_frames(pictures)
    network.vae_chunk = 1
    single = network.encode_frames(pictures)
    assert torch.allclose(together.mean, single.mean, atol=1e-5)
    assert torch.allclose(together.logvar, single.logvar, atol=1e-5)


def test_every_parameter_has_its_phase(spec, weights):
    network = ParameterSets(spec, weights).network(0)
    condition, denoise, decode = ({id(p) for p in parameters_of(network, phase)} for phase in PHASES)
    assert condition | denoise == {id(p) for p in network.parameters()}
    assert decode < condition and not condition & denoise


def test_parameters_come_for_their_phase_and_go(spec, weights):
    sets = ParameterSets(spec, weights)
    carried = []
    sets.offloader.to_device = lambda host: carried.append(host) or host.clone()
    network = sets.network(0)
    homes = {name: parameter.data_ptr() for name, parameter in network.named_parameters()}

    def away():
        return {name.split(".")[0] for name, p in network.named_parameters() if p.data_ptr() == homes[name]}

    for phase, parts in PHASES.items():
        carried.clear()
        with pytest.raises(KeyError), sets.on_device(phase, [0]):
            assert away() == {name.split(".")[0] for name in homes} - set(parts)
            assert len(carried) == len(parameters_of(network, phase))
            raise KeyError
        assert len(away()) == len({name.split(".")[0] for name in homes})


def test_layers_come_one_at_a_time(spec, weights):
    """At most one layer's parameters are on the device, and a layer that fails leaves it, too."""
    sets = ParameterSets(spec, weights, low_memory=True)
    network, out = sets.network(0), set()
    homes = {p: p.data_ptr() for p in network.parameters()}
    sets.offloader.to_device = torch.clone
    most = max(len(list(layer.parameters(recurse=False))) for layer in network.unet.modules())

    def look(layer, given):
        out.add(sum(p.data_ptr() != home for p, home in homes.items()))

    batch = (torch.zeros(1, 8, spec.frames, 8, 8), torch.zeros(1, dtype=torch.long))
    words = torch.zeros(1, spec.frames, spec.unet.adapter_width)
    context = torch.zeros(1, spec.unet.text_tokens, spec.unet.context_dim)
    with torch.no_grad(), sets.on_device("denoise", [0]):
        watch = [layer.register_forward_pre_hook(look) for layer in network.unet.modules()]
        network.unet(*batch, context, None, words)
        assert 0 < max(out) <= most
        with pytest.raises(RuntimeError):
            network.unet.out[-1](torch.zeros(1, 1, 8, 8))
        assert all(p.data_ptr() == home for p, home in homes.items())
    for handle in watch:
        handle.remove()
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in network.unet.modules())
