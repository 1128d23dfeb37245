"""The denoiser of a phase: the network under all conditions, guided, as a function (x, t) -> x0."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from edg.diffusion.ddim import SamplerStep
from edg.diffusion.guidance import Branches, guided, in_interval, side_by_side
from edg.diffusion.prediction import Denoiser, to_x0
from edg.diffusion.switch import blend
from edg.networks.latent_video.deepcache import deep_feature
from edg.systems.edg.condition import Condition
from edg.systems.edg.options import SamplingOptions
from edg.systems.edg.parameter_sets import ParameterSets


def denoiser(
    sets: ParameterSets,
    use: Sequence[int],
    conditions: Sequence[Mapping[str, Condition]],
    steps: Sequence[SamplerStep],
    options: SamplingOptions,
) -> Denoiser:
    """(x, t) -> x0: one set (or the blend of two) under all conditions, guided, turned into x0. The
    conditions share one call of the network, or come one after the other where memory is low.

    conditions: of a batch of clips, for each of the sets `use`.
    """

    def predict_branches(index: int, several: Sequence[Condition]) -> Branches:
        network = sets.network(index)
        if not sets.sequential_cfg:
            return Condition.predict_all(several, network, deep_feature(steps, options.reuse))
        return side_by_side(*(c.predict(network, deep_feature(steps, options.reuse)) for c in several))

    def predict(names: Iterable[str]) -> Branches:
        raw = [
            predict_branches(index, [of[name] for name in names])
            for index, of in zip(use, conditions, strict=True)
        ]
        return raw[0] if len(raw) == 1 else blend(*raw)

    weights = options.guidance_weights
    denoise = guided(predict(weights), list(weights.values()), options.guidance_rescale)
    if options.guided and options.guidance_interval is not None:
        denoise = in_interval(denoise, guided(predict(["full"]), [1.0]), *options.guidance_interval)
    return to_x0(denoise, sets.schedule, sets.spec.parameterization)
