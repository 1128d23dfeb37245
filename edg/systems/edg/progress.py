"""Steps and previews of a run, reported to its observer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edg.core.errors import is_out_of_memory
from edg.core.video import to_uint8
from edg.diffusion.ddim import State
from edg.systems.base import Observer, Request, Silent
from edg.systems.edg.clip_state import ClipState
from edg.systems.edg.parameter_sets import ParameterSets
from edg.systems.edg.preview import TinyDecoder, preview, read_tiny_decoder
from edg.systems.edg.sampling_schedule import schedule_of_sets

PREVIEWS = 6  # of a clip


@dataclass
class ProgressCounter:
    """Count the steps of a run. total: of all of them; decoder: for previews, None for the linear map."""

    observer: Observer
    total: int
    decoder: TinyDecoder | None = None
    count: int = 0

    @classmethod
    def for_groups(
        cls, observer: Observer | None, sets: ParameterSets, groups: Sequence[Sequence[Request]]
    ) -> ProgressCounter:
        """The counter of a call that makes groups of requests of one shape."""
        total = sum(count_steps(sets, group) for group in groups)
        watched = observer is not None and observer.wants_preview and groups
        file = groups[0][0].options.preview_decoder if watched else None
        decoder = None if file is None else read_tiny_decoder(file, sets.spec, sets.device)
        return cls(observer or Silent(), total, decoder)

    def step(self, phase: str, done: int, total: int, request: Request) -> None:
        """Report a step with its share of the run."""
        self.count += 1
        self.observer.step(phase, done, total, request, min(self.count / self.total, 1.0))

    def preview(self, batch: Sequence[ClipState], state: State) -> None:
        """Show every clip's predicted x0 at some of the steps; without the decoder where memory is low."""
        steps = batch[0].request.options.steps
        if not self.observer.wants_preview or (state.step.index + 1) * PREVIEWS % steps >= PREVIEWS:
            return
        clean = state.x0 / state.step.scale_prev  # the dynamic rescale's factor off
        once = {clip.request.id: (clip, x0) for clip, x0 in zip(batch, clean, strict=True)}
        for clip, x0 in once.values():
            inputs = (x0, clip.concat_1CTHW[0, :, 0], clip.image_13HW[0])
            try:
                frames = preview(*inputs, self.decoder)
            except (MemoryError, RuntimeError) as error:
                if self.decoder is None or not is_out_of_memory(error):
                    raise
                frames = preview(*inputs)
            self.observer.preview(clip.request, f"t = {state.step.t}", to_uint8(frames))


def count_steps(sets: ParameterSets, requests: Sequence[Request]) -> int:
    """Number of reported steps for requests of one shape: each step of a batch, each clip decoded."""
    steps = sum(len(steps) for _, steps in schedule_of_sets(sets, requests[0].options))
    return steps * -(-len(requests) // sets.batch_size) + len(requests)
