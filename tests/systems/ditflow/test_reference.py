"""The reference cases of CogVideoX and DiTFlow that need no network."""

from pathlib import Path

import pytest

from edg.systems.ditflow.verify import GROUPS
from edg.verify import cases

REFERENCE = Path(__file__).parents[2] / "reference/ditflow"
CASES = {case.name: case for case in cases.load_cases(REFERENCE, GROUPS) if case.kind is not None}


@pytest.mark.parametrize("name", CASES)
def test_case(name):
    verdict = cases.run_case(CASES[name], GROUPS)
    assert verdict.status == "pass", verdict
