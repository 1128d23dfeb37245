"""Callbacks of the training loop: log lines, signals, sample clips, atomic checkpoints."""

from __future__ import annotations

import json
import re
import resource
import signal
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from edg.core.errors import BadFileError, UsageError
from edg.core.files import atomic_path, remove
from edg.core.log import log, warn
from edg.core.process import CODES, stopping

if TYPE_CHECKING:
    from edg.training.lightning import TrainingModule

PRINT_SECONDS = 10.0  # between the lines on the console
BANDS = 4  # equal parts of the timesteps, whose losses are logged separately
#: (module, step) -> (name, picture uint8 (H, W, 3)) of every sample
MakeSamples = Callable[["TrainingModule", int], list[tuple[str, np.ndarray]]]


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints that are there completely or not at all, and that torch.load(weights_only=True) opens."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None
    ) -> None:
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)


class LogCallback(pl.Callback):
    """Write a line of log.jsonl (and the same numbers to the logger) every `every` steps, and log one of them
    every PRINT_SECONDS, and the last.

    step, loss (mean over all ranks since the line before), loss_t0 ... loss_t3 (the same by quarter of the
    timesteps, the noisiest last; only those that samples fell into), grad_norm (before clipping, of that
    step), lr, samples_per_second, memory_gb (peak), seconds.
    """

    def __init__(self, path: Path, every: int):
        self.path, self.every = path, every
        self.start = self.since = time.monotonic()
        self.sums: torch.Tensor | None = None
        self.norm, self.lr, self.logged_step = 0.0, 0.0, -1
        self.first_step, self.printed = 0, -PRINT_SECONDS

    def on_train_start(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        self.logged_step = self.first_step = trainer.global_step

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: TrainingModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if self._is_due(trainer.global_step + 1, module):
            self.lr = optimizer.param_groups[0]["lr"]
            grads = [p.grad for p in module.trainable().values() if p.grad is not None]
            self.norm = float(torch.nn.utils.get_total_norm(grads))

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: TrainingModule, outputs: dict, batch: dict, index: int
    ) -> None:
        part = by_band(outputs["losses"], outputs.get("bands"))
        self.sums = part if self.sums is None else self.sums + part
        step = trainer.global_step
        if self._is_due(step, module) and step != self.logged_step:
            self.logged_step = step
            self._write_line(trainer, step, module.config.steps)

    def _is_due(self, step: int, module: TrainingModule) -> bool:
        return step > 0 and (step % self.every == 0 or step == module.config.steps)

    def _write_line(self, trainer: pl.Trainer, step: int, steps: int) -> None:
        sums = trainer.strategy.reduce(self.sums, reduce_op="sum").cpu()
        self.sums = None
        if not torch.isfinite(sums).all():
            raise UsageError(
                f"the loss is not finite, in or shortly before step {step}",
                fix="set a lower train.lr, or train.precision=fp32, and another out=FOLDER",
            )
        if not trainer.is_global_zero:
            return
        now = time.monotonic()
        line = {"step": step, "loss": round(float(sums[0].sum() / sums[1].sum()), 6)}
        for band, (total, count) in enumerate(sums.T.tolist()):
            if count and sums.shape[1] > 1:
                line[f"loss_t{band}"] = round(total / count, 6)
        line |= {
            "grad_norm": round(self.norm, 5),
            "lr": self.lr,
            "samples_per_second": round(float(sums[1].sum()) / max(now - self.since, 1e-9), 3),
            "memory_gb": round(peak_memory(trainer.strategy.root_device) / 1e9, 3),
            "seconds": round(now - self.start, 1),
        }
        self.since = now
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        for logger in trainer.loggers:
            logger.log_metrics({k: v for k, v in line.items() if k != "step"}, step)
        if now - self.printed >= PRINT_SECONDS or step == steps:
            self.printed = now
            left = (now - self.start) / max(step - self.first_step, 1) * (steps - step)
            log(
                f"{self.path.parent.name}: step {step} of {steps}, loss {line['loss']:.4g}, learning rate "
                f"{self.lr:.3g}, {line['samples_per_second']:.3g} samples/s, {left / 60:.0f} min left"
            )


def by_band(losses_B: torch.Tensor, bands_B: torch.Tensor | None) -> torch.Tensor:
    """Sums and counts of the losses by band, (2, BANDS); (2, 1) without bands."""
    losses = losses_B.detach().double()
    if bands_B is None:
        return torch.stack([losses.sum(), torch.ones_like(losses).sum()])[:, None]
    one_hot = torch.nn.functional.one_hot(bands_B, BANDS).to(losses)
    return torch.stack([losses @ one_hot, one_hot.sum(dim=0)])


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes, of a GPU or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class CheckpointCallback(pl.Callback):
    """Save a checkpoint every `every` steps and at the end, and keep the newest `keep`.

    SIGUSR1: one after this step. SIGTERM, SIGINT: one, then exit 143 or 130. Any rank may get the signal.
    check: called after every step, raises if the folder was replaced.
    """

    def __init__(self, folder: Path, every: int, keep: int, check: Callable[[], None]):
        self.folder, self.every, self.keep, self.check = folder, every, keep, check
        self.requested, self.former = False, None

    def on_train_start(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        self.former = signal.signal(signal.SIGUSR1, self._request)
        if callable(signal.getsignal(signal.SIGTERM)):  # Lightning's handler would talk to the other ranks
            signal.signal(signal.SIGTERM, stopping.note)

    def _request(self, number: int, frame: object) -> None:
        self.requested = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: TrainingModule, outputs: dict, batch: dict, index: int
    ) -> None:
        if (index + 1) % trainer.accumulate_grad_batches:
            return  # in the middle of a step
        self.check()
        stop = [code for number, code in CODES.items() if _on_any_rank(trainer, stopping.number == number)]
        step = trainer.global_step
        due = step % self.every == 0 or step == module.config.steps
        if stop or _on_any_rank(trainer, self.requested) or due:
            self.requested = False
            trainer.save_checkpoint(checkpoint_path(self.folder, step))
            if trainer.is_global_zero:
                remove_old_checkpoints(self.folder, self.keep)
        if stop:
            if trainer.is_global_zero:
                log(f"stopped after step {step}; run the same command again to resume")
            raise SystemExit(stop[0])

    def teardown(self, trainer: pl.Trainer, module: TrainingModule, stage: str) -> None:
        if self.former is not None:
            signal.signal(signal.SIGUSR1, self.former)


def _on_any_rank(trainer: pl.Trainer, value: bool) -> bool:
    return bool(trainer.strategy.reduce_boolean_decision(value, all=False))


def remove_old_checkpoints(folder: Path, keep: int) -> None:
    """Remove all checkpoints but the newest `keep`, also those that a signal asked for."""
    for old in checkpoints(folder)[:-keep]:
        remove(old)


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}.ckpt"


def step_of(checkpoint: Path) -> int:
    """The number of steps that a checkpoint was saved after."""
    return int(checkpoint.stem.removeprefix("step_"))


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the most steps (a file, or the folder of a sharded one)."""
    return max(checkpoints(folder), default=None)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, by increasing number of steps."""
    return sorted(path for path in folder.glob("step_*.ckpt") if re.fullmatch(r"step_\d{8}", path.stem))


def set_aside_damaged(folder: Path) -> None:
    """Rename damaged checkpoints, from the last one back to one that is intact: the run continues from there.
    Raises BadFileError for one that cannot be read at all."""
    while (last := last_checkpoint(folder)) is not None and (damage := _damage(last)):
        aside = last.with_name(last.name + ".damaged")
        last.rename(aside)
        before = last_checkpoint(folder)
        start = "the beginning" if before is None else before.name
        warn(f"{last} is damaged ({damage}) and was renamed to {aside.name}; resuming from {start}")


def _damage(path: Path) -> str:
    """Describe the damage of a checkpoint, "" for none. Sharded ones (folders) are not examined."""
    if path.is_dir():
        return ""
    try:
        with zipfile.ZipFile(path) as file:
            record = file.testzip()
    except (OSError, MemoryError) as error:  # the machine's trouble, not the file's
        raise BadFileError(f"cannot read {path}: {getattr(error, 'strerror', '') or error!r}") from error
    except Exception as error:  # zipfile and zlib raise many kinds for a damaged directory
        return str(error)
    return f"wrong checksum of {record}" if record else ""


class SampleCallback(pl.Callback):
    """Make sample clips every `every` steps, with the running mean of the weights if there is one."""

    def __init__(self, every: int, make: MakeSamples):
        self.every, self.make, self.sampled_step = every, make, -1

    def on_train_start(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        self.sampled_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: TrainingModule, outputs: dict, batch: dict, index: int
    ) -> None:
        step = trainer.global_step
        if step == self.sampled_step or step % self.every or not step or not trainer.is_global_zero:
            return
        self.sampled_step = step
        with module.averaged():
            pictures = self.make(module, step)
        for logger in trainer.loggers:
            if hasattr(logger.experiment, "add_image"):
                for name, picture in pictures:
                    logger.experiment.add_image(name, picture, step, dataformats="HWC")
