"""Training of the autoencoder and of the denoiser (with or without the text adapter), by pytorch_lightning.

    VaeTraining        weighted squared error + a small KL term
    DenoiserTraining   v- or eps-prediction, conditions dropped for guidance, optional min-SNR weights
    fit(module, batches, plan, folder)   runs either to plan.steps, resumes from the last checkpoint in folder

A batch is a dictionary of tensors, see the two classes. What is frozen (VAE, text and image towers) may be
computed beforehand and given in the batch; then a training step costs the denoiser alone.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from edg.core.seeding import derive, generator
from edg.systems.edg.objective import Constants, Objective, denoising_loss
from edg.weights.keys import is_adapter


@dataclass(frozen=True)
class Plan:
    """How long and how fast. lr rises linearly over `warmup` steps, then falls as a cosine to `final_lr` x
    lr.

    ema: decay of the weights' running mean (0 is off); early on it is min(ema, (1 + step) / (10 + step)).
    text_rate: multiple of lr for what the text enters by (the adapter, keys and values of attn2).
    precision: of Lightning ("32-true", "bf16-mixed", ...). save_every: steps between checkpoints.
    """

    steps: int
    batch: int
    lr: float
    warmup: int = 100
    final_lr: float = 0.05
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    grad_clip: float = 1.0
    ema: float = 0.0
    text_rate: float = 1.0
    precision: str = "32-true"
    save_every: int = 500
    log_every: int = 20
    seed: int = 0


class _Training(pl.LightningModule):
    """What both trainings share: the optimiser over `trainable()` and the running mean of the weights."""

    def __init__(self, plan: Plan):
        super().__init__()
        self.plan = plan
        self.automatic_optimization = True
        self.average: dict[str, Tensor] = {}

    def trainable(self) -> dict[str, nn.Parameter]:
        raise NotImplementedError

    def configure_optimizers(self):
        """AdamW; weight decay on matrices and kernels only."""
        named, plan = self.trainable(), self.plan
        groups = []
        for fast in (False, True):
            for matrices in (False, True):
                chosen = [p for n, p in named.items() if hears_text(n) == fast and (p.ndim > 1) == matrices]
                decay, lr = plan.weight_decay * matrices, plan.lr * (plan.text_rate if fast else 1.0)
                if chosen:
                    groups.append({"params": chosen, "weight_decay": decay, "lr": lr})
        optimizer = torch.optim.AdamW(groups, lr=self.plan.lr, betas=self.plan.betas)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, self.plan))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, *_args) -> None:
        """Timesteps, noise and dropout belong to (seed, step): a resumed run draws what one run would."""
        torch.manual_seed(derive(self.plan.seed, "step", self.global_step))

    def optimizer_step(self, *args, **kwargs) -> None:
        """A step, then average <- decay * average + (1 - decay) * weights, before anything is saved."""
        super().optimizer_step(*args, **kwargs)
        if not self.plan.ema:
            return
        with torch.no_grad():
            if not self.average:
                self.average = {n: p.detach().clone() for n, p in self.trainable().items()}
            decay = min(self.plan.ema, (2 + self.global_step) / (11 + self.global_step))
            for name, p in self.trainable().items():
                self.average[name] = self.average[name].to(p.device).lerp_(p, 1 - decay)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["average"] = self.average

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.average = checkpoint.get("average", {})

    @torch.no_grad()
    def use_average(self) -> None:
        """Put the running mean in place of the trained weights (no-op without one)."""
        for name, p in self.trainable().items():
            if name in self.average:
                p.copy_(self.average[name])


def hears_text(name: str) -> bool:
    """Whether a parameter is one that the text enters by."""
    return is_adapter(name) or ".attn2.to_k." in name or ".attn2.to_v." in name


def rate(step: int, plan: Plan) -> float:
    """The learning rate at a step as a share of plan.lr."""
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    done = min((step - plan.warmup) / max(plan.steps - plan.warmup, 1), 1.0)
    return plan.final_lr + (1 - plan.final_lr) * 0.5 * (1 + math.cos(math.pi * done))


class VaeTraining(_Training):
    """Batch: frames (N, 3, H, W) in [-1, 1]; weight (N, 1, H, W), optional, of every pixel's squared error.

    Squared error on purpose: an absolute error is smallest at the median, which for a small shape on a
    large background is the background. kl: weight of KL(q || N(0,1)) in nats per latent value.
    """

    def __init__(self, vae: nn.Module, plan: Plan, kl: float = 1e-6):
        super().__init__(plan)
        self.vae, self.kl = vae, kl

    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self.vae.named_parameters())

    def training_step(self, batch: dict[str, Tensor], _index: int) -> Tensor:
        x = batch["frames"]
        posterior = self.vae.encode(x)
        z = posterior.sample(torch.randn_like(posterior.mean))
        error = (self.vae.decode(z) - x) ** 2
        if "weight" in batch:
            error = error * batch["weight"]
        return error.mean() + self.kl * posterior.kl().mean() / z[0].numel()


class DenoiserTraining(_Training):
    """Trains UNet, image projector and, where the model has it, the whole text adapter; the rest stays
    frozen. Batches: see denoising_loss."""

    def __init__(self, model: nn.Module, plan: Plan, objective: Objective | None = None):
        super().__init__(plan)
        self.model, self.objective = model, objective or Objective()
        self.constants = Constants.of(model)
        model.requires_grad_(False)
        for p in self.trainable().values():
            p.requires_grad_(True)

    def trainable(self) -> dict[str, nn.Parameter]:
        heads = ("model.diffusion_model.", "image_proj_model.", "queries", "qformer.")
        return {n: p for n, p in self.model.named_parameters() if n.startswith(heads)}

    def training_step(self, batch: dict, _index: int) -> Tensor:
        loss, _ = denoising_loss(self.model, batch, self.objective, self.constants)
        return loss.mean()


class _Log(pl.Callback):
    """Appends {"step", "loss", "lr", "seconds"} to log.jsonl: the loss is the mean since the line before."""

    def __init__(self, path: Path, every: int):
        self.path, self.every, self.sum, self.count, self.start = path, every, 0.0, 0, time.monotonic()

    def on_train_batch_end(self, trainer, module, outputs, *_args) -> None:
        self.sum, self.count = self.sum + float(outputs["loss"]), self.count + 1
        if trainer.global_step % self.every == 0 or trainer.global_step == module.plan.steps:
            lr = trainer.optimizers[0].param_groups[0]["lr"]
            line = {"step": trainer.global_step, "loss": round(self.sum / self.count, 6), "lr": lr}
            line["seconds"] = round(time.monotonic() - self.start, 1)
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            self.sum, self.count = 0.0, 0


class Endless(torch.utils.data.IterableDataset):
    """Batches without end from a table of tensors (equal first sizes) or lists: rows drawn with replacement
    by a seed."""

    def __init__(self, table: dict, batch: int, seed: int):
        self.table, self.batch, self.seed = table, batch, seed
        self.first = 0  # the step to begin with

    def __iter__(self) -> Iterator[dict]:
        rows = len(next(iter(self.table.values())))
        for step in itertools.count(self.first):
            pick = torch.randint(rows, (self.batch,), generator=generator(self.seed, "batch", step))
            yield {
                k: v[pick] if isinstance(v, Tensor) else [v[i] for i in pick] for k, v in self.table.items()
            }


def fit(module: _Training, batches: Endless, folder: Path, accelerator: str = "auto") -> list[dict]:
    """Train to module.plan.steps and return the log. Resumes from folder/last.ckpt; ends with the running
    mean in place."""
    plan = module.plan
    folder.mkdir(parents=True, exist_ok=True)
    pl.seed_everything(plan.seed, verbose=False)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    last, log = folder / "last.ckpt", folder / "log.jsonl"
    batches.first = resume_at(last, log)
    save = pl.callbacks.ModelCheckpoint(
        folder, "last", every_n_train_steps=plan.save_every, enable_version_counter=False
    )
    trainer = pl.Trainer(
        accelerator=accelerator,
        devices=1,
        precision=plan.precision,
        max_steps=plan.steps,
        gradient_clip_val=plan.grad_clip,
        callbacks=[save, _Log(log, plan.log_every)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    trainer.fit(module, loader, ckpt_path=str(last) if last.exists() else None, weights_only=False)
    module.use_average()
    return read_log(log)


def resume_at(last: Path, log: Path) -> int:
    """The step that `last` was saved at (0 without it); lines of the log from after it are dropped."""
    step = torch.load(last, map_location="cpu", weights_only=False)["global_step"] if last.exists() else 0
    kept = [line for line in read_log(log) if line["step"] <= step]
    log.write_text("".join(json.dumps(line) + "\n" for line in kept))
    return step


def read_log(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
