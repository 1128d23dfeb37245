"""Files that are broken, mistaken or malicious: one clear error, nothing executed, nothing but EdgError."""

import contextlib
import json
import os
import pickle
import resource
import struct
import time
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edg.core.errors import BadFileError, EdgError
from edg.weights.readers import pickle_machine
from edg.weights.store import open_weights
from edg.weights.writers import write_safetensors


class Payload:
    """Pickles as a call of any function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def touch(path):
    return Payload(os.system, f"touch {path}")


@pytest.mark.parametrize("place", ["hparams", "inside the table", "key", "top"])
def test_no_code_of_a_zip_runs_and_its_tensors_are_read(tmp_path, place):
    sentinel, state = tmp_path / "sentinel", {"a.weight": torch.randn(2, 3)}
    evil = touch(sentinel)
    top = {
        "hparams": {"state_dict": state, "hyper_parameters": {"x": [evil]}},
        "inside the table": {"state_dict": {**state, "b": evil}},
        "key": {"state_dict": state, (1, evil): 3},
        "top": [evil, state],
    }[place]
    torch.save(top, tmp_path / "x.ckpt")
    if place == "top":
        with pytest.raises(BadFileError):
            open_weights(tmp_path / "x.ckpt")
    else:
        weights = open_weights(tmp_path / "x.ckpt")
        assert torch.equal(weights["a.weight"], state["a.weight"])
        assert any(f"{os.name}.system" in note for note in weights.notes)
    assert not sentinel.exists()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_code_of_a_legacy_pickle_runs_and_its_tensors_are_read(tmp_path):
    sentinel = tmp_path / "sentinel"
    top = {"state_dict": {"a": torch.ones(2)}, "x": touch(sentinel)}
    torch.save(top, tmp_path / "x.ckpt", _use_new_zipfile_serialization=False)
    weights = open_weights(tmp_path / "x.ckpt")
    assert torch.equal(weights["a"], torch.ones(2)) and "system" in weights.notes[1]
    (tmp_path / "y.pt").write_bytes(pickle.dumps(touch(sentinel)))
    with pytest.raises(BadFileError):
        open_weights(tmp_path / "y.pt")
    assert not sentinel.exists()


@pytest.mark.parametrize(
    "name", ["importlib.import_module", "pydoc.locate", "torch.utils.cpp_extension.load", "builtins.eval"]
)
def test_gadgets_are_only_names(name):
    module, function = name.rsplit(".", 1)
    code = b"\x80\x02c" + f"{module}\n{function}\n".encode() + b"X\x02\x00\x00\x00os\x85R."
    made, foreign = pickle_machine.load(code)
    assert isinstance(made, pickle_machine.Stub) and foreign == {name: 1}


def test_build_and_state_have_no_effect():
    code = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x08\x00\x00\x00__call__K\x01sb."
    made, _ = pickle_machine.load(code)
    assert made == pickle_machine.Global("torch._utils._rebuild_tensor_v2")


@pytest.mark.parametrize(
    "code",
    [
        b"\x80\x02}" + b"(" * 40 + b"K\x01" + b"\x86" * 10 + b".",
        b"\x80\x02K\x01" + b"q\x002\x86" * 200 + b"}h\x00K\x01s.",  # (x, x) nested 200 times as a key
        b"\x80\x02]" + b"0]" * (pickle_machine.MAX_OPCODES // 2 + 10) + b".",
        b"\x80\x02",
        b"\x80\x02Pid\n.",
        b"\x80\x02K\x01Q.",
        b"\x80\x05\x97.",
    ],
)
def test_bombs_and_nonsense_end_quickly(code):
    began = time.monotonic()
    with contextlib.suppress(pickle_machine.PickleError):
        pickle_machine.load(code)
    assert time.monotonic() - began < 5


MISTAKEN = {
    b"": "empty",
    b"<!DOCTYPE html><html>": "web page",
    b"\n  <html>": "web page",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n": "git lfs pull",
    b"\x1f\x8b\x08\x00rest of it": "gzip",
    b"\xfd7zXZ\x00rest of it": "xz",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b'{"a": 1}': "JSON",
    b"nothing that we know": "not a file of a known kind",
    b"PK\x05\x06" + bytes(18): "nothing in it",
    b"PK\x03\x04" + bytes(50): "truncated",
    b"\x80\x02": "damaged",
}


@pytest.mark.parametrize("data", MISTAKEN, ids=lambda d: MISTAKEN[d])
def test_mistaken_files_are_named(tmp_path, data):
    (tmp_path / "model.ckpt").write_bytes(data)
    with pytest.raises(BadFileError, match=MISTAKEN[data]) as caught:
        open_weights(tmp_path / "model.ckpt")
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)


def test_missing_file_and_fifo(tmp_path):
    with pytest.raises(BadFileError):
        open_weights(tmp_path / "none.ckpt")
    os.mkfifo(tmp_path / "x.ckpt")
    with pytest.raises(BadFileError):
        open_weights(tmp_path / "x.ckpt")


def rewrite(path, change):
    """Copy a zip checkpoint entry by entry; change(name, data) -> (data, compression) or None to leave
    out."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            changed = change(name, data)
            if changed is not None:
                archive.writestr(name, changed[0], changed[1])


@pytest.mark.parametrize(
    "what, change",
    [
        ("compressed", lambda n, d: (d, zipfile.ZIP_DEFLATED if n.endswith("data.pkl") else 0)),
        ("compressed", lambda n, d: (d, zipfile.ZIP_DEFLATED if "/data/" in n else 0)),
        ("missing", lambda n, d: None if n.endswith("/data/0") else (d, 0)),
        ("expected", lambda n, d: (d[:-4] if n.endswith("/data/0") else d, 0)),
        ("big-endian", lambda n, d: (b"big" if n.endswith("byteorder") else d, 0)),
        ("0 data.pkl", lambda n, d: None if n.endswith("data.pkl") else (d, 0)),
        ("cannot be read", lambda n, d: (d[: len(d) // 2] if n.endswith("data.pkl") else d, 0)),
    ],
)
def test_damaged_archives(tmp_path, what, change):
    torch.save({"a": torch.randn(30, 30), "b": torch.randn(3)}, tmp_path / "x.ckpt")
    rewrite(tmp_path / "x.ckpt", change)
    with pytest.raises(BadFileError, match=what):
        open_weights(tmp_path / "x.ckpt")


def header(table, data=b"", length=None, pad=b""):
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data + pad


def entry(begin, end, shape=None, dtype="F32"):
    return {
        "dtype": dtype,
        "shape": [(end - begin) // 4] if shape is None else shape,
        "data_offsets": [begin, end],
    }


BAD_HEADERS = {
    "huge length": (header({"a": entry(0, 4)}, bytes(4), length=1 << 40), "claims a header"),
    "100 MB": (header({"a": entry(0, 4)}, bytes(4), length=100_000_001), "claims a header"),
    "beyond the file": (header({"a": entry(0, 4)}, bytes(4), length=5000), "truncated"),
    "truncated": (header({"a": entry(0, 8)}, bytes(4)), "truncated"),
    "trailing": (header({"a": entry(0, 4)}, bytes(4), pad=b"xx"), "foreign bytes"),
    "overlap": (header({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "overlap"),
    "hole": (header({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), "hole"),
    "size": (header({"a": entry(0, 4, [2])}, bytes(4)), "4 bytes"),
    "overflow": (header({"a": entry(0, 4, [1 << 40, 1 << 40])}, bytes(4)), "no file can hold"),
    "dimensions": (header({"a": entry(0, 4, [1] * 100_000)}, bytes(4)), "malformed"),
    "negative": (header({"a": entry(0, 4, [-1])}, bytes(4)), "malformed"),
    "bool shape": (header({"a": entry(0, 4, [True])}, bytes(4)), "malformed"),
    "float4": (header({"a": entry(0, 4, [8], "F4")}, bytes(4)), "F4"),
    "twice": (header(b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"a":1}', bytes(4)), "twice"),
    "deep": (header(b'{"a":' + b"[" * 100_000, bytes(4)), "cannot be read"),
    "digits": (header(b'{"a":' + b"9" * 10_000 + b"}", bytes(4)), "cannot be read"),
    **{
        f"metadata {value}": (header({"__metadata__": value}), "__metadata__")
        for value in ({"a": 3}, {"a": None}, {"a": {}}, [], "x", 0, False)
    },
    "not utf-8": (header(b'{"\xff": 1}'), "cannot be read"),
    "half a pair": (header({"\ud83d": entry(0, 4)}, bytes(4)), "cannot be read"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_strict_safetensors(tmp_path, case):
    data, message = BAD_HEADERS[case]
    (tmp_path / "x.safetensors").write_bytes(data)
    began = time.process_time()
    with pytest.raises(BadFileError, match=message):
        open_weights(tmp_path / "x.safetensors")
    assert time.process_time() - began < 1


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    state = {"a.weight": torch.randn(3, 4), "b": torch.arange(5), "c": torch.tensor(1.0).half()}
    torch.save({"state_dict": state, "epoch": 1}, folder / "zip")
    torch.save({"state_dict": state}, folder / "legacy", _use_new_zipfile_serialization=False)
    write_safetensors(folder / "safetensors", state, {"edg": json.dumps({"base": {"path": "x"}})})
    return folder, {name: (folder / name).read_bytes() for name in ("zip", "legacy", "safetensors")}


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=150, deadline=2000, suppress_health_check=list(HealthCheck))
@given(kind=st.sampled_from(["zip", "legacy", "safetensors"]), data=st.data())
def test_fuzz_only_our_errors_escape(samples, kind, data):
    folder, contents = samples
    mutated = bytearray(contents[kind])
    if data.draw(st.booleans(), "truncate"):
        del mutated[data.draw(st.integers(0, len(mutated))) :]
    for _ in range(data.draw(st.integers(0, 6), "flips")):
        if mutated:
            mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    path = folder / "mutated"
    path.write_bytes(mutated)
    try:
        weights = open_weights(path)
        for name in weights:
            if weights.info(name).nbytes < 1 << 20:
                weights[name]
        weights.verify()
    except EdgError:
        pass


@settings(max_examples=150, deadline=2000)
@given(st.binary(max_size=200))
def test_fuzz_pickle_machine(data):
    with contextlib.suppress(pickle_machine.PickleError):
        pickle_machine.load(b"\x80\x02" + data)


ORDERED = b"ccollections\nOrderedDict\nq\x010"
LIST = b"]q\x00(" + b"N" * 200_000 + b"e0"
FROM_TYPE = b"ctorch._tensor\n_rebuild_from_type_v2\nq\x010"
COPIES = {
    "OrderedDict of a list": LIST + ORDERED + b"h\x01h\x00\x85R0" * 50_000,
    "OrderedDict of pairs": b"]q\x00("
    + b"".join(b"M" + struct.pack("<H", i) + b"N\x86" for i in range(60_000))
    + b"e0"
    + ORDERED
    + b"h\x01h\x00\x85R" * 50_000,
    "many arguments": b"(" + b"N" * 200_000 + b"tq\x000" + ORDERED + b"h\x01h\x00R0" * 50_000,
    "a chain of calls": FROM_TYPE  # x = (f, None, x), 900 deep
    + b"Nq\x000"
    + b"h\x01Nh\x00\x87q\x000" * 900
    + b"h\x01h\x00R0" * 200_000,
    "class names of two texts": b"X"
    + struct.pack("<I", 499)
    + b"a" * 499
    + b"q\x000"
    + b"("
    + b"h\x00h\x00\x93" * 300_000,
    "a long class name": b"X"
    + struct.pack("<I", 1 << 20)
    + b"a" * (1 << 20)
    + b"q\x000"
    + b"h\x00h\x00\x93" * 9999,
}


@pytest.mark.parametrize("case", COPIES)
def test_copying_what_is_in_the_memo_counts(tmp_path, case):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    with pytest.raises(pickle_machine.PickleError):
        pickle_machine.load(b"\x80\x02" + COPIES[case] + b"N.")
    assert time.monotonic() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


LONG_NUMBER = b"\x8b" + struct.pack("<I", 1 << 20) + b"\x7f" * (1 << 20)
PRIME = (1 << 61) - 1  # Python's hash of an integer is its remainder
EQUAL_HASHES = [b"\x8a\x0c" + (k * PRIME).to_bytes(12, "little") for k in range(1, 50_001)]
NUMBERS = {
    "long": b"}" + LONG_NUMBER + b"q\x000" + b"h\x00Ns" * 99_999,
    "of one hash": b"}(" + b"".join(number + b"N" for number in EQUAL_HASHES) + b"u",
    "of one hash, in pairs": b"ccollections\nOrderedDict\n("
    + b"](" + b"".join(number + b"N\x86" for number in EQUAL_HASHES) + b"etR",
}  # fmt: skip


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_that_are_slow_to_find_are_no_keys(case):
    began = time.process_time()
    assert pickle_machine.load(b"\x80\x02" + NUMBERS[case] + b".")[0] == {}
    assert time.process_time() - began < 3


def test_places_of_one_hash_in_the_memo():
    code = b"N" + b"".join(b"p%d\n" % (k * PRIME) for k in range(1, 50_001))
    with pytest.raises(pickle_machine.PickleError, match="memo"):
        pickle_machine.load(b"\x80\x02" + code + b".")


def test_a_bad_shape_is_not_printed():
    """A list that holds itself twice, 60 levels deep: its text would fill the memory."""
    deep = b"]" + b"".join(b"q\x00(h\x00h\x00l" for _ in range(60))
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"
    code = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00(" + deep + b"t(K\x01ttR."
    with pytest.raises(pickle_machine.PickleError):
        pickle_machine.load(b"\x80\x02" + code)


def test_one_table_named_many_times_is_counted_once(tmp_path):
    torch.save({"a": {i: None for i in range(20_000)}}, tmp_path / "x.ckpt")
    inner = b"}q\x00(" + b"".join(b"M" + struct.pack("<H", i) + b"N" for i in range(20_000)) + b"u0"
    pickled = (
        b"\x80\x02"
        + inner
        + b"}("
        + b"".join(b"M" + struct.pack("<H", i) + b"h\x00" for i in range(20_000))
        + b"u."
    )
    rewrite(tmp_path / "x.ckpt", lambda n, d: (pickled if n.endswith("data.pkl") else d, 0))
    began = time.process_time()
    with pytest.raises(BadFileError):
        open_weights(tmp_path / "x.ckpt")
    assert time.process_time() - began < 5  # by pairs it would be minutes


def test_a_name_too_long_is_a_bad_file():
    with pytest.raises(BadFileError):
        open_weights("a" * 300)
