"""Latents -> small frames without the autoencoder: a linear map, fitted to the clip's own image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

RIDGE = 1e-3  # of the mean square of a latent: an image of one colour has no unique map


def preview_map(latent_CHW: Float[Tensor, "c h w"], image_3HW: Float[Tensor, "3 high wide"]) -> Tensor:
    """The map (C + 1, 3) from a latent cell and 1 to its mean colour: (ridge) least squares over the image.

    latent_CHW: the image's latent, scaled as the network has it. image_3HW: the image, in [-1, 1].
    """
    pixels = F.interpolate(image_3HW[None].float(), latent_CHW.shape[1:], mode="area")[0]
    cells, colours = (rearrange(x, "c h w -> (h w) c").double().cpu() for x in (latent_CHW, pixels))
    centre, mean = cells.mean(0), colours.mean(0)
    cells, colours = cells - centre, colours - mean
    ridge = RIDGE * cells.square().mean().clamp(min=1e-12) * len(cells) * torch.eye(cells.shape[1])
    slope = torch.linalg.solve(cells.T @ cells + ridge, cells.T @ colours)
    return torch.cat([slope, (mean - centre @ slope)[None]]).float()


def apply_map(
    map_C3: Float[Tensor, "c_and_1 3"], latent_CTHW: Float[Tensor, "c t h w"]
) -> Float[Tensor, "3 t h w"]:
    """Frames of the latent's size, about [-1, 1], on the CPU."""
    slope, constant = map_C3[:-1], map_C3[-1]
    return (
        einsum(slope, latent_CTHW.float().cpu(), "c rgb, c t h w -> rgb t h w")
        + constant[:, None, None, None]
    )
