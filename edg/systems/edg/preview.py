"""Previews of a clip: frames of the latent's size by a linear map fitted to the clip's own image, or of full
size by a tiny decoder."""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from edg.core.errors import BadFileError
from edg.networks.latent_video.spec import ModelSpec

RIDGE = 1e-3  # of the mean square of a latent: an image of one colour has no unique map
BLOCKS = 3  # of a level
WIDEST = 1024  # channels


def preview(
    x0_CTHW: Float[Tensor, "c t h w"],
    image_latent_CHW: Float[Tensor, "c h w"],
    image_3HW: Float[Tensor, "3 high wide"],
    decoder: TinyDecoder | None = None,
) -> Float[Tensor, "3 t h_out w_out"]:
    """Frames of a predicted latent, about [-1, 1], on the CPU; without decoder they are of the latent's
    size."""
    if decoder is None:
        return apply_map(preview_map(image_latent_CHW, image_3HW), x0_CTHW)
    frames = x0_CTHW.float().transpose(0, 1).split(1)  # one by one: at full size a frame is large
    return torch.cat([decoder(frame).cpu() for frame in frames]).transpose(0, 1)


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


# ---- a tiny decoder ----------------------------------------------------------------------------------------


class SoftClamp(nn.Module):
    """3 tanh(x / 3)."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)


class ResidualReLU(nn.Module):
    """relu(x + conv(x)), conv three 3x3 convolutions with ReLU in between."""

    def __init__(self, width: int):
        super().__init__()
        first, second, third = (nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.conv = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv(x))


class TinyDecoder(nn.Sequential):
    """Latents (N, channels, h, w), scaled as the network has them -> images (N, 3, f h, f w), about [-1, 1],
    f = 2^levels.

    The layout and parameter names of TAESD's decoder (O. Boer Bohan, github.com/madebyollin/taesd), which was
    distilled from the autoencoder that DynamiCrafter uses: 4 channels, width 64, 3 levels.
    """

    def __init__(self, channels: int = 4, width: int = 64, levels: int = 3):
        layers = [SoftClamp(), nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        for _ in range(levels):
            layers += [ResidualReLU(width) for _ in range(BLOCKS)]
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
        super().__init__(*layers, ResidualReLU(width), nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, z_NCHW: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 h_out w_out"]:
        return 2 * super().forward(z_NCHW) - 1


def read_tiny_decoder(path: str | Path, spec: ModelSpec, device: torch.device | str = "cpu") -> TinyDecoder:
    """The decoder of a file in TAESD's names or those of diffusers' AutoencoderTiny, in float32. Raises
    BadFileError where it is none, or not one for the spec's latents."""
    from edg.weights.store import open_weights

    weights = open_weights(path)
    stored = {ours: key for key in weights if (ours := taesd_name(key))}
    given = {ours: tuple(weights.info(key).shape) for ours, key in stored.items()}
    levels = spec.latent_factor.bit_length() - 1
    (width, *_) = *given.get("1.bias", ()), 0
    with torch.device("meta"):
        decoder = TinyDecoder(spec.latent_channels, width if 0 < width <= WIDEST else 1, levels)
    wanted = {key: tuple(value.shape) for key, value in decoder.state_dict().items()}
    if wanted != given:
        wrong = next(key for key in sorted(wanted.keys() | given) if wanted.get(key) != given.get(key))
        raise BadFileError(
            f"{path}: no tiny decoder for {spec.name}, {wrong} is {given.get(wrong, 'missing')}",
            expected=f"TAESD's tensor names, {spec.latent_channels} channels, {levels} levels",
            fix="use --preview_decoder sprites" if spec.name == "sprites" else "run edg fetch taesd",
        )
    tensors = {ours: weights[key] for ours, key in stored.items()}
    odd = [key for key, t in tensors.items() if not (t.is_floating_point() and torch.isfinite(t).all())]
    if odd:
        raise BadFileError(
            f"{path}: {odd[0]} holds values that are not finite numbers", expected="a trained decoder"
        )
    decoder.load_state_dict({key: value.float() for key, value in tensors.items()}, assign=True)
    return decoder.to(device).eval().requires_grad_(False)


def taesd_name(key: str) -> str | None:
    """A parameter's name in TAESD's decoder; diffusers does not count the clamp. None for another's."""
    if found := re.fullmatch(r"decoder\.layers\.(\d{1,3})(\..+)", key):
        return f"{int(found[1]) + 1}{found[2]}"
    return key if re.fullmatch(r"\d{1,3}\..+", key) else None
