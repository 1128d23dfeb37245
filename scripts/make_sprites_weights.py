#!/usr/bin/env python
"""Remake the weights that come with the package: autoencoder, base and tuned model of the sprites world.

    python scripts/make_sprites_weights.py --out edg/sprites/weights

Three stages, each resumable (run the same command again) and skipped once its file is in the work folder:
vae, base, tuned. Drawn, trained and stored from one seed. On two CPU cores of their own: vae 7 minutes, base
about an hour, tuned 7 minutes. docs/sprites.md has the log of the shipped run, which came about in legs.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads leave the cores to others

import torch
from einops import rearrange

from edg.core import config
from edg.sprites.data import clip_tensors, latent_weight, psnr_on_shape, stills
from edg.sprites.world import FPS, clips
from edg.systems.edg import adapter, load
from edg.systems.edg.model import LatentVideoModel
from edg.systems.edg.objective import Drops, Objective
from edg.systems.edg.presets import PRESETS
from edg.systems.edg.train import DenoiserTraining, Endless, Plan, VaeTraining, fit
from edg.systems.edg.vae import AutoencoderKL
from edg.weights.store import open_weights, write_safetensors

VAE = "first_stage_model."


@dataclass(frozen=True)
class VaeStage:
    """images: how many stills are drawn; shape_weight: of the squared error on the shape; kl: see
    VaeTraining; calm: see normalise."""

    images: int
    shape_weight: float
    kl: float
    calm: float
    plan: Plan


@dataclass(frozen=True)
class DenoiserStage:
    """clips: how many are drawn and encoded; focus: weight of the error in cells the shape passes;
    timestep_shift: see Objective."""

    clips: int
    focus: float
    timestep_shift: float
    drops: Drops
    plan: Plan


@dataclass(frozen=True)
class Config:
    spec: str
    seed: int
    vae: VaeStage
    base: DenoiserStage
    tuned: DenoiserStage


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=Path("configs/train/sprites.yaml"))
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("output/sprites_training"),
        help="logs, checkpoints, float32 weights",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("edg/sprites/weights"), help="folder of base and tuned .safetensors"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--stages", nargs="+", default=["vae", "base", "tuned"], choices=["vae", "base", "tuned"]
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = config.load(Config, args.config)
    make = {"vae": make_vae, "base": make_base, "tuned": make_tuned}
    for stage in args.stages:
        done = args.work / f"{stage}.safetensors"
        if not done.exists():
            write_safetensors(done, make[stage](settings, args.work, args.device))
        print(f"{stage}: {done}", flush=True)
        if stage != "vae":
            ship(done, args.out / f"{stage}.safetensors", settings)


def make_vae(settings: Config, work: Path, device: str) -> dict[str, torch.Tensor]:
    """Train the autoencoder, scale its latents to zero mean and unit deviation, and tell its PSNR on new
    stills."""
    stage = settings.vae
    torch.manual_seed(settings.seed)
    vae = AutoencoderKL(PRESETS[settings.spec].vae)
    table = stills(settings.seed, stage.images, stage.shape_weight)
    plan = replace(stage.plan, seed=settings.seed)
    fit(
        VaeTraining(vae, plan, stage.kl),
        Endless(table, plan.batch, settings.seed),
        work / "vae",
        accelerator(device),
    )
    vae = vae.cpu().eval()
    normalise(vae, table["frames"][:1024], stage.calm)
    print(f"autoencoder: {shape_psnr(vae, settings.seed + 1):.1f} dB on the pixels of the shape", flush=True)
    return {VAE + name: value.detach().contiguous() for name, value in vae.state_dict().items()}


@torch.no_grad()
def normalise(vae: AutoencoderKL, frames: torch.Tensor, calm: float) -> None:
    """Fold (z - mean) / std per channel into the 1x1 convolutions around the latent, so that the scale
    factor is 1, and divide the posterior's deviation by `calm`: the decoder stays used to noisier latents
    than it will get, and the denoiser need not predict the noise."""
    mean = torch.cat([vae.encode(part).mean for part in frames.split(64)])
    shift, scale = mean.mean(dim=(0, 2, 3)), mean.std(dim=(0, 2, 3))
    channels = len(scale)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:channels] /= scale[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - shift) / scale
    quant.bias[channels:] -= 2 * (scale * calm).log()
    post.bias += (post.weight * shift[None, :, None, None]).sum(dim=(1, 2, 3))
    post.weight *= scale[None, :, None, None]


@torch.no_grad()
def shape_psnr(vae: AutoencoderKL, seed: int, count: int = 512) -> float:
    """PSNR in dB on the shape's pixels of new stills, decoded from the posterior's mean."""
    test = stills(seed, count, shape_weight=2.0)
    decoded = torch.cat([vae.decode(vae.encode(part).mean) for part in test["frames"].split(64)])
    return psnr_on_shape(decoded, test["frames"], test["weight"][:, 0] - 1)


def make_base(settings: Config, work: Path, device: str) -> dict[str, torch.Tensor]:
    """Train the model without adapter on clips whose caption is silent about motion."""
    torch.manual_seed(settings.seed)
    model = load.build(PRESETS[settings.spec], "cpu")
    vae = open_weights(work / "vae.safetensors")
    model.first_stage_model.load_state_dict({name.removeprefix(VAE): vae[name] for name in vae})
    return train(model, settings.base, "base", settings.seed, work, device)


def make_tuned(settings: Config, work: Path, device: str) -> dict[str, torch.Tensor]:
    """Fine-tune the base, with the adapter starting as the identity, on slower clips with captions that
    tell the motion."""
    model = load.load_model(PRESETS[settings.spec].with_adapter(), open_weights(work / "base.safetensors"))
    adapter.begin(model, torch.Generator().manual_seed(settings.seed))
    return train(model, settings.tuned, "tuned", settings.seed, work, device)


def train(
    model: LatentVideoModel, stage: DenoiserStage, split: str, seed: int, work: Path, device: str
) -> dict[str, torch.Tensor]:
    """Draw and encode the split's clips, train, and return what a checkpoint stores (no towers, no
    schedule)."""
    table = encoded_clips(model, split, seed, stage)
    plan = replace(stage.plan, seed=seed)
    module = DenoiserTraining(model, plan, Objective(stage.drops, timestep_shift=stage.timestep_shift))
    fit(module, Endless(table, plan.batch, seed), work / split, accelerator(device))
    return stored(model.cpu())


def stored(model: LatentVideoModel) -> dict[str, torch.Tensor]:
    """The state dict without what a spec with a towers_seed can compute by itself."""
    skip = (*load.TOWERS, *model.buffer_names)
    return {n: t.detach().contiguous() for n, t in model.state_dict().items() if not n.startswith(skip)}


@torch.no_grad()
def encoded_clips(
    model: LatentVideoModel, split: str, seed: int, stage: DenoiserStage
) -> dict[str, torch.Tensor]:
    """The training table of DenoiserTraining: everything frozen is computed once."""
    parts: list[dict[str, torch.Tensor]] = []
    todo = list(clips(split, seed, stage.clips))
    generator = torch.Generator().manual_seed(seed)
    for at in range(0, len(todo), 64):
        drawn = clip_tensors(todo[at : at + 64], told=split == "tuned")
        frames = drawn["frames"]
        posterior = model.encode_frames(rearrange(frames, "b c t h w -> (b t) c h w"))
        z = posterior.sample(torch.randn(posterior.mean.shape, generator=generator)) * model.spec.scale_factor
        part = {
            "latents": rearrange(z, "(b t) c h w -> b c t h w", b=len(frames)),
            "text": model.encode_text(drawn["caption"]),
            "image": model.embedder(frames[:, :, 0]),
            "weight": latent_weight(drawn["cover"], model.spec.latent_factor, stage.focus),
        }
        parts.append(part)
    table = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    print(f"{split}: {len(todo)} clips, latents' deviation {table['latents'].std():.3f}", flush=True)
    return {**table, "fps": torch.full((len(todo),), FPS)}


def ship(source: Path, target: Path, settings: Config) -> None:
    """The float32 file in 16 bits, with the name of its spec."""
    weights = open_weights(source)
    metadata = {
        "spec": settings.spec,
        "made_by": "scripts/make_sprites_weights.py",
        "seed": str(settings.seed),
    }
    write_safetensors(target, {name: weights[name].half() for name in weights}, metadata)
    print(f"shipped: {target}, {target.stat().st_size / 1e6:.1f} MB", flush=True)


def accelerator(device: str) -> str:
    return "gpu" if device == "cuda" else "cpu"


if __name__ == "__main__":
    main()
