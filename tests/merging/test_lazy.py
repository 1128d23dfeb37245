"""Merging in memory: the same bits as the file, the same identity, nothing written."""

import pytest
import torch

from edg.merging import merge, recipe
from edg.merging.lazy import merged
from edg.merging.plan import BLOCK
from edg.networks import family_of
from edg.runner.prepare import identity
from edg.weights.store import open_weights

OPS = {
    "edg": {"dyn": [{"op": "dynamic"}], "con": [{"op": "consistent"}]},
    "conv": {"dyn": [{"op": "extrapolate", "alpha": 1.5, "where": "temporal_conv"}, {"op": "copy"}]},
    "tuned": {"con": [{"op": "copy", "of": "tuned"}]},
    "ties": {"m": [{"op": "ties"}]},
    "whole": {"m": [{"op": "svd", "rank": 1, "where": "*.weight"}, {"op": "magnitude", "density": 0.5}]},
    "half": {"m": [{"op": "linear", "weights": [0.5, 0.5]}]},
}  # fmt: skip


def made(name, files, **more):
    inputs = {"base": str(files[0]), "tuned": str(files[1])}
    return recipe.from_dict({"inputs": inputs, "outputs": OPS[name], "seed": 7, **more})


@pytest.mark.parametrize("name", OPS)
def test_every_tensor_is_the_files_bit_for_bit(name, files, tmp_path):
    wanted = made(name, files, dtype="float16" if name == "half" else "")
    merge.run(wanted, tmp_path / "out", full=True, warn=lambda _: None, family=family_of)
    found = merged(wanted, warn=lambda _: None, family=family_of)
    assert list(found) == list(OPS[name])
    for output, weights in found.items():
        file = open_weights(tmp_path / "out" / f"{output}.safetensors")
        assert set(weights) == set(file) and weights.infos() == {n: file.info(n) for n in weights}
        for tensor in file:
            assert torch.equal(
                weights[tensor].reshape(-1).view(torch.uint8), file[tensor].reshape(-1).view(torch.uint8)
            ), tensor
        assert identity(weights) == identity(file)
    base, first = open_weights(files[0]), next(iter(found.values()))
    assert any(not torch.equal(first[n].float(), base[n]) for n in base)  # a merge, not the base again


def test_a_part_is_read_across_blocks_with_the_masks_of_the_file(tmp_path):
    """start, stop and the 2^20 elements of a block do not fall together."""
    states = [{"a.weight": torch.randn(3, BLOCK // 2 + 5, generator=torch.manual_seed(k))} for k in (0, 1)]
    files = []
    for k, state in enumerate(states):
        files.append(tmp_path / f"{k}.pt")
        torch.save(state, files[-1])
    weights = merged(made("edg", files), warn=lambda _: None)["dyn"]
    part = torch.empty(BLOCK // 2 + 3)
    weights.read_into("a.weight", BLOCK // 2 + 7, part)
    assert torch.equal(part, weights["a.weight"].view(-1)[BLOCK // 2 + 7 :][: len(part)])
    merge.run(made("edg", files), tmp_path / "out", full=True, warn=lambda _: None)
    assert torch.equal(weights["a.weight"], open_weights(tmp_path / "out/dyn.safetensors")["a.weight"])


def test_the_identity_is_of_the_recipe_and_the_inputs_content(files, tmp_path):
    first = identity(merged(made("edg", files), warn=lambda _: None)["dyn"])
    moved = [tmp_path / f"moved{k}.ckpt" for k in (0, 1)]
    for old, new in zip(files, moved, strict=True):
        new.write_bytes(old.read_bytes())
    assert identity(merged(made("edg", moved), warn=lambda _: None)["dyn"]) == first
    assert identity(merged(made("edg", files, seed=8) , warn=lambda _: None)["dyn"]) != first  # fmt: skip
    assert identity(merged(made("edg", files[::-1]), warn=lambda _: None)["dyn"]) != first
