"""Merging files: what comes out, for any block size, and what is refused."""

import dataclasses
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from hashlib import sha256

import pytest
import torch

from edg.core.errors import BadFileError, MachineError, UsageError
from edg.merging import merge, ops
from edg.merging.masks import BLOCK, keep_mask
from edg.merging.recipe import Recipe, edg_recipe, from_dict
from edg.merging.steps import Consistent, Copy, Dynamic
from edg.networks import family_of, open_weights
from edg.weights.store import write_safetensors

UNET = "model.diffusion_model."
CC = f"{UNET}input_blocks.1.2.cc_projection"


def run(recipe, out, **options):
    options.setdefault("warn", lambda text: None)
    return {
        made.output: open_weights(made.path) for made in merge.run(recipe, out, family=family_of, **options)
    }


def expected(name, p, s, recipe):
    """dyn and con of one tensor, from the formulas and the masks."""
    dyn, con = recipe.outputs["dyn"][0], recipe.outputs["con"][0]
    keep = 1 - dyn.drop_rate
    masks = {}
    for stream in ("deg", "adt"):
        if p.ndim != 1:
            masks[stream] = keep_mask(recipe.seed, name, stream, keep, 0, p.numel()).view(p.shape)
    return (
        ops.dynamic(p, s, masks.get("deg"), keep, dyn.alpha, dyn.beta),
        ops.consistent(p, s, masks.get("adt"), keep, con.alpha, con.beta, anchored=con.form == "anchored"),
    )


@pytest.mark.parametrize("form", ["pt", "safetensors"])
@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("con", ["released", "anchored"])
def test_dyn_and_con_are_the_formulas(tmp_path, files, base, tuned, form, full, con):
    recipe = edg_recipe(*map(str, files), con=con, con_alpha=0.9, seed=7)
    made = run(recipe, tmp_path / "out", full=full, format=form)
    assert set(made["dyn"]) == set(made["con"]) == set(base)
    for name in base:
        if base[name].ndim == 0:
            continue
        dyn, con_ = expected(name, base[name], tuned[name], recipe)
        assert torch.equal(made["dyn"][name], dyn), name
        assert torch.equal(made["con"][name], con_), name


def test_the_files_open_in_torch(tmp_path, files, base):
    run(edg_recipe(*map(str, files)), tmp_path / "out", full=True, format="pt")
    loaded = torch.load(tmp_path / "out" / "dyn.pt", weights_only=True)
    assert list(loaded["state_dict"]) == list(base)
    assert json.loads(loaded["edg"])["recipe"]["seed"] == 123


def test_identities_are_bit_equal(tmp_path, files, base, tuned):
    base["betas"][0] = -0.0
    torch.save({"state_dict": base}, files[0])
    recipe = edg_recipe(*map(str, files), dyn_alpha=0.0, dyn_beta=1.0, con_alpha=1.0, con_beta=0.0)
    made = run(recipe, tmp_path / "out", full=True)
    for name in base:
        assert bits(made["dyn"][name]) == bits(base[name]), name
        assert bits(made["con"][name]) == bits(tuned[name]), name


def bits(tensor):
    return tensor.reshape(-1).view(torch.uint8).tolist()


def test_where_both_agree_the_base_is_copied(tmp_path, base):
    base["betas"] = torch.tensor([-0.0, float("nan"), 1.0])
    write_safetensors(tmp_path / "a.safetensors", base)
    write_safetensors(tmp_path / "b.safetensors", base)
    recipe = edg_recipe(str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"))
    made = run(recipe, tmp_path / "out")
    assert all(bits(made["dyn"][name]) == bits(base[name]) for name in base)
    assert json.loads(made["dyn"].metadata["edg"])["stored"] == 0


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A tensor of more than two blocks that differs only in its last block, and one that differs
    everywhere."""
    folder = tmp_path_factory.mktemp("large")
    p = {"late.weight": torch.randn(5, BLOCK // 2), "all.weight": torch.randn(3, BLOCK), "n": torch.arange(3)}
    s = {
        "late.weight": p["late.weight"].clone(),
        "all.weight": p["all.weight"] + 0.1,
        "n": torch.arange(3) + 1,
    }
    s["late.weight"][-1, -5:] += 1
    torch.save(p, folder / "p.ckpt")
    torch.save(s, folder / "s.ckpt")
    return folder, p, s


def test_the_result_does_not_depend_on_the_block_size(tmp_path, large):
    folder, p, s = large
    recipe = edg_recipe(str(folder / "p.ckpt"), str(folder / "s.ckpt"))
    contents = []
    for count in (1, 2, 8):
        out = tmp_path / str(count)
        run(recipe, out, block=count * BLOCK)
        contents.append([sha256((out / f"{n}.safetensors").read_bytes()).hexdigest() for n in ("dyn", "con")])
    assert contents[0] == contents[1] == contents[2]
    made = run(recipe, tmp_path / "full", full=True)
    sparse = open_weights(tmp_path / "1" / "dyn.safetensors")
    for name in ("late.weight", "all.weight"):
        dyn, con = expected(name, p[name], s[name], recipe)
        assert torch.equal(made["dyn"][name], dyn) and torch.equal(sparse[name], dyn)
        assert torch.equal(made["con"][name], con)
    assert torch.equal(made["con"]["n"], p["n"])  # integers are copied from the base
    with pytest.raises(UsageError):
        merge.run(recipe, tmp_path, block=1000)


def test_the_mask_hits_the_share_it_should(tmp_path, large):
    folder, p, s = large
    made = run(edg_recipe(str(folder / "p.ckpt"), str(folder / "s.ckpt")), tmp_path)
    moved = made["dyn"]["all.weight"] != p["all.weight"]
    assert abs(moved.float().mean().item() - 0.3) < 2e-3
    step = made["dyn"]["all.weight"] - p["all.weight"]
    assert torch.allclose(step[moved], torch.tensor(-0.1 * 0.1875 / 0.3), atol=1e-5)


def test_0d_tensors_are_masked_as_released_only(tmp_path, base):
    name = "cond_stage_model.model.logit_scale"
    tuned = base | {name: base[name] + 1}
    write_safetensors(tmp_path / "a.safetensors", base)
    write_safetensors(tmp_path / "b.safetensors", tuned)
    found = {}
    for con in ("released", "anchored"):
        recipe = edg_recipe(str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), con=con)
        found[con] = run(recipe, tmp_path / con)["dyn"][name] - base[name]
    assert torch.isclose(found["anchored"], torch.tensor(-0.1875), atol=1e-6)
    assert min(abs(found["released"].item() - v) for v in (0.0, -0.625)) < 1e-6


# --- names, shapes, adapters
# -------------------------------------------------------------------------------------


@pytest.fixture
def with_adapter(tmp_path, base, adapted):
    write_safetensors(tmp_path / "base.safetensors", base)
    write_safetensors(tmp_path / "adapted.safetensors", adapted)
    return str(tmp_path / "base.safetensors"), str(tmp_path / "adapted.safetensors")


def test_the_identity_stands_for_a_missing_adapter(tmp_path, with_adapter, base, adapted):
    notes = []
    recipe = edg_recipe(*with_adapter, dyn_alpha=0.5, dyn_beta=1.0, drop_rate=0.0, con_beta=0.5)
    made = run(recipe, tmp_path / "out", warn=notes.append)
    identity = torch.cat([torch.eye(4), torch.zeros(4, 6)], 1)
    weight, bias = adapted[f"{CC}.weight"], adapted[f"{CC}.bias"]
    assert torch.allclose(made["dyn"][f"{CC}.weight"], identity + 0.5 * (identity - weight))
    assert torch.allclose(made["dyn"][f"{CC}.bias"], -0.5 * bias)
    assert torch.allclose(made["con"][f"{CC}.weight"], weight + 0.5 * (weight - identity))
    for name in ("queries", "qformer.to_q.weight"):
        assert torch.equal(made["dyn"][name], adapted[name]) and torch.equal(made["con"][name], adapted[name])
    assert any("adapter" in note for note in notes)


def test_a_base_copy_with_identity_adapter_is_stored(tmp_path, with_adapter, adapted):
    recipe = Recipe(inputs=dict(zip(("base", "tuned"), with_adapter, strict=True)), outputs={"x": (Copy(),)})
    made = run(recipe, tmp_path / "out")["x"]
    assert torch.equal(made[f"{CC}.weight"], torch.cat([torch.eye(4), torch.zeros(4, 6)], 1))
    assert set(made) == set(adapted)


def test_identity_reads_any_part():
    from edg.merging.align import IdentityProjection
    from edg.weights.tensors import TensorInfo

    whole = torch.cat([torch.eye(5), torch.zeros(5, 3)], 1).reshape(-1)
    source = IdentityProjection(TensorInfo((5, 8), "float32"))
    for start in range(40):
        for count in (1, 3, 40 - start):
            out = torch.full((min(count, 40 - start),), 9.0)
            source.read_into(start, out)
            assert torch.equal(out, whole[start : start + out.numel()])


def test_drop_is_the_released_way(tmp_path, with_adapter, base):
    made = run(edg_recipe(*with_adapter, missing="drop"), tmp_path / "out", full=True)
    assert set(made["dyn"]) == set(base)
    turned = run(edg_recipe(*with_adapter[::-1], missing="drop"), tmp_path / "turned")
    assert set(turned["dyn"]) == set(base)  # dropped although the referenced base has them


def test_missing_error_and_foreign_names(tmp_path, with_adapter, base):
    with pytest.raises(UsageError, match="identity"):
        run(edg_recipe(*with_adapter, missing="error"), tmp_path / "out")
    write_safetensors(tmp_path / "more.safetensors", base | {f"{UNET}new": torch.ones(1)})
    with pytest.raises(UsageError, match="new"):
        run(edg_recipe(with_adapter[0], str(tmp_path / "more.safetensors")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_prefix_is_guessed(tmp_path):
    state = {f"layers.{i}.weight": torch.ones(2) for i in range(12)}
    write_safetensors(tmp_path / "a.safetensors", state)
    write_safetensors(tmp_path / "b.safetensors", {f"student.{n}": t for n, t in state.items()})
    with pytest.raises(UsageError, match="student."):
        run(edg_recipe(str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")), tmp_path / "out")


def test_shapes_must_agree(tmp_path, files, base):
    write_safetensors(tmp_path / "b.safetensors", base | {f"{UNET}out.2.bias": torch.ones(5)})
    with pytest.raises(UsageError, match="out.2.bias"):
        run(edg_recipe(str(files[0]), str(tmp_path / "b.safetensors")), tmp_path / "out")


def test_foreign_families_get_one_line(tmp_path):
    for name in "ab":
        write_safetensors(tmp_path / f"{name}.safetensors", {"layer.weight": torch.randn(2, 2)})
    notes = []
    paths = [str(tmp_path / f"{name}.safetensors") for name in "ab"]
    run(edg_recipe(*paths), tmp_path / "out", warn=notes.append)
    assert [n for n in notes if "unknown model family" in n] == notes
    run(edg_recipe(paths[0], paths[0]), tmp_path / "out", warn=notes.append)
    assert any("same file" in note for note in notes)


# --- dtypes and values
# -------------------------------------------------------------------------------------------


def test_dtypes(tmp_path, base, tuned):
    write_safetensors(tmp_path / "a.safetensors", {n: t.half() for n, t in base.items()})
    write_safetensors(tmp_path / "b.safetensors", {n: t.bfloat16() for n, t in tuned.items()})
    paths = [str(tmp_path / f"{name}.safetensors") for name in "ab"]
    name = f"{UNET}input_blocks.1.2.norm.weight"
    p, s = base[name].half().float(), tuned[name].bfloat16().float()
    for dtype, wanted in (("", torch.float16), ("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        made = run(edg_recipe(*paths, dtype=dtype), tmp_path / f"out{dtype}")["dyn"]
        assert all(made[n].dtype == wanted for n in made)
        assert torch.equal(made[name], ops.dynamic(p, s, None, 0.3, 0.25, 0.75).to(wanted))


def test_float16_overflow_is_an_error(tmp_path):
    for name, value in (("a", 6e4), ("b", 1.0)):
        write_safetensors(tmp_path / f"{name}.safetensors", {"w": torch.full((4,), value).half()})
    recipe = from_dict(
        {"inputs": {n: str(tmp_path / f"{n}.safetensors") for n in "ab"},
         "outputs": {"x": [{"op": "extrapolate", "alpha": 1.0}]}}
    )  # fmt: skip
    with pytest.raises(UsageError, match=" w "):
        run(recipe, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_nan_is_named(tmp_path, files, base, tuned):
    name = f"{UNET}out.2.bias"
    tuned[name][1] = float("nan")
    torch.save(tuned, files[1])
    notes = []
    run(edg_recipe(*map(str, files)), tmp_path / "out", warn=notes.append)
    assert notes == [f"warning: tuned: {name} holds 1 values that are NaN or infinite"]
    with pytest.raises(BadFileError):
        run(edg_recipe(*map(str, files)), tmp_path / "strict", strict=True)
    assert list((tmp_path / "strict").iterdir()) == []


# --- other steps on files
# ----------------------------------------------------------------------------------------


def test_ties_on_files_equals_whole_vectors(tmp_path):
    """Against an independent computation over the concatenated model."""
    shapes = {"a.weight": (3, 700), "b.weight": (5, 40), "c.bias": (17,)}
    models = [{n: torch.randn(s) for n, s in shapes.items()} for _ in range(4)]
    for index, model in enumerate(models):
        torch.save(model, tmp_path / f"{index}.ckpt")
    step = {"op": "ties", "scaling": 0.4, "drop_rate": 0.7}
    recipe = from_dict(
        {"inputs": {f"m{i}": str(tmp_path / f"{i}.ckpt") for i in range(4)}, "outputs": {"x": [step]}}
    )
    made = run(recipe, tmp_path / "out")["x"]
    flat = [torch.cat([model[n].reshape(-1) for n in shapes]) for model in models]
    deltas = torch.stack([f - flat[0] for f in flat[1:]])
    kth = (
        deltas.abs().kthvalue(flat[0].numel() - int(flat[0].numel() * (1 - 0.7)), dim=1, keepdim=True).values
    )
    deltas = deltas * (deltas.abs() >= kth)
    sign = deltas.sum(0).sign()
    agree = deltas * (deltas.sign() == sign)
    merged = flat[0] + 0.4 * agree.sum(0) / (agree != 0).sum(0).clamp(min=1)
    assert torch.allclose(torch.cat([made[n].reshape(-1) for n in shapes]), merged, atol=1e-6)


@pytest.mark.parametrize(
    "step, formula",
    [
        ({"op": "extrapolate", "alpha": 0.5}, lambda p, s: p + 0.5 * (p - s)),
        ({"op": "linear", "weights": [0.25, 0.75]}, lambda p, s: 0.25 * p + 0.75 * s),
        ({"op": "average"}, lambda p, s: s),
        ({"op": "task_arithmetic", "scaling": 2.0}, lambda p, s: p + 2 * (s - p)),
        ({"op": "magnitude", "density": 0.5, "scaling": 2.0}, lambda p, s: p + 2 * ops.magnitude(s - p, 0.5)),
        ({"op": "svd", "rank": 1}, lambda p, s: p + ops.svd_rank(s - p, rank=1)),
        ({"op": "copy", "of": "tuned"}, lambda p, s: s),
        ({"op": "extrapolate", "alpha": 1.0, "where": ["temporal"]}, None),
    ],
)
def test_steps_on_files(tmp_path, files, base, tuned, step, formula):
    data = {"inputs": dict(zip(("base", "tuned"), map(str, files), strict=True)), "outputs": {"x": [step]}}
    made = run(from_dict(data), tmp_path / "out")["x"]
    for name, p in base.items():
        moved = p + (p - tuned[name]) if ".1.2." in name else p
        wanted = formula(p, tuned[name]) if formula else moved
        assert torch.allclose(made[name], wanted, atol=1e-6), name


# --- references to the base
# --------------------------------------------------------------------------------------


@pytest.fixture
def sparse(tmp_path, files, monkeypatch):
    """dyn.safetensors in a folder of its own that refers to a base elsewhere."""
    monkeypatch.delenv("CKPT_PATH", raising=False)
    monkeypatch.chdir(tmp_path)
    run(edg_recipe(*map(str, files)), tmp_path / "first")
    (tmp_path / "moved").mkdir()
    shutil.move(tmp_path / "first" / "dyn.safetensors", tmp_path / "moved" / "dyn.safetensors")
    return tmp_path / "moved" / "dyn.safetensors"


def test_the_base_is_found_where_it_was_beside_and_under_ckpt_path(
    tmp_path, files, base, sparse, monkeypatch
):
    whole = {n: t for n, t in open_weights(sparse).items()}
    assert set(whole) == set(base)
    for place in (sparse.parent, tmp_path / "ckpt", tmp_path / "ckpt" / tmp_path.name):
        place.mkdir(exist_ok=True)
        shutil.move(files[0], place / "base.ckpt")
        monkeypatch.setenv("CKPT_PATH", str(tmp_path / "ckpt"))
        found = open_weights(sparse)
        assert all(torch.equal(found[n], whole[n]) for n in whole)
        shutil.move(place / "base.ckpt", files[0])


def test_a_missing_or_changed_base_is_exit_3(tmp_path, files, sparse):
    data = bytearray(files[0].read_bytes())
    data[open_weights(files[0]).tensors["betas"].where[1]] ^= 1
    files[0].write_bytes(data)
    with pytest.raises(BadFileError):
        open_weights(sparse)
    files[0].unlink()
    with pytest.raises(BadFileError) as caught:
        open_weights(sparse)
    assert caught.value.exit_code == 3


def test_hashes_and_recipe_are_in_the_file_and_beside_it(tmp_path, files):
    run(edg_recipe(*map(str, files), seed=5), tmp_path / "out")
    record = open_weights(tmp_path / "out" / "con.safetensors").provenance
    assert record == json.loads((tmp_path / "out" / "con.safetensors.json").read_text())
    assert [item["sha256"] for item in record["inputs"]] == [
        sha256(f.read_bytes()).hexdigest() for f in files
    ]
    recipe = from_dict(record["recipe"])
    assert recipe.seed == 5 and isinstance(recipe.outputs["dyn"][0], Dynamic)
    assert isinstance(recipe.outputs["con"][0], Consistent)


# --- refusals, disk, kills
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", ["same", "symlink", "hardlink"])
def test_an_output_that_is_an_input_is_refused(tmp_path, base, tuned, link):
    write_safetensors(tmp_path / "dyn.safetensors", base)
    write_safetensors(tmp_path / "tuned.safetensors", tuned)
    source = tmp_path / "dyn.safetensors"
    if link != "same":
        source = tmp_path / "other.safetensors"
        (os.symlink if link == "symlink" else os.link)(tmp_path / "dyn.safetensors", source)
    before = source.read_bytes()
    with pytest.raises(UsageError):
        run(edg_recipe(str(source), str(tmp_path / "tuned.safetensors")), tmp_path)
    assert source.read_bytes() == before


def test_disk_space_is_checked_first(tmp_path, files, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(MachineError) as caught:
        run(edg_recipe(*map(str, files)), tmp_path / "out", full=True)
    assert caught.value.exit_code == 4 and not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made(tmp_path, files):
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(UsageError):
        run(edg_recipe(*map(str, files)), tmp_path / "out")
    with pytest.raises(MachineError):
        run(edg_recipe(*map(str, files)), tmp_path / "out" / "deeper")


KILLED = """
import sys
from edg.merging import merge
from edg.merging.recipe import edg_recipe
print("ready", flush=True)
merge.run(edg_recipe(sys.argv[1], sys.argv[2]), sys.argv[3], full=True, format="pt")
"""


@pytest.mark.slow
def test_killed_at_any_moment_the_result_is_whole_or_absent(tmp_path, large):
    folder, _, _ = large
    out, chance = tmp_path / "out", random.Random(0)
    arguments = [sys.executable, "-c", KILLED, str(folder / "p.ckpt"), str(folder / "s.ckpt"), str(out)]
    for _ in range(3):
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        time.sleep(chance.uniform(0.0, 0.25))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        for made in out.glob("*.pt"):
            assert open_weights(made).verify() == 3
            made.unlink()
    merge.run(edg_recipe(str(folder / "p.ckpt"), str(folder / "s.ckpt")), out, full=True, format="pt")
    assert sorted(p.name for p in out.iterdir()) == ["con.pt", "con.pt.json", "dyn.pt", "dyn.pt.json"]


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite"])
def test_a_full_disk_leaves_nothing(tmp_path, files, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(MachineError) as caught:
        run(edg_recipe(*map(str, files)), tmp_path / "out", full=True, format="pt")
    assert caught.value.exit_code == 4 and list((tmp_path / "out").iterdir()) == []


MEASURED = """
import resource, sys
from edg.merging import merge
from edg.merging.recipe import edg_recipe
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
merge.run(edg_recipe(sys.argv[1], sys.argv[2]), sys.argv[3], full=True, format="pt")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_follow_the_size_of_the_files(tmp_path):
    """Two files of 128 MB each, in tensors of 64 MB, are merged in much less."""
    for name in "ps":
        torch.save({f"{n}.weight": torch.rand(16, BLOCK) for n in "ab"}, tmp_path / f"{name}.ckpt")
    paths = [str(tmp_path / name) for name in ("p.ckpt", "s.ckpt", "out")]
    grown = subprocess.run(
        [sys.executable, "-c", MEASURED, *paths], check=True, capture_output=True, text=True
    )
    assert int(grown.stdout) < 160  # MiB


def test_a_finished_merge_is_not_made_again(tmp_path, files, capsys):
    from edg.cli.merge import merge_and_report

    recipe = edg_recipe(*map(str, files), seed=5)

    def merge(recipe, **options):
        capsys.readouterr()
        merge_and_report(recipe, tmp_path / "out", full=True, format="pt", quiet=True, **options)
        return "already finished" in capsys.readouterr().out

    assert not merge(recipe)
    assert merge(recipe)
    assert not merge(recipe, overwrite=True)
    assert not merge(dataclasses.replace(recipe, seed=6))
    assert not merge(recipe)
    (tmp_path / "out" / "con.pt").unlink()
    assert not merge(recipe)
    os.utime(files[1])  # another time, the same content
    assert merge(recipe)
    shutil.copy(files[0], files[1])
    assert not merge(recipe)


def test_an_input_replaced_during_the_merge_does_not_poison_the_hashes(tmp_path, files, tuned, monkeypatch):
    from edg.core.hashing import cached_sha256

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copy(files[0], tmp_path / "other")

    def replace(done, total):
        if (tmp_path / "other").exists():
            os.replace(tmp_path / "other", files[1])

    with pytest.raises(BadFileError):
        run(edg_recipe(*map(str, files)), tmp_path / "out", progress=replace)
    assert not list((tmp_path / "out").iterdir())
    assert cached_sha256(files[1]) == sha256(files[1].read_bytes()).hexdigest()


def test_a_merge_remembers_the_hashes_of_its_inputs(tmp_path, files, monkeypatch):
    from edg.core import hashing

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run(edg_recipe(*map(str, files)), tmp_path / "out", full=True)
    monkeypatch.setattr(hashing, "sha256_file", lambda path: "not remembered")
    assert hashing.cached_sha256(files[1]) == sha256(files[1].read_bytes()).hexdigest()


def test_safetensors_hold_wide_tensors_first(tmp_path):
    """So that every tensor begins at a multiple of its own size."""
    state = {"a.w": torch.ones(3).half(), "b.w": torch.ones(3).double(), "c.w": torch.ones(3)}
    torch.save(state, tmp_path / "x.pt")
    steps = {"m": [{"op": "copy"}]}
    wanted = from_dict({"inputs": {"base": str(tmp_path / "x.pt")}, "outputs": steps})
    merge.run(wanted, tmp_path / "out", full=True)
    data = (tmp_path / "out" / "m.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    starts = [header[name]["data_offsets"][0] for name in ("b.w", "c.w", "a.w")]
    assert starts == [0, 24, 36]
