"""One training run, from its settings to its result: initial model -> (precompute) -> fit -> parameter set.

`run_training` is the whole way. The loop is edg/training/lightning.py, the settings are config.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from edg.core.dist import World
from edg.core.errors import require
from edg.core.hashing import cached_sha256
from edg.core.log import log, warn
from edg.core.seeding import derive, generator
from edg.core.sheet import contact_sheet
from edg.core.video import write_image, write_video
from edg.data.batches import SampleSource, TensorTable
from edg.data.prompts import read_folder
from edg.networks import open_weights
from edg.networks.latent_video import adapter, load
from edg.networks.latent_video.model import LatentVideoModel
from edg.networks.latent_video.models import load_spec
from edg.networks.latent_video.vae import AutoencoderKL
from edg.systems.base import Request
from edg.systems.edg.generate import generate
from edg.systems.edg.options import SamplingOptions
from edg.systems.edg.parameter_sets import SingleParameterSet
from edg.systems.edg.training import trainable
from edg.systems.edg.training.config import TrainingConfig
from edg.systems.edg.training.encode import data_remarks
from edg.systems.edg.training.latent_cache import CachedClips
from edg.systems.edg.training.modules import DenoiserTraining, VaeTraining
from edg.systems.edg.training.records import data_change, is_finished, record_settings, write_result
from edg.training.callbacks import MakeSamples
from edg.training.lightning import fit
from edg.weights.store import Weights

__all__ = ["data_change", "is_finished", "open_cache", "run_training"]  # systems.base.Trainer
VAE = "first_stage_model."
#: tensors of the result, the parameter set it was begun from, the hashes of that one's files
Trained = tuple[dict[str, Tensor], Weights | None, dict[str, str]]


def run_training(config: TrainingConfig, data: SampleSource, world: World, device: str) -> Path:
    """Train on `data` (see lightning.fit) and return the path of the parameter set.

    Raises UsageError for settings that do not fit each other, BadFileError for weights that do not fit.
    """
    train = train_autoencoder if config.kind == "autoencoder" else train_denoiser
    if world.is_first:
        encoded = isinstance(data, CachedClips)
        for remark in data_remarks(getattr(data, "videos", ()), load_spec(config.spec), encoded):
            warn(f"{config.name}: {remark}")
    record = world.first(lambda: record_settings(config, world, data))
    tensors, base, hashes = train(config, data, world, device)
    record["samples_in_data"] = len(data)
    world.first(lambda: write_result(config, tensors, base, record, hashes))
    return config.result


def open_cache(config: TrainingConfig, folder: Path) -> CachedClips:
    """Open the clips that `edg encode` wrote. Raises UsageError if they do not fit the run."""
    clips = CachedClips(folder)
    if count := clips.without_hashes():
        log(f"{folder}: {count} shards of an earlier version cannot be checked; `edg encode` adds the hashes")
    require(
        clips.index.every_frame or not config.objective.random_frame,
        f"objective.random_frame is set, but {folder} has image tokens of frame 0 only",
        fix="set objective.random_frame=false, or run edg encode --every-frame into another folder",
    )
    if config.init or config.vae:
        clips.check(load_spec(config.spec), open_weights(config.init or config.vae))
    return clips


# ---- the two kinds of training -----------------------------------------------------------------------------


def train_autoencoder(config: TrainingConfig, data: SampleSource, world: World, device: str) -> Trained:
    """Train the autoencoder from scratch on still frames."""
    torch.manual_seed(config.seed)
    vae = AutoencoderKL(load_spec(config.spec).vae)
    module = VaeTraining(vae, config.train, config.autoencoder.kl)
    fit(module, data, config.folder, config.seed, world, device)
    vae = vae.cpu().eval()
    if config.autoencoder.posterior_std_divisor is not None:
        frames = torch.stack([data[i]["frames"] for i in range(min(1024, len(data)))])
        normalise_latents(vae, frames, config.autoencoder.posterior_std_divisor)
    return {VAE + name: value.detach().contiguous() for name, value in vae.state_dict().items()}, None, {}


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, frames: Tensor, std_divisor: float) -> None:
    """Fold (z - mean) / std per channel into the 1x1 convolutions around the latent, so that the scale factor
    is 1, and divide the posterior's standard deviation by `std_divisor`: the decoder was trained on noisier
    latents than it will get, and the denoiser need not predict the noise."""
    mean = torch.cat([vae.encode(part).mean for part in frames.split(64)])
    shift, scale = mean.mean(dim=(0, 2, 3)), mean.std(dim=(0, 2, 3))
    channels = len(scale)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:channels] /= scale[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - shift) / scale
    quant.bias[channels:] -= 2 * (scale * std_divisor).log()
    post.bias += (post.weight * shift[None, :, None, None]).sum(dim=(1, 2, 3))
    post.weight *= scale[None, :, None, None]


def train_denoiser(config: TrainingConfig, data: SampleSource, world: World, device: str) -> Trained:
    """Train the denoiser (with or without text adapter) from `config.init`, or from scratch."""
    model, base = initial_model(config)
    hashes: dict[str, str] = {}
    if base is not None:
        # Hashed now: the files may be replaced while the training goes on for days.
        hashes = {str(file.path): cached_sha256(file.path) for file in base.files}
        base.check_unchanged()
        for note in base.notes if world.is_first else ():
            log(f"{config.name}: init: {note}")
    if lora := config.lora:
        trainable.add_lora(model, lora.rank, lora.alpha, lora.where, config.seed)
    chosen = trainable.choose(model, config.trainable)
    model.unet.checkpointing = config.train.gradient_checkpointing
    if not config.train.dropout:
        disable_dropout(model)
    if isinstance(data, TensorTable):
        data = precompute(model, data, config.seed, config.objective.random_frame)
    module = DenoiserTraining(model, config.train, config.objective, chosen)
    fit(module, data, config.folder, config.seed, world, device, sample_maker(config), config.samples.every)
    if config.lora is not None:
        trainable.merge_lora(model)
    return stored_tensors(model.cpu()), base, hashes


def disable_dropout(model: LatentVideoModel) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def stored_tensors(model: LatentVideoModel) -> dict[str, Tensor]:
    """The state dict without the tensors that a spec with a towers_seed can compute by itself."""
    seeded = model.spec.towers_seed is not None
    skip = (*load.TOWERS, *model.buffer_names) if seeded else ()
    return {n: t.detach().contiguous() for n, t in model.state_dict().items() if not n.startswith(skip)}


def initial_model(config: TrainingConfig) -> tuple[LatentVideoModel, Weights | None]:
    """The model that training begins with, on the CPU in float32, and the parameter set it came from."""
    spec = load_spec(config.spec)
    draw = generator(config.seed, "adapter")
    if config.init is None:
        torch.manual_seed(derive(config.seed, "weights"))
        model = load.build(spec.with_adapter() if config.adapter != "none" else spec, "cpu")
        if config.vae is not None:
            weights = open_weights(config.vae)
            model.first_stage_model.load_state_dict(
                {name.removeprefix(VAE): weights[name] for name in weights if name.startswith(VAE)}
            )
        initialise_adapter(model, config.adapter, draw)
        return model, None
    base = open_weights(config.init)
    has_adapter = load.has_adapter(base)
    with_adapter = has_adapter or config.adapter != "none"
    model = load.load_model(spec.with_adapter() if with_adapter else spec, base)
    if not has_adapter:
        initialise_adapter(model, config.adapter, draw)
    return model, base


def initialise_adapter(model: LatentVideoModel, method: str, draw: torch.Generator) -> None:
    """Initialise a new text adapter, see TrainingConfig.adapter."""
    if method == "identity":
        adapter.begin(model, draw)
    elif method == "released":
        adapter.begin_released(model, draw)


# ---- frozen networks ---------------------------------------------------------------------------------------


@torch.no_grad()
def precompute(
    model: LatentVideoModel, table: TensorTable, seed: int, every_frame: bool = False, batch_size: int = 64
) -> TensorTable:
    """Replace frames (N, 3, T, H, W) and captions of a table by latents, text and image tokens (of frame 0,
    or of every frame), so that the frozen networks run once. The posterior of a clip is drawn once, too."""
    frames, captions = table.columns["frames"], table.columns["caption"]
    draw = generator(seed, "posterior")
    parts: list[dict[str, Tensor]] = []
    for start in range(0, len(table), batch_size):
        x = frames[start : start + batch_size]
        flat = rearrange(x, "b c t h w -> (b t) c h w")
        posterior = model.encode_frames(flat)
        z = posterior.sample(torch.randn(posterior.mean.shape, generator=draw)) * model.spec.scale_factor
        part = {
            "latents": rearrange(z, "(b t) c h w -> b c t h w", b=len(x)),
            "text": model.encode_text(captions[start : start + batch_size]),
        }
        if every_frame:
            part["images"] = rearrange(model.embedder(flat), "(b t) m w -> b t m w", b=len(x))
        else:
            part["image"] = model.embedder(x[:, :, 0])
        parts.append(part)
    encoded = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    rest = {name: column for name, column in table.columns.items() if name not in ("frames", "caption")}
    return TensorTable(rest | encoded)


# ---- clips during training ---------------------------------------------------------------------------------


def sample_maker(config: TrainingConfig) -> MakeSamples | None:
    """The function that makes sample clips for lightning.fit, None without samples. Raises UsageError if the
    prompt folder does not pair."""
    samples = config.samples
    if not samples.every:
        return None
    pairs = read_folder(samples.prompt_dir)[: samples.count]
    options = SamplingOptions(
        steps=samples.steps,
        guidance_scale=samples.guidance_scale,
        guidance_rescale=samples.guidance_rescale,
        switch_at=(),
    )

    def make(module: DenoiserTraining, step: int) -> list[tuple[str, np.ndarray]]:
        spec, folder = module.model.spec, config.folder / "samples" / f"step_{step:08d}"
        requests = [
            Request(p.name, p.prompt, config.seed, spec.frames, spec.height, spec.width, options, p.image)
            for p in pairs
        ]
        clips = []
        for result in generate(SingleParameterSet(module.model), requests):
            for warning in result.warnings:
                warn(f"sample {result.request.id}: {warning}")
            if result.frames is None:
                log(f"sample {result.request.id}: {result.error}")
                continue
            write_video(folder / f"{result.request.id}.mp4", result.frames)
            clips.append((result.request.prompt, result.frames))
        if not clips:
            return []
        sheet = contact_sheet(clips)
        write_image(folder / "contact_sheet.png", sheet)
        return [("samples", sheet)]

    return make
