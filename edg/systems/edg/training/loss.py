"""The denoiser's training loss: v- or eps-prediction of clips, with conditions dropped or made noisy.

    batch -> latents, text, image tokens -> drops, TimeNoise -> x_t -> prediction -> squared error per sample

The random numbers of a sample come from the sample's own seed, those that a whole batch shares from the
batch's, so that neither the number of ranks nor an interruption changes a number.

Sources: DynamiCrafter (Xing et al. 2023), CIL (Zhao et al. 2024) for TimeNoise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from einops import rearrange, repeat
from torch import Tensor

from edg.core.errors import UsageError, require
from edg.core.seeding import generator
from edg.diffusion.prediction import at, rates, target
from edg.diffusion.schedule import Parameterization, Schedule
from edg.networks.latent_video.model import LatentVideoModel

Batch = Mapping[str, Any]
LIMIT = 10**6  # of a multiple, a deviation or a power


@dataclass(frozen=True)
class Drops:
    """Shares of the samples whose text, text and image, or image alone is replaced by the null condition."""

    text: float = 0.05
    both: float = 0.05
    image: float = 0.05

    def __post_init__(self) -> None:
        shares = (self.text, self.both, self.image)
        valid = min(shares) >= 0 and sum(shares) <= 1 + 1e-9
        require(valid, f"drops {shares}", "shares of at least 0 with a sum of at most 1")

    def masks(self, r_B: Tensor) -> tuple[Tensor, Tensor]:
        """Draw the samples without text and those without image, boolean (B,), from one uniform number of
        [0, 1) per sample as the published trainer does."""
        a, b, c = self.text, self.text + self.both, self.text + self.both + self.image
        return r_B < b, (r_B >= a) & (r_B < c)


@dataclass(frozen=True)
class TimeNoise:
    """Noise of CIL on the conditions: c <- c + s e, s = beta_m sigmoid(n), n ~ N(2 u^a - 1, 1), u = t / N.

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

    def __post_init__(self) -> None:
        require(self.per in ("element", "sample"), f"time_noise.per {self.per!r}", "element or sample")
        known = self.clip in ("none", "tokens", "replace")
        require(known, f"time_noise.clip {self.clip!r}", "none, tokens, replace")
        in_range = 0 <= self.a <= LIMIT and 0 <= self.beta_m <= LIMIT
        require(in_range, f"time_noise a {self.a}, beta_m {self.beta_m}", f"0 to {LIMIT:,}")
        require(0 <= self.clip_prob <= 1, f"time_noise.clip_prob {self.clip_prob}", "a probability")

    def level(self, u_B: Tensor, normal_B: Tensor) -> Tensor:
        """s (B,) at diffusion times u in [0, 1], from one N(0, 1) number per sample."""
        return self.beta_m * torch.sigmoid(2 * u_B**self.a - 1 + normal_B)


@dataclass(frozen=True)
class Objective:
    """Settings of the loss.

    drops: shares of the samples without conditions.
    random_frame: condition on one random frame of the batch, not on frame 0.
    min_snr: gamma of Hang et al. 2023, None is off.
    timestep_shift: above 1, high noise is drawn more often, see `shifted`.
    offset_noise: standard deviation of a further noise, one number per channel and frame.
    time_noise: noise of CIL on the image condition, None is off.
    """

    drops: Drops = field(default_factory=Drops)
    random_frame: bool = False
    min_snr: float | None = None
    timestep_shift: float = 1.0
    offset_noise: float = 0.0
    time_noise: TimeNoise | None = None

    def __post_init__(self) -> None:
        require(self.min_snr is None or self.min_snr > 0, f"min_snr {self.min_snr}", "above 0, or none")
        shift, noise = self.timestep_shift, self.offset_noise
        require(0 < shift <= LIMIT, f"timestep_shift {shift}", f"above 0, at most {LIMIT:,}")
        require(0 <= noise <= LIMIT, f"offset_noise {noise}", f"0 to {LIMIT:,}")


@dataclass(frozen=True)
class Constants:
    """Constants of a training: the schedule (float32, CPU) and the null conditions, text (1, L, D) of the
    empty prompt and image tokens (1, M, W) of the zero image."""

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
    """Random numbers of a batch: a CPU stream for every sample (or the whole batch) and purpose."""

    samples: tuple[int, ...]
    batch: int

    @classmethod
    def of(cls, batch: Batch) -> Draws:
        """Take the seeds from a batch's `draw` and `batch_draw`, else from torch's global generator."""

        def seeds(name: str) -> list[int]:
            given = batch.get(name)
            return (torch.randint(2**62, (len(batch["fps"]),)) if given is None else given).tolist()

        return cls(tuple(seeds("draw")), seeds("batch_draw")[0])

    def uniform(self, purpose: str) -> Tensor:
        """Numbers of [0, 1), (B,), one per sample."""
        return torch.cat([torch.rand(1, generator=generator(seed, purpose)) for seed in self.samples])

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """Numbers of N(0, 1), (B, *shape)."""
        return torch.stack([torch.randn(shape, generator=generator(seed, purpose)) for seed in self.samples])

    def shared(self, purpose: str) -> torch.Generator:
        """Generator of the numbers that the batch shares, the same on every rank."""
        return generator(self.batch, purpose)


def denoising_loss(
    model: LatentVideoModel, batch: Batch, objective: Objective, constants: Constants
) -> tuple[Tensor, Tensor]:
    """Loss of each sample (B,), weighted by min_snr, and its timestep (B,). Training minimises the mean loss.

    Batch, each item either precomputed or raw:
        frames (B, 3, T, H, W) in [-1, 1]  or  latents (B, C, T, h, w), scaled  or  moments (B, 2C, T, h, w),
            the posterior's mean and log variance, unscaled
        caption, B strings                 or  text (B, L, D)
        the image, taken from frames       or  image (B, M, W), the tower's tokens of frame 0
                                           or  images (B, T, M, W), those of every frame
        fps (B,) integers, or frame strides where the model's condition is the stride
        weight (B, 1, T, h, w), optional, of every latent value's squared error
        draw (B,), batch_draw (B,): seeds, see Draws
    Raises UsageError for a batch without an item that the objective needs.
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
        concat, tokens = _add_time_noise(objective.time_noise, concat, tokens, u, draws)
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
    """Scaled latents (B, C, T, h, w), float32: as given, or one draw from the posterior. The draw is the same
    for moments that are given and for those computed from frames here (clip by clip, or frame by frame if
    the spec says so)."""
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
        raise UsageError(f"a batch of {', '.join(batch)}", expected="frames, moments or latents among them")
    noise = draws.normal("posterior", *mean.shape[1:]).to(mean.device)
    return (mean + torch.exp(0.5 * logvar) * noise) * model.spec.scale_factor


@torch.no_grad()
def conditions(model: LatentVideoModel, batch: Batch, frame: int) -> tuple[Tensor, Tensor]:
    """Text embedding (B, L, D) and image tokens (B, M, W) of that frame, computed here if not precomputed."""
    text = batch["text"] if "text" in batch else model.encode_text(batch["caption"])
    if "images" in batch:
        return text, batch["images"][:, frame]
    if "image" in batch and frame == 0:
        return text, batch["image"]
    if "frames" not in batch:
        raise UsageError(
            f"frame {frame} is the condition, but the batch has image tokens of frame 0 only",
            expected="`images`, the tokens of every frame, or frames",
            fix="set random_frame: false, or encode the clips with edg encode --every-frame",
        )
    return text, model.embedder(batch["frames"][:, :, frame])


def _add_time_noise(
    how: TimeNoise, concat: Tensor, tokens: Tensor, u_B: Tensor, draws: Draws
) -> tuple[Tensor, Tensor]:
    """Add TimeNoise at times u to the image's latent (B, C, T, h, w) and its tokens (B, L, D)."""

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
    """Min-SNR weight, min(SNR, gamma) / (SNR + 1) for v, / SNR for eps (Hang et al. 2023, section 3.4); ones
    without gamma."""
    if gamma is None:
        return torch.ones_like(t_B, dtype=torch.float32)
    a = schedule.alphas_cumprod.to(t_B.device)[t_B]
    snr = a / (1 - a)
    return snr.clamp(max=gamma) / (snr + (1.0 if kind == "v" else 0.0)).clamp(min=1e-8)


def shifted(u_B: Tensor, steps: int, shift: float = 1.0) -> Tensor:
    """Timesteps 0 .. steps - 1, (B,), from uniform u: u -> shift u / (1 + (shift - 1) u) (Esser et al. 2024,
    section 5.3.2). At shift 3 the median is 3/4 of the way to pure noise, where motion is decided."""
    return (shift * u_B / (1 + (shift - 1) * u_B) * steps).long().clamp(max=steps - 1)
