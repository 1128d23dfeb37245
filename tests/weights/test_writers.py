"""What we write, torch and safetensors read; it appears whole or not at all."""

import fcntl
import os
import stat
import zipfile

import pytest
import safetensors
import torch

from edg.cli.main import main
from edg.core import atomic_file
from edg.core.atomic_file import AtomicFile, write_atomically
from edg.core.errors import MachineError, UsageError
from edg.weights.store import open_weights
from edg.weights.tensors import TensorInfo, dtype_name, raw_bytes
from edg.weights.writers import PtWriter, open_writer, write_pt, write_safetensors

STATE = {
    "a.weight": torch.randn(3, 4),
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 3),
    "half": torch.randn(5, 7).half(),
    "bfloat16": torch.randn(9).bfloat16(),
    "long": torch.arange(10),
    "bool": torch.tensor([True, False]),
    "strided": torch.randn(6, 4).t(),
}


def assert_equal(found):
    for name, tensor in STATE.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.mark.parametrize("mmap", [False, True])
def test_pt_opens_in_torch_and_in_our_reader(tmp_path, mmap):
    write_pt(tmp_path / "x.pt", STATE, {"edg": '{"k": 1}'})
    loaded = torch.load(tmp_path / "x.pt", weights_only=True, mmap=mmap)
    assert_equal(loaded["state_dict"])
    assert list(loaded["state_dict"]) == list(STATE) and loaded["edg"] == '{"k": 1}'
    weights = open_weights(tmp_path / "x.pt")
    assert_equal(weights)
    assert weights.provenance == {"k": 1} and weights.notes == []
    assert weights.verify() == len(STATE)


def test_pt_records_are_stored_aligned_and_checked(tmp_path):
    write_pt(tmp_path / "x.pt", STATE)
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        assert archive.testzip() is None
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    weights = open_weights(tmp_path / "x.pt")
    assert all(tensor.where[1] % 64 == 0 for tensor in weights.tensors.values())


def test_pt_with_64_bit_fields(tmp_path):
    """The fields that files over 4 GB need, forced on a small one."""
    writer = PtWriter(tmp_path / "x.pt", {}, zip64_from=100)
    for name, tensor in STATE.items():
        writer.begin(name, TensorInfo(tuple(tensor.shape), dtype_name(tensor.dtype)))
        writer.append(raw_bytes(tensor.contiguous().view(-1)))
        writer.end()
    writer.finish({})
    assert_equal(torch.load(tmp_path / "x.pt", weights_only=True)["state_dict"])
    assert_equal(open_weights(tmp_path / "x.pt"))
    assert zipfile.ZipFile(tmp_path / "x.pt").testzip() is None


def test_safetensors_opens_in_safetensors(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", STATE, {"edg": "{}"})
    with safetensors.safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert_equal({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        assert file.metadata() == {"edg": "{}"}
    weights = open_weights(tmp_path / "x.safetensors")
    assert_equal(weights)
    assert all(tensor.where[1] % STATE[name].element_size() == 0 for name, tensor in weights.tensors.items())


def test_lazy_weights_are_copied(tmp_path):
    write_pt(tmp_path / "x.pt", STATE)
    write_safetensors(tmp_path / "y.safetensors", open_weights(tmp_path / "x.pt"))
    assert_equal(open_weights(tmp_path / "y.safetensors"))


def test_equal_contents_give_equal_files(tmp_path):
    for write, suffix in ((write_pt, "pt"), (write_safetensors, "safetensors")):
        (tmp_path / "1").mkdir(exist_ok=True)
        write(tmp_path / f"x.{suffix}", STATE)
        write(tmp_path / "1" / f"x.{suffix}", STATE)
        assert (tmp_path / f"x.{suffix}").read_bytes() == (tmp_path / "1" / f"x.{suffix}").read_bytes()


def test_mode_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_pt(tmp_path / "x.pt", STATE)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.pt").stat().st_mode) == 0o640


@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_abort_leaves_nothing(tmp_path, form):
    info = TensorInfo((4,), "float32")
    writer = open_writer(tmp_path / f"x.{form}", form, {"a": info})
    writer.begin("a", info)
    writer.append(bytes(8))
    writer.abort()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["complex128", "complex32", "int3"])
def test_a_dtype_that_the_format_cannot_hold(tmp_path, dtype):
    (tmp_path / "in").mkdir()
    with pytest.raises(UsageError):
        open_writer(
            tmp_path / "x.safetensors", "safetensors", {"a": TensorInfo((2,), "float32"), "b": Odd(dtype)}
        )
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    torch.save({"a": torch.ones(2, dtype=torch.complex128)}, tmp_path / "in" / "x.ckpt")
    assert main(["export", str(tmp_path / "in" / "x.ckpt"), str(tmp_path / "x.safetensors"), "--quiet"]) == 2
    assert main(["export", str(tmp_path / "in" / "x.ckpt"), str(tmp_path / "x.pt"), "--quiet"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "x.pt"]


@pytest.mark.parametrize("name", ["__metadata__", "half \ud83d"])
def test_a_name_that_no_header_can_hold(tmp_path, name):
    torch.save({name: torch.ones(2), "b": torch.zeros(3)}, tmp_path / "in.ckpt")
    assert main(["export", str(tmp_path / "in.ckpt"), str(tmp_path / "x.safetensors"), "--quiet"]) == 2
    assert main(["export", str(tmp_path / "in.ckpt"), str(tmp_path / "x.pt"), "--quiet"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.ckpt", "x.pt"]
    assert set(torch.load(tmp_path / "x.pt")["state_dict"]) == {name, "b"}


class Odd(TensorInfo):
    def __init__(self, dtype):
        super().__init__((2,), dtype)


@pytest.mark.parametrize("form", ["pt", "safetensors"])
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, OSError(28, "full"), ZeroDivisionError])
@pytest.mark.parametrize("where", ["expect", "lock"])
def test_no_exception_of_a_constructor_leaves_a_file(tmp_path, monkeypatch, form, error, where):
    def fail(*_):
        raise error

    if where == "expect":
        monkeypatch.setattr(AtomicFile, "expect", fail)
    else:
        monkeypatch.setattr(atomic_file, "lock", fail)
    with pytest.raises((MachineError, *([error] if isinstance(error, type) else [OSError]))):
        open_writer(tmp_path / f"x.{form}", form, {"a": TensorInfo((4,), "float32")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_leftovers_are_removed_and_a_running_writer_is_respected(tmp_path):
    dead = tmp_path / ".x.pt.edg-tmp.1"
    dead.write_bytes(b"half")
    write_pt(tmp_path / "x.pt", STATE)
    assert not dead.exists()
    with open(dead, "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(MachineError):
            write_pt(tmp_path / "x.pt", STATE)
    assert_equal(open_weights(tmp_path / "x.pt"))


def test_paths_that_cannot_be_written(tmp_path):
    with pytest.raises(UsageError):
        AtomicFile(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MachineError):
        write_atomically(tmp_path / "file" / "x.json", b"{}")
