"""The weight and input rules against the values the reference stores."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from edg.verify import rules

REFERENCE = Path(__file__).parents[1] / "reference"
INDEX = json.loads((REFERENCE / "index.json").read_text())


@pytest.mark.parametrize("check", INDEX["weight_rule_check"], ids=lambda check: str(check["shape"]))
def test_weight_rule(check):
    tensor = rules.weight(check["seed"], check["name"], check["shape"])
    assert tensor.dtype == torch.float32 and list(tensor.shape) == check["shape"]
    assert tensor.flatten()[:4].tolist() == check["first"]


def test_input_rule():
    check = INDEX["input_rule_check"]
    tensor = rules.input_tensor(check["seed"], check["name"], check["shape"])
    assert tensor.flatten()[:4].tolist() == check["first"]


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.alpha = nn.Parameter(torch.zeros(()))
        self.register_buffer("betas", torch.full((4,), 7.0))
        self.register_buffer("count", torch.tensor([5]))


def test_fill_writes_every_parameter_and_keeps_buffers():
    module = rules.fill(Small(), 3, "part.")
    assert torch.equal(module.layer.weight, rules.weight(3, "part.layer.weight", (2, 3)))
    assert torch.equal(module.alpha, rules.weight(3, "part.alpha", ()))
    assert (module.betas == 7).all() and module.count == 5


def test_fill_gives_meta_modules_storage_and_dtype():
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    rules.fill(module, 3, dtype=torch.bfloat16)
    assert not any(parameter.is_meta for parameter in module.parameters())
    assert torch.equal(module[1].weight, rules.weight(3, "1.weight", (2,)).bfloat16())
