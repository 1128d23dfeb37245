"""The training loop, by pytorch_lightning: optimizer, checkpoints, log, resuming. It knows no network.

    class MyTraining(TrainingModule): ...            trainable() and training_step()
    fit(module, data, folder, seed)                  trains to config.steps, resumes from the last checkpoint

Samples are asked for by data.batches.Key. The samples of a step, in any number of processes, and their random
draws follow from (seed, step): a resumed run gives the same weights as one that was not interrupted.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import Strategy
from torch import Tensor, nn

from edg.core.dist import World, processes_here
from edg.core.errors import EdgError, MachineError, require
from edg.core.files import ensure_writable, remove_leftovers, same_folder, write_text
from edg.core.process import stopping
from edg.core.seeding import derive
from edg.data.batches import (
    ErrorCatchingDataset,
    KeyedDataset,
    ResumableBatchSampler,
    Sample,
    SampleSource,
    collate,
    raise_if_error,
)
from edg.training.callbacks import (
    AtomicCheckpoints,
    CheckpointCallback,
    LogCallback,
    MakeSamples,
    SampleCallback,
    last_checkpoint,
    remove_old_checkpoints,
    set_aside_damaged,
    step_of,
)
from edg.training.config import PRECISIONS, STRATEGIES, OptimizerConfig


class TrainingModule(pl.LightningModule):
    """Optimizer over the trainable parameters and their running mean. Subclasses define the parameters and
    the loss: training_step returns {"loss", "losses" (B,), and "bands" (B,), optional, see LogCallback}."""

    strict_loading = False  # a checkpoint holds trainable parameters only

    def __init__(self, config: OptimizerConfig):
        super().__init__()
        self.config = config
        self.average: dict[str, Tensor] = {}

    def trainable(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name."""
        raise NotImplementedError

    def learning_rates(self) -> list[tuple[dict[str, nn.Parameter], float]]:
        """The trainable parameters in groups, each with its multiple of the learning rate."""
        return [(self.trainable(), 1.0)]

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimizer, with weight decay on matrices and kernels only, and its schedule `lr_factor`."""
        config, groups = self.config, []
        for parameters, multiplier in self.learning_rates():
            for matrices in (False, True):
                params = [p for p in parameters.values() if (p.ndim > 1) == matrices]
                decay, lr = config.weight_decay * matrices, config.lr * multiplier
                if params:
                    groups.append({"params": params, "weight_decay": decay, "lr": lr})
        optimizer = make_optimizer(groups, config)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(lr_factor, config=config))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """A step, then average <- decay * average + (1 - decay) * weights, before anything is saved."""
        super().optimizer_step(*args, **kwargs)
        if not self.config.ema:
            return
        with torch.no_grad():
            if not self.average:
                self.average = {n: p.detach().clone() for n, p in self.trainable().items()}
            decay = min(self.config.ema, (2 + self.global_step) / (11 + self.global_step))
            for name, p in self.trainable().items():
                self.average[name] = self.average[name].to(p.device).lerp_(p, 1 - decay)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = {id(p) for p in self.trainable().values()}
        names = {name for name, p in self.named_parameters() if id(p) in kept}
        checkpoint["state_dict"] = {n: t for n, t in checkpoint["state_dict"].items() if n in names}
        checkpoint["average"] = self.average

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.average = checkpoint.get("average", {})

    @torch.no_grad()
    def use_average(self) -> None:
        """Copy the running mean, if there is one, into the trained weights."""
        for name, p in self.trainable().items():
            if name in self.average:
                p.copy_(self.average[name])

    def on_train_start(self) -> None:
        """Set the learning rate of the next step: a checkpoint holds that of its own schedule."""
        schedule = self.lr_schedulers()
        for group, lr in zip(schedule.optimizer.param_groups, schedule.base_lrs, strict=True):
            group["lr"] = lr * lr_factor(schedule.last_epoch, self.config)

    def on_before_batch_transfer(self, batch: Sample | EdgError, _index: int) -> Sample:
        return raise_if_error(batch)

    def on_train_batch_start(self, batch: Sample, index: int) -> None:
        """Seed the network's own draws (dropout) from the step and the rank."""
        torch.manual_seed(derive(int(batch["batch_draw"][0]), "network", index, self.global_rank))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The running mean in place, without gradients; the trained weights come back at the end."""
        trained = {n: p.detach().clone() for n, p in self.trainable().items() if n in self.average}
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
                for name, value in trained.items():
                    self.trainable()[name].copy_(value)


def make_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of torch's parameter groups. Raises MachineError if its package is not installed."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr)
    if config.optimizer == "adamw_8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError as error:
            raise MachineError(
                "train.optimizer=adamw_8bit needs bitsandbytes",
                fix="pip install bitsandbytes, or set train.optimizer=adamw",
            ) from error
        return AdamW8bit(groups, lr=config.lr, betas=config.betas)
    fused = True if config.optimizer == "adamw_fused" else None
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)


def lr_factor(step: int, config: OptimizerConfig) -> float:
    """The learning rate at a step as a share of config.lr."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "constant":
        return 1.0
    done = min((step - config.warmup) / max(config.steps - config.warmup, 1), 1.0)
    left = 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return config.final_lr + (1 - config.final_lr) * left


# ---- the loop ----------------------------------------------------------------------------------------------


def fit(
    module: TrainingModule,
    data: SampleSource,
    folder: Path,
    seed: int,
    world: World | None = None,
    device: str = "cpu",
    sample: MakeSamples | None = None,
    sample_every: int = 0,
) -> list[dict[str, float]]:
    """Train to module.config.steps and return the log; the module then holds the running mean.

    Resumes from the last checkpoint in `folder`. sample: (module, step) -> named pictures, every sample_every
    steps. SIGUSR1 saves a checkpoint, SIGTERM and SIGINT save one and exit with code 143 or 130. Raises
    MachineError when `folder` is removed meanwhile.
    """
    config, world = module.config, world or World()
    require(len(data) > 0, "the data has no samples", fix="see `data` in the configuration")
    world.first(lambda: _prepare(folder, config.keep))
    last = last_checkpoint(folder)
    first = 0 if last is None else step_of(last)
    world.first(lambda: _cut_log(folder / "log.jsonl", first))
    _silence_lightning()
    pl.seed_everything(derive(seed, "lightning") % 2**32, verbose=False)
    sampler = ResumableBatchSampler(
        batch=config.batch,
        ranks=world.size,
        rank=world.rank,
        accumulate=config.accumulate,
        size=len(data),
        seed=seed,
        first_step=first,
    )
    loader = torch.utils.data.DataLoader(
        ErrorCatchingDataset(KeyedDataset(data)),
        batch_sampler=sampler,
        collate_fn=partial(collate, seed=seed),
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
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
    module: TrainingModule, folder: Path, world: World, device: str, sample: MakeSamples | None,
    sample_every: int, check: Callable[[], None],
) -> pl.Trainer:  # fmt: skip
    config = module.config
    half_on_cpu = device == "cpu" and config.precision.startswith("fp16")
    require(not half_on_cpu, f"train.precision={config.precision} on CPU", "fp32 or bf16")
    callbacks = [
        LogCallback(folder / "log.jsonl", config.log_every),
        CheckpointCallback(folder, config.save_every, config.keep, check),
    ]
    if sample is not None:
        callbacks.insert(1, SampleCallback(sample_every, sample))
    local = processes_here(world)
    return pl.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=local,
        num_nodes=max(world.size // local, 1),
        strategy=_strategy(config, world, device),
        precision=PRECISIONS[config.precision],
        max_steps=config.steps,
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.grad_clip or None,
        callbacks=callbacks,
        plugins=[AtomicCheckpoints()],
        logger=_logger(config, folder),
        use_distributed_sampler=False,
        enable_checkpointing=False,  # by CheckpointCallback instead
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def _strategy(config: OptimizerConfig, world: World, device: str) -> Strategy | str:
    """Lightning's strategy: none for one process, DDP over gloo on CPUs and over nccl on GPUs."""
    if config.strategy == "auto" and world.size == 1:
        return "auto"
    name = STRATEGIES["ddp" if config.strategy == "auto" else config.strategy]
    if name == "ddp":
        return pl.strategies.DDPStrategy(process_group_backend="gloo" if device == "cpu" else "nccl")
    require(device != "cpu", f"train.strategy={config.strategy} on CPU", "GPUs", "train.strategy=ddp")
    return name


def _logger(config: OptimizerConfig, folder: Path) -> Logger | bool:
    if config.logger == "none":
        return False
    if config.logger == "wandb":
        try:
            return pl.loggers.WandbLogger(name=folder.name, save_dir=folder)
        except ModuleNotFoundError as error:
            raise MachineError("train.logger=wandb needs wandb", fix="pip install wandb") from error
    return pl.loggers.TensorBoardLogger(folder, name="tensorboard", version="")


def _prepare(folder: Path, keep: int) -> None:
    ensure_writable(folder)
    remove_leftovers(folder)
    set_aside_damaged(folder)
    remove_old_checkpoints(folder, keep)


def _silence_lightning() -> None:
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")


def _cut_log(log: Path, step: int) -> None:
    """Remove the lines after `step`: they will be written again."""
    kept = [line for line in read_log(log) if line["step"] <= step]
    write_text(log, "".join(json.dumps(line) + "\n" for line in kept))


def read_log(path: Path) -> list[dict[str, float]]:
    """The lines of a log, without one that was torn when its process was killed."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with suppress(ValueError):
            lines.append(json.loads(line))
    return lines
