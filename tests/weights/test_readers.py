"""Whatever torch.load and safe_open read, our readers read equally."""

import json
import struct
import zipfile
from collections import OrderedDict

import pytest
import safetensors.torch
import torch

from edg.cli.main import main
from edg.core.errors import BadFileError
from edg.networks import open_weights
from edg.weights.store import Weights


def layouts():
    storage = torch.arange(60.0)
    return {
        "plain": torch.randn(3, 4),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 5),
        "view": storage[7:19].view(3, 4),
        "shared": storage.view(6, 10)[2:5],
        "transposed": torch.randn(4, 6).t(),
        "strided": torch.arange(40.0).view(5, 8)[::2, 1::3],
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "expanded": torch.tensor([1.0, 2.0]).expand(3, 2),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "half": torch.randn(5).half(),
        "bfloat16": torch.randn(5).bfloat16(),
        "double": torch.randn(2, 2).double(),
        "long": torch.arange(4),
        "int8": torch.arange(4, dtype=torch.int8),
        "uint8": torch.arange(4, dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "complex": torch.randn(3, dtype=torch.complex64),
        "one": torch.randn(1, 1, 3)[:, :, :1],
    }


def assert_same(weights, tensors):
    assert set(weights) == set(tensors)
    for name, tensor in tensors.items():
        assert weights.info(name).shape == tuple(tensor.shape), name
        assert weights[name].dtype == tensor.dtype, name
        assert torch.equal(weights[name], tensor), name
        flat = torch.empty(tensor.numel(), dtype=tensor.dtype)
        for start in range(0, tensor.numel(), 3):
            weights.read_into(name, start, flat[start : start + 3])
        assert torch.equal(flat, tensor.detach().reshape(-1)), name


@pytest.mark.parametrize("zipped", [True, False])
def test_equals_torch_load_for_every_layout(tmp_path, zipped):
    path = tmp_path / "x.ckpt"
    torch.save(layouts(), path, _use_new_zipfile_serialization=zipped)
    weights = open_weights(path)
    assert weights.container == ("zip" if zipped else "legacy")
    assert_same(weights, torch.load(path, weights_only=True))


def test_safetensors(tmp_path):
    tensors = {n: t.detach().contiguous().clone() for n, t in layouts().items()}
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors", metadata={"a": "b"})
    weights = open_weights(tmp_path / "x.safetensors")
    assert_same(weights, tensors)
    assert weights.metadata == {"a": "b"}


@pytest.mark.parametrize("metadata", [None, {}, {"a": "b"}])
def test_metadata_as_safetensors_reads_it(tmp_path, metadata):
    path = tmp_path / "x.safetensors"
    header = {"__metadata__": metadata, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + struct.pack("<f", 2.5))
    assert_same(open_weights(path), safetensors.torch.load_file(path))
    assert open_weights(path).metadata == (metadata or {})


FLOAT8 = ["float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float8_e4m3fnuz", "float8_e5m2fnuz"]


@pytest.mark.parametrize("dtype", FLOAT8)
def test_float8_is_read_written_and_merged(tmp_path, dtype):
    name = "model.diffusion_model.a"
    half = {name: torch.tensor([[0.5, 1.0], [2.0, 4.0]]).to(getattr(torch, dtype)), "b": torch.ones(2)}
    safetensors.torch.save_file(half, tmp_path / "x.safetensors")
    torch.save(half, tmp_path / "x.pt")
    for path in (tmp_path / "x.safetensors", tmp_path / "x.pt"):
        for out in ("y.pt", "y.safetensors"):
            assert main(["export", str(path), str(tmp_path / out), "--overwrite", "--quiet"]) == 0
            made = open_weights(tmp_path / out)[name]
            assert made.dtype == half[name].dtype and torch.equal(made.float(), half[name].float())
    assert main(["export", str(path), str(tmp_path / "z.pt"), "--dtype", "fp16", "--quiet"]) == 0
    assert torch.equal(open_weights(tmp_path / "z.pt")[name], half[name].half())
    torch.save({name: 3 * half[name].float(), "b": torch.ones(2)}, tmp_path / "tuned.pt")
    merge = ["merge", "average", "--base", path, "--tuned", tmp_path / "tuned.pt", "--out", tmp_path / "out"]
    merge = [*map(str, merge), "--full", "--quiet"]
    assert main(merge) == 0
    made = open_weights(tmp_path / "out" / "merged.safetensors")[name]
    assert made.dtype == half[name].dtype and torch.equal(made.float(), 2 * half[name].float())
    torch.save({name: torch.full((2, 2), 1e38), "b": torch.ones(2)}, tmp_path / "tuned.pt")
    too_large = dtype != "float8_e8m0fnu"
    assert main(merge) == (2 if too_large else 0)


def test_reading_converts_dtype(tmp_path):
    half = torch.randn(3000).half()
    safetensors.torch.save_file({"x": half}, tmp_path / "x.safetensors")
    out = torch.empty(2990)
    open_weights(tmp_path / "x.safetensors").read_into("x", 10, out)
    assert torch.equal(out, half[10:].float())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": OrderedDict(s), "epoch": 3, "global_step": 7},
        lambda s: {"module": {f"_forward_module.{n}": t for n, t in s.items()}, "ds_version": "0.1"},
        lambda s: {"state_dict": {f"module.{n}": t for n, t in s.items()}},
        lambda s: {"model": {f"_orig_mod.module.{n}": t for n, t in s.items()}},
        lambda s: {"something": {f"net.inner.{n}": t for n, t in s.items()}},
    ],
)
def test_wrappers_are_found_from_the_data(tmp_path, base, wrap):
    state = {n: t for n, t in base.items() if "." in n}
    torch.save(wrap(state), tmp_path / "x.ckpt")
    assert_same(open_weights(tmp_path / "x.ckpt"), state)


def test_ema_and_old_names(tmp_path):
    new = "model.diffusion_model.fps_embedding.0.weight"
    state = {
        new.replace("fps_embedding", "framestride_embed"): torch.ones(2),
        "model_ema.decay": torch.ones(()),
    }
    torch.save({"state_dict": state}, tmp_path / "x.ckpt")
    weights = open_weights(tmp_path / "x.ckpt")
    assert weights.names() == [new]
    assert any("1 EMA keys ignored" in note for note in weights.notes)
    assert any("fps_embedding" in note for note in weights.notes)


def test_the_wrong_suffix_is_only_a_note(tmp_path, base):
    torch.save(base, tmp_path / "x.safetensors")
    safetensors.torch.save_file(base, tmp_path / "y.ckpt")
    for name in ("x.safetensors", "y.ckpt"):
        weights = open_weights(tmp_path / name)
        assert_same(weights, base)
        assert "named" in weights.notes[0]


def test_names_are_never_paths(tmp_path):
    state = {"../../x": torch.ones(2), "a\nb": torch.zeros(1)}
    torch.save(state, tmp_path / "x.pt")
    assert_same(open_weights(tmp_path / "x.pt"), state)


def shards(folder, base):
    names = list(base)
    parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, part in parts.items():
        safetensors.torch.save_file({n: base[n] for n in part}, folder / file)
    table = {n: file for file, part in parts.items() for n in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))


def test_sharded_folders(tmp_path, base):
    shards(tmp_path, base)
    assert_same(open_weights(tmp_path), base)
    assert_same(open_weights(tmp_path / "model.safetensors.index.json"), base)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert_same(open_weights(tmp_path), base)


def test_a_missing_shard_and_a_shard_elsewhere(tmp_path, base):
    shards(tmp_path, base)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(BadFileError, match="b.safetensors"):
        open_weights(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "../a.safetensors"}})
    )
    with pytest.raises(BadFileError):
        open_weights(tmp_path)


def shards_below(folder, base, where="part"):
    """The shards in a folder below the index's, or wherever else."""
    (folder / where).mkdir(parents=True, exist_ok=True)
    shards(folder / where, base)
    index = json.loads((folder / where / "model.safetensors.index.json").read_text())["weight_map"]
    (folder / where / "model.safetensors.index.json").unlink()
    return {name: f"{where}/{file}" for name, file in index.items()}


@pytest.mark.parametrize("where", ["part", "deep/down", "./part"])
def test_shards_in_a_folder_below(tmp_path, base, where):
    table = shards_below(tmp_path, base, where)
    (tmp_path / "x.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    assert_same(open_weights(tmp_path), base)
    assert_same(open_weights(tmp_path / "x.index.json"), base)


@pytest.mark.parametrize(
    "how", ["..", "absolute", "a linked file", "a linked folder", "down and up", "an index"]
)
def test_shards_outside_of_the_folder(tmp_path, base, how):
    """Refused however they are named, also where a link leads out."""
    folder = tmp_path / "folder"
    folder.mkdir()
    table = shards_below(tmp_path, base, "elsewhere")
    if how == "..":
        table = {name: f"../{file}" for name, file in table.items()}
    elif how == "absolute":
        table = {name: str(tmp_path / file) for name, file in table.items()}
    elif how == "down and up":
        table = {name: f"a/../../{file}" for name, file in table.items()}
    elif how == "a linked folder":
        (folder / "elsewhere").symlink_to(tmp_path / "elsewhere")
    elif how == "a linked file":
        for name in ("a.safetensors", "b.safetensors"):
            (folder / name).symlink_to(tmp_path / "elsewhere" / name)
        table = {name: file.removeprefix("elsewhere/") for name, file in table.items()}
    else:
        table = dict.fromkeys(table, "x.index.json")
    (folder / "x.index.json").write_text(json.dumps({"weight_map": table}))
    for path in (folder, folder / "x.index.json"):
        with pytest.raises(BadFileError):
            open_weights(path)


def test_a_snapshot_of_the_hub_is_made_of_links(tmp_path, base):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    shards(blobs, base)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert_same(open_weights(snapshot), base)


def test_zero_shards_get_the_hint(tmp_path):
    (tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"x")
    with pytest.raises(BadFileError, match="zero_to_fp32"):
        open_weights(tmp_path)


def test_verify_finds_a_flipped_bit(tmp_path, base):
    path = tmp_path / "x.ckpt"
    torch.save(base, path)
    weights = open_weights(path)
    assert weights.verify() == len(base)
    name = "model.diffusion_model.time_embed.0.weight"
    data = bytearray(path.read_bytes())
    data[weights.tensors[name].where[1] + 5] ^= 4
    path.write_bytes(data)
    with pytest.raises(BadFileError, match="time_embed.0.weight"):
        open_weights(path).verify()


def test_weights_over_tensors_in_memory(base):
    assert_same(Weights.from_tensors(base), base)


def test_a_file_that_changes_is_noticed(tmp_path, base):
    path = tmp_path / "x.ckpt"
    torch.save(base, path)
    weights = open_weights(path)
    weights.check_unchanged()
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("more", "x")
    with pytest.raises(BadFileError):
        weights.check_unchanged()


@pytest.mark.parametrize(
    "tensor", [torch.arange(7.0), torch.arange(6.0).view(2, 3).T, torch.arange(5).half()]
)
def test_the_last_value_alone(tmp_path, tensor):
    torch.save({"state_dict": {"before": torch.ones(3), "a": tensor}}, tmp_path / "a.ckpt")
    assert open_weights(tmp_path / "a.ckpt").last("a") == tensor.reshape(-1)[-1]
