"""The two trainings of this system: the autoencoder, and the denoiser with or without the text adapter."""

from __future__ import annotations

from torch import Tensor, nn

from edg.data.batches import Sample
from edg.networks.latent_video.keys import is_adapter
from edg.networks.latent_video.model import LatentVideoModel
from edg.networks.latent_video.vae import AutoencoderKL
from edg.systems.edg.training.config import TextOptimizerConfig
from edg.systems.edg.training.loss import Constants, Draws, Objective, denoising_loss
from edg.training.callbacks import BANDS
from edg.training.config import OptimizerConfig
from edg.training.lightning import TrainingModule


class VaeTraining(TrainingModule):
    """Training of an autoencoder: weighted squared error + KL.

    Batch: frames (N, 3, H, W) in [-1, 1]; weight (N, 1, H, W), optional, of every pixel's squared error. The
    error is squared, since an absolute error is smallest at the median, which for a small shape on a large
    background is the background. kl: weight of KL(q || N(0, 1)) in nats per latent value.
    """

    def __init__(self, vae: AutoencoderKL, config: OptimizerConfig, kl: float = 1e-6):
        super().__init__(config)
        self.vae, self.kl = vae, kl

    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self.vae.named_parameters())

    def training_step(self, batch: Sample, _index: int) -> dict[str, Tensor]:
        x = batch["frames"]
        posterior = self.vae.encode(x)
        z = posterior.sample(Draws.of(batch).normal("posterior", *posterior.mean.shape[1:]).to(x.device))
        error = (self.vae.decode(z) - x) ** 2
        if "weight" in batch:
            error = error * batch["weight"]
        losses = error.mean(dim=(1, 2, 3)) + self.kl * posterior.kl() / z[0].numel()
        return {"loss": losses.mean(), "losses": losses.detach()}


class DenoiserTraining(TrainingModule):
    """Training of the parameters `chosen` of a model (name -> parameter); the others are frozen. Batches are
    those of loss.denoising_loss."""

    def __init__(
        self,
        model: LatentVideoModel,
        config: TextOptimizerConfig,
        objective: Objective,
        chosen: dict[str, nn.Parameter],
    ):
        super().__init__(config)
        self.model, self.objective, self.chosen = model, objective, chosen
        self.constants = Constants.of(model)

    def trainable(self) -> dict[str, nn.Parameter]:
        return self.chosen

    def learning_rates(self) -> list[tuple[dict[str, nn.Parameter], float]]:
        text = {name: p for name, p in self.chosen.items() if is_text_conditioned(name)}
        others = {name: p for name, p in self.chosen.items() if name not in text}
        return [(others, 1.0), (text, self.config.text_lr_multiplier)]

    def train(self, mode: bool = True) -> DenoiserTraining:
        """Set the mode of the denoiser; autoencoder and towers stay as they are when sampling."""
        super().train(mode)
        for frozen in (self.model.first_stage_model, self.model.cond_stage_model, self.model.embedder):
            frozen.eval()
        return self

    def training_step(self, batch: Sample, _index: int) -> dict[str, Tensor]:
        losses, t = denoising_loss(self.model, batch, self.objective, self.constants)
        bands = t * BANDS // len(self.constants.schedule.betas)
        return {"loss": losses.mean(), "losses": losses.detach(), "bands": bands}


def is_text_conditioned(name: str) -> bool:
    """True for the name of a parameter that the text enters by."""
    return is_adapter(name) or ".attn2.to_k." in name or ".attn2.to_v." in name
