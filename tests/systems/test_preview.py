"""What is shown of a clip before it is decoded: by a linear map of its own image, or by a tiny decoder."""

from __future__ import annotations

from pathlib import Path
from shutil import copy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edg.api import load
from edg.cli.main import main
from edg.core.errors import BadFileError
from edg.core.video import read_image
from edg.diffusion.ddim import SamplerStep, State
from edg.networks.latent_video.load import load_model
from edg.networks.latent_video.presets import PRESETS, SPRITES
from edg.runner.config import SampleConfig
from edg.runner.prepare import check
from edg.sprites import WEIGHTS
from edg.sprites.data import clip_tensors
from edg.sprites.world import held_out
from edg.systems.base import Request, Silent
from edg.systems.edg.clip_state import ClipState
from edg.systems.edg.generate import generate
from edg.systems.edg.options import SamplingOptions
from edg.systems.edg.parameter_sets import SingleParameterSet
from edg.systems.edg.preview import TinyDecoder, apply_map, preview, preview_map, read_tiny_decoder
from edg.systems.edg.progress import ProgressCounter
from edg.verify.rules import input_tensor, weight
from edg.weights.store import open_weights

SD = PRESETS["dynamicrafter-512"]
TINY = WEIGHTS / "tiny_decoder.safetensors"
IMAGE = Path(__file__).parents[2] / "prompts/sprites/05-red-circle.png"


@pytest.fixture(scope="module")
def network():
    return load_model(SPRITES, open_weights(WEIGHTS / "base.safetensors"))


@pytest.fixture(scope="module")
def taesd():
    """TAESD's decoder in its own names, with weights by the rule of tests/reference/README.md."""
    return {name: weight(0, name, value.shape) for name, value in TinyDecoder().state_dict().items()}


def of_diffusers(stored):
    split = [name.split(".", 1) for name in stored]
    return {f"decoder.layers.{int(n) - 1}.{rest}": stored[f"{n}.{rest}"] for n, rest in split}


# ---- the linear map ----------------------------------------------------------------------------------------


def test_the_map_of_the_image_serves_the_clip_as_well_as_the_best_linear_map(network):
    video = clip_tensors(held_out(2000, 1), "tuned")["frames"][0]
    with torch.no_grad():
        latents = network.encode_frames(video.transpose(0, 1)).mean.transpose(0, 1)
        decoded = network.decode_latents(latents[None])[0]
    small = apply_map(preview_map(latents[:, 0], video[:, 0]), latents)
    wanted = decoded.unflatten(3, (8, 4)).unflatten(2, (8, 4)).mean((3, 5))
    cells = torch.cat([latents, torch.ones(1, *latents.shape[1:])]).flatten(1).T
    best = (cells @ torch.linalg.lstsq(cells, wanted.flatten(1).T).solution).T.reshape(wanted.shape)
    assert (small - wanted).abs().mean() < 1.1 * (best - wanted).abs().mean()


def test_the_map_is_the_one_the_image_was_made_by():
    random = torch.Generator().manual_seed(3)
    latent, true = torch.randn(4, 6, 5, generator=random), torch.randn(5, 3, generator=random)
    image = apply_map(true, latent[:, None])[:, 0]
    torch.testing.assert_close(preview_map(latent, image), true, atol=5e-3, rtol=0)
    flat = preview_map(torch.zeros(4, 6, 5), torch.full((3, 48, 40), 0.25))
    torch.testing.assert_close(apply_map(flat, latent[:, None]), torch.full((3, 1, 6, 5), 0.25))


# ---- the tiny decoder --------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["taesd", "diffusers", "diffusers, with its encoder", "wrapped"])
def test_a_decoder_of_taesd_computes_what_diffusers_does(taesd, tmp_path, names):
    """The numbers are AutoencoderTiny's (diffusers 0.42.1), with these weights, for these latents."""
    stored = taesd if names == "taesd" else of_diffusers(taesd)
    if names == "wrapped":
        stored = {f"module.{name}": value for name, value in taesd.items()}
    if "encoder" in names:
        stored |= {"encoder.layers.0.weight": torch.zeros(64, 3, 3, 3)}
    save_file({name: value.contiguous() for name, value in stored.items()}, tmp_path / "x.safetensors")
    decoder = read_tiny_decoder(tmp_path / "x.safetensors", SD)
    expected = np.load(Path(__file__).with_name("autoencoder_tiny.npz"))["out"]
    with torch.no_grad():
        made = decoder(3 * input_tensor(0, "z", (2, 4, 3, 2)))
    np.testing.assert_allclose(made.numpy(), expected, atol=1e-5, rtol=0)


def test_a_clip_is_shown_frame_by_frame_at_its_size(network):
    decoder = read_tiny_decoder(TINY, SPRITES)
    pictures = clip_tensors(held_out(2000, 2)[1:], "tuned")["frames"][0].transpose(0, 1)
    with torch.no_grad():
        z = network.encode_frames(pictures).mean * SPRITES.scale_factor
        wanted = network.decode_latents(z.transpose(0, 1)[None])[0]
        made = preview(z.transpose(0, 1), z[0], pictures[0], decoder)
        alone = preview(z.transpose(0, 1)[:, 3:4], z[0], pictures[0], decoder)
        linear = preview(z.transpose(0, 1), z[0], pictures[0])
    torch.testing.assert_close(made[:, 3:4], alone)
    large = torch.nn.functional.interpolate(linear, scale_factor=(4, 4))
    errors = [127.5 * float((frames - wanted).abs().mean()) for frames in (made, large)]
    assert made.shape == wanted.shape and errors[0] < 2.5 and errors[0] < 0.3 * errors[1], errors


@pytest.mark.parametrize(
    "change, wrong",
    [
        ({"1.weight": torch.zeros(64, 16, 3, 3)}, "1.weight is (64, 16, 3, 3)"),  # of another latent space
        ({"20.weight": torch.zeros(64, 3)}, "20.weight is (64, 3)"),
        ({"7.weight": None}, "7.weight is missing"),
        ({"1.bias": torch.zeros(0)}, "1.bias is (0,)"),
        ({"1.bias": torch.zeros(0, 2**30)}, "1.bias is (0, 1073741824)"),
        ({"1.bias": torch.zeros(4000)}, "1.bias is (4000,)"),
    ],
)
def test_another_decoder_is_refused(taesd, tmp_path, change, wrong):
    stored = {name: value for name, value in (taesd | change).items() if value is not None}
    save_file(stored, tmp_path / "x.safetensors")
    with pytest.raises(BadFileError, match="no tiny decoder for dynamicrafter-512") as told:
        read_tiny_decoder(tmp_path / "x.safetensors", SD)
    assert wrong in str(told.value)


@pytest.mark.parametrize("value", [torch.full((64,), torch.nan), torch.zeros(64, dtype=torch.int8)])
def test_weights_that_are_no_numbers_are_refused(taesd, tmp_path, value):
    save_file(taesd | {"1.bias": value}, tmp_path / "x.safetensors")
    with pytest.raises(BadFileError, match="1.bias holds values that are not finite"):
        read_tiny_decoder(tmp_path / "x.safetensors", SD)


def test_a_checkpoint_is_no_decoder():
    with pytest.raises(BadFileError, match="no tiny decoder for sprites, 1.bias is missing"):
        read_tiny_decoder(WEIGHTS / "base.safetensors", SPRITES)


# ---- while clips are made ----------------------------------------------------------------------------------


class Previews(Silent):
    """Keeps the frames of all previews."""

    wants_preview = True

    def __init__(self):
        self.frames = []

    def preview(self, request, label, frames):
        self.frames.append(frames)


def made(network, image, decoder=None):
    """(frames, previews) of a short run. decoder: the file of one."""
    options = SamplingOptions(steps=6, switch_at=(), preview_decoder=decoder and str(decoder))
    request = Request("0", "a red circle", 1, 8, 32, 32, options, image)
    observer = Previews()
    (result,) = generate(SingleParameterSet(network), [request], observer)
    return result.frames, observer.frames


def test_the_decoder_shows_the_clip_and_changes_nothing(network):
    plain, small = made(network, IMAGE)
    frames, shown = made(network, IMAGE, TINY)
    assert np.array_equal(frames, plain)
    assert all(one.shape == frames.shape for one in shown) and all(one.shape[1:3] == (8, 8) for one in small)
    assert np.abs(shown[-1].astype(float) - frames).mean() < 3


def test_what_is_shown_is_the_clean_sample_whatever_the_dynamic_rescale(network):
    """The state of a rescaled schedule holds scale times the sample."""
    picture = read_pixels(IMAGE)
    with torch.no_grad():
        clean = network.encode_frames(picture).mean.transpose(0, 1)[None] * SPRITES.scale_factor
    request = Request("0", "", 1, 1, 32, 32, SamplingOptions(), IMAGE)
    clip = ClipState(request, picture, noise=None, x_1CTHW=clean, concat_1CTHW=clean)
    observer = Previews()
    for scale in (1.0, 0.3):
        step = SamplerStep(49, 19, 0.1, 0.2, 0.0, scale, scale)
        ProgressCounter(observer, 1).preview([clip], State(step, clean, clean * scale))
    first, second = observer.frames
    assert np.abs(first.astype(int) - second).max() <= 1


def test_without_room_for_the_decoder_the_map_shows_the_clip(network, monkeypatch):
    def full(self, z):
        raise MemoryError

    monkeypatch.setattr(TinyDecoder, "forward", full)
    frames, shown = made(network, IMAGE, TINY)
    assert frames is not None and all(one.shape[1:3] == (8, 8) for one in shown)


@pytest.mark.slow
def test_the_flag_asks_for_previews_and_a_wrong_one_is_told_first(tmp_path, capsys):
    flags = ["sample", "--config", "sprites", "--ddim_steps", "2", "--device", "cpu"]
    flags += ["--savedir", str(tmp_path / "out"), "--prompt_dir", str(one_prompt(tmp_path / "prompts"))]
    flags += ["--recipe", "edg_temporal_conv"]
    for wrong, code in ((str(tmp_path / "none.pt"), 3), ("", 2), ("taesd", 2)):
        assert main([*flags, "--preview_decoder", wrong]) == code
    assert "edg fetch taesd" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main([*flags, "--preview_decoder", "sprites"]) == 0
    assert len(list(tmp_path.glob("out/*/*.preview.png"))) == 1


def test_a_wrong_file_is_told_when_flags_are_checked_as_of_a_sweep(tmp_path):
    flags = {"config": "sprites", "recipe": "edg_temporal_conv"}
    check(SampleConfig.from_values({**flags, "preview_decoder": str(TINY)}))
    with pytest.raises(BadFileError):
        check(SampleConfig.from_values({**flags, "preview_decoder": str(WEIGHTS / "base.safetensors")}))


@pytest.mark.slow
def test_from_python_too():
    shown = []
    flags = {"steps": 2, "preview_decoder": "sprites", "device": "cpu"}
    load("sprites").animate(IMAGE, "a red circle", watch=lambda *told: shown.append(told[2].shape), **flags)
    assert set(shown) == {(8, 32, 32, 3)}


def read_pixels(path):
    return torch.tensor(read_image(path)).permute(2, 0, 1)[None] / 127.5 - 1


def one_prompt(folder):
    folder.mkdir()
    copy(IMAGE, folder)
    (folder / "prompts.txt").write_text("a red circle moves left\n")
    return folder
