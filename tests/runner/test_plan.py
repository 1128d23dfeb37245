"""What `edg doctor --plan` says, and that its flags are those of `edg sample`."""

from __future__ import annotations

import pytest

from edg.cli.main import main
from edg.core.errors import UsageError
from edg.runner.memory_report import card, one_line, table, verdict
from edg.systems.base import MemoryEstimate, PhaseCost

GB = 10**9
PLAN = MemoryEstimate(
    (
        PhaseCost("condition", 3 * GB, GB // 2, 10**12, 2),
        PhaseCost("denoise", 2 * GB, 4 * GB, 25 * 10**12, 50),
    ),
    host_bytes=5 * GB,
    overhead_bytes=GB,
    note="",
)


def test_the_largest_phase_decides():
    assert PLAN.largest.name == "denoise" and PLAN.peak_bytes == 6 * GB and PLAN.required_bytes == 7 * GB
    told = one_line(PLAN, "cuda:0")
    assert told.startswith("expects 7.00 GB on cuda:0 (denoise: parameters 2.00, activations 4.00")
    assert " ".join(table(PLAN)[2].split()) == "denoise 2.00 GB 4.00 GB 6.00 GB 25 TFLOP x 50"


def test_whether_it_fits(monkeypatch):
    monkeypatch.setattr("edg.runner.memory_report.memory", lambda: (16 * GB, 8 * GB))
    assert verdict(PLAN, "cpu") == "fits the CPU, 8.0 GB free"
    monkeypatch.setattr("edg.runner.memory_report.memory", lambda: (16 * GB, 6 * GB))
    assert verdict(PLAN, "cpu") == "DOES NOT FIT the CPU, 6.0 GB free"
    monkeypatch.setattr(
        "edg.runner.memory_report.cuda_devices", lambda: [("small", 8 * GB, 6 * GB), ("big", 0, 9 * GB)]
    )
    assert verdict(PLAN, "cuda") == "fits big, 9.0 GB free"


@pytest.mark.slow
def test_doctor_plans_what_sample_would_do(capsys):
    assert main(["doctor", "--plan", "sprites", "--device", "cuda", "--bs", "4", "--blend", "soft"]) == 0
    normal, low = capsys.readouterr().out.split("sprites at 32x32, 8 frames, 4 clips at a time, float16")[1:]
    assert "2 parameter sets resident\n" in normal and "of main memory" not in normal
    assert "2 parameter sets resident, low memory" in low and "of main memory" in low
    for told in (normal, low):
        assert "4 GB" in told and "TFLOP" in told


def operations(told):
    """TFLOP of each phase, as the table tells them."""
    return {
        row.split()[0]: float(row.split("TFLOP")[0].split()[-1])
        for row in told.splitlines()
        if "TFLOP" in row
    }


@pytest.mark.slow
def test_more_frames_cost_more(capsys):
    plans, frames = {}, 13
    for count in (8, frames):
        assert main(["doctor", "--plan", "sprites", "--frames", str(count), "--device", "cpu"]) == 0
        told = capsys.readouterr().out
        assert "32x32" in told and f", {count} " in told
        plans[count] = operations(told)
    # Convolutions and attention over space are work for each frame, attention over time a little more.
    for phase in ("denoise", "decode"):
        ratio = plans[frames][phase] / plans[8][phase]
        assert 0.98 * frames / 8 < ratio < 1.15 * frames / 8, phase


def test_the_card_that_it_needs():
    assert card(PLAN, "cuda") == ", a GPU of 8 GB" and card(PLAN, "cpu") == ""


def test_mistakes_are_those_of_sample():
    with pytest.raises(UsageError, match="--height 33"):
        main(["doctor", "--plan", "--config", "sprites", "--height", "33", "--debug"])
