"""Classifier-free guidance: the combination of one network's predictions under several conditions.
Predictions are raw (v or eps)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from edg.diffusion.prediction import Denoiser, Latents, Timesteps

#: (x_BCTHW, t_B) -> the predictions of x under each of K conditions.
Branches = Callable[[Latents, Timesteps], Float[Tensor, "k b *shape"]]


def guidance_weights(scale: float, image_scale: float | None = None) -> dict[str, float]:
    """Weights of the predictions under each condition; zero weights are left out, but never that of
    "full".

    full: text and image; image: empty text and the image; null: neither. scale: s, image_scale: s_img. v
        = v0 + s (v_full - v0) (Ho and Salimans 2022, equation 6, with s = 1 + w), or with an image scale
        v = v0 + s_img (v_img - v0) + s (v_full - v_img) (Brooks et al. 2023, InstructPix2Pix, equation
        3).
    """
    if image_scale is None:
        weights = {"full": scale, "null": 1 - scale}
    else:
        weights = {"full": scale, "image": image_scale - scale, "null": 1 - image_scale}
    return {name: float(weight) for name, weight in weights.items() if weight or name == "full"}


def guided(branches: Branches, weights: Sequence[float], rescale: float = 0.0) -> Denoiser:
    """A denoiser that returns v = sum_k w_k v_k, then `rescale_noise` against v_0.

    weights: one for each condition; if there is only one, 1, nothing is rescaled. The combination is
    computed in x's dtype, whatever the network's own.
    """

    def combined(x: Latents, t_B: Timesteps) -> Latents:
        predictions = branches(x, t_B).to(x.dtype)
        v = sum(weight * prediction for weight, prediction in zip(weights, predictions, strict=True))
        return v if list(weights) == [1] else rescale_noise(v, predictions[0], rescale)

    return combined


def in_interval(guided: Denoiser, alone: Denoiser, low: float, high: float) -> Denoiser:
    """A denoiser that is `guided` while low <= t <= high, and elsewhere `alone`, the prediction under the
    first condition.

    t is that of each sample. Source: Kynkäänniemi et al. 2024, equation 6, their noise levels as
    timesteps.
    """

    def limited(x: Latents, t_B: Timesteps) -> Latents:
        t = t_B.clamp(min=0)  # the release can visit -1
        inside = (t >= low) & (t <= high)
        if inside.all():
            return guided(x, t_B)
        if not inside.any():
            return alone(x, t_B).to(x.dtype)
        inside = inside.reshape(-1, *[1] * (x.ndim - 1))
        return torch.where(inside, guided(x, t_B), alone(x, t_B).to(x.dtype))

    return limited


def side_by_side(*denoisers: Denoiser) -> Branches:
    """The predictions of k denoisers, one for each condition, stacked."""
    return lambda x, t_B: torch.stack([denoise(x, t_B) for denoise in denoisers])


def rescale_noise(guided: Latents, reference: Latents, amount: float) -> Latents:
    """Rescale the guided prediction to the contrast of the conditional one: g (v std(reference) / std(v))
    + (1 - g) v.

    amount: g in 0..1. std is unbiased, over all but the batch dimension. Source: Lin et al. 2024,
    equations 15 and 16.
    """
    if amount == 0:
        return guided
    over = tuple(range(1, guided.ndim))
    ratio = reference.std(dim=over, keepdim=True) / guided.std(dim=over, keepdim=True)
    return amount * (guided * ratio) + (1 - amount) * guided
