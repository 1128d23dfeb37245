"""One training run, from start to result: start -> (precompute) -> fit -> parameter set with record.

`train_run` is the whole way. The trainer itself is train.py, the settings are train_options.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

import edg
from edg.core import config
from edg.core.dist import World
from edg.core.errors import BadFileError, UsageError
from edg.core.files import read_json, write_json
from edg.core.hashing import cached_sha256
from edg.core.log import log, warn
from edg.core.seeding import derive, generator
from edg.core.sheet import contact_sheet
from edg.core.video import write_image, write_video
from edg.data.batches import Table
from edg.data.prompts import read_folder
from edg.merging.provenance import base_reference, input_record
from edg.networks import open_weights
from edg.networks.latent_video import adapter, load
from edg.networks.latent_video.model import LatentVideoModel
from edg.networks.latent_video.models import load_spec
from edg.networks.latent_video.vae import AutoencoderKL
from edg.systems.base import Request
from edg.systems.edg.generate import generate
from edg.systems.edg.options import SamplingOptions
from edg.systems.edg.parameter_sets import OneNetwork
from edg.systems.edg.training import trainable
from edg.systems.edg.training.config import Run
from edg.systems.edg.training.encode import data_remarks
from edg.systems.edg.training.latent_cache import CachedClips
from edg.systems.edg.training.modules import DenoiserTraining, VaeTraining, fit
from edg.training.callbacks import last_checkpoint
from edg.weights.base_file import sha256_weights
from edg.weights.store import Weights
from edg.weights.writers import write_safetensors

VAE = "first_stage_model."


def train_run(run: Run, data: Any, world: World, device: str) -> Path:
    """Train `run` on `data` (see train.fit) and return the path of its parameter set.

    Raises UsageError for settings that do not fit each other, BadFileError for weights that do not fit.
    """
    train = autoencoder if run.kind == "autoencoder" else denoiser
    if world.is_first:
        encoded = isinstance(data, CachedClips)
        for line in data_remarks(getattr(data, "videos", ()), load_spec(run.spec), encoded):
            warn(f"{run.name}: {line}")
    record = world.first(lambda: begin(run, world, data))
    tensors, base, hashes = train(run, data, world, device)
    world.first(lambda: write_result(run, tensors, base, {**record, "samples_in_data": len(data)}, hashes))
    return run.result


def begin(run: Run, world: World, data: Any = None) -> dict[str, Any]:
    """Note the settings of a run in its folder, and what its data is; returns that. Says so when a run that
    goes on has other data than before. Raises UsageError when it was begun there with other settings."""
    note, record = run.folder / "settings.json", record_of(run, world)
    record |= {DATA: data.fingerprint()} if hasattr(data, "fingerprint") else {}
    if note.exists() and (last := last_checkpoint(run.folder)) is not None:
        before = read_json(note)
        compare(run, world, before, f"the run in {run.folder} was begun")
        record |= {FORMER: before[FORMER]} if FORMER in before else {}
        if why := other_data(before, record.get(DATA)):
            log(f"{run.name}: {why} since {last.name}; the rest is trained on what is there now")
            record[FORMER] = [*record.get(FORMER, []), {"until": last.name, **before[DATA]}]
    write_json(note, record)
    return record


def other_data(record: Mapping[str, Any], now: Mapping[str, Any] | None) -> str:
    """How the data differs from what a record tells, "" where it does not or where either is unknown."""
    then = record.get(DATA)
    if not isinstance(then, Mapping) or now is None or then == now:
        return ""
    if then.get("content") == now.get("content"):
        return "the times of the data's files changed (their names, captions and sizes did not)"
    return "the data changed"


def cached(run: Run, folder: Path) -> CachedClips:
    """The clips that `edg encode` wrote. Raises UsageError when they are not what the run needs."""
    clips = CachedClips(folder)
    if count := clips.without_hashes():
        log(f"{folder}: {count} shards of an earlier version cannot be checked; `edg encode` notes hashes")
    if run.objective.random_frame and not clips.index.every_frame:
        raise UsageError(
            f"objective.random_frame, and {folder} has image tokens of frame 0 alone",
            fix="objective.random_frame=false, or edg encode --every-frame into another folder",
        )
    if run.init or run.vae:
        clips.check(load_spec(run.spec), open_weights(run.init or run.vae))
    return clips


# ---- the two kinds of training -----------------------------------------------------------------------------


#: tensors of the result, the parameter set it was begun from, the hashes of that one's files
Trained = tuple[dict[str, Tensor], Weights | None, dict[str, str]]


def autoencoder(run: Run, data: Any, world: World, device: str) -> Trained:
    """Train the autoencoder from scratch on still frames."""
    torch.manual_seed(run.seed)
    vae = AutoencoderKL(load_spec(run.spec).vae)
    module = VaeTraining(vae, run.train, run.autoencoder.kl)
    fit(module, data, run.folder, run.seed, world, device)
    vae = vae.cpu().eval()
    if run.autoencoder.calm is not None:
        frames = torch.stack([data[i]["frames"] for i in range(min(1024, len(data)))])
        normalise(vae, frames, run.autoencoder.calm)
    return {VAE + name: value.detach().contiguous() for name, value in vae.state_dict().items()}, None, {}


@torch.no_grad()
def normalise(vae: AutoencoderKL, frames: Tensor, calm: float) -> None:
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


def denoiser(run: Run, data: Any, world: World, device: str) -> Trained:
    """Train the denoiser (with or without text adapter) from `run.init`, or from scratch."""
    model, base = start(run)
    files = [] if base is None else base.files
    hashes = {
        str(file.path): cached_sha256(file.path) for file in files
    }  # now: in days another may lie there
    if base is not None:
        base.check_unchanged()
        for note in base.notes if world.is_first else ():
            log(f"{run.name}: init: {note}")
    if run.lora is not None:
        trainable.add_lora(model, run.lora.rank, run.lora.alpha, run.lora.where, run.seed)
    chosen = trainable.choose(model, run.trainable)
    model.unet.checkpointing = run.train.gradient_checkpointing
    if not run.train.dropout:
        no_dropout(model)
    if isinstance(data, Table):
        data = precompute(model, data, run.seed, run.objective.random_frame)
    module = DenoiserTraining(model, run.train, run.objective, chosen)
    fit(module, data, run.folder, run.seed, world, device, sampler(run), run.samples.every)
    if run.lora is not None:
        trainable.merge_lora(model)
    return stored(model.cpu()), base, hashes


def no_dropout(model: LatentVideoModel) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def start(run: Run) -> tuple[LatentVideoModel, Weights | None]:
    """The model that training begins with, on the CPU in float32, and the parameter set it came from."""
    spec = load_spec(run.spec)
    draw = generator(run.seed, "adapter")
    if run.init is None:
        torch.manual_seed(derive(run.seed, "weights"))
        model = load.build(spec.with_adapter() if run.adapter != "none" else spec, "cpu")
        if run.vae is not None:
            only = open_weights(run.vae)
            model.first_stage_model.load_state_dict(
                {name.removeprefix(VAE): only[name] for name in only if name.startswith(VAE)}
            )
        begin_adapter(model, run.adapter, draw)
        return model, None
    base = open_weights(run.init)
    had = load.has_adapter(base)
    model = load.load_model(spec.with_adapter() if had or run.adapter != "none" else spec, base)
    if not had:
        begin_adapter(model, run.adapter, draw)
    return model, base


def begin_adapter(model: LatentVideoModel, how: str, draw: torch.Generator) -> None:
    if how == "identity":
        adapter.begin(model, draw)
    elif how == "released":
        adapter.begin_released(model, draw)


# ---- frozen parts, once ------------------------------------------------------------------------------------


@torch.no_grad()
def precompute(
    model: LatentVideoModel, table: Table, seed: int, every_frame: bool = False, at_once: int = 64
) -> Table:
    """`table` with latents, text and image tokens (of frame 0, or of every frame) for frames (N, 3, T, H, W)
    and captions: what is frozen is computed once. The posterior of a clip is drawn once, too."""
    frames, captions = table.columns["frames"], table.columns["caption"]
    draw = generator(seed, "posterior")
    parts: list[dict[str, Tensor]] = []
    for at in range(0, len(table), at_once):
        x = frames[at : at + at_once]
        flat = rearrange(x, "b c t h w -> (b t) c h w")
        posterior = model.encode_frames(flat)
        z = posterior.sample(torch.randn(posterior.mean.shape, generator=draw)) * model.spec.scale_factor
        part = {
            "latents": rearrange(z, "(b t) c h w -> b c t h w", b=len(x)),
            "text": model.encode_text(captions[at : at + at_once]),
        }
        if every_frame:
            part["images"] = rearrange(model.embedder(flat), "(b t) m w -> b t m w", b=len(x))
        else:
            part["image"] = model.embedder(x[:, :, 0])
        parts.append(part)
    made = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Table({n: c for n, c in table.columns.items() if n not in ("frames", "caption")} | made)


# ---- clips on the way --------------------------------------------------------------------------------------


def sampler(run: Run):
    """(model, step) -> [(name, picture)] for train.fit, None when no clips are asked for. Raises UsageError
    when the prompt folder does not pair."""
    want = run.samples
    if not want.every:
        return None
    pairs = read_folder(want.prompt_dir)[: want.count]
    options = SamplingOptions(
        steps=want.steps,
        guidance_scale=want.guidance_scale,
        guidance_rescale=want.guidance_rescale,
        switch_at=(),
    )

    def make(model: LatentVideoModel, step: int) -> list[tuple[str, np.ndarray]]:
        spec, folder = model.spec, run.folder / "samples" / f"step_{step:08d}"
        requests = [
            Request(p.name, p.prompt, run.seed, spec.frames, spec.height, spec.width, options, p.image)
            for p in pairs
        ]
        clips = []
        for result in generate(OneNetwork(model), requests):
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


# ---- the result --------------------------------------------------------------------------------------------


def stored(model: LatentVideoModel) -> dict[str, Tensor]:
    """The state dict without what a spec with a towers_seed can compute by itself."""
    seeded = model.spec.towers_seed is not None
    skip = (*load.TOWERS, *model.buffer_names) if seeded else ()
    return {n: t.detach().contiguous() for n, t in model.state_dict().items() if not n.startswith(skip)}


def write_result(
    run: Run,
    tensors: Mapping[str, Tensor],
    base: Weights | None,
    training: Mapping[str, Any],
    hashes: Mapping[str, str],
) -> None:
    """{out}/{name}.safetensors: complete without a base, else what training changed and a reference to it.
    training: what `begin` noted; hashes: of the base's files when they were read. Raises UsageError when
    training has left a value that is not finite."""
    kept = dict(tensors) if base is None else dict(changed(tensors, base))
    for name, tensor in kept.items():
        if not torch.isfinite(tensor).all():
            raise UsageError(f"{name} is not finite after training", fix="a lower train.lr")
    record: dict[str, Any] = {
        "format": 1,
        "edg": edg.__version__,
        "output": run.name,
        "training": dict(training),
        "inputs": [],
        "tensors": len(tensors),
        "stored": len(kept),
    }
    if base is not None:
        record["inputs"] = [input_record("init", base, hashes)]
        record |= base_reference({"init": base}, hashes, run.result, [])
    write_safetensors(run.result, kept, {"spec": run.spec, "edg": json.dumps(record)})


def changed(tensors: Mapping[str, Tensor], base: Weights) -> Iterator[tuple[str, Tensor]]:
    """The tensors that are not, bit for bit, what the base holds."""
    for name, tensor in tensors.items():
        if name not in base or not torch.equal(tensor, base[name].to(tensor.dtype)):
            yield name, tensor


def made_of_other_data(run: Run, data: Any) -> str:
    """How the data of a finished run differs from what it was trained on, "" where it does not."""
    training = open_weights(run.result, join_base=False).provenance["training"]
    return other_data(training, data.fingerprint() if hasattr(data, "fingerprint") else None)


def is_made(run: Run, world: World) -> bool:
    """Whether the result lies there, by the same settings. Raises UsageError when by others."""
    if not run.result.exists():
        return False
    try:
        record = open_weights(run.result, join_base=False).provenance
    except BadFileError:
        record = {}
    if not isinstance(record.get("training"), dict):
        raise UsageError(f"{run.result} is not a result of edg train", fix="choose another out=FOLDER")
    compare(run, world, record["training"], f"{run.result} was trained")
    return True


def record_of(run: Run, world: World) -> dict[str, Any]:
    """The settings of a run, its number of processes, and the hashes of the weights it starts from."""
    hashes = {
        key: None if path is None else sha256_weights(open_weights(path))
        for key, path in (("init_sha256", run.init), ("vae_sha256", run.vae))
    }
    step = {"processes": world.size, "samples_per_step": run.train.batch * run.train.accumulate * world.size}
    return {**config.to_dict(run), **hashes, **step}


def compare(run: Run, world: World, record: Mapping[str, Any], what: str) -> None:
    """Raise UsageError when `record` tells another setting that decides the result."""
    made, wanted = settings(record), settings(record_of(run, world))
    for name in wanted:
        if made.get(name) != wanted[name]:
            raise UsageError(
                f"{what} with another {name}: {made.get(name)!r}",
                expected=repr(wanted[name]),
                fix="choose another out=FOLDER, or remove what is there",
            )


# Of what is trained on, and what that was until a checkpoint.
DATA, FORMER = "data_fingerprint", "data_before"
# These decide nothing, or count as hashes.
FREE = {DATA, FORMER, "out", "init", "vae", "samples", "samples_in_data", "processes"}
FREE |= {"data.require_captions"}
FREE |= {"train." + n for n in ("batch", "accumulate", "strategy", "gradient_checkpointing")}
FREE |= {"train." + n for n in ("save_every", "keep", "log_every", "logger", "workers")}


def settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the result, flat: `train.lr` -> 0.001."""

    def flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
        if name in FREE:
            return
        if isinstance(value, Mapping):
            for key, item in value.items():
                yield from flat(item, f"{name}.{key}".lstrip("."))
        else:
            yield name, value

    return dict(flat(record, ""))
