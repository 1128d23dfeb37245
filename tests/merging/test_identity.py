"""A set's identity is of its numbers: whatever files they lie in, whatever a record says of them."""

import json
import os
import shutil

import pytest
import torch

from edg.core.hashing import hash_value
from edg.merging import merge, provenance, recipe
from edg.merging.lazy import merged
from edg.networks import family_of, open_weights
from edg.runner.prepare import former_settings, identity, origin
from edg.sprites import WEIGHTS
from edg.weights.base_file import candidates
from edg.weights.export import export
from edg.weights.hashing import numbers_sha256, tensor_digests
from edg.weights.store import write_pt, write_safetensors

EDG = {"dyn": [{"op": "dynamic"}], "con": [{"op": "consistent"}]}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def wanted(files):
    return recipe.from_dict({"inputs": {"base": str(files[0]), "tuned": str(files[1])}, "outputs": EDG})


@pytest.fixture
def made(wanted, tmp_path):
    """dyn.safetensors as changes, in a folder of its own."""
    merge.run(wanted, tmp_path / "out", warn=lambda _: None, family=family_of)
    return tmp_path / "out" / "dyn.safetensors"


def number(path, **how):
    return numbers_sha256(open_weights(path, **how))


def edited(path, out, change):
    """A copy of a set, with its record, in which `change` was applied to the tensors."""
    weights = open_weights(path)
    tensors = {name: weights[name] for name in weights}
    change(tensors)
    write = write_safetensors if out.suffix == ".safetensors" else write_pt
    write(out, tensors, {"edg": json.dumps({k: v for k, v in weights.provenance.items() if k != "base"})})
    return out


def test_one_set_in_every_form_is_one(tmp_path, files, base, wanted, made):
    first = number(made)
    export(made, tmp_path / "whole.pt", family=family_of)
    merge.run(wanted, tmp_path / "full", full=True, format="pt", warn=lambda _: None, family=family_of)
    torch.save({f"module.{n}": open_weights(made)[n] for n in base}, tmp_path / "wrapped.ckpt")
    shards = tmp_path / "shards"
    shards.mkdir()
    for k in range(2):
        part = {n: open_weights(made)[n] for n in list(base)[k::2]}
        write_safetensors(shards / f"model-{k}.safetensors", part)
    forms = [tmp_path / "whole.pt", tmp_path / "full" / "dyn.pt", tmp_path / "wrapped.ckpt", shards]
    assert [number(path) for path in forms] == [first] * 4
    assert numbers_sha256(merged(wanted, warn=lambda _: None, family=family_of)["dyn"]) == first
    assert number(files[0]) != first != number(tmp_path / "out" / "con.safetensors")


def test_the_hash_is_of_name_dtype_shape_and_bytes(tmp_path):
    states = [
        {"a.w": torch.zeros(2, 3)}, {"a.v": torch.zeros(2, 3)}, {"a.w": torch.zeros(3, 2)},
        {"a.w": torch.zeros(2, 3, dtype=torch.int32)}, {"a.w": -torch.zeros(2, 3)},
        {"a.w": torch.zeros(2, 3), "a.v": torch.zeros(0)}, {"a.w": torch.arange(6.0).view(2, 3)},
    ]  # fmt: skip
    found = []
    for k, state in enumerate(states):
        torch.save(state, tmp_path / f"{k}.pt")
        found.append(number(tmp_path / f"{k}.pt"))
    assert len(set(found)) == len(states)
    turned = {"a.w": torch.arange(6.0).view(3, 2).T.contiguous().T.reshape(3, 2).T}
    torch.save(turned, tmp_path / "t.pt")
    torch.save({"a.w": turned["a.w"].contiguous()}, tmp_path / "c.pt")
    assert number(tmp_path / "t.pt") == number(tmp_path / "c.pt")


def test_the_digest_is_sha256_of_the_bytes(tmp_path):
    import hashlib

    tensor = torch.arange(3.0)
    torch.save({"x.w": tensor}, tmp_path / "x.pt")
    wanted = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
    assert tensor_digests(open_weights(tmp_path / "x.pt")) == {"x.w": wanted}


@pytest.mark.parametrize("lie", ["16 bits", "edited", "record on others", "sidecar", "16 bits and back"])
def test_a_record_does_not_make_other_numbers_the_same(tmp_path, files, made, lie):
    other = tmp_path / "other" / "dyn.pt"
    other.parent.mkdir()
    if lie.startswith("16 bits"):
        export(made, other, "bfloat16", family=family_of)
        if lie == "16 bits and back":
            export(other, tmp_path / "other" / "back.pt", "float32", family=family_of)
            other = tmp_path / "other" / "back.pt"
    elif lie == "sidecar":
        shutil.copy(files[0], other)
    else:
        edited(made, other, lambda t: t["betas"].add_(1e-6) if lie == "edited" else t["betas"].zero_())
    shutil.copy(made.with_name("dyn.safetensors.json"), f"{other}.json")
    first, second = identity(open_weights(made)), identity(open_weights(other))
    assert hash_value(first) != hash_value(second)
    if lie == "16 bits":
        assert (first["dtypes"], second["dtypes"]) == (["float32"], ["bfloat16", "float32"])


def test_a_byte_changed_in_place_counts_also_where_the_time_is_set_back(wanted, made):
    path, state = made.parent, made.stat()
    assert provenance.is_made(wanted, path, False, "safetensors")
    first = number(made)
    at = next(t.where[1] for t in open_weights(made, join_base=False).tensors.values())
    with open(made, "r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    os.utime(made, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert number(made) != first
    assert not provenance.is_made(wanted, path, False, "safetensors")


def test_the_hash_is_kept_while_the_file_stays(tmp_path, files, monkeypatch):
    read = []
    before = number(files[0])
    weights = open_weights(files[0])
    kind = type(next(iter(weights.tensors.values())))
    whole = kind.digest
    monkeypatch.setattr(kind, "digest", lambda self: read.append(1) or whole(self))
    assert numbers_sha256(weights) == before and not read
    data = bytearray(files[0].read_bytes())
    at = data.index(open_weights(files[0])["betas"].numpy().tobytes())
    data[at] ^= 1
    files[0].write_bytes(data)
    assert number(files[0]) != before and read


def test_a_dial_turned_does_not_read_again_what_is_copied(files, monkeypatch):
    """Only what a strength changes is computed anew."""
    from edg.merging.lazy import MergedTensor

    steps = [{"op": "extrapolate", "alpha": 0.5, "where": "temporal_conv"}, {"op": "copy", "of": "tuned"}]
    inputs = {"base": str(files[0]), "tuned": str(files[1])}
    wanted = recipe.from_dict({"inputs": inputs, "outputs": {"dyn": steps}})
    first = numbers_sha256(merged(wanted, warn=lambda _: None, family=family_of)["dyn"])
    computed, whole = [], MergedTensor.blocks
    monkeypatch.setattr(MergedTensor, "blocks", lambda self: computed.append(self.info.shape) or whole(self))
    turned = recipe.adjusted(wanted, "dyn.alpha", 0.75)
    assert numbers_sha256(merged(turned, warn=lambda _: None, family=family_of)["dyn"]) != first
    assert computed == [(4, 4, 3, 1, 1)]


# ---- a merge that is there already -------------------------------------------------------------------------


def is_made(wanted, out, full=False):
    return provenance.is_made(wanted, out, full, "safetensors", family_of)


def forget(tmp_path):
    shutil.rmtree(tmp_path / "cache")


@pytest.mark.parametrize("remembered", [True, False])
@pytest.mark.parametrize("change", ["none", "a byte", "other numbers", "truncated", "16 bits", "swapped"])
def test_an_output_counts_by_its_content(tmp_path, wanted, made, change, remembered):
    out = made.parent
    merge.run(wanted, out, full=True, warn=lambda _: None, family=family_of)
    if change == "a byte":
        data = bytearray(made.read_bytes())
        data[-3] ^= 1
        made.write_bytes(data)
    elif change == "other numbers":
        edited(made, made, lambda tensors: tensors["betas"].mul_(2))
    elif change == "truncated":
        made.write_bytes(made.read_bytes()[:-8])
    elif change == "16 bits":
        export(made, tmp_path / "x.safetensors", "float16", family=family_of)
        shutil.move(tmp_path / "x.safetensors", made)
    elif change == "swapped":
        weights, record = open_weights(out / "con.safetensors"), open_weights(made).metadata
        write_safetensors(made, {n: weights[n] for n in weights}, record)
    if not remembered:
        forget(tmp_path)
    assert is_made(wanted, out, full=True) == (change == "none")
    if change != "none":
        merge.run(wanted, out, full=True, warn=lambda _: None, family=family_of)
        assert is_made(wanted, out, full=True)
        assert number(made) == numbers_sha256(merged(wanted, warn=lambda _: None, family=family_of)["dyn"])


def test_outputs_that_are_copied_elsewhere_are_finished_there(tmp_path, wanted, made):
    shutil.copytree(made.parent, tmp_path / "elsewhere")
    assert is_made(wanted, tmp_path / "elsewhere") and is_made(wanted, made.parent)
    assert not is_made(recipe.adjusted(wanted, "dyn.alpha", 0.3), made.parent)


# ---- records by earlier code -------------------------------------------------------------------------------


def earlier(weights, path, made_at="2099-01-01T00:00:00+0000"):
    """A clip's record as earlier code wrote it for a merged set: what the set's own record claims."""
    claim = {key: value for key, value in origin(weights).items() if key != "exported"}
    return {"settings": {"sets": {"dyn": claim}}, "set_paths": {"dyn": str(path)}, "made_at": made_at}


def test_an_earlier_record_of_a_merged_set_counts_where_it_is_honest(tmp_path, files, wanted, made):
    weights = open_weights(made)
    old = earlier(weights, made)
    same = {"sets": old["settings"]["sets"]}
    assert former_settings({"dyn": weights}, old) == same
    assert former_settings({"dyn": merged(wanted, warn=lambda _: None, family=family_of)["dyn"]}, old) == same
    assert former_settings({"con": weights}, old) == {}
    export(made, tmp_path / "whole.pt", family=family_of)  # merged again and compared
    assert former_settings({"dyn": open_weights(tmp_path / "whole.pt")}, old) == same
    moved = shutil.copy(made, tmp_path / "moved.safetensors")
    assert former_settings({"dyn": open_weights(moved)}, old) == same
    con = open_weights(made.with_name("con.safetensors"))
    assert former_settings({"dyn": con}, old) == {}


@pytest.mark.parametrize("lie", ["16 bits", "16 bits and back", "edited", "replaced in its place"])
def test_an_earlier_record_does_not_count_for_other_numbers(tmp_path, made, lie):
    old = earlier(open_weights(made), made, "2026-01-01T00:00:00+0000")
    other = tmp_path / "other.pt"
    if lie.startswith("16"):
        export(made, other, "bfloat16", family=family_of)
        if lie == "16 bits and back":
            export(other, tmp_path / "back.pt", "float32", family=family_of)
            other = tmp_path / "back.pt"
    else:
        edited(made, other, lambda tensors: tensors["betas"].mul_(2))
        if lie == "replaced in its place":
            old["set_paths"] = {"dyn": str(other)}
    assert former_settings({"dyn": open_weights(other)}, old) == {}
    for path, made_at in ((other, "2026-01-01T00:00:00+0000"), (made, "2099-01-01T00:00:00+0000")):
        old |= {"set_paths": {"dyn": str(path)}, "made_at": made_at}
        assert former_settings({"dyn": open_weights(other)}, old) == {}


def test_a_claim_that_cannot_be_tried_counts_for_the_file_of_then_alone(tmp_path, files, made):
    export(made, tmp_path / "x.pt", family=family_of)
    weights = edited(tmp_path / "x.pt", tmp_path / "whole.pt", lambda tensors: None)
    record = json.loads(open_weights(weights).metadata["edg"])
    del record["exported"]
    tensors = {n: open_weights(weights)[n] for n in open_weights(weights)}
    write_pt(weights, tensors, {"edg": json.dumps(record)})
    opened = open_weights(weights)
    files[1].unlink()
    assert former_settings({"dyn": opened}, earlier(opened, weights)) != {}
    assert former_settings({"dyn": opened}, earlier(opened, weights, "2026-01-01T00:00:00+0000")) == {}
    assert former_settings({"dyn": opened}, earlier(opened, made)) == {}
    assert former_settings({"dyn": opened}, {**earlier(opened, weights), "set_paths": None}) == {}


def test_an_earlier_record_of_foreign_files_is_compared_by_their_hash(tmp_path, files):
    from edg.core.hashing import sha256_file

    weights = open_weights(files[0])
    old = {"settings": {"sets": {"dyn": {"sha256": [sha256_file(files[0])]}}}}
    assert former_settings({"dyn": weights}, old) == {"sets": old["settings"]["sets"]}
    found = former_settings({"dyn": open_weights(files[1])}, old)
    assert found != {"sets": old["settings"]["sets"]}
    today = {"settings": {"sets": {"dyn": identity(weights)}}}
    assert former_settings({"dyn": weights}, today) == {}


@pytest.mark.parametrize("record", [{}, {"settings": None}, {"settings": {"sets": ["x"]}},
                                    {"settings": {"sets": {"dyn": "x"}}}])  # fmt: skip
def test_any_record_may_lie_there(files, record):
    assert former_settings({"dyn": open_weights(files[0])}, record) == {}


def test_the_embedded_weights_of_a_record_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = candidates(tmp_path / "dyn.pt", {"path": "edg/sprites/weights/base.safetensors"})
    assert [place for place in places if place.is_file()] == [WEIGHTS / "base.safetensors"]
