"""Steps and patterns that meet nothing, and inputs that are changes to a model or lack a part of it."""

import json
from functools import partial

import pytest
import torch

from edg.cli.main import main
from edg.core.errors import BadFileError, UsageError
from edg.merging import lazy, merge, recipe
from edg.networks import family_of, open_weights
from edg.weights.export import export

UNET = "model.diffusion_model."
CONV = f"{UNET}input_blocks.1.0.temopral_conv.conv1.2.weight"
run, merged = partial(merge.run, family=family_of), partial(lazy.merged, family=family_of)

SLIP = {"op": "extrapolate", "alpha": 1.5, "where": "*temporal_conv*"}
REST = {"op": "copy", "of": "tuned"}
IDLE = {
    "a slip": [SLIP, REST],
    "one of two": [{**SLIP, "where": ["temporal_conv", "*temporal_conv*"]}, REST],
    "a kind that is not there": [{**SLIP, "where": "adapter"}],
    "letters": [{**SLIP, "where": "*.BIAS"}],
    "empty": [{**SLIP, "where": ""}],
    "only numbers that are copied": [{**SLIP, "where": "count*"}],
    "taken before": [{"op": "copy"}, {**SLIP, "where": "unet"}],
    "never reached": [REST, SLIP | {"where": []}],
    "optional for another": [{**SLIP, "where": ["unet", "*nowhere*", "adapter"], "optional": ["adapter"]}],
}  # fmt: skip


def of(files, steps, output="dyn"):
    inputs = {"base": str(files[0]), "tuned": str(files[1])}
    return recipe.from_dict({"inputs": inputs, "outputs": {output: steps}})


@pytest.fixture
def counted(tmp_path, base, tuned):
    """The two files, with a tensor of whole numbers."""
    for name, state in {"base": base, "tuned": tuned}.items():
        torch.save(state | {"count": torch.tensor(3)}, tmp_path / f"{name}.ckpt")
    return tmp_path / "base.ckpt", tmp_path / "tuned.ckpt"


@pytest.mark.parametrize("steps", IDLE.values(), ids=IDLE)
def test_a_step_or_pattern_that_meets_nothing_is_an_error(tmp_path, counted, steps):
    wanted = of(counted, steps)
    for attempt in (lambda: run(wanted, tmp_path / "out"), lambda: merged(wanted)):
        with pytest.raises(UsageError) as error:
            attempt()
        assert error.value.given.startswith("dyn: step ") and "optional: true" in error.value.fix
    assert not (tmp_path / "out").exists()


def test_the_error_names_output_step_pattern_and_the_nearest_names(tmp_path, files, capsys):
    with pytest.raises(UsageError) as error:
        merged(of(files, [SLIP, REST], "moving"))
    assert "moving: step 1 (extrapolate)" in error.value.given and "'*temporal_conv*'" in error.value.given
    assert repr(CONV) in error.value.fix and "'temporal_conv'" in error.value.fix
    path = tmp_path / "slip.json"
    path.write_text(json.dumps({"inputs": {"base": "", "tuned": ""}, "outputs": {"dyn": [SLIP, REST]}}))
    argv = ["merge", path, "--base", files[0], "--tuned", files[1], "--out", tmp_path / "out"]
    for more in ([], ["--dry-run"]):
        assert main([*map(str, argv), *more]) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("optional", [True, "*temporal_conv*", ["*temporal_conv*"]])
def test_who_means_it_says_so(tmp_path, files, tuned, optional):
    notes = []
    wanted = of(files, [{**SLIP, "optional": optional}, REST])
    run(wanted, tmp_path / "out", warn=notes.append)
    made = open_weights(tmp_path / "out" / "dyn.safetensors")
    assert all(torch.equal(made[name], tuned[name]) for name in tuned)
    assert any("*temporal_conv*" in note for note in notes)
    assert recipe.from_dict(recipe.to_dict(wanted)) == wanted
    assert recipe.same_result(recipe.to_dict(wanted)) == recipe.same_result(
        recipe.to_dict(of(files, [SLIP, REST]))
    )


def test_a_kind_that_is_not_there_is_not_what_was_meant(tmp_path):
    torch.save({"encoder.0.weight": torch.zeros(2), "netx.weight": torch.zeros(2)}, tmp_path / "x.pt")
    with pytest.raises(UsageError) as error:
        merged(of([tmp_path / "x.pt"] * 2, [{**SLIP, "where": "unet"}]), warn=lambda _: None)
    assert "'unet'" not in error.value.fix


def test_the_average_of_a_family_without_a_denoiser_is_the_base_with_a_note(tmp_path, capsys):
    for k, name in enumerate(("base.pt", "tuned.pt")):
        torch.save({"encoder.0.weight": torch.full((2,), float(k))}, tmp_path / name)
    argv = ["merge", "average", "--base", tmp_path / "base.pt", "--tuned", tmp_path / "tuned.pt", "--out"]
    assert main([str(item) for item in [*argv, tmp_path]]) == 0
    assert "'unet'" in capsys.readouterr().err
    assert open_weights(tmp_path / "merged.safetensors")["encoder.0.weight"].tolist() == [0, 0]


def test_optional_names_patterns_of_where():
    with pytest.raises(UsageError):
        of(("a", "b"), [{**SLIP, "optional": ["unet"]}])


@pytest.mark.parametrize("name", ["edg", "edg_anchored", "edg_temporal", "extrapolate", "task_arithmetic"])
def test_shipped_recipes_work_without_convolutions_in_time_or_adapter(tmp_path, base, tuned, name):
    for file, state in {"base": base, "tuned": tuned}.items():
        kept = {n: t for n, t in state.items() if "temopral" not in n and "init_attn" not in n}
        torch.save(kept, tmp_path / f"{file}.pt")
    argv = ["merge", name, "--base", tmp_path / "base.pt", "--tuned", tmp_path / "tuned.pt", "--dry-run"]
    assert main([str(item) for item in argv]) == 0


# ---- low-rank changes --------------------------------------------------------------------------------------

LORAS = {
    "kohya": ["lora_unet_a.lora_down.weight", "lora_unet_a.lora_up.weight", "lora_unet_a.alpha"],
    "peft": ["base_model.model.a.lora_A.weight", "base_model.model.a.lora_B.weight"],
    "diffusers": ["unet.a.to_q_lora.down.weight", "unet.a.to_q_lora.up.weight"],
    "lightning": [f"{UNET}a.lora_A.default.weight", f"{UNET}a.lora_B.default.weight"],
    "oft": ["oft_unet_a.oft_blocks", "oft_unet_a.alpha"],
    "boft": ["base_model.model.a.boft_R.default", "base_model.model.a.boft_s.default"],
    "ia3": ["base_model.model.a.ia3_l.weight"],
    "vera": ["base_model.model.a.vera_lambda_b", "base_model.model.a.vera_lambda_d"],
    "in one word": ["a.loraA.weight", "a.loraB.weight"],
    "lycoris": ["lycoris_a.hada_w1_a", "lycoris_a.hada_w1_b", "lycoris_a.lokr_w2", "lycoris_a.alpha"],
}  # fmt: skip


@pytest.mark.parametrize("names", LORAS.values(), ids=LORAS)
def test_a_lora_in_the_place_of_a_model_is_named(tmp_path, files, names):
    lora = tmp_path / "lora.pt"
    torch.save({name: torch.zeros(2, 2) for name in names}, lora)
    for pair in ((files[0], lora), (lora, files[1])):
        with pytest.raises(BadFileError) as error:
            merged(of(pair, [REST]))
        assert str(lora) in error.value.given and "LoRA" in error.value.given
    with pytest.raises(BadFileError):
        export(lora, tmp_path / "out.pt")
    flags = ["--dynamic_path", lora, "--consistency_path", files[1], "--savedir", tmp_path / "clips"]
    for config in ([], ["--config", "sprites"]):
        assert main(["sample", *map(str, flags), *config]) == 3
    assert len(merged(of((lora, lora), [REST]), warn=lambda _: None)["dyn"]) == len(names)


def test_half_an_adapter_is_not_taken_for_none(tmp_path, files, base, adapted):
    """The identity stands for an adapter that an input lacks as a whole, not for tensors that were lost."""
    third = dict(adapted)
    del third["queries"]
    torch.save(third, tmp_path / "third.pt")
    torch.save(adapted, tmp_path / "adapted.pt")
    with pytest.raises(UsageError) as error:
        merged(of((tmp_path / "adapted.pt", tmp_path / "third.pt"), [REST]))
    assert "'queries'" in error.value.given
    assert "queries" in merged(of((files[0], tmp_path / "adapted.pt"), [REST]), warn=lambda _: None)["dyn"]


def test_whole_numbers_keep_their_dtype_in_a_16_bit_merge(tmp_path, counted):
    inputs = {"base": str(counted[0]), "tuned": str(counted[1])}
    wanted = recipe.from_dict({"inputs": inputs, "outputs": {"m": [REST]}, "dtype": "float16"})
    run(wanted, tmp_path / "out", full=True)
    made = open_weights(tmp_path / "out" / "m.safetensors")
    assert made["count"].dtype == torch.int64 and made["count"] == 3 and made["betas"].dtype == torch.float16
