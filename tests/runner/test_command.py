"""What `edg sample` says before it reads any weights."""

import pytest
import torch

from edg.core.dist import World
from edg.runner.config import SampleConfig
from edg.runner.prepare import prepare


@pytest.mark.parametrize(
    ("dtype", "known", "told"),
    [
        ("fp16", {"avx512_bf16": True}, "no float16 matrix products"),
        ("bf16", {"avx2": True}, "no bfloat16 matrix products"),
        ("bf16", {"avx512_bf16": True}, ""),
        ("fp32", {}, ""),
        ("auto", {}, ""),
    ],
)
def test_what_is_slow_on_this_processor_is_told(capsys, monkeypatch, tmp_path, dtype, known, told):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    values = {"recipe": "edg", "savedir": str(tmp_path), "device": "cpu", "dtype": dtype}
    prepare(SampleConfig.from_values(values), World())
    err = capsys.readouterr().err
    assert told in err and ("slower than --dtype fp32" in err) is bool(told)
