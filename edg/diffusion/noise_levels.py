"""Noise levels of one model in the timesteps of another, and the deterministic map between two levels.

A model turns a clean sample into x_t = a(t) x0 + b(t) eps. Two models that share a latent space agree on the
ratio s = b / a, whatever their schedules call it (Karras et al. 2022, section 2: their sigma).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from edg.diffusion.prediction import Denoiser, Latents, Timesteps, eps_from_x0
from edg.diffusion.schedule import Schedule

SAME = 1e-5  # relative: a level this much above the largest is the largest


@dataclass(frozen=True)
class NoiseLevel:
    """A noise level in a model's own scaling: x = signal x0 + noise eps."""

    signal: float
    noise: float

    @property
    def ratio(self) -> float:
        """s = noise / signal, infinite where nothing of the sample is left."""
        return self.noise / self.signal if self.signal else math.inf


@dataclass(frozen=True)
class NoiseLevels:
    """The levels of a model by timestep. signal, noise: float64 (N,), the ratio of the two rises with t."""

    signal: Float[np.ndarray, " timesteps"]
    noise: Float[np.ndarray, " timesteps"]

    @classmethod
    def of(cls, schedule: Schedule) -> NoiseLevels:
        """The levels of a schedule; its dynamic rescale is part of the signal."""
        abar = schedule.alphas_cumprod.double().cpu().numpy()
        scale = 1.0
        if schedule.scale_arr is not None:
            scale = schedule.scale_arr.double().cpu().numpy()[: len(abar)]
        return cls(np.sqrt(abar) * scale, np.sqrt(1 - abar))

    def __getitem__(self, t: int) -> NoiseLevel:
        """The level at a timestep; below 0 it is that of 0."""
        t = max(int(t), 0)
        return NoiseLevel(float(self.signal[t]), float(self.noise[t]))

    @property
    def log_ratio(self) -> Float[np.ndarray, " timesteps"]:
        """ln s (N,), infinite where the signal is 0."""
        with np.errstate(divide="ignore"):
            return np.log(self.noise) - np.log(self.signal)

    @property
    def largest(self) -> float:
        """The largest s."""
        return float(self[len(self.signal) - 1].ratio)

    def t_at(self, ratio: float) -> float:
        """The timestep of s = ratio, fractional: ln s is linear between two timesteps. 0 below the smallest
        level, NaN above the largest one."""
        log = self.log_ratio
        wanted = math.log(ratio) if 0 < ratio < math.inf else math.copysign(math.inf, ratio - 1)
        if wanted > log[-1]:
            return float(len(log) - 1) if ratio <= self.largest * (1 + SAME) else math.nan
        if wanted <= log[0]:
            return 0.0
        return float(np.interp(wanted, log, np.arange(len(log))))

    def largest_inside(self, other: NoiseLevels) -> int:
        """The largest timestep of this model whose level `other` reaches, -1 if there is none."""
        inside = [t for t in range(len(self.signal)) if not math.isnan(other.t_at(self[t].ratio))]
        return max(inside, default=-1)


def move(x: Latents, x0: Latents, source: NoiseLevel, target: NoiseLevel) -> Latents:
    """Take x to another level along the line of its predicted x0 and eps (DDIM with eta 0, either direction).

    a_r x0 + b_r eps, with eps = (x - a_s x0) / b_s (Song et al. 2021, equation 12).
    """
    return target.signal * x0 + target.noise * eps_from_x0(x0, x, source.signal, source.noise)


def renoise(x: Latents, noise: Latents, source: NoiseLevel, target: NoiseLevel) -> Latents:
    """Take x to a noisier level with fresh noise N(0, 1), as the forward process would.

    x is scaled by the ratio of the signals; the noise makes up for the variance that then lacks.
    """
    keep = target.signal / source.signal
    return keep * x + math.sqrt(max(target.noise**2 - (keep * source.noise) ** 2, 0.0)) * noise


def at_level_of(denoise_x0: Denoiser, own: NoiseLevels, levels: NoiseLevels) -> Denoiser:
    """A denoiser that takes x and t of a model with other `levels`, and asks `denoise_x0` at the same ratio
    of noise and signal, in its `own` timesteps (float) and scaling.

    Raises ValueError for a level that the model does not reach.
    """

    def denoise(x: Latents, t_B: Timesteps) -> Latents:
        given = [levels[t] for t in t_B.tolist()]
        taus = [own.t_at(level.ratio) for level in given]
        if any(map(math.isnan, taus)):
            t = next(t for t, tau in zip(t_B.tolist(), taus, strict=True) if math.isnan(tau))
            raise ValueError(f"no noise level as high as at timestep {t}: {own.largest:.3f} is the largest")
        scale = [signal_at(own, tau) / level.signal for tau, level in zip(taus, given, strict=True)]
        factor = torch.tensor(scale, dtype=x.dtype, device=x.device).reshape(-1, *[1] * (x.ndim - 1))
        tau_B = torch.tensor(taus, dtype=torch.float32, device=x.device)
        return denoise_x0(x * factor, tau_B)

    return denoise


def signal_at(levels: NoiseLevels, t: float) -> float:
    """a(t) between two timesteps: that of the level whose ln s and dynamic rescale lie between theirs.

    From b = s a and (a / scale)^2 + b^2 = 1.
    """
    low, high = math.floor(t), math.ceil(t)
    if low == high:
        return float(levels.signal[low])
    part, ends = t - low, [low, high]
    scale_low, scale_high = levels.signal[ends] / np.sqrt(1 - levels.noise[ends] ** 2)
    log_low, log_high = levels.log_ratio[ends]
    ratio = math.exp((1 - part) * log_low + part * log_high)
    scale = (1 - part) * scale_low + part * scale_high
    return float(1 / math.sqrt(1 / scale**2 + ratio**2))
