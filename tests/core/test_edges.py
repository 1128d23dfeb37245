"""Seeds, devices, processes and argument parsing."""

import platform
import subprocess
import sys

import pytest
import torch

from edg.core import arguments, device, dist, seeding
from edg.core.errors import EdgError, MachineError, UsageError


def test_seeds_are_named_and_fixed():
    assert seeding.derive(1, "a", 2) == 7025978693720368205  # never changes: results depend on it
    seeds = {
        seeding.derive(*parts) for parts in [(1,), (2,), (1, "a"), (1, "a", "b"), (1, "ab"), (1, 1), (1, "1")]
    }
    assert len(seeds) == 7 and all(0 <= seed < 2**63 for seed in seeds)
    first, again = (torch.randn(4, generator=seeding.generator(5, "x")) for _ in range(2))
    assert torch.equal(first, again)


def test_devices():
    assert device.choose("cpu", "bf16") == (torch.device("cpu"), torch.bfloat16)
    assert device.choose("cpu", "torch.float16")[1] == torch.float16
    with pytest.raises(UsageError, match="cuda"):
        device.choose("cdua")
    with pytest.raises(UsageError, match="fp8"):
        device.choose("cpu", "fp8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_no_cuda():
    with pytest.raises(MachineError):
        device.choose("cuda")
    assert device.choose("auto") == (torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"avx512_bf16": True}, "bfloat16"),
        ({"fp16_arith": True, "bf16": False}, "float16"),
        ({"avx2": True}, ""),
    ],
)
def test_what_the_processor_multiplies(monkeypatch, known, expected):
    from edg.cli.doctor import machine

    kinds = torch.float32, torch.bfloat16, torch.float16
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert [device.multiplies(dtype) for dtype in kinds] == [
        True,
        expected == "bfloat16",
        expected == "float16",
    ]
    assert ("has bfloat16 matrix products" in " ".join(machine())) is (expected == "bfloat16")
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # a torch without it
    assert [device.multiplies(dtype) for dtype in kinds] == [True, False, False]


def test_memory():
    total, available = device.memory()
    assert 0 < available <= total
    device.check_memory(1000, torch.device("cpu"), "they")
    with pytest.raises(MachineError, match="the parameters"):
        device.check_memory(10**15, torch.device("cpu"), "the parameters")


@pytest.mark.parametrize("size", range(1, 9))
def test_shards_cover_everything_once(size):
    for count in range(12):
        shards = [dist.World(rank, size).shard(range(count)) for rank in range(size)]
        assert [i for shard in shards for i in shard] == list(range(count))
        assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_a_world_of_one():
    here = dist.World()
    assert here.broadcast(3) == 3 and here.gather(4) == [4] and here.first(lambda: 5) == 5

    def fail():
        raise UsageError("no")

    with pytest.raises(EdgError, match="no"):
        here.first(fail)


def parser():
    p = arguments.Parser(prog="x")
    p.add_argument("--dyn_alpha", type=float, default=0.0)
    p.add_argument("--con-beta", type=float, default=0.0)
    p.add_argument("--kind", choices=("left", "right"))
    arguments.add_switch(p, "--text_input", default=True)
    return p


@pytest.mark.parametrize("argv", [["--dyn-alpha", "1"], ["--dyn_alpha=1"], ["--dyn-alpha=1"]])
def test_both_spellings(argv):
    assert parser().parse_args(argv).dyn_alpha == 1


def test_flags_and_arguments_come_in_any_order():
    p = parser()
    p.add_argument("config")
    p.add_argument("overrides", nargs="*")
    for argv in (["c", "a=1", "b=2", "--kind", "left"], ["c", "--kind", "left", "a=1", "b=2"],
                 ["--kind=left", "c", "a=1", "--dyn_alpha", "1", "b=2"]):  # fmt: skip
        given = p.parse_args(argv)
        assert (given.config, given.overrides, given.kind) == ("c", ["a=1", "b=2"], "left")
    with pytest.raises(UsageError, match="config"):
        p.parse_args(["--kind", "left"])


def test_switches():
    for argv, value in [
        ([], True), (["--text_input"], True), (["--text-input", "0"], False), (["--no-text_input"], False),
        (["--no-text-input"], False), (["--text_input=yes"], True),
    ]:  # fmt: skip
        assert parser().parse_args(argv).text_input is value


@pytest.mark.parametrize(
    "argv, given, fix",
    [
        (["--dyn-alhpa", "1"], "--dyn-alhpa", "--dyn_alpha"),
        (["--con-bet=1"], "--con-bet", "--con-beta"),
        (["--zzzzzz"], "--zzzzzz", "x --help"),
        (["stray"], "stray", "x --help"),
        (["--kind", "lfet"], "--kind", "left"),
        (["--dyn_alpha", "x"], "--dyn_alpha", ""),
        (["--text_input", "maybe"], "maybe", ""),
    ],
)
def test_mistakes(argv, given, fix):
    with pytest.raises(UsageError) as raised:
        parser().parse_args(argv)
    assert given in raised.value.given and fix in raised.value.fix


@pytest.mark.slow
def test_freed_tensors_leave_their_pages_to_the_next():
    """Eight tensors of 64 MB, one after the other, after eight such: no page is asked for again. The least of
    five counts: the kernel may take pages back that nobody touched for a while."""
    script = """
import resource, torch
from edg.core.device import keep_memory
keep_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def eight():
    before = faults()
    for _ in range(8):
        torch.zeros(2**24)
    return (faults() - before) * resource.getpagesize() / 2**26
eight()
print(min(eight() for _ in range(5)))
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert platform.libc_ver()[0] != "glibc" or float(out.stdout) < 1
