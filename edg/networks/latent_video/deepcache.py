"""DeepCache (Ma et al. 2023): run the deep levels of the UNet at every N-th step, the outermost at all of
them.

The output of the deep levels changes slowly from step to step, and a `DeepFeature` keeps it. Every denoiser
has one of its own for each parameter set, batch and stack of conditions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Float, Int
from torch import Tensor

from edg.diffusion.ddim import SamplerStep


class DeepFeature:
    """Output of the deep levels at the last full step: `value`, None if this step must be a full one."""

    def __init__(self, full_steps: Mapping[int, int]):
        """full_steps: every timestep -> that of the full step whose value it takes; itself if it is one."""
        self.full_steps = full_steps
        self.value: Float[Tensor, "n c h w"] | None = None
        self._of: list[int] = []

    def enter(self, t_B: Int[Tensor, " b"]) -> None:
        """Begin the step at t, of each sample; drop the value of another full step."""
        wanted = [self.full_steps.get(t, t) for t in t_B.tolist()]
        if wanted != self._of:
            self.value, self._of = None, wanted

    def keep(self) -> None:
        """Copy the feature: the next CUDA-graph replay overwrites its buffer."""
        if self.value is not None and self.value.is_cuda:
            self.value = self.value.clone()


def deep_feature(steps: Sequence[SamplerStep], every: int) -> DeepFeature | None:
    """The cache for one pass over `steps`, the first and every `every`-th of them full; None if all are."""
    if every == 1:
        return None
    return DeepFeature({step.t: steps[i - i % every].t for i, step in enumerate(steps)})
