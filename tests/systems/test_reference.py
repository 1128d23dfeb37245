"""The reference cases of every system that has its own folder of them."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from edg.verify import cases

REFERENCE = Path(__file__).parents[1] / "reference"
GROUPS = {
    path.parent.name: import_module(f"edg.systems.{path.parent.name}.verify").GROUPS
    for path in REFERENCE.glob("*/index.json")
}
#: Groups of which no code computes the numbers yet.
OPEN = {
    "ditflow": "cogvideox_transformer cogvideox_vae cogvideox_keys ditflow_reference ditflow_gradient "
    "ditflow_injection ditflow_run",
    "pyramid_flow": "pyramid_dit pyramid_vae pyramid_run pyramid_objective pyramid_units pyramid_keys",
}
CASES = {
    f"{system}/{case.name}": case
    for system, groups in GROUPS.items()
    for case in cases.load_cases(REFERENCE / system, groups)
    if case.kind is not None
}


@pytest.mark.parametrize("name", CASES)
def test_case(name):
    verdict = cases.run_case(CASES[name])
    assert verdict.status == "pass", verdict


@pytest.mark.parametrize("system", GROUPS)
def test_no_group_is_left_out_unsaid(system):
    found = cases.load_cases(REFERENCE / system, GROUPS[system])
    assert {case.group for case in found if case.kind is None} == set(OPEN.get(system, "").split())


@pytest.mark.parametrize("change", [{"order": "canonical"}, {"zz": 1000}, {"interval": [2, 4]}])
def test_a_wrong_order_or_interval_is_seen(change):
    case = CASES["iv_mixed/loop_animatediff_b_open"]
    assert cases.run_case(replace(case, config={**case.config, **change})).status == "FAIL"
