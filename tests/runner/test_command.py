"""What `edg sample` says before it reads any weights."""

import pytest
import torch

from edg.core.arguments import Parser
from edg.core.dist import world_from_environment
from edg.runner.prepare import prepare
from edg.runner.sample_flags import add_sample_arguments


@pytest.mark.parametrize(
    ("dtype", "known", "told"),
    [
        ("fp16", {"avx512_bf16": True}, "no float16 products of this processor"),
        ("bf16", {"avx2": True}, "no bfloat16 products of this processor"),
        ("bf16", {"avx512_bf16": True}, ""),
        ("fp32", {}, ""),
        ("auto", {}, ""),
    ],
)
def test_what_is_slow_on_this_processor_is_told(capsys, monkeypatch, tmp_path, dtype, known, told):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    parser = Parser()
    add_sample_arguments(parser)
    flags = "--recipe", "edg", "--savedir", str(tmp_path), "--device", "cpu", "--dtype", dtype
    prepare(parser.parse_args(flags), world_from_environment())
    err = capsys.readouterr().err
    assert told in err and ("slower than --dtype fp32" in err) is bool(told)
