"""Guidance: several predictions of one network combined into one. Acts on raw predictions (v or eps)."""

from __future__ import annotations

from edg.diffusion.prediction import Denoiser, Latents, Timesteps


def rescale_noise(guided: Latents, reference: Latents, amount: float) -> Latents:
    """g (v std(reference) / std(v)) + (1 - g) v: the guided prediction at the conditional one's contrast.

    amount: g in 0..1. std is unbiased, over all but the batch dimension.
    Source: Lin et al. 2024, equations 15 and 16.
    """
    if amount == 0:
        return guided
    over = tuple(range(1, guided.ndim))
    ratio = reference.std(dim=over, keepdim=True) / guided.std(dim=over, keepdim=True)
    return amount * (guided * ratio) + (1 - amount) * guided


def classifier_free(cond: Denoiser, uncond: Denoiser | None, scale: float, rescale: float = 0.0) -> Denoiser:
    """v = u + s (c - u), then `rescale_noise` against c (Ho and Salimans 2022, equation 6, with s = 1 + w).

    scale: s; at 1 the unconditional network is never called and nothing is rescaled. The combination is
    computed in x's dtype, whatever the networks' own. Raises ValueError without `uncond` at any other scale.
    """
    if scale == 1:
        return cond
    if uncond is None:
        raise ValueError(f"guidance scale {scale} needs an unconditional prediction")

    def guided(x: Latents, t_B: Timesteps) -> Latents:
        c, u = cond(x, t_B).to(x.dtype), uncond(x, t_B).to(x.dtype)
        return rescale_noise(u + scale * (c - u), c, rescale)

    return guided


def image_guidance(
    full: Denoiser, image: Denoiser, null: Denoiser, scale: float, image_scale: float, rescale: float = 0.0
) -> Denoiser:
    """v = v0 + s_img (v_img - v0) + s (v_full - v_img), then `rescale_noise` against v_full.

    full: text and image; image: empty text and the image; null: neither. scale: s of the text, image_scale:
    s_img. Networks whose weight is zero are not called: only `full` when both scales are 1 (then nothing is
    rescaled). Source: Brooks et al. 2023 (InstructPix2Pix), equation 3.
    """
    if scale == 1 and image_scale == 1:
        return full

    def guided(x: Latents, t_B: Timesteps) -> Latents:
        v_full = full(x, t_B).to(x.dtype)
        v = scale * v_full
        if image_scale != scale:
            v = v + (image_scale - scale) * image(x, t_B).to(x.dtype)
        if image_scale != 1:
            v = v + (1 - image_scale) * null(x, t_B).to(x.dtype)
        return rescale_noise(v, v_full, rescale)

    return guided
