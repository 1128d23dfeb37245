"""Settings of a training run, filled from the YAML file of `edg train`. Lightning is not imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edg.core.config import PathText, keyed
from edg.core.errors import require
from edg.core.paths import file_stem
from edg.systems.edg.training.loss import Objective
from edg.training.config import OptimizerConfig, Samples, require_range


@dataclass(frozen=True)
class TextOptimizerConfig(OptimizerConfig):
    """Optimizer settings of a network with text. text_lr_multiplier: multiple of the learning rate for the
    parameters that the text enters by (adapter, keys and values of attn2)."""

    text_lr_multiplier: float = keyed("text_rate", 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("train.text_rate", self.text_lr_multiplier, 0, 1e6)


@dataclass(frozen=True)
class Lora:
    """Low-rank updates (Hu et al. 2021) beside the linear layers of `where`, the group "lora" of trainable;
    merged into them in the result. alpha: None is the rank."""

    rank: int
    alpha: float | None = None
    where: tuple[str, ...] = ("temporal", "init_attn")

    def __post_init__(self) -> None:
        require_range("lora.rank", self.rank, 1, 65_536)
        valid = self.alpha is None or 0 < self.alpha <= 1e6
        require(valid, f"lora.alpha is {self.alpha}", "above 0, at most 1e6, or null: the rank")


@dataclass(frozen=True)
class AutoencoderConfig:
    """Settings of an autoencoder's training. kl: weight of KL(q || N(0, 1)) in nats per latent value.
    posterior_std_divisor: divides the posterior's standard deviation at the end; None leaves it and the
    latents' scale as they are."""

    kl: float = 1e-6
    posterior_std_divisor: float | None = keyed("calm", None)

    def __post_init__(self) -> None:
        require_range("autoencoder.kl", self.kl, 0, 1e6)
        divisor = self.posterior_std_divisor
        valid = divisor is None or 0 < divisor <= 1e6
        require(valid, f"autoencoder.calm is {divisor}", "above 0, at most 1e6, or null")


@dataclass(frozen=True)
class TrainingConfig:
    """One training: a spec's network, from `init` over `data` to {out}/{name}.safetensors.

    data: kind ("videos", "cache", "sprites") and its settings, see data.kinds.
    train: settings of the optimizer and the loop.
    kind: the network that is trained.
    init: the parameter set to start from; None: drawn from the seed, but for the autoencoder of `vae`.
    adapter: "identity" and "released" add a text adapter to an init without one, as the identity or as the
        release draws it; "none" trains the model as it is.
    trainable: groups or patterns of parameters, see trainable.choose.
    samples: clips made during training.
    """

    name: str
    spec: str
    out: Path
    seed: int
    data: dict[str, Any]
    train: TextOptimizerConfig
    kind: Literal["denoiser", "autoencoder"] = "denoiser"
    init: PathText | None = None
    vae: PathText | None = None
    adapter: Literal["none", "identity", "released"] = "none"
    trainable: tuple[str, ...] = ("all",)
    lora: Lora | None = None
    objective: Objective = field(default_factory=Objective)
    samples: Samples = field(default_factory=Samples)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)

    def __post_init__(self) -> None:
        file_stem(self.name, "name")
        require(0 <= self.seed < 2**63, f"seed is {self.seed}", "0 or more, below 2^63")
        has_lora, trains_lora = self.lora is not None, {"lora", "all"} & set(self.trainable)
        given = f"{self.name}: lora is set, and trainable is [{', '.join(self.trainable)}]"
        require(not has_lora or trains_lora, given, "lora or all in trainable")
        given = f"{self.name}: lora is in trainable, but lora is not set"
        require(has_lora or "lora" not in self.trainable, given, "lora: {rank: 16}")

    @property
    def sample_type(self) -> Literal["clips", "frames"]:
        """The samples that this kind of training needs."""
        return "frames" if self.kind == "autoencoder" else "clips"

    @property
    def result(self) -> Path:
        """The trained parameter set."""
        return self.out / f"{self.name}.safetensors"

    @property
    def folder(self) -> Path:
        """Folder of checkpoints, logs and samples."""
        return self.out / self.name
