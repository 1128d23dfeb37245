"""Two checkpoints that do not go together, or change while they are merged: cases 30 to 43."""

import json
import os
import shutil

import pytest
import safetensors.torch
import torch
from runs import given_of

from edg.cli import merge as commands
from edg.weights.store import open_weights

UNET = "model.diffusion_model."
BIAS = f"{UNET}out.2.bias"


@pytest.fixture
def merge(tmp_path, tiny, command):
    """merge(*flags): `edg merge` of the pair into tmp_path/out, the recipe `edg` unless told otherwise."""

    def run(*flags, recipe="edg", base=tiny.base, tuned=tiny.tuned, quiet=True):
        files = ["--base", base, "--tuned", tuned, "--out", tmp_path / "out"]
        return command(["merge", recipe, *files, *["--quiet"] * quiet, *flags])

    return run


def change(path, edit):
    """Save a checkpoint again with edit(state) -> state."""
    state = torch.load(path, weights_only=True)["state_dict"]
    torch.save({"state_dict": edit(state)}, path)


def recipe(tmp_path, **step):
    (tmp_path / "recipe.yaml").write_text(
        json.dumps({"inputs": {"base": "", "tuned": ""}, "outputs": {"x": [step]}})
    )
    return tmp_path / "recipe.yaml"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_c30_nan_or_inf_is_named_and_strict_refuses(tmp_path, tiny, merge, bad):
    change(tiny.tuned, lambda state: state | {BIAS: torch.tensor([0.0, bad, bad, 1.0])})
    code, err = merge()
    assert code == 0 and f"tuned: {BIAS}" in err
    shutil.rmtree(tmp_path / "out")
    code, err = merge("--strict")
    assert code == 3 and BIAS in given_of(err) and "--strict" in err
    assert not list((tmp_path / "out").iterdir())


def test_c31_float16_overflow_is_refused(tmp_path, tiny, merge):
    for path, value in ((tiny.base, 6e4), (tiny.tuned, -6e4)):
        change(path, lambda state, value=value: {BIAS: torch.full((4,), value).half()})
    extrapolate = recipe(tmp_path, op="extrapolate", alpha=1.0)
    code, err = merge(recipe=extrapolate)
    assert code == 2 and BIAS in given_of(err) and "float16" in given_of(err)
    assert not list((tmp_path / "out").iterdir())
    assert merge("--dtype", "float32", recipe=extrapolate)[0] == 0
    assert open_weights(tmp_path / "out" / "x.safetensors")[BIAS].tolist() == [180000.0] * 4


def test_c32_dtypes_are_mixed_in_float32_and_counters_copied(tmp_path, tiny, merge):
    counter = f"{UNET}input_blocks.1.0.norm.num_batches_tracked"
    change(tiny.base, lambda s: {n: t.half() for n, t in s.items()} | {counter: torch.tensor(7)})
    change(tiny.tuned, lambda s: {n: t.bfloat16() for n, t in s.items()} | {counter: torch.tensor(9)})
    base, tuned = open_weights(tiny.base), open_weights(tiny.tuned)
    assert merge("--full", recipe="average")[0] == 0
    made = open_weights(tmp_path / "out" / "merged.safetensors")
    assert made[counter].dtype == torch.int64 and made[counter] == 7
    assert torch.equal(made[BIAS], ((base[BIAS].float() + tuned[BIAS].float()) / 2).half())


def test_c33_shapes_that_differ_are_listed(tmp_path, tiny, merge):
    wide = {f"{UNET}input_blocks.{i}.0.op.weight": torch.ones(4, 4) for i in range(12)}
    change(tiny.base, lambda state: state | wide)
    change(tiny.tuned, lambda state: state | {name: torch.ones(4, 8) for name in wide})
    code, err = merge()
    assert code == 2 and err.count(" vs ") == 10, "no more are listed"
    assert f"{UNET}input_blocks.0.0.op.weight" in err and "(4, 4)" in err and "(4, 8)" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("prefix", ["module.", "_forward_module.", "model.", "net.inner."])
def test_c34_names_with_a_prefix_are_understood(tiny, merge, prefix):
    change(tiny.tuned, lambda state: {prefix + name: tensor for name, tensor in state.items()})
    code, err = merge()
    assert code == 0 and repr(prefix) in err


def test_c34_a_foreign_prefix_is_guessed(tmp_path, tiny, merge):
    foreign = {f"layers.{i}.weight": torch.ones(2) for i in range(12)}
    change(tiny.base, lambda _: foreign)
    change(tiny.tuned, lambda _: {f"student.{name}": tensor for name, tensor in foreign.items()})
    code, err = merge()
    assert code == 2 and "'student.'" in err


def test_c35_extra_keys_are_listed_and_left_out_by_rule(tmp_path, tiny, merge):
    change(tiny.tuned, lambda state: state | {f"{UNET}extra": torch.ones(2)})
    code, err = merge()
    assert code == 2 and f"'{UNET}extra'" in given_of(err) and "drop" in err
    assert merge("--missing", "drop", "--full")[0] == 0
    assert f"{UNET}extra" not in open_weights(tmp_path / "out" / "dyn.safetensors")


def test_c36_deepspeed_prefix_is_found_from_the_data(tmp_path, tiny, state, merge):
    torch.save(
        {"module": {f"_forward_module.{n}": t for n, t in state.items()}, "dp_world_size": 8}, tiny.base
    )
    code, err = merge("--full")
    assert code == 0 and "'_forward_module.'" in err
    assert set(open_weights(tmp_path / "out" / "dyn.safetensors")) == set(state)


def test_c36_zero_shards_get_the_hint(tmp_path, command):
    folder = tmp_path / "global_step100"
    folder.mkdir()
    torch.save({"optimizer_state_dict": {}}, folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    code, err = command(["info", folder])
    assert code == 3 and "zero_to_fp32.py" in err


def test_c37_averaged_copies_are_left_alone(tiny, state, merge, command):
    """The raw weights count; the copies, whose names have no dots, and their counters are noted."""
    copies = {"model_ema." + name.replace(".", ""): t + 9 for name, t in state.items()}
    copies |= {"model_ema.decay": torch.tensor(0.99), "model_ema.num_updates": torch.tensor(3)}
    change(tiny.base, lambda state: state | copies)
    assert merge()[0] == 0 and command(["info", tiny.base])[0] == 0
    assert f"{len(copies)} EMA keys ignored" in command.out
    assert torch.equal(open_weights(tiny.base)[BIAS], state[BIAS])


def test_c38_the_old_name_of_the_frame_rate_embedding(tmp_path, tiny, merge):
    old, new = f"{UNET}framestride_embed.0.weight", f"{UNET}fps_embedding.0.weight"
    change(tiny.base, lambda state: state | {old: torch.ones(4, 4)})
    change(tiny.tuned, lambda state: state | {new: torch.zeros(4, 4)})
    code, err = merge("--full", recipe="average")
    assert code == 0 and "framestride_embed" in err and "fps_embedding" in err
    assert torch.equal(open_weights(tmp_path / "out" / "merged.safetensors")[new], torch.full((4, 4), 0.5))


@pytest.mark.parametrize("zipped", [True, False])
def test_c39_views_strides_and_shared_storages_equal_torch_load(tmp_path, command, zipped):
    shared = torch.arange(60.0)
    state = {
        "tied": shared, "tied again": shared, "view": shared[7:19].view(3, 4),
        "transposed": shared.view(6, 10).T,
        "strided": shared.view(6, 10)[::2, 1::3], "scalar": torch.tensor(2.5), "empty": torch.empty(0, 5),
        "expanded": torch.tensor([1.0, 2.0]).expand(3, 2), "half": torch.randn(5).half(),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }  # fmt: skip
    path = tmp_path / "x.ckpt"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    ours, theirs = open_weights(path), torch.load(path, weights_only=True)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    merge = [
        "merge",
        "extrapolate",
        "--base",
        path,
        "--tuned",
        path,
        "--out",
        tmp_path / "out",
        "--full",
        "--quiet",
    ]
    assert command(merge)[0] == 0
    made = safetensors.torch.load_file(tmp_path / "out" / "extrapolated.safetensors")
    assert all(torch.equal(made[name], tensor) for name, tensor in theirs.items())


def test_c39_a_tiny_storage_cannot_stand_for_a_huge_tensor(tmp_path, command):
    torch.save({"a": torch.zeros(1).expand(1 << 15, 1 << 15)}, tmp_path / "x.ckpt")
    code, err = command(["info", tmp_path / "x.ckpt"])
    assert code == 3 and "(32768, 32768)" in given_of(err)


@pytest.mark.parametrize("link", ["same", "symlink", "hardlink"])
def test_c40_both_inputs_are_one_file(tmp_path, tiny, merge, link):
    other = tiny.base if link == "same" else tmp_path / "other.ckpt"
    if link != "same":
        (os.symlink if link == "symlink" else os.link)(tiny.base, other)
    code, err = merge(tuned=other)
    assert code == 0 and "base" in err and "tuned" in err


@pytest.mark.parametrize("link", ["same", "symlink", "hardlink"])
def test_c41_an_output_that_is_an_input_is_refused(tmp_path, tiny, state, merge, link):
    out = tmp_path / "out"
    out.mkdir()
    target = source = out / "dyn.safetensors"
    safetensors.torch.save_file(state, target)
    if link != "same":
        source = tmp_path / "other.safetensors"
        (os.symlink if link == "symlink" else os.link)(target, source)
    before = target.read_bytes()
    code, err = merge(base=source)
    assert code == 2 and str(target) in given_of(err) and str(source) in given_of(err)
    assert target.read_bytes() == before and [path.name for path in out.iterdir()] == [target.name]


@pytest.mark.parametrize("how", ["written", "replaced", "removed"])
def test_c42_an_input_that_changes_during_the_merge(tmp_path, tiny, merge, monkeypatch, how):
    def meddle(done, total):
        if how == "written":
            os.utime(tiny.tuned, ns=(1, 1))
        elif how == "removed":
            tiny.tuned.unlink(missing_ok=True)
        elif not (tmp_path / "done").exists():
            shutil.copy(tiny.base, tmp_path / "done")
            os.replace(shutil.copy(tiny.base, tmp_path / "new"), tiny.tuned)

    monkeypatch.setattr(commands, "byte_progress", lambda title: meddle)
    code, err = merge(quiet=False)
    assert code == 3 and str(tiny.tuned) in given_of(err)
    assert not list((tmp_path / "out").iterdir())


def shards(folder, state):
    names = list(state)
    parts = {"a.safetensors": names[:2], "b.safetensors": names[2:]}
    for file, part in parts.items():
        safetensors.torch.save_file({name: state[name] for name in part}, folder / file)
    table = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))


@pytest.mark.parametrize("damage", ["missing", "truncated", "elsewhere", "short"])
def test_c43_an_index_whose_shards_are_not_all_there(tmp_path, state, command, damage):
    folder = tmp_path / "sharded"
    folder.mkdir()
    shards(folder, state)
    assert command(["info", folder])[0] == 0
    shard, index = folder / "b.safetensors", folder / "model.safetensors.index.json"
    if damage == "missing":
        shard.unlink()
    elif damage == "truncated":
        os.truncate(shard, shard.stat().st_size - 1)
    elif damage == "elsewhere":
        index.write_text(json.dumps({"weight_map": {"x": "../../etc/passwd"}}))
    else:
        safetensors.torch.save_file({}, shard)
    given = {
        "missing": "b.safetensors",
        "truncated": "b.safetensors",
        "elsewhere": "index.json",
        "short": "3",
    }
    for path in (folder, index):
        code, err = command(["info", path])
        assert code == 3 and given[damage] in given_of(err)
