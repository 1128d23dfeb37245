"""Recipes are data: YAML and back, and every mistake is named."""

import pytest
import yaml

from edg.core.errors import UsageError
from edg.merging.recipe import edg_recipe, find_recipe, from_dict, load_recipe, remarks, to_dict
from edg.merging.steps import STEPS, Copy, Dynamic
from edg.networks.latent_video.keys import FAMILY

SHIPPED = sorted(p for p in find_recipe("edg").parent.glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_recipes_load_and_survive_a_round_trip(path):
    recipe = load_recipe(path.stem)
    assert from_dict(yaml.safe_load(yaml.safe_dump(to_dict(recipe)))) == recipe


def test_every_operation_of_one_output_is_a_recipe():
    """By its own name, so that `edg merge NAME` works; the others make sense in a recipe of two outputs."""
    shipped = {path.stem for path in SHIPPED}
    assert {op for op in STEPS if op not in ("copy", "dynamic", "consistent")} <= shipped


def test_the_shipped_edg_recipe_is_the_default_of_run_merge():
    assert load_recipe("edg") == edg_recipe("", "")


def recipe(**changes):
    step = {"op": "dynamic", "alpha": 0.25} | changes.pop("step", {})
    return from_dict({"inputs": {"base": "a", "tuned": "b"}, "outputs": {"dyn": [step]}} | changes)


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"sed": 3}, "seed"),
        ({"step": {"alpah": 3}}, "alpha"),
        ({"step": {"op": "dynamics"}}, "dynamic"),
        ({"step": {"alpha": "much"}}, "alpha"),
        ({"step": {"alpha": float("nan")}}, "alpha"),
        ({"step": {"of": "tund"}}, "tuned"),
        ({"step": {"op": "linear", "weights": [1.0], "alpha": None}}, "alpha"),
        ({"missing": "dropp"}, "drop"),
        ({"dtype": "float17"}, "float16"),
        ({"generator": "mt19937"}, "generator"),
        ({"seed": -1}, "seed"),
        ({"outputs": {"../dyn": []}}, r"\.\./dyn"),
        ({"outputs": {}}, "outputs"),
        ({"inputs": {}}, "inputs"),
        ({"outputs": {"x": [{"op": "linear", "weights": [1.0]}]}}, "linear"),
        ({"outputs": {"x": [{"op": "task_arithmetic", "scaling": [1.0, 2.0]}]}}, "task_arithmetic"),
    ],
)
def test_mistakes_are_named(changes, named):
    with pytest.raises(UsageError, match=named) as caught:
        recipe(**changes)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


def test_a_slip_in_a_module_kind_is_named():
    with pytest.raises(UsageError) as caught:
        recipe(step={"where": "temporl"}).check_kinds(FAMILY)
    assert caught.value.fix == "did you mean 'temporal'?"
    recipe(step={"where": "temporal"}).check_kinds(FAMILY)


def test_the_first_matching_step_applies_and_the_base_is_the_rest():
    steps = [
        {"op": "dynamic", "where": "*.bias", "alpha": 1.0},
        {"op": "dynamic", "where": ["spatial", "vae"]},
    ]
    made = recipe(outputs={"dyn": steps})
    unet = "model.diffusion_model."
    assert made.step_for("dyn", f"{unet}out.2.bias", FAMILY) == Dynamic(alpha=1.0, where=("*.bias",))
    assert made.step_for("dyn", f"{unet}input_blocks.1.1.proj_in.weight", FAMILY).where == ("spatial", "vae")
    assert made.step_for("dyn", "first_stage_model.x.weight", FAMILY).where == ("spatial", "vae")
    assert made.step_for("dyn", f"{unet}out.2.weight", FAMILY) == Copy()


@pytest.mark.parametrize(
    "step",
    [
        {"op": "dynamic", "drop_rate": 1.7},
        {"op": "consistent", "drop_rate": -2},
        {"op": "consistent", "beta": float("inf")},
        {"op": "ties", "dare_drop_rate": 1.01},
        {"op": "magnitude", "density": -0.1},
        {"op": "svd", "density": 2.0},
        {"op": "svd", "rank": -1},
        {"op": "task_arithmetic", "scaling": [float("nan")]},
    ],
)
def test_numbers_out_of_range(step):
    with pytest.raises(UsageError, match="^recipe: dyn"):
        from_dict({"inputs": {"base": "a", "tuned": "b"}, "outputs": {"dyn": [step]}})


@pytest.mark.parametrize(
    "numbers",
    [{"dyn_alpha": float("nan")}, {"drop_rate": 1.7}, {"drop_rate": -2.0}, {"seed": -5}, {"seed": 1 << 64}],
)
def test_numbers_are_checked_without_yaml_too(numbers):
    with pytest.raises(UsageError):
        edg_recipe("a", "b", **numbers)
    edg_recipe("a", "b", drop_rate=1, seed=(1 << 64) - 1)


def test_a_scaled_network_is_remarked():
    assert remarks(edg_recipe("a", "b")) == remarks(edg_recipe("a", "b", con_alpha=0.5, con="anchored")) == []
    assert "alpha 0.5 scales the whole network" in remarks(edg_recipe("a", "b", con_alpha=0.5))[0]


def test_inputs_are_paths_and_texts_stay_texts(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "r.yaml"
    steps = "outputs: {on_off: [{op: copy, of: base, where: [007, 1e3]}]}"
    file.write_text(
        f"inputs: {{base: 2024_06_01, tuned: ~/t.ckpt, other: 007}}\nseed: 1_0\nmask_scalars: no\n{steps}\n"
    )
    recipe = load_recipe(file)
    assert recipe.inputs == {"base": "2024_06_01", "tuned": f"{tmp_path}/t.ckpt", "other": "007"}
    assert (recipe.seed, recipe.mask_scalars) == (10, False) and type(recipe.mask_scalars) is bool
    assert recipe.outputs["on_off"][0].where == ("007", "1e3")
    for name in ('"a/b"', '"a\\0b"', '".."', '""'):
        file.write_text(f"inputs: {{base: x}}\noutputs: {{{name}: [{{op: copy, of: base}}]}}\n")
        with pytest.raises(UsageError):
            load_recipe(file)
    file.write_text('inputs: {base: "a\\0b"}\noutputs: {x: [{op: copy, of: base}]}\n')
    with pytest.raises(UsageError):
        load_recipe(file)
