"""The same recipes on every family whose names are known."""

import pytest
import torch

from edg.merging.lazy import merged
from edg.merging.recipe import from_dict
from edg.networks import FAMILIES, family, family_of
from edg.weights.family import UNKNOWN

UNET = "model.diffusion_model."
NAMES = {
    "latent_video": (f"{UNET}input_blocks.1.2.proj_in.weight", f"{UNET}input_blocks.1.1.proj_in.weight"),
    "diffusers_unet": (
        "down_blocks.0.temp_attentions.0.proj_in.weight",
        "down_blocks.0.attentions.0.proj_in.weight",
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("wrapper", ["", "module."])
def test_a_recipe_by_kinds(tmp_path, name, wrapper):
    temporal, spatial = NAMES[name]
    for file, value in (("base", 1.0), ("tuned", 3.0)):
        state = {wrapper + key: torch.full((2, 2), value) for key in (temporal, spatial)}
        torch.save(state, tmp_path / f"{file}.pt")
    inputs = {file: str(tmp_path / f"{file}.pt") for file in ("base", "tuned")}
    steps = [{"op": "copy", "of": "tuned", "where": "temporal"}]
    recipe = from_dict({"inputs": inputs, "outputs": {"x": steps}})
    made = merged(recipe, warn=lambda _: None, family=family_of)["x"]
    assert made.family is family(name)
    assert (made[temporal] == 3).all() and (made[spatial] == 1).all()


def test_names_that_no_family_knows():
    assert family_of(["encoder.0.weight", "head.bias"]) is UNKNOWN
    assert UNKNOWN.component("encoder.0.weight") == "other" and not UNKNOWN.matches("a.weight", ["unet"])
