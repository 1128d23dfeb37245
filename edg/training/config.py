"""Settings of the training loop, for any model. Lightning is not imported: a misspelt key costs no time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edg.core.errors import require

STRATEGIES = {"auto": "auto", "ddp": "ddp", "fsdp": "fsdp", "deepspeed": "deepspeed_stage_2"}
PRECISIONS = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
    "bf16-true": "bf16-true",
    "fp16-true": "16-true",
}
MAX_STEPS = 10**9
RANGES = {  # of the numbers of OptimizerConfig, both ends included
    "steps": (1, MAX_STEPS), "batch": (1, 65_536), "accumulate": (1, 65_536), "warmup": (0, MAX_STEPS),
    "save_every": (1, MAX_STEPS), "keep": (1, 10**6), "log_every": (1, MAX_STEPS), "workers": (0, 1024),
    "grad_clip": (0, 1e9), "weight_decay": (0, 1e6), "final_lr": (0, 1e6),
}  # fmt: skip


@dataclass(frozen=True)
class OptimizerConfig:
    """Settings of the optimizer and of the loop around it.

    steps: optimizer steps; each sees batch x accumulate x ranks samples.
    batch: samples of one process in one pass. accumulate: passes whose gradients make a step.
    lr: rises linearly over `warmup` steps, then follows `schedule`.
    schedule: "constant", or down to final_lr x lr as a line or a cosine ("linear", "cosine").
    grad_clip: largest norm of the gradient, 0 is off.
    ema: decay of the weights' running mean, 0 is off; early on it is min(ema, (2 + step) / (11 + step)).
    gradient_checkpointing: activations of blocks are computed again in the backward pass, for less memory.
    dropout: the network's own dropout is on. Its masks are drawn by each process, so another number of ranks
        is another run.
    save_every, keep: steps between checkpoints, and the number of checkpoints that are kept.
    log_every: steps between lines of the log.
    workers: processes that read samples.
    """

    steps: int
    batch: int
    lr: float
    accumulate: int = 1
    warmup: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    final_lr: float = 0.0
    optimizer: Literal["adamw", "adamw_fused", "adamw_8bit", "sgd"] = "adamw"
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    grad_clip: float = 1.0
    ema: float = 0.0
    precision: Literal["fp32", "bf16", "fp16", "bf16-true", "fp16-true"] = "fp32"
    strategy: Literal["auto", "ddp", "fsdp", "deepspeed"] = "auto"
    gradient_checkpointing: bool = False
    dropout: bool = False
    save_every: int = 500
    keep: int = 2
    log_every: int = 20
    logger: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    workers: int = 0

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            require_range(f"train.{name}", getattr(self, name), low, high)
        require(0 < self.lr <= 1e6, f"train.lr is {self.lr}", "above 0, at most 1e6")
        require(0 <= self.ema < 1, f"train.ema is {self.ema}", "0 <= ema < 1")
        valid = all(0 <= beta < 1 for beta in self.betas)
        require(valid, f"train.betas is {list(self.betas)}", "0 <= beta < 1")


@dataclass(frozen=True)
class Samples:
    """Clips of a prompt folder, made during training.

    every: steps between two sets of clips, 0 is off.
    prompt_dir: prompt folder, of which the first `count` are taken.
    steps, guidance_scale, guidance_rescale: of sampling.
    """

    every: int = 0
    prompt_dir: Path = Path("prompts/scenes")
    count: int = 4
    steps: int = 25
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.7

    def __post_init__(self) -> None:
        require_range("samples.every", self.every, 0, MAX_STEPS)
        require_range("samples.count", self.count, 1, 10_000)
        require_range("samples.steps", self.steps, 1, 1000)
        require_range("samples.guidance_scale", self.guidance_scale, -10_000, 10_000)
        require_range("samples.guidance_rescale", self.guidance_rescale, 0, 1)


def require_range(name: str, value: float, low: float, high: float) -> None:
    """Raise UsageError unless low <= value <= high."""
    require(low <= value <= high, f"{name} is {value}", f"{low:,} to {high:,}")
