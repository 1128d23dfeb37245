"""DeepCache (Ma et al. 2023): the deep levels of the UNet at every N-th step, the outermost one at all.

What the deep levels hand up changes slowly from step to step. A `DeepFeature` keeps it; whoever makes a
denoiser makes a new one for each parameter set, batch and stack of conditions, so that it is never another's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Float, Int
from torch import Tensor

from edg.diffusion.ddim import SamplerStep


class DeepFeature:
    """value: what the deep levels gave at the last full step, None where this step must be a full one."""

    def __init__(self, full_steps: Mapping[int, int]):
        """full_steps: every timestep -> that of the full step whose value it takes; itself if it is one."""
        self.full_steps = full_steps
        self.value: Float[Tensor, "n c h w"] | None = None
        self._of: list[int] = []

    def enter(self, t_B: Int[Tensor, " b"]) -> None:
        """Begin the step at t, of each sample: a value of another full step is forgotten."""
        wanted = [self.full_steps.get(t, t) for t in t_B.tolist()]
        if wanted != self._of:
            self.value, self._of = None, wanted

    def keep(self) -> None:
        """End the step: what a replayed CUDA graph has given, its next replay writes over."""
        if self.value is not None and self.value.is_cuda:
            self.value = self.value.clone()


def deep_feature(steps: Sequence[SamplerStep], every: int) -> DeepFeature | None:
    """For one walk over `steps`, the first and every `every`-th of them full; None where all of them are."""
    if every == 1:
        return None
    return DeepFeature({step.t: steps[i - i % every].t for i, step in enumerate(steps)})
