"""What a denoiser learns from a batch: v- or eps-prediction of clips, with conditions dropped or made noisy.

    batch -> latents, text, image tokens -> drops, TimeNoise -> x_t -> prediction -> squared error per sample

Everything random about a sample comes from the sample's own seed, and what a whole batch shares from the
batch's, so that neither the number of ranks nor an interruption changes a number. No trainer is known here.

Sources: DynamiCrafter (Xing et al. 2023), CIL (Zhao et al. 2024) for TimeNoise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from einops import rearrange, repeat
from torch import Tensor

from edg.core.errors import UsageError
from edg.core.seeding import generator
from edg.diffusion.prediction import at, rates, target
from edg.diffusion.schedule import Parameterization, Schedule
from edg.networks.latent_video.model import LatentVideoModel

Batch = Mapping[str, Any]
MOST = 10**6  # of a multiple, a deviation or a power


def _require(right: bool, given: str, expected: str) -> None:
    if not right:
        raise UsageError(given, expected=expected)


@dataclass(frozen=True)
class Drops:
    """Shares of the samples whose text, text and image, or image alone is replaced by the null condition."""

    text: float = 0.05
    both: float = 0.05
    image: float = 0.05

    def __post_init__(self):
        shares = (self.text, self.both, self.image)
        _require(
            min(shares) >= 0 and sum(shares) <= 1 + 1e-9, f"drops {shares}", "shares of at least 0, sum <= 1"
        )

    def masks(self, r_B: Tensor) -> tuple[Tensor, Tensor]:
        """(text dropped, image dropped), boolean (B,), from one uniform number of [0, 1) per sample as the
        published trainer does it."""
        a, b, c = self.text, self.text + self.both, self.text + self.both + self.image
        return r_B < b, (r_B >= a) & (r_B < c)


@dataclass(frozen=True)
class TimeNoise:
    """CIL's noise on the conditions: c <- c + s e with s = beta_m sigmoid(n), n ~ N(2 u^a - 1, 1), u = t / N.

    s is one number per sample. per "element": e is fresh for each element of the image's latent, frames
    included; "sample": one Gaussian number for the whole latent (as CIL's code for SVD has it).
    clip "tokens": the projected image tokens get noise in the same way, with a level of their own; "replace":
    with probability clip_prob the tokens of the whole batch become N(0, 1), as published; "none": untouched.
    """

    a: float = 5.0
    beta_m: float = 100.0
    per: Literal["element", "sample"] = "element"
    clip: Literal["none", "tokens", "replace"] = "replace"
    clip_prob: float = 0.95

    def __post_init__(self):
        _require(self.per in ("element", "sample"), f"time_noise.per {self.per!r}", "element or sample")
        _require(
            self.clip in ("none", "tokens", "replace"),
            f"time_noise.clip {self.clip!r}",
            "none, tokens, replace",
        )
        _require(
            0 <= self.a <= MOST and 0 <= self.beta_m <= MOST,
            f"time_noise a {self.a}, beta_m {self.beta_m}",
            f"0 to {MOST:,}",
        )
        _require(0 <= self.clip_prob <= 1, f"time_noise.clip_prob {self.clip_prob}", "a probability")

    def level(self, u_B: Tensor, normal_B: Tensor) -> Tensor:
        """s (B,) at diffusion times u in [0, 1], from one N(0, 1) number per sample."""
        return self.beta_m * torch.sigmoid(2 * u_B**self.a - 1 + normal_B)


@dataclass(frozen=True)
class Objective:
    """drops: of the conditions. random_frame: condition on one random frame of the batch, not on frame 0.
    min_snr: gamma of Hang et al. 2023, None is off. timestep_shift: above 1, high noise is drawn more often,
    see shifted. offset_noise: deviation of a further noise, one number per channel and frame.
    time_noise: CIL's, None is off.
    """

    drops: Drops = field(default_factory=Drops)
    random_frame: bool = False
    min_snr: float | None = None
    timestep_shift: float = 1.0
    offset_noise: float = 0.0
    time_noise: TimeNoise | None = None

    def __post_init__(self):
        _require(self.min_snr is None or self.min_snr > 0, f"min_snr {self.min_snr}", "above 0, or none")
        shift, noise = self.timestep_shift, self.offset_noise
        _require(0 < shift <= MOST, f"timestep_shift {shift}", f"above 0, at most {MOST:,}")
        _require(0 <= noise <= MOST, f"offset_noise {noise}", f"0 to {MOST:,}")


@dataclass(frozen=True)
class Constants:
    """What stays the same all through a training: the schedule (float32, CPU) and the null conditions, text
    (1, L, D) of the empty prompt and image tokens (1, M, W) of the zero image."""

    schedule: Schedule
    null_text: Tensor
    null_image: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: LatentVideoModel) -> Constants:
        spec = model.spec
        zero = torch.zeros(1, 3, spec.height, spec.width, device=model.device)
        return cls(model.schedule, model.encode_text([""]), model.embedder(zero))


@dataclass(frozen=True)
class Draws:
    """The randomness of a batch: a CPU stream for every sample (or the whole batch) and purpose."""

    samples: tuple[int, ...]
    batch: int

    @classmethod
    def of(cls, batch: Batch) -> Draws:
        """From the batch's `draw` and `batch_draw`; torch's global generator gives the seeds that are not
        there."""

        def seeds(name: str) -> list[int]:
            given = batch.get(name)
            return (torch.randint(2**62, (len(batch["fps"]),)) if given is None else given).tolist()

        return cls(tuple(seeds("draw")), seeds("batch_draw")[0])

    def uniform(self, purpose: str) -> Tensor:
        """(B,) numbers of [0, 1), one per sample."""
        return torch.cat([torch.rand(1, generator=generator(seed, purpose)) for seed in self.samples])

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """(B, *shape) numbers of N(0, 1)."""
        return torch.stack([torch.randn(shape, generator=generator(seed, purpose)) for seed in self.samples])

    def shared(self, purpose: str) -> torch.Generator:
        """The generator of what the batch draws once, the same on every rank."""
        return generator(self.batch, purpose)


def denoising_loss(
    model: LatentVideoModel, batch: Batch, objective: Objective, constants: Constants
) -> tuple[Tensor, Tensor]:
    """(loss of each sample (B,), weighted as min_snr says; timesteps (B,)); the mean is what to minimise.

    Batch, each either precomputed or raw:
        frames (B, 3, T, H, W) in [-1, 1]  or  latents (B, C, T, h, w), scaled  or  moments (B, 2C, T, h, w),
            the posterior's mean and log variance, unscaled
        caption, B strings                 or  text (B, L, D)
        the image, taken from frames       or  image (B, M, W), the tower's tokens of frame 0
                                           or  images (B, T, M, W), those of every frame
        fps (B,) integers, or frame strides where the model's condition is the stride
        weight (B, 1, T, h, w), optional, of every latent value's squared error
        draw (B,), batch_draw (B,): seeds, see Draws
    Raises UsageError for a batch that cannot give what the objective asks for.
    """
    draws, schedule, spec = Draws.of(batch), constants.schedule, model.spec
    z = latents(model, batch, draws)
    frames, device = z.shape[2], z.device
    frame = int(torch.randint(frames, (), generator=draws.shared("frame"))) if objective.random_frame else 0
    text, image = conditions(model, batch, frame)

    no_text, no_image = (mask.to(device) for mask in objective.drops.masks(draws.uniform("drop")))
    text = torch.where(no_text[:, None, None], constants.null_text.to(text), text)
    image = torch.where(no_image[:, None, None], constants.null_image.to(image), image)
    tokens = model.image_proj_model(image)
    concat = repeat(z[:, :, frame], "b c h w -> b c t h w", t=frames)

    t = shifted(draws.uniform("timestep"), len(schedule.betas), objective.timestep_shift).to(device)
    if objective.time_noise is not None:
        u = t / len(schedule.betas)
        concat, tokens = _made_noisy(objective.time_noise, concat, tokens, u, draws)
    noise = draws.normal("noise", *z.shape[1:]).to(device)
    if objective.offset_noise:
        offset = draws.normal("offset", *z.shape[1:3], 1, 1).to(device)
        noise = noise + objective.offset_noise * offset

    x0 = z if schedule.scale_arr is None else z * at(schedule.scale_arr, t, z)
    signal, sigma = rates(schedule, t, z)
    prediction = model.predict(
        signal * x0 + sigma * noise,
        t,
        torch.cat([text, tokens], dim=1),
        concat,
        batch["fps"],
        model.temporal_context(text, frames),
    )
    error = (prediction.float() - target(x0, noise, signal, sigma, spec.parameterization)) ** 2
    if "weight" in batch:
        error = error * batch["weight"]
    weight = snr_weight(schedule, t, objective.min_snr, spec.parameterization)
    return error.mean(dim=(1, 2, 3, 4)) * weight, t


@torch.no_grad()
def latents(model: LatentVideoModel, batch: Batch, draws: Draws) -> Tensor:
    """Scaled latents (B, C, T, h, w), float32: as given, or one draw from the posterior, the same draw
    whether its moments are given or computed from frames here (clip by clip, or frame by frame where the
    spec says so)."""
    if "latents" in batch:
        return batch["latents"].float()
    if "moments" in batch:
        mean, logvar = batch["moments"].float().chunk(2, dim=1)
        logvar = logvar.clamp(-30.0, 20.0)
    elif "frames" in batch:
        flat = rearrange(batch["frames"], "b c t h w -> (b t) c h w")
        at_once = 1 if model.spec.perframe_ae else batch["frames"].shape[2]
        posteriors = [model.encode_frames(part) for part in flat.split(at_once)]
        count = len(batch["frames"])
        mean, logvar = (
            rearrange(torch.cat([getattr(p, part) for p in posteriors]), "(b t) c h w -> b c t h w", b=count)
            for part in ("mean", "logvar")
        )
    else:
        raise UsageError(f"a batch of {', '.join(batch)}", expected="frames, moments or latents in it")
    noise = draws.normal("posterior", *mean.shape[1:]).to(mean.device)
    return (mean + torch.exp(0.5 * logvar) * noise) * model.spec.scale_factor


@torch.no_grad()
def conditions(model: LatentVideoModel, batch: Batch, frame: int) -> tuple[Tensor, Tensor]:
    """(text (B, L, D), image tokens (B, M, W) of that frame); what is not precomputed is computed here."""
    text = batch["text"] if "text" in batch else model.encode_text(batch["caption"])
    if "images" in batch:
        return text, batch["images"][:, frame]
    if "image" in batch and frame == 0:
        return text, batch["image"]
    if "frames" not in batch:
        raise UsageError(
            f"frame {frame} is the condition, and the batch has image tokens of frame 0 alone",
            expected="`images`, the tokens of every frame, or frames",
            fix="random_frame: false, or encode the clips with the tokens of every frame",
        )
    return text, model.embedder(batch["frames"][:, :, frame])


def _made_noisy(
    how: TimeNoise, concat: Tensor, tokens: Tensor, u_B: Tensor, draws: Draws
) -> tuple[Tensor, Tensor]:
    """The image's latent (B, C, T, h, w) and its tokens (B, L, D) after TimeNoise at times u."""

    def noisy(x: Tensor, purpose: str) -> Tensor:
        level = how.level(u_B.cpu(), draws.normal(f"{purpose} level"))
        shape = x.shape[1:] if how.per == "element" else [1] * (x.ndim - 1)
        return x + (level.view(-1, *[1] * (x.ndim - 1)) * draws.normal(purpose, *shape)).to(x)

    concat = noisy(concat, "time noise")
    if how.clip == "tokens":
        tokens = noisy(tokens, "clip noise")
    elif how.clip == "replace" and float(torch.rand((), generator=draws.shared("clip"))) < how.clip_prob:
        # The product keeps the projector in the graph: a trainer may insist that all it trains has gradients.
        tokens = draws.normal("clip tokens", *tokens.shape[1:]).to(tokens) + 0 * tokens
    return concat, tokens


def snr_weight(schedule: Schedule, t_B: Tensor, gamma: float | None, kind: Parameterization) -> Tensor:
    """min(SNR, gamma) / (SNR + 1) for v, / SNR for eps (Hang et al. 2023, section 3.4); ones without
    gamma."""
    if gamma is None:
        return torch.ones_like(t_B, dtype=torch.float32)
    a = schedule.alphas_cumprod.to(t_B.device)[t_B]
    snr = a / (1 - a)
    return snr.clamp(max=gamma) / (snr + (1.0 if kind == "v" else 0.0)).clamp(min=1e-8)


def shifted(u_B: Tensor, steps: int, shift: float = 1.0) -> Tensor:
    """(B,) timesteps of 0 .. steps - 1 from uniform u: uniform at shift 1, else u -> shift u / (1 + (shift -
    1) u) (Esser et al. 2024, section 5.3.2): at 3 the median is 3/4 of the way to pure noise, where motion is
    decided."""
    return (shift * u_B / (1 + (shift - 1) * u_B) * steps).long().clamp(max=steps - 1)
