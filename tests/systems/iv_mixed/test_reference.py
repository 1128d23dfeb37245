"""Every reference case of the IV-Mixed Sampler: schedules, loops, networks, runs, key names, LoRA."""

from dataclasses import replace
from pathlib import Path

import pytest

from edg.systems.iv_mixed.verify import GROUPS
from edg.verify import cases

REFERENCE = Path(__file__).parents[2] / "reference/iv_mixed"
CASES = {case.name: case for case in cases.load_cases(REFERENCE, GROUPS)}


@pytest.mark.parametrize("name", CASES)
def test_case(name):
    verdict = cases.run_case(CASES[name], GROUPS)
    assert verdict.status == "pass", verdict


def test_a_wrong_plan_or_weight_is_seen():
    """Cases fail where the sampler is wrong: the order of the legs, the sign of the guidance, zz."""
    case = CASES["loop_animatediff_b_open"]
    for change in ({"order": "canonical"}, {"zz": 1000}, {"interval": [2, 4]}):
        wrong = replace(case, config={**case.config, **change})
        assert cases.run_case(wrong, GROUPS).status == "FAIL", change
