"""Every reference case by the released options, but for the one at published size."""

from pathlib import Path

import pytest
import torch

from edg.cli import verify
from edg.verify import cases

GROUPS = verify.known_groups()
REFERENCE = Path(__file__).parents[1] / "reference"
CASES = {case.name: case for case in cases.load_cases(REFERENCE, GROUPS) if case.group != "unet_full"}


@pytest.mark.parametrize("name", CASES)
def test_case(name):
    verdict = cases.run_case(CASES[name])
    assert verdict.status == "pass", verdict


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", ["samp_01_open", "samp_multi_open"])
def test_sixteen_bit_networks(name, dtype):
    case = next(case for case in cases.load_cases(REFERENCE, GROUPS, dtype=dtype) if case.name == name)
    verdict = cases.run_case(case)
    assert verdict.status == "pass", verdict
