"""Training by pytorch_lightning: the autoencoder, and the denoiser with or without the text adapter.

    VaeTraining        weighted squared error + a small KL term
    DenoiserTraining   the loss of objective.py, on the parameters that trainable.py chose
    fit(module, data, folder, ...)   runs to plan.steps; resumes from the last checkpoint in folder

Data is a sequence of samples (dictionaries), asked for by data.order.Key. Which samples a step sees, in any
number of processes, and what is drawn for each, follows from (seed, step): a resumed run is the run.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from edg.core.dist import World, processes_here
from edg.core.errors import MachineError, UsageError
from edg.core.files import ensure_writable, remove_leftovers, same_folder, write_text
from edg.core.process import stopping
from edg.core.seeding import derive
from edg.data.batches import Caught, Keyed, Order, collate, told
from edg.networks.latent_video.keys import is_adapter
from edg.systems.edg.training.config import PRECISIONS, STRATEGIES, Plan
from edg.systems.edg.training.loss import Constants, Draws, Objective, denoising_loss
from edg.training.callbacks import (
    BANDS,
    AtomicCheckpoints,
    Checkpoints,
    Log,
    Samples,
    drop_old,
    last_checkpoint,
    set_aside_damaged,
)


class _Training(pl.LightningModule):
    """What both trainings share: the optimiser over `trainable()` and the running mean of the weights."""

    strict_loading = False  # a checkpoint holds what trains; the rest came from the run's init

    def __init__(self, plan: Plan):
        super().__init__()
        self.plan = plan
        self.average: dict[str, Tensor] = {}

    def trainable(self) -> dict[str, nn.Parameter]:
        raise NotImplementedError

    def configure_optimizers(self):
        """Weight decay on matrices and kernels only; the learning rate by `rate`."""
        plan, groups = self.plan, []
        for fast in (False, True):
            for matrices in (False, True):
                chosen = [
                    p
                    for n, p in self.trainable().items()
                    if hears_text(n) == fast and (p.ndim > 1) == matrices
                ]
                decay, lr = plan.weight_decay * matrices, plan.lr * (plan.text_rate if fast else 1.0)
                if chosen:
                    groups.append({"params": chosen, "weight_decay": decay, "lr": lr})
        optimizer = make_optimizer(groups, plan)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(rate, plan=plan))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

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
        kept = {id(p) for p in self.trainable().values()}
        names = {name for name, p in self.named_parameters() if id(p) in kept}
        checkpoint["state_dict"] = {n: t for n, t in checkpoint["state_dict"].items() if n in names}
        checkpoint["average"] = self.average

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.average = checkpoint.get("average", {})

    @torch.no_grad()
    def use_average(self) -> None:
        """Put the running mean in place of the trained weights (no-op without one)."""
        for name, p in self.trainable().items():
            if name in self.average:
                p.copy_(self.average[name])

    def on_before_batch_transfer(self, batch: Any, _index: int) -> dict:
        return told(batch)

    def on_train_batch_start(self, batch: dict, index: int) -> None:
        """What the network draws by itself (dropout) follows from the step and the rank."""
        torch.manual_seed(derive(int(batch["batch_draw"][0]), "network", index, self.global_rank))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The running mean in place, without gradients; the trained weights come back at the end."""
        mine = {n: p.detach().clone() for n, p in self.trainable().items() if n in self.average}
        modes = {module: module.training for module in self.modules()}
        self.use_average()
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            with torch.no_grad():
                for name, value in mine.items():
                    self.trainable()[name].copy_(value)


def make_optimizer(groups: list[dict], plan: Plan) -> torch.optim.Optimizer:
    """Raises MachineError for an optimiser whose package is not installed."""
    if plan.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=plan.lr)
    if plan.optimizer == "adamw_8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError as error:
            raise MachineError(
                "train.optimizer=adamw_8bit needs bitsandbytes", fix="pip install bitsandbytes, or adamw"
            ) from error
        return AdamW8bit(groups, lr=plan.lr, betas=plan.betas)
    fused = True if plan.optimizer == "adamw_fused" else None
    return torch.optim.AdamW(groups, lr=plan.lr, betas=plan.betas, fused=fused)


def hears_text(name: str) -> bool:
    """Whether a parameter is one that the text enters by."""
    return is_adapter(name) or ".attn2.to_k." in name or ".attn2.to_v." in name


def rate(step: int, plan: Plan) -> float:
    """The learning rate at a step as a share of plan.lr."""
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    if plan.schedule == "constant":
        return 1.0
    done = min((step - plan.warmup) / max(plan.steps - plan.warmup, 1), 1.0)
    left = 1 - done if plan.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return plan.final_lr + (1 - plan.final_lr) * left


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

    def training_step(self, batch: dict[str, Tensor], _index: int) -> dict[str, Tensor]:
        x = batch["frames"]
        posterior = self.vae.encode(x)
        z = posterior.sample(Draws.of(batch).normal("posterior", *posterior.mean.shape[1:]).to(x.device))
        error = (self.vae.decode(z) - x) ** 2
        if "weight" in batch:
            error = error * batch["weight"]
        losses = error.mean(dim=(1, 2, 3)) + self.kl * posterior.kl() / z[0].numel()
        return {"loss": losses.mean(), "losses": losses.detach()}


class DenoiserTraining(_Training):
    """Trains `chosen` of the model's parameters (name -> parameter); everything else is frozen. Batches are
    those of objective.denoising_loss."""

    def __init__(self, model: nn.Module, plan: Plan, objective: Objective, chosen: dict[str, nn.Parameter]):
        super().__init__(plan)
        self.model, self.objective, self.chosen = model, objective, chosen
        self.constants = Constants.of(model)

    def trainable(self) -> dict[str, nn.Parameter]:
        return self.chosen

    def train(self, mode: bool = True) -> DenoiserTraining:
        """Autoencoder and towers stay as they are when sampling."""
        super().train(mode)
        for frozen in (self.model.first_stage_model, self.model.cond_stage_model, self.model.embedder):
            frozen.eval()
        return self

    def training_step(self, batch: dict, _index: int) -> dict[str, Tensor]:
        losses, t = denoising_loss(self.model, batch, self.objective, self.constants)
        bands = t * BANDS // len(self.constants.schedule.betas)
        return {"loss": losses.mean(), "losses": losses.detach(), "bands": bands}


def fit(
    module: _Training,
    data: Sequence[Any],
    folder: Path,
    seed: int,
    world: World | None = None,
    device: str = "cpu",
    sample: Callable | None = None,
    sample_every: int = 0,
) -> list[dict]:
    """Train to module.plan.steps and return the log. Resumes from the last checkpoint in `folder`; ends with
    the running mean in place. sample: (model, step) -> pictures, every sample_every steps.

    SIGUSR1 saves a checkpoint, SIGTERM and SIGINT save one and leave with exit code 143 or 130. Raises
    MachineError when `folder` is removed meanwhile.
    """
    plan, world = module.plan, world or World()
    if len(data) == 0:
        raise UsageError("no sample to learn from", fix="see data in the configuration")
    world.first(lambda: _prepare(folder, plan.keep))
    last = last_checkpoint(folder)
    first = 0 if last is None else int(last.stem.removeprefix("step_"))
    world.first(lambda: _cut_log(folder / "log.jsonl", first))
    _quiet()
    pl.seed_everything(derive(seed, "lightning") % 2**32, verbose=False)
    order = Order(
        batch=plan.batch,
        ranks=world.size,
        rank=world.rank,
        accumulate=plan.accumulate,
        size=len(data),
        seed=seed,
        first_step=first,
    )
    loader = torch.utils.data.DataLoader(
        Caught(Keyed(data)),
        batch_sampler=order,
        collate_fn=partial(collate, seed=seed),
        num_workers=plan.workers,
        persistent_workers=plan.workers > 0,
    )
    with same_folder(folder) as check, stopping.postponed():
        trainer = _trainer(module, folder, world, device, sample, sample_every, check)
        module.train()
        stopping.check()
        with stopping.unhurried():
            trainer.fit(module, loader, ckpt_path=None if last is None else str(last), weights_only=True)
        check()
    module.use_average()
    return read_log(folder / "log.jsonl")


def _trainer(
    module: _Training, folder: Path, world: World, device: str, sample: Callable | None, sample_every: int,
    check: Callable[[], None],
) -> pl.Trainer:  # fmt: skip
    plan = module.plan
    if device == "cpu" and plan.precision.startswith("fp16"):
        raise UsageError(f"train.precision={plan.precision} on CPU", expected="fp32 or bf16")
    callbacks = [
        Log(folder / "log.jsonl", plan.log_every),
        Checkpoints(folder, plan.save_every, plan.keep, check),
    ]
    if sample is not None:
        callbacks.insert(1, Samples(sample_every, sample))
    local = processes_here(world)
    return pl.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=local,
        num_nodes=max(world.size // local, 1),
        strategy=_strategy(plan, world, device),
        precision=PRECISIONS[plan.precision],
        max_steps=plan.steps,
        accumulate_grad_batches=plan.accumulate,
        gradient_clip_val=plan.grad_clip or None,
        callbacks=callbacks,
        plugins=[AtomicCheckpoints()],
        logger=_logger(plan, folder),
        use_distributed_sampler=False,
        enable_checkpointing=False,  # by Checkpoints instead
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def _strategy(plan: Plan, world: World, device: str) -> Any:
    """One process needs none; several on CPUs speak gloo, on GPUs nccl."""
    if plan.strategy == "auto" and world.size == 1:
        return "auto"
    name = STRATEGIES["ddp" if plan.strategy == "auto" else plan.strategy]
    if name == "ddp":
        return pl.strategies.DDPStrategy(process_group_backend="gloo" if device == "cpu" else "nccl")
    if device == "cpu":
        raise UsageError(f"train.strategy={plan.strategy} on CPU", expected="GPUs", fix="train.strategy=ddp")
    return name


def _logger(plan: Plan, folder: Path) -> Any:
    if plan.logger == "none":
        return False
    if plan.logger == "wandb":
        try:
            return pl.loggers.WandbLogger(name=folder.name, save_dir=folder)
        except ModuleNotFoundError as error:
            raise MachineError("train.logger=wandb needs wandb", fix="pip install wandb") from error
    return pl.loggers.TensorBoardLogger(folder, name="tensorboard", version="")


def _prepare(folder: Path, keep: int) -> None:
    ensure_writable(folder)
    remove_leftovers(folder)
    set_aside_damaged(folder)
    drop_old(folder, keep)


def _quiet() -> None:
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")


def _cut_log(log: Path, step: int) -> None:
    """Drop the lines from after `step`: they will be written again."""
    kept = [line for line in read_log(log) if line["step"] <= step]
    write_text(log, "".join(json.dumps(line) + "\n" for line in kept))


def read_log(path: Path) -> list[dict]:
    """The lines of a log, but for one that was torn when its process was killed."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with suppress(ValueError):
            lines.append(json.loads(line))
    return lines
