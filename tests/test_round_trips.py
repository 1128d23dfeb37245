"""Case 98: what we write, others read bit for bit; damaged bytes give EdgError and nothing else."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edg.weights.store import open_weights
from edg.weights.writers import write_pt, write_safetensors

FUZZ = Path(__file__).resolve().parents[1] / "scripts" / "fuzz.py"
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
          torch.int8, torch.uint8, torch.bool, torch.complex64]  # fmt: skip
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda name: name != "__metadata__"
)


@st.composite
def tensors(draw):
    """Any bits, NaN of every kind included, in any shape, contiguous or not."""
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.lists(st.integers(0, 4), max_size=4))
    count = torch.Size(shape).numel()
    if dtype == torch.bool:
        made = torch.tensor(draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype=dtype)
    else:
        raw = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
        made = torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    made = made.reshape(shape)
    return made.transpose(0, 1) if len(shape) > 1 and draw(st.booleans()) else made


def bits(tensor):
    return tensor.dtype, tuple(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


def same(found, state):
    assert {name: bits(found[name]) for name in found} == {name: bits(state[name]) for name in state}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(state=st.dictionaries(NAMES, tensors(), min_size=1, max_size=5))
def test_c98_round_trips_of_both_writers_and_readers(tmp_path_factory, state):
    folder = tmp_path_factory.mktemp("x")
    write_pt(folder / "x.pt", state)
    write_safetensors(folder / "x.safetensors", state)
    torch.save(state, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    same(torch.load(folder / "x.pt", weights_only=True)["state_dict"], state)
    with safetensors.safe_open(folder / "x.safetensors", "pt") as file:
        same({name: file.get_tensor(name) for name in file.keys()}, state)  # noqa: SIM118
    for name in ("x.pt", "x.safetensors", "legacy.pt"):
        weights = open_weights(folder / name)
        stored = {weights.stored_names[name]: weights[name] for name in weights}  # before wrappers come off
        same(stored, state)


@pytest.mark.skipif(sys.platform != "linux", reason="atheris has wheels for Linux only")
@pytest.mark.parametrize("target, seconds", [("readers", 60), ("settings", 10), ("prompts", 5)])
@pytest.mark.slow
def test_c98_fuzzed_readers_give_only_our_errors(tmp_path, target, seconds):
    """Within 200 MB and two seconds of processor time for each input: see scripts/fuzz.py."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("setup.py installs atheris for Python 3.11")
    assert importlib.util.find_spec("atheris"), "pip install -e '.[tests]' installs it"
    told = tmp_path / "told.json"
    flags = ["--seconds", str(seconds), "--json", str(told), "--crashes", str(tmp_path / "crashes")]
    run = subprocess.run([sys.executable, FUZZ, target, *flags], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    figures = json.loads(told.read_text())
    assert figures["crashes"] == [] and figures["executions"] > figures["seeds"]
