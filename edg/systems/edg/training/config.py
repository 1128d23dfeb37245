"""A training run as data: what `edg train` reads. No Lightning here: a misspelt key is told at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edg.core.config import PathText
from edg.core.errors import UsageError
from edg.core.paths import file_stem
from edg.systems.edg.training.loss import Objective

STRATEGIES = {"auto": "auto", "ddp": "ddp", "fsdp": "fsdp", "deepspeed": "deepspeed_stage_2"}
PRECISIONS = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
    "bf16-true": "bf16-true",
    "fp16-true": "16-true",
}
MOST_STEPS = 10**9
RANGES = {  # of the numbers of Plan, both ends included
    "steps": (1, MOST_STEPS), "batch": (1, 65_536), "accumulate": (1, 65_536), "warmup": (0, MOST_STEPS),
    "save_every": (1, MOST_STEPS), "keep": (1, 10**6), "log_every": (1, MOST_STEPS), "workers": (0, 1024),
    "grad_clip": (0, 1e9), "weight_decay": (0, 1e6), "final_lr": (0, 1e6), "text_rate": (0, 1e6),
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How long, how fast, on what.

    steps: optimiser steps; each sees batch x accumulate x ranks samples. lr rises linearly over `warmup`
    steps, then stays ("constant") or falls to final_lr x lr as a line or a cosine ("linear", "cosine").
    text_rate: multiple of lr for what the text enters by (the adapter, keys and values of attn2).
    grad_clip: largest norm of the gradient, 0 is off. ema: decay of the weights' running mean, 0 is off;
    early on it is min(ema, (2 + step) / (11 + step)). gradient_checkpointing: blocks are computed twice, less
    memory. dropout: whether the network's own is on; its masks are then drawn for each process, so that
    another number of ranks is another run. save_every, keep: steps between checkpoints, and how many stay.
    workers: processes that read clips.
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
    text_rate: float = 1.0
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
            within(f"train.{name}", getattr(self, name), low, high)
        need(0 < self.lr <= 1e6, f"train.lr is {self.lr}", "above 0, at most 1e6")
        need(0 <= self.ema < 1, f"train.ema is {self.ema}", "0 <= ema < 1")
        good = all(0 <= beta < 1 for beta in self.betas)
        need(good, f"train.betas is {list(self.betas)}", "0 <= beta < 1")


@dataclass(frozen=True)
class Lora:
    """Low-rank updates (Hu et al. 2021) beside the linear layers of `where`, the group "lora" of trainable;
    folded into them in the result. alpha: None is the rank."""

    rank: int
    alpha: float | None = None
    where: tuple[str, ...] = ("temporal", "init_attn")

    def __post_init__(self) -> None:
        within("lora.rank", self.rank, 1, 65_536)
        good = self.alpha is None or 0 < self.alpha <= 1e6
        need(good, f"lora.alpha is {self.alpha}", "above 0, at most 1e6, or null: the rank")


@dataclass(frozen=True)
class Samples:
    """Clips of a prompt folder, made while training: every so many steps (0 is off), the first `count`."""

    every: int = 0
    prompt_dir: Path = Path("prompts/scenes")
    count: int = 4
    steps: int = 25
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.7

    def __post_init__(self) -> None:
        within("samples.every", self.every, 0, MOST_STEPS)
        within("samples.count", self.count, 1, 10_000)
        within("samples.steps", self.steps, 1, 1000)
        within("samples.guidance_scale", self.guidance_scale, -10_000, 10_000)
        within("samples.guidance_rescale", self.guidance_rescale, 0, 1)


@dataclass(frozen=True)
class Autoencoder:
    """kl: weight of KL(q || N(0, 1)) in nats per latent value. calm: the posterior's deviation is divided by
    it at the end; None leaves the latents as they came out."""

    kl: float = 1e-6
    calm: float | None = None

    def __post_init__(self) -> None:
        within("autoencoder.kl", self.kl, 0, 1e6)
        good = self.calm is None or 0 < self.calm <= 1e6
        need(good, f"autoencoder.calm is {self.calm}", "above 0, at most 1e6, or null")


@dataclass(frozen=True)
class Run:
    """One training: a spec's network, from `init` over `data` to {out}/{name}.safetensors.

    data: kind ("videos", "cache", "sprites") and its settings; the runner turns it into samples.
    init: the parameter set to start from; None: drawn from the seed, but for the autoencoder of `vae`.
    adapter: "identity" and "released" add a text adapter to an init without one, as the identity or as the
    release draws it; "none" trains the model as it is. trainable: groups or patterns, see trainable.choose.
    """

    name: str
    spec: str
    out: Path
    seed: int
    data: dict[str, Any]
    train: Plan
    kind: Literal["denoiser", "autoencoder"] = "denoiser"
    init: PathText | None = None
    vae: PathText | None = None
    adapter: Literal["none", "identity", "released"] = "none"
    trainable: tuple[str, ...] = ("all",)
    lora: Lora | None = None
    objective: Objective = field(default_factory=Objective)
    samples: Samples = field(default_factory=Samples)
    autoencoder: Autoencoder = field(default_factory=Autoencoder)

    def __post_init__(self) -> None:
        file_stem(self.name, "name")
        need(0 <= self.seed < 2**63, f"seed is {self.seed}", "0 or more, below 2^63")
        told, trained = self.lora is not None, {"lora", "all"} & set(self.trainable)
        given = f"{self.name}: lora is set, and trainable is [{', '.join(self.trainable)}]"
        need(not told or bool(trained), given, "lora (or all) among trainable")
        given = f"{self.name}: trainable names lora, which is not set"
        need(told or "lora" not in self.trainable, given, "lora: {rank: 16}")

    @property
    def result(self) -> Path:
        return self.out / f"{self.name}.safetensors"

    @property
    def folder(self) -> Path:
        """Checkpoints, logs and samples."""
        return self.out / self.name


def need(ok: bool, given: str, expected: str) -> None:
    if not ok:
        raise UsageError(given, expected=expected)


def within(name: str, value: float, low: float, high: float) -> None:
    need(low <= value <= high, f"{name} is {value}", f"{low:,} to {high:,}")
