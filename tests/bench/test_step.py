"""The exact steps are exact: every variant of the denoising step is the naive loop within rounding."""

from dataclasses import replace

import pytest
import torch

from bench import step

KNOWN = step.models()


def small(name):
    """The model with fewer and narrower blocks, its conditions as they are."""
    known = KNOWN[name]
    unet = replace(
        known.spec.unet,
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(1, 2),
        num_head_channels=16,
        init_heads=2,
    )
    return replace(known, spec=replace(known.spec, unet=unet, frames=5), height=4, width=8)


@pytest.mark.parametrize("name", ["512", "sprites", "adapter"])
@pytest.mark.parametrize("variant", ["edg", "two calls", "telling anew"])
def test_a_step_is_the_naive_loops_within_rounding(name, variant):
    model = small("512" if name == "adapter" else name)
    if name == "adapter":
        model = replace(model, spec=model.spec.with_adapter())
    step_of = {
        which: step.make_step(step.Setting(model.name, which, "cpu", "fp32", 1, batch=2), model)
        for which in ("naive", variant)
    }
    with torch.no_grad():
        expected, found = (made() for made in step_of.values())
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5 * float(expected.abs().max()))


def test_a_wrong_result_ends_the_run():
    right = torch.ones(3)
    step.check("edg", right * (1 + 5e-5), right, step.TOLERANCE)
    with pytest.raises(SystemExit, match="'edg' is 5.0e-04"):
        step.check("edg", right * (1 + 5e-4), right, step.TOLERANCE)
