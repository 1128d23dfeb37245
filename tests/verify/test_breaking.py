"""`edg verify` must notice when a function that `merge` or `sample` uses is broken."""

from pathlib import Path

import pytest
import torch

from edg.cli import verify
from edg.diffusion import ddim, guidance, prediction, schedule, switch
from edg.merging import ops
from edg.networks.latent_video import attention
from edg.systems.edg.verify import schedules

REFERENCE = Path(__file__).parents[1] / "reference"


def lopsided(function):
    """The function, with the last of its tensors (or arrays) slightly too large."""

    def broken(*args, **kwargs):
        result = function(*args, **kwargs)
        return (*result[:-1], result[-1] * 1.001) if isinstance(result, tuple) else result * 1.001

    return broken


@pytest.mark.parametrize(
    ("module", "name", "only"),
    [
        (ddim, "ddim_step", "samp_02_open"),
        (ddim, "eps_from_x0", "samp_02_open"),
        (guidance, "rescale_noise", "samp_01_open"),
        (prediction, "x0_from", "samp_04_open"),
        (schedule, "zero_terminal_snr", "sched_512_open"),
        (schedules, "linear_betas", "sched_256_open"),
        (schedules, "analytic_init", "analytic_open"),
        (ops, "magnitude", "merge_sparsify_open"),
        (ops, "dare", "merge_edg2_open"),
        (attention, "attend", "unet_b_open"),
    ],
)
@pytest.mark.slow
def test_a_broken_function_is_noticed(monkeypatch, module, name, only):
    assert verify.main(REFERENCE, only=[only]) == 0
    monkeypatch.setattr(module, name, lopsided(getattr(module, name)))
    assert verify.main(REFERENCE, only=[only]) == 1


def test_a_switch_that_is_not_strict_is_noticed(monkeypatch):
    monkeypatch.setattr(switch, "set_index", lambda t, boundaries: int(t < boundaries[0]))
    assert verify.main(REFERENCE, only=["samp_09_open"]) == 1


def test_clean_timesteps_where_released_ones_are_shown_are_noticed(monkeypatch):
    def clean(*args, released=False):
        return schedule.timesteps(*args)

    monkeypatch.setattr(schedules, "timesteps", clean)
    assert verify.main(REFERENCE, only=["ddim_*"]) == 1


def test_a_function_that_raises_fails_its_cases_and_no_others(monkeypatch, capsys):
    monkeypatch.setattr(schedules, "analytic_init", torch.linalg.cholesky)
    assert verify.main(REFERENCE, only=["analytic", "schedule"]) == 1
    rows = capsys.readouterr().out.splitlines()
    assert sum(" FAIL " in row for row in rows) == 1 and rows[-1].startswith("5 cases: 4 passed, 1 failed")
