"""Names as frameworks leave them, brought to the published form."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from edg.cli.main import main
from edg.core.errors import BadFileError
from edg.networks import family_of, open_weights
from edg.networks.latent_video.keys import FAMILY
from edg.weights import keys
from edg.weights.export import export

UNET = "model.diffusion_model."
NAMES = [f"{UNET}{name}" for name in (
    "time_embed.0.weight", "init_attn.0.proj_in.weight", "input_blocks.1.0.in_layers.2.weight",
    "input_blocks.1.0.temopral_conv.conv1.2.weight", "input_blocks.1.2.cc_projection.bias", "out.2.bias",
)] + ["first_stage_model.quant_conv.weight", "cond_stage_model.model.logit_scale",
      "embedder.model.visual.proj", "image_proj_model.latents", "betas", "queries",
      "qformer.to_q.weight"]  # fmt: skip
REFERENCE = Path(__file__).parents[1] / "reference"
CONV = f"{UNET}input_blocks.1.0.temopral_conv.conv1.2.weight"
FSDP = "_fsdp_wrapped_module"
WRAPPED = {
    "compiled": lambda n: n.replace(UNET, f"{UNET}_orig_mod."),
    "compiled above": lambda n: n.replace("model.diffusion_model.", "model._orig_mod.diffusion_model."),
    "FSDP in blocks": lambda n: n.replace(".1.0.", f".{FSDP}.1.0.{FSDP}._fpw_module."),
    "checkpointed": lambda n: n.replace(".1.", ".1._checkpoint_wrapped_module.", 1),
    "DDP inside": lambda n: n.replace(UNET, f"{UNET}module."),
    "DDP above": lambda n: n.replace("model.diffusion_model.", "model.module.diffusion_model."),
    "DDP in front of some": lambda n: f"module.{n}" if n.startswith("model.") else n,
    "all at once": lambda n: "_forward_module." + n.replace(UNET, f"{UNET}module._orig_mod.{FSDP}."),
    "in front, foreign too": lambda n: "net.module." + n.replace("model.dif", "model._orig_mod.dif"),
    "before the last part": lambda n: ".".join([*n.split(".")[:-1], "_orig_mod", n.split(".")[-1]]),
    "others": lambda n: n.replace(UNET, f"{UNET}_ddp._flat._wrapped_module."),
    "in all but buffers": lambda n: f"module.{n}" if "." in n else n,
}  # fmt: skip


def normalise(names):
    return keys.normalise(names, FAMILY)


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_wrappers_are_taken_off_wherever_they_stand(wrap):
    wrapped = [wrap(name) for name in NAMES]
    assert wrapped != NAMES
    found, notes = normalise(wrapped)
    assert list(found) == NAMES and list(found.values()) == wrapped and notes


@pytest.mark.parametrize("file", sorted(REFERENCE.glob("keys_*.json.gz")), ids=lambda path: path.name)
def test_published_names_stay_and_come_back_from_any_wrapper(file):
    names = list(json.loads(gzip.decompress(file.read_bytes())))
    assert normalise(names) == ({name: name for name in names}, [])
    assert not keys.is_lora(names)
    for wrap in (WRAPPED["before the last part"], WRAPPED["all at once"], WRAPPED["DDP above"]):
        assert list(normalise([wrap(name) for name in names])[0]) == names


def test_parts_of_other_models_that_may_be_their_own_stay():
    names = ["encoder.module.weight", "encoder._module.bias", "module_list.0.weight", "head.module"]
    assert list(normalise(names)[0]) == names
    assert list(normalise(["a._orig_mod.w", "b.w"])[0]) == ["a.w", "b.w"]
    assert list(normalise(["module.a.module.w", "module.b"])[0]) == ["a.module.w", "b"]


def test_two_names_that_become_one_are_refused_with_both(tmp_path, base):
    twin = CONV.replace(UNET, f"{UNET}_orig_mod.")
    torch.save(base | {twin: base[CONV]}, tmp_path / "x.pt")
    with pytest.raises(BadFileError) as error:
        open_weights(tmp_path / "x.pt")
    assert repr(CONV) in error.value.given and repr(twin) in error.value.given


def test_wrapped_copies_of_averages_are_left_out():
    names = [f"module.{name}" for name in NAMES] + ["module.model_ema.decay", "module.model_ema.out2bias"]
    assert list(normalise(names)[0]) == NAMES


COPIES = {  # where the trained weights and where the averaged ones stand
    "below a Lightning module": ("model.", "model.model_ema."),
    "an object that averages": ("online_model.", "ema_model."),
    "beside": ("", "ema."),
    "wrapped": ("model.module.", "ema._orig_mod.module."),
    "words together": ("net.", "netEMA."),
    "distilled": ("student.", "teacher."),
}  # fmt: skip


@pytest.mark.parametrize("raw, copy", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("order", [1, -1])
def test_averaged_copies_in_front_of_names_are_left_out(raw, copy, order):
    trained = [raw + name for name in NAMES]
    copies = [f"{copy}decay", *(copy + name for name in NAMES)]
    for others in ([], ["loss.perceptual.weight", "step"]):
        found, notes = normalise([*(trained + copies)[::order], *others])
        assert set(found) == {*NAMES, *others} and notes
        assert {found[name] for name in NAMES} == set(trained)


def test_averaged_copies_alone_are_the_model():
    found, notes = normalise([f"ema_model.{name}" for name in NAMES] + ["initted", "step"])
    assert set(found) == {*NAMES, "initted", "step"} and notes


@pytest.mark.parametrize("both", [True, False])
def test_a_compiled_pair_merges_as_the_plain_one(tmp_path, base, tuned, files, both):
    for name, state in {"base": base if both else None, "tuned": tuned}.items():
        if state:
            torch.save({WRAPPED["compiled"](n): t for n, t in state.items()}, tmp_path / f"{name}.ckpt")
    out = tmp_path / "out"
    argv = ["merge", "edg_temporal_conv", "--base", files[0], "--tuned", files[1], "--out", out, "--full"]
    assert main([str(item) for item in argv]) == 0
    made = open_weights(out / "dyn.safetensors")
    assert set(made) == set(base)
    wanted = {n: t + 1.5 * (t - tuned[n]) if n == CONV else tuned[n] for n, t in base.items()}
    assert all(torch.equal(made[name], tensor) for name, tensor in wanted.items())
    export(tmp_path / "tuned.ckpt", tmp_path / "plain.pt", family=family_of)
    assert set(torch.load(tmp_path / "plain.pt")["state_dict"]) == set(tuned)
