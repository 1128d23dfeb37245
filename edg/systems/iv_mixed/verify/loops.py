"""Groups `iv_loop` and `iv_run`: whole runs, with every network call, around stubs or small networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from einops import rearrange, repeat
from torch import Tensor

from edg.diffusion.ddim import SamplerStep, State
from edg.diffusion.noise_levels import NoiseLevels, move
from edg.diffusion.prediction import Denoiser, x0_from
from edg.diffusion.sde_dpm import sde_dpmpp
from edg.diffusion.zigzag import FRESH_NOISE, IMAGE, RELEASED_PLAN, VIDEO, Leg, Zigzag, walk
from edg.systems.iv_mixed.verify.schedules import curve_of, grid_of, levels_of
from edg.verify.cases import Case

NETS = {VIDEO: 0, IMAGE: 1, FRESH_NOISE: 2}
#: (x_BCTHW, t_B, context_BLD) -> eps.
Network = Callable[[Tensor, Tensor, Tensor], Tensor]


def zigzag_of(case: Case) -> Zigzag:
    """The loops of a case: a published pipeline's, or a general plan."""
    config, published = case.config, case.config["pipeline"] != "plan"
    return Zigzag(
        plan=RELEASED_PLAN if published else config["plan"],
        interval=tuple(config["interval"]),
        image_every=config["zz"] if config["zz"] is not None else 1000,
        image_guidance=curve_of(config["curve_i"]),
        video_guidance=curve_of(config["curve_v"]),
        stand_in="I" if config["off_weight"] == "i" else "V",
        levels="stride" if published else config["levels"],
        order=config.get("order", "canonical") if published else "canonical",
        still=True,
        published_queries=published,
    )


def loop(case: Case) -> dict[str, Tensor]:
    return run(case, stub_networks(case))


def run(case: Case, networks: dict[str, Network]) -> dict[str, Tensor]:
    """Sample, and list every call: network, timestep, levels, weight and the latent after it."""
    config, levels = case.config, levels_of(case.config["scheduler"])
    zigzag, timesteps = zigzag_of(case), grid_of(config["grid"], config["steps"])
    x = case.input("x_T")
    calls: list[tuple[Leg, Tensor]] = []
    states: list[State] = []

    def denoiser_of(leg: Leg) -> Denoiser:
        return guided_x0(case, networks[leg.model], leg, levels)

    for step, t in enumerate(timesteps):
        legs = zigzag.legs(step, timesteps)
        fresh = partial(renoise_of, case, step)
        loop = list(walk(x, legs, denoiser_of, levels, fresh))
        calls += loop
        x = loop[-1][1] if loop else x
        target = zigzag.level(step, timesteps, 1)
        if config["outer"] != "ddim":
            target = timesteps[step + 1] if step + 1 < len(timesteps) else 0
        leg = Leg(VIDEO, t, t, target, config["w_final"], -1)
        if config["outer"] == "ddim":
            x0 = denoiser_of(leg)(x, x.new_full((len(x),), t).long())
            x = move(x, x0, levels[t], levels[target])
            states.append(State(None, x, x0))
        else:
            states.append(sde_step(case, denoiser_of(leg), x, step, timesteps, levels, states))
            x = states[-1].x
        calls.append((leg, x))
    legs = [leg for leg, _ in calls]
    return {
        "x_final": x,
        "x_steps": torch.stack([state.x for state in states]),
        "x_calls": torch.stack([after for _, after in calls]),
        "call_net": torch.tensor([NETS[leg.model] for leg in legs]),
        "call_t": torch.tensor([-1 if leg.model == FRESH_NOISE else leg.t for leg in legs]),
        "call_from": torch.tensor([leg.source for leg in legs]),
        "call_to": torch.tensor([leg.target for leg in legs]),
        "call_weight": torch.tensor([float(leg.weight) for leg in legs]),
    }


def renoise_of(case: Case, step: int, leg: Leg) -> Tensor:
    """The draw of a leg of fresh noise."""
    return case.input(f"renoise_{step}_{leg.index}", case.input("x_T").shape)


def guided_x0(case: Case, network: Network, leg: Leg, levels: NoiseLevels) -> Denoiser:
    """The network of a leg, guided with its weight, as a denoiser of x0 at the leg's source level."""
    kind = "i" if leg.model == IMAGE and case.has_input("i.neg") else "v"
    negative, positive = (case.input(f"{kind}.{name}") for name in ("neg", "pos"))
    source = levels[leg.source]

    def denoise(x: Tensor, t_B: Tensor) -> Tensor:
        u, c = (network(x, t_B, context.to(case.dtype)) for context in (negative, positive))
        return x0_from(u + leg.weight * (c - u), x, source.signal, source.noise, "eps")

    return denoise


def sde_step(
    case: Case,
    denoise: Denoiser,
    x: Tensor,
    step: int,
    timesteps: Sequence[int],
    levels: NoiseLevels,
    before: Sequence[State],
) -> State:
    """One step of SDE-DPM-Solver++(2M), with the draw of the published run (frames folded into the batch)."""
    alpha = [levels[t].signal ** 2 for t in timesteps] + [1.0]
    here = SamplerStep(step, timesteps[step], alpha[step], alpha[step + 1], 0.0, 1.0, 1.0)

    def noise(_step: SamplerStep, shape: Sequence[int]) -> Tensor:
        b, c, f, h, w = shape
        return rearrange(case.input(f"noise_{step}", (b * f, c, h, w)), "(b f) c h w -> b c f h w", b=b)

    return next(iter(sde_dpmpp(denoise, x, [here], noise, before)))


def per_frame(network: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Network:
    """A network of single pictures (n, c, h, w) as one of clips; every frame has its clip's text."""

    def folded(x: Tensor, t_B: Tensor, context: Tensor) -> Tensor:
        frames = x.shape[2]
        pictures = rearrange(x, "b c f h w -> (b f) c h w")
        each = network(
            pictures, repeat(t_B, "b -> (b f)", f=frames), repeat(context, "b l d -> (b f) l d", f=frames)
        )
        return rearrange(each, "(b f) c h w -> b c f h w", f=frames)

    return folded


def stub_networks(case: Case) -> dict[str, Network]:
    """The analytic networks that the case's `math` gives."""
    fps = case.config["fps"]

    def mean(context: Tensor, x: Tensor) -> Tensor:
        return 5 * context.mean((1, 2)).reshape(-1, *[1] * (x.ndim - 1))

    def video(x: Tensor, t_B: Tensor, context: Tensor) -> Tensor:
        m, t = mean(context, x), t_B.float().reshape(-1, 1, 1, 1, 1)
        out = 0.6 * x + 0.25 * m + 0.05 * torch.sin(t / 100) + 0.2 * m * torch.tanh(x)
        out = out + 0.3 * x.mean(2, keepdim=True)
        return out if fps is None else out + 0.1 * torch.sin(torch.tensor(fps / 10))

    def image(x: Tensor, t_B: Tensor, context: Tensor) -> Tensor:
        m, t = mean(context, x), t_B.float().reshape(-1, 1, 1, 1)
        out = 0.5 * x - 0.2 * m + 0.04 * torch.cos(t / 50) + 0.15 * m * torch.tanh(x)
        return out + 0.2 * x.mean((2, 3), keepdim=True)

    return {VIDEO: video, IMAGE: per_frame(image)}
