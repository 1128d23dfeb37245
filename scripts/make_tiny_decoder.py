#!/usr/bin/env python
"""Train the tiny decoder for previews of sprites, like TAESD for Stable Diffusion's autoencoder.

    python scripts/make_tiny_decoder.py --out edg/sprites/weights/tiny_decoder.safetensors

It learns to decode as the autoencoder in edg/sprites/weights does, from latents of random pictures of the
world, drawn from their posterior, some blurred with others like a sampler's early predictions. About 15
minutes on two CPU cores. The last line has its error on held-out pictures, and that of the linear preview.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from edg.core.device import fix_threads, keep_memory, usable_cores
from edg.networks import open_weights
from edg.networks.latent_video.load import load_model
from edg.networks.latent_video.model import LatentVideoModel
from edg.networks.latent_video.presets import SPRITES
from edg.sprites import WEIGHTS
from edg.sprites.data import stills
from edg.systems.edg.preview import TinyDecoder, apply_map, preview_map
from edg.weights.store import write_safetensors

HELD_OUT, EMA, WARMUP = 1_000_000, 0.998, 100


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=WEIGHTS / "tiny_decoder.safetensors")
    parser.add_argument("--width", type=int, default=24, help="channels of the hidden layers (24)")
    parser.add_argument("--steps", type=int, default=3600, help="training steps (3600)")
    parser.add_argument("--batch", type=int, default=32, help="pictures per step (32)")
    parser.add_argument(
        "--lr", type=float, default=2e-3, help="learning rate of Adam, with cosine decay to 0 (2e-3)"
    )
    parser.add_argument("--seed", type=int, default=20, help="random seed (20)")
    args = parser.parse_args()
    fix_threads(usable_cores())
    keep_memory()
    network = load_model(SPRITES, open_weights(WEIGHTS / "base.safetensors"))
    decoder = train(network, args)
    tiny, linear = errors(network, decoder, args.seed + HELD_OUT)
    print(f"mean error in levels of 255: {tiny:.2f}; of a linear map fitted to each picture: {linear:.2f}")
    metadata = {"spec": SPRITES.name, "made_by": "scripts/make_tiny_decoder.py", "seed": str(args.seed)}
    write_safetensors(args.out, {k: v.half() for k, v in decoder.state_dict().items()}, metadata)
    return 0


def train(network: LatentVideoModel, args: argparse.Namespace) -> TinyDecoder:
    """The moving average of a decoder that learns |its picture - the autoencoder's|."""
    random = torch.Generator().manual_seed(args.seed)
    torch.manual_seed(args.seed)
    levels = SPRITES.latent_factor.bit_length() - 1
    decoder = TinyDecoder(SPRITES.latent_channels, args.width, levels)
    average = AveragedModel(decoder, multi_avg_fn=get_ema_multi_avg_fn(EMA))
    optimizer = torch.optim.Adam(decoder.parameters(), lr=args.lr)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=WARMUP)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps - WARMUP)
    rate = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, fall], [WARMUP])
    began = time.monotonic()
    for step in range(args.steps):
        z, wanted = batch(network, args.seed + step, args.batch, random)
        loss = (decoder(z) - wanted).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        rate.step()
        average.update_parameters(decoder)
        if step % 500 == 499:
            levels_off = 127.5 * loss.item()
            print(
                f"step {step + 1}: error {levels_off:.2f} levels, {time.monotonic() - began:.0f} s",
                flush=True,
            )
    return average.module.eval()


@torch.no_grad()
def batch(network: LatentVideoModel, seed: int, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """(latents as the denoiser has them, what the autoencoder makes of them in [-1, 1]). A quarter of the
    latents are mixtures with their neighbour's."""
    posterior = network.encode_frames(stills(seed, count)["frames"])
    noise = torch.randn(posterior.mean.shape, generator=random)
    z = (posterior.mean + (0.5 * posterior.logvar).exp() * noise) * SPRITES.scale_factor
    share = torch.rand(count // 4, 1, 1, 1, generator=random)
    z[: count // 4] = share * z[: count // 4] + (1 - share) * z[count // 4 : 2 * (count // 4)]
    return z, decoded(network, z).clamp(-1, 1)


def decoded(network: LatentVideoModel, z_NCHW: Tensor) -> Tensor:
    return network.decode_latents(z_NCHW.transpose(0, 1)[None])[0].transpose(0, 1)


@torch.no_grad()
def errors(network: LatentVideoModel, decoder: TinyDecoder, seed: int) -> tuple[float, float]:
    """Mean absolute errors in levels of 255, of the decoder and of the linear map, whose pictures are
    enlarged, over 256 pictures that neither has seen."""
    pictures = stills(seed, 256)["frames"]
    z = network.encode_frames(pictures).mean * SPRITES.scale_factor
    wanted = decoded(network, z).clamp(-1, 1)
    maps = [apply_map(preview_map(a, b), a[:, None])[:, 0] for a, b in zip(z, pictures, strict=True)]
    large = F.interpolate(torch.stack(maps), scale_factor=SPRITES.latent_factor)
    return tuple(127.5 * float((made - wanted).abs().mean()) for made in (decoder(z).clamp(-1, 1), large))


if __name__ == "__main__":
    sys.exit(main())
