"""The zigzag of the IV-Mixed Sampler: before a sampler step, a closed loop of small steps towards less noise
and back, some by an image model that sees single frames, some by the video model.

A plan is a sequence of tokens, a model and a direction: `I-` moves the latent one level cleaner with the
image model, `V+` one level noisier with the video model, `R+` one level noisier with fresh noise. The
published loop is I- V- I+ V+. Guidance is added on the way down and taken away on the way up (its weight is
negated), so that the loop leaves both models' guidance in the latent, at an unchanged noise level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from edg.diffusion.noise_levels import NoiseLevels, move, renoise
from edg.diffusion.prediction import Denoiser, Latents

VIDEO, IMAGE, FRESH_NOISE = "V", "I", "R"
RELEASED_PLAN = ("I-", "V-", "I+", "V+")
#: One guided network call: (leg) -> the denoiser of x0 of the leg's model with its guidance weight.
DenoiserOf = Callable[["Leg"], Denoiser]


@dataclass(frozen=True)
class Leg:
    """One small step of a loop. model: V, I or R. t: the timestep that the network is given. source, target:
    timesteps whose noise levels it leads from and to, in the video model's schedule. weight: of guidance,
    negative on the way up. index: its place in the plan."""

    model: str
    t: int
    source: int
    target: int
    weight: float
    index: int


@dataclass(frozen=True)
class Zigzag:
    """Loops before the steps of a sampler.

    plan: tokens, as many of them down as up; empty for no loop.
    interval: first and last step with a loop, counted from 0, both included.
    image_every: n; the image model is used at step i where i mod n < n - 1, the video model stands in for it
        elsewhere (the release's zz; 1: never, 2: every second step, 1000: always).
    image_guidance, video_guidance: weight at each step.
    stand_in: the weight of the video model where it stands in, its own ("V") or the image model's ("I").
    levels: "grid": one level is one entry of the sampler's timesteps, then 0; "stride": 1000 // steps.
    order: "animatediff_legacy" exchanges the timesteps of the first two legs, as that pipeline does.
    still: keep legs whose two levels are the same, which change nothing, as the release does.
    published_queries: the network's timestep k levels below t is t - 1000 k // steps, as in the release, and
        not that of the level the latent is at.
    """

    plan: Sequence[str] = RELEASED_PLAN
    interval: tuple[int, int] = (0, 999)
    image_every: int = 1000
    image_guidance: Sequence[float] = ()
    video_guidance: Sequence[float] = ()
    stand_in: Literal["V", "I"] = "V"
    levels: Literal["grid", "stride"] = "grid"
    order: Literal["canonical", "animatediff_legacy"] = "canonical"
    still: bool = False
    published_queries: bool = False

    def legs(self, step: int, timesteps: Sequence[int]) -> list[Leg]:
        """The loop before sampler step `step` at timesteps[step] (descending); empty outside the interval."""
        if not self.interval[0] <= step <= self.interval[1]:
            return []
        depth, found = 0, []
        for index, (model, direction) in enumerate(parse_plan(self.plan)):
            after = depth - direction
            found.append((index, model, direction, depth, after))
            depth = after
        if self.order == "animatediff_legacy" and len(found) > 1:
            (i, a, up_a, *levels_a), (j, b, up_b, *levels_b) = found[:2]
            found[:2] = [(i, a, up_a, *levels_b), (j, b, up_b, *levels_a)]
        legs = [self._leg(step, timesteps, *one) for one in found]
        return legs if self.still else [leg for leg in legs if leg.source != leg.target]

    def _leg(
        self,
        step: int,
        timesteps: Sequence[int],
        index: int,
        model: str,
        direction: int,
        depth: int,
        after: int,
    ) -> Leg:
        source, target = (self.level(step, timesteps, k) for k in (depth, after))
        t = source
        if self.published_queries:
            t = max(0, timesteps[step] - 1000 * depth // len(timesteps))
        weights = {IMAGE: self.image_guidance, VIDEO: self.video_guidance}
        weighted = model
        if model == IMAGE and not image_model_is_used(step, self.image_every):
            model, weighted = VIDEO, self.stand_in
        weight = 0.0 if model == FRESH_NOISE else -direction * weights[weighted][step]
        return Leg(model, t, source, target, weight, index)

    def level(self, step: int, timesteps: Sequence[int], depth: int) -> int:
        """The timestep `depth` levels cleaner than timesteps[step] (noisier for a negative depth)."""
        if self.levels == "stride":
            return min(max(timesteps[step] - depth * (1000 // len(timesteps)), 0), 999)
        place = max(step + depth, 0)
        return timesteps[place] if place < len(timesteps) else 0


def parse_plan(plan: Sequence[str]) -> list[tuple[str, int]]:
    """(model, +1 for noisier or -1 for cleaner) of each token. Raises ValueError for an unknown token and for
    a plan that does not end at the level where it began."""
    legs = []
    for token in plan:
        model, sign = token[:-1], token[-1:]
        if model not in (VIDEO, IMAGE, FRESH_NOISE) or sign not in ("+", "-") or token == "R-":
            raise ValueError(f"{token!r} in a plan: expected I-, I+, V-, V+ or R+")
        legs.append((model, 1 if sign == "+" else -1))
    if total := sum(direction for _, direction in legs):
        side = "above" if total > 0 else "below"
        raise ValueError(f"the plan {' '.join(plan)} ends {abs(total)} levels {side} its start")
    return legs


def image_model_is_used(step: int, every: int) -> bool:
    """True at the steps where the image model is used: step mod every < every - 1."""
    return step % every < every - 1


def guidance_curve(begin: float, end: float, rho: float, points: int) -> list[float]:
    """Guidance weights from `begin` to `end`: linear in their rho-th root (as Karras et al. 2022, equation 5,
    space noise levels).

    (begin^(1/rho) + k / (points - 1) (end^(1/rho) - begin^(1/rho)))^rho, k = 0 .. points - 1.
    """
    first, last = begin ** (1 / rho), end ** (1 / rho)
    return [(first + k / max(points - 1, 1) * (last - first)) ** rho for k in range(points)]


def walk(
    x: Latents,
    legs: Sequence[Leg],
    denoiser_of: DenoiserOf,
    levels: NoiseLevels,
    noise: Callable[[Leg], Latents],
) -> Iterator[tuple[Leg, Latents]]:
    """Take x through a loop, yielding after each leg.

    denoiser_of: (leg) -> denoiser (x, t) -> x0 of its model, in the video model's scaling (`at_level_of`).
    levels: of the video model. noise: (leg) -> N(0, 1) in the shape of x, for R.
    """
    for leg in legs:
        source, target = levels[leg.source], levels[leg.target]
        if leg.model == FRESH_NOISE:
            x = renoise(x, noise(leg).to(x), source, target)
        else:
            x0 = denoiser_of(leg)(x, x.new_full((len(x),), leg.t).long())
            x = move(x, x0, source, target)
        yield leg, x


def calls(zigzag: Zigzag, timesteps: Sequence[int]) -> Mapping[str, int]:
    """Guided network calls of all loops: model -> count."""
    models = [leg.model for step in range(len(timesteps)) for leg in zigzag.legs(step, timesteps)]
    return {name: models.count(name) for name in (VIDEO, IMAGE)}
