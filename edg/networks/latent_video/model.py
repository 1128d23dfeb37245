"""The whole model under the published key names: denoiser, autoencoder, towers, projector, adapter,
schedule."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from edg.diffusion.schedule import Schedule, make_schedule
from edg.networks.latent_video.adapter import QFormer, over_frames
from edg.networks.latent_video.attention import Context
from edg.networks.latent_video.clip_encoders import ImageEncoder, ImageProjector, TextEncoder
from edg.networks.latent_video.deepcache import DeepFeature
from edg.networks.latent_video.spec import ModelSpec
from edg.networks.latent_video.unet import UNet
from edg.networks.latent_video.vae import AutoencoderKL, Posterior


class LatentVideoModel(nn.Module):
    """The parts of a checkpoint as modules, with encoding, decoding and prediction. Latents are float32
    outside; inside, every part computes in the dtype of its own weights. Schedule buffers are float32
    always."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.spec = spec
        self.model = nn.ModuleDict({"diffusion_model": UNet(spec.unet)})
        self.first_stage_model = AutoencoderKL(spec.vae)
        self.cond_stage_model = TextEncoder(spec.text)
        if spec.image is not None:
            self.embedder = ImageEncoder(spec.image)
            self.image_proj_model = ImageProjector(spec.resampler)
        if spec.adapter is not None:
            self.queries = nn.Parameter(torch.randn(spec.adapter.num_queries, spec.adapter.width))
            self.qformer = QFormer(spec.adapter)
        self.vae_chunk: int | None = None  # frames at once in the autoencoder; None: all that it is given
        self.towers_are_random = False  # drawn from the spec's seed, for every parameter set without towers
        self.buffer_names = tuple(self.schedule_buffers())
        for name, value in self.schedule_buffers().items():
            self.register_buffer(name, torch.empty_like(value, device=self.device).copy_(value))

    @property
    def unet(self) -> UNet:
        return self.model["diffusion_model"]

    @property
    def device(self) -> torch.device:
        return (self.unet.out[-1].weight if self.spec.image is None else self.image_proj_model.latents).device

    def schedule_buffers(self) -> dict[str, Float[Tensor, " _"]]:
        """The schedule that the spec computes, on the CPU; a checkpoint's own values take its place when
        loaded."""
        with torch.device("cpu"):
            return make_schedule(self.spec.schedule, self.spec.parameterization).buffers()

    @property
    def schedule(self) -> Schedule:
        """The schedule of the loaded parameter set, on the CPU; a copy, which no other set changes."""
        return Schedule.from_buffers({name: getattr(self, name).cpu().clone() for name in self.buffer_names})

    def encode_text(self, prompts: Sequence[str]) -> Float[Tensor, "b l d"]:
        """(B, text_tokens, D)."""
        return self.cond_stage_model.encode(prompts)

    def encode_image(
        self, image_B3HW: Float[Tensor, "b 3 h w"], frames: int | None = None
    ) -> Float[Tensor, "b l d"]:
        """Image in [-1, 1] -> context tokens (B, image_tokens * frames, D). frames: None is the spec's; for
        another number each frame's tokens lie linearly between those of the frames that the model has."""
        tokens, known = self.image_proj_model(self.embedder(image_B3HW)), self.spec.resampler.video_length
        if known is None or frames in (None, known):
            return tokens
        by_frame = rearrange(tokens, "b (t l) d -> b t (l d)", t=known)
        return rearrange(over_frames(by_frame, frames), "b t (l d) -> b (t l) d", d=tokens.shape[2])

    def encode_frames(self, x_N3HW: Float[Tensor, "n 3 h w"]) -> Posterior:
        """Frames in [-1, 1] -> the posterior of their unscaled latents, float32."""
        vae = self.first_stage_model
        parts = x_N3HW.to(vae.quant_conv.weight.dtype).split(self.vae_chunk or len(x_N3HW))
        posteriors = [vae.encode(part) for part in parts]
        mean = torch.cat([posterior.mean.float() for posterior in posteriors])
        return Posterior(mean, torch.cat([posterior.logvar.float() for posterior in posteriors]))

    def decode_latents(
        self, z_BCTHW: Float[Tensor, "b c t h w"], chunk: int | None = None
    ) -> Float[Tensor, "b 3 t h_out w_out"]:
        """Scaled latents -> frames (B, 3, T, H, W), float32, about in [-1, 1]. chunk: frames decoded at
        once."""
        vae, batch = self.first_stage_model, len(z_BCTHW)
        z = rearrange(z_BCTHW, "b c t h w -> (b t) c h w") / self.spec.scale_factor
        z = z.to(vae.quant_conv.weight.dtype)
        parts = z.split(self.vae_chunk or chunk or len(z))
        frames = torch.cat([vae.decode(part).float() for part in parts])
        return rearrange(frames, "(b t) c h w -> b c t h w", b=batch)

    def temporal_context(
        self, text_BLD: Float[Tensor, "b l d"], frames: int | None = None
    ) -> Float[Tensor, "b t d_adapter"] | None:
        """The embedding of each frame by the adapter, (B, T, adapter width); None without adapter. frames:
        None is the spec's."""
        if self.spec.adapter is None:
            return None
        text = text_BLD[:, : self.spec.unet.text_tokens].to(self.queries.dtype)
        return over_frames(self.qformer(self.queries, text), frames or self.spec.frames)

    def predict(
        self,
        x_BCTHW: Float[Tensor, "b c t h w"],
        t_B: Int[Tensor, " b"],
        context_BLD: Float[Tensor, "b l d"] | Context,
        concat_BCTHW: Float[Tensor, "b c t h w"],
        fs_B: Int[Tensor, " b"] | None = None,
        temporal_context: Float[Tensor, "b t d_adapter"] | None = None,
        reuse: DeepFeature | None = None,
    ) -> Float[Tensor, "b c t h w"]:
        """The raw prediction (v or eps, as the spec says) for noisy latents x at timesteps t, in x's shape
        and dtype.

        concat_BCTHW: the image's latent on every frame. The rest as in UNet.forward.
        """
        x = torch.cat([x_BCTHW, concat_BCTHW.to(x_BCTHW.dtype)], dim=1)
        return self.unet(x, t_B, context_BLD, fs_B, temporal_context, reuse)
