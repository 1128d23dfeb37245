"""The frame of `edg verify`: reading, comparing, judging, exit codes. No case is computed here."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from edg.cli import verify
from edg.core.errors import BadFileError, UsageError
from edg.verify import cases, rules

GROUPS = verify.known_groups()
REFERENCE = Path(__file__).parents[1] / "reference"
BIG, NAN, INF = 1e9, float("nan"), float("inf")


def one_case(folder, outputs, limits, *, group="schedule", dtype=torch.float32, inputs=None):
    """A folder with a single case; returns that case."""
    save_file({f"out/{name}": tensor for name, tensor in outputs.items()}, folder / "one.safetensors")
    entry = {"name": "one", "group": group, "file": "one.safetensors", "seed": 4, "outputs": limits}
    (folder / "index.json").write_text(json.dumps({"cases": [entry | {"inputs": inputs or {}}]}))
    return replace(cases.load_cases(folder, GROUPS)[0], dtype=dtype)


def judged(folder, want, got, limit=None, dtype=torch.float32):
    case = one_case(folder, {"y": want}, {"y": limit or {"atol": 0.1}}, dtype=dtype)
    return cases.judge(case, {} if got is None else {"y": got})


@pytest.mark.parametrize(
    ("want", "got", "status"),
    [
        ([1.0, 2.0], [1.05, 2.0], "pass"),
        ([1.0, 2.0], [1.2, 2.0], "FAIL"),
        ([1.0, NAN], [1.0, NAN], "pass"),
        ([1.0, NAN], [NAN, 1.0], "FAIL"),
        ([1.0, 2.0], [1.0, NAN], "FAIL"),
        ([1.0, INF], [1.0, INF], "pass"),
        ([1.0, INF], [1.0, -INF], "FAIL"),
        ([1.0, INF], [1.0, BIG], "FAIL"),
        ([1.0, 2.0], [1.0], "FAIL"),
        ([3, 4], [3, 4], "pass"),
        ([3, 4], [3, 5], "FAIL"),
        ([3, 4], [3.0, 4.0], "FAIL"),
    ],
)
def test_judgement(tmp_path, want, got, status):
    assert judged(tmp_path, torch.tensor(want), torch.tensor(got)).status == status


def test_a_missing_output_fails(tmp_path):
    assert judged(tmp_path, torch.ones(2), None).note == "not computed"


def test_frames_may_differ_by_one_level_in_one_of_a_thousand_values(tmp_path):
    want = torch.full((1000,), 7, dtype=torch.uint8)
    one, two, far = want.clone(), want.clone(), want.clone()
    one[0], two[:2], far[0] = 8, 8, 9
    assert [judged(tmp_path, want, got).status for got in (want, one, two, far)] == [
        "pass",
        "pass",
        "FAIL",
        "FAIL",
    ]


@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 3e-2), (torch.float16, 5e-3)])
def test_sixteen_bits_are_judged_by_relative_l2(tmp_path, dtype, limit):
    want = torch.full((100,), 10.0)
    assert judged(tmp_path, want, want * (1 + 0.9 * limit), dtype=dtype).status == "pass"
    assert judged(tmp_path, want, want * (1 + 1.1 * limit), dtype=dtype).status == "FAIL"


def test_guided_runs_of_networks_amplify_the_rounding_by_the_scale():
    limits = {}
    for case in cases.load_cases(REFERENCE, GROUPS, dtype=torch.float16):
        for output in ("x_final", "latent", "dyn.cond.context"):
            limits[case.name, output] = case.relative_l2(output)
    assert limits["samp_01_open", "x_final"] == 5e-3  # stubs
    assert limits["samp_unet_open", "x_final"] == limits["pipe_open", "latent"] == pytest.approx(7.5 * 5e-3)
    assert limits["pipe_cfg1_open", "latent"] == limits["pipe_open", "dyn.cond.context"] == 5e-3
    assert limits["sched_512_open", "x_final"] is None


def test_an_index_without_a_usable_tolerance_means_two_millionths(tmp_path):
    for limit in ({"atol": None}, {"atol": NAN}, {"rtol": 0.0}):
        verdict = judged(tmp_path, torch.tensor([100.0]), torch.tensor([100.0001]), limit)
        assert verdict.status == "pass" and verdict.tolerance == pytest.approx(2e-4)


def test_the_worst_output_is_reported_by_its_own_tolerance(tmp_path):
    limits = {"a": {"atol": 1.0}, "b": {"atol": 1e-3}}
    case = one_case(tmp_path, {"a": torch.zeros(1), "b": torch.zeros(1)}, limits)
    verdict = cases.judge(case, {"a": torch.tensor([0.5]), "b": torch.tensor([9e-4])})
    assert (verdict.output, verdict.status) == ("b", "pass")


def test_a_case_without_outputs_returns_counts_that_must_be_zero(tmp_path):
    case = one_case(tmp_path, {}, {})
    assert cases.judge(case, {"missing": torch.tensor(0)}).status == "pass"
    assert cases.judge(case, {"missing": torch.tensor(2)}).status == "FAIL"
    assert cases.judge(case, {}).status == "FAIL"


def test_inputs_are_read_where_stored_and_made_by_rule_elsewhere(tmp_path):
    inputs = {"x": {"shape": [2, 3], "source": "input rule"}, "y": {"shape": [1], "source": "stored"}}
    case = one_case(tmp_path, {"z": torch.zeros(1)}, {"z": {}}, inputs=inputs)
    assert torch.equal(case.input("x"), rules.input_tensor(4, "x", (2, 3)))
    assert torch.equal(case.input("noise_0", (5,)), rules.input_tensor(4, "noise_0", (5,)))
    other = replace(case, raw={**case.raw, "input_seed": 9})
    assert torch.equal(other.input("x"), rules.input_tensor(9, "x", (2, 3)))
    with pytest.raises(BadFileError, match="in/y"):
        case.input("y")
    with pytest.raises(BadFileError, match="noise_0"):
        case.input("noise_0")


def test_groups_without_networks_stay_float32_on_the_cpu():
    loaded = {case.group: case for case in cases.load_cases(REFERENCE, GROUPS, "cuda", torch.bfloat16)}
    assert {loaded[g].dtype for g in ("schedule", "analytic", "merge")} == {torch.float32}
    assert loaded["unet"].dtype == torch.bfloat16 and loaded["unet"].device.type == "cuda"


def test_an_unknown_group_and_a_broken_function_are_told_apart(tmp_path, monkeypatch, capsys):
    one_case(tmp_path, {"y": torch.zeros(1)}, {"y": {}}, group="shedule")
    assert cases.run_folder(tmp_path, GROUPS)[0].status == "unknown"
    assert verify.main(tmp_path) == 2
    assert "did you mean 'schedule'?" in capsys.readouterr().out
    monkeypatch.setattr(verify, "known_groups", lambda: {"shedule": cases.Group(lambda case: case.nowhere)})
    assert verify.main(tmp_path) == 1
    assert "nowhere" in capsys.readouterr().out


def test_a_truncated_case_file_fails_its_case_only(tmp_path):
    case = one_case(tmp_path, {"y": torch.zeros(100)}, {"y": {}})
    case.path.write_bytes(case.path.read_bytes()[:-7])
    assert cases.run_folder(tmp_path, GROUPS)[0].status == "FAIL"
    case.path.unlink()
    assert "one.safetensors" in cases.run_folder(tmp_path, GROUPS)[0].note


def test_what_cannot_be_used_is_told_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="index.json"):
        verify.main(tmp_path)
    (tmp_path / "index.json").write_text("<html>")
    with pytest.raises(BadFileError, match="index.json"):
        verify.main(tmp_path)
    with pytest.raises(UsageError, match="sampler"):
        verify.main(REFERENCE, only=["samplr"])
    with pytest.raises(UsageError, match="float32"):
        verify.main(REFERENCE, dtype="int8")
    with pytest.raises(UsageError, match="device"):
        verify.main(REFERENCE, device="toaster")
    assert verify.default_folder() == REFERENCE
    monkeypatch.setattr(verify, "CHECKOUT", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="verify DIR"):
        verify.default_folder()
