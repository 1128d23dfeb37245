"""The reference cases of Pyramid Flow that need no network."""

from pathlib import Path

import pytest

from edg.systems.pyramid_flow.verify import GROUPS
from edg.verify import cases

REFERENCE = Path(__file__).parents[2] / "reference/pyramid_flow"
CASES = {case.name: case for case in cases.load_cases(REFERENCE, GROUPS) if case.kind is not None}


@pytest.mark.parametrize("name", CASES)
def test_case(name):
    verdict = cases.run_case(CASES[name], GROUPS)
    assert verdict.status == "pass", verdict
