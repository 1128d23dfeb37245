"""Conditions of the denoiser: text and image of a clip, for each branch of guidance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from edg.diffusion.guidance import Branches
from edg.diffusion.prediction import Denoiser
from edg.networks.latent_video.clip_encoders import lost_text
from edg.networks.latent_video.deepcache import DeepFeature
from edg.networks.latent_video.model import LatentVideoModel
from edg.networks.latent_video.spec import TextSpec
from edg.networks.latent_video.vae import Posterior
from edg.systems.edg.options import SamplingOptions

# One clip's randomness by name: noise("x_T", shape=...), noise("step", 3, shape=...) -> N(0, 1) draws.
Noise = Callable[..., Tensor]


@dataclass(frozen=True)
class Condition:
    """Inputs of the network beside the noisy latent. A batch of B clips with T frames.

    context_BLD: text tokens, then image tokens. temporal_BTD: text per frame from the adapter, None without
    one. concat_BCTHW: the image's latent, scaled. fs_B: frames per second (or stride), None for the default.
    The branches of guidance differ in their tokens alone, in context and temporal.
    """

    context_BLD: Float[Tensor, "b l d"]
    temporal_BTD: Float[Tensor, "b t d_adapter"] | None
    concat_BCTHW: Float[Tensor, "b c t h w"]
    fs_B: Int[Tensor, " b"] | None

    @staticmethod
    def predict_all(
        several: Sequence[Condition], network: LatentVideoModel, reuse: DeepFeature | None = None
    ) -> Branches:
        """The network under several conditions of one batch of clips, in one call: layers before the first
        cross-attention are computed once for all of them."""
        context, temporal = (
            None if parts[0] is None else torch.cat(parts)
            for parts in zip(*((one.context_BLD, one.temporal_BTD) for one in several), strict=True)
        )
        joined = replace(several[0], context_BLD=context, temporal_BTD=temporal)
        return joined.predict(network, reuse, len(several))

    def predict(
        self, network: LatentVideoModel, reuse: DeepFeature | None = None, branches: int | None = None
    ) -> Denoiser:
        """The network as a denoiser of the noisy latent alone: (x_BCTHW, t_B) -> raw prediction, float32.

        Keys and values of the tokens are computed here, once for all steps. reuse: this denoiser's own.
        branches: how many conditions the tokens hold one after the other, a dimension of their own in front.
        """
        context = network.unet.prepare_context(
            self.context_BLD, self.concat_BCTHW.shape[2], self.temporal_BTD
        )

        def denoise(
            x_BCTHW: Float[Tensor, "b c t h w"], t_B: Int[Tensor, " b"]
        ) -> Float[Tensor, "b c t h w"]:
            if reuse is not None:
                reuse.enter(t_B)
            prediction = network.predict(
                x_BCTHW, t_B, context, self.concat_BCTHW, self.fs_B, reuse=reuse
            ).float()
            if reuse is not None:
                reuse.keep()
            return prediction if branches is None else prediction.unflatten(0, (branches, -1))

        return denoise


def lost_texts(spec: TextSpec, prompt: str, options: SamplingOptions) -> dict[str, str]:
    """The ends that the text tower cuts off a clip's "prompt" and "negative_prompt", where it is conditioned
    on them."""
    read = {"prompt": prompt} if options.text_input else {}
    if options.guided:
        read["negative_prompt"] = options.negative_prompt
    return {name: lost for name, text in read.items() if (lost := lost_text(text, spec))}


def image_latent(
    network: LatentVideoModel,
    image_B3HW: Float[Tensor, "b 3 h w"],
    frames: int,
    options: SamplingOptions,
    noises: Sequence[Noise],
    draw: str,
    last_B3HW: Float[Tensor, "b 3 h w"] | None = None,
) -> Float[Tensor, "b c t h_latent w_latent"]:
    """The image's latent on every frame (B, C, T, H/f, W/f), scaled; loop or interp: on first and last only.

    noises: one source for each clip; `draw` names the posterior draw (the same name gives the same latent).
    last_B3HW: the image of the last frame, None for the same.
    """

    def latent(frame: int, posterior: Posterior) -> Float[Tensor, "b c h_latent w_latent"]:
        C, h, w = posterior.mean.shape[1:]
        if options.image_latent == "mode":
            return posterior.mode()
        noise = torch.cat([noise("posterior", draw, frame, shape=(1, C, h, w)) for noise in noises])
        return posterior.sample(noise.to(posterior.mean))

    posterior = network.encode_frames(image_B3HW)
    first = latent(0, posterior)
    if not (options.loop or options.interp):
        return network.spec.scale_factor * first.unsqueeze(2).repeat(1, 1, frames, 1, 1)
    end = posterior if last_B3HW is None else network.encode_frames(last_B3HW)
    last = latent(frames - 1, end)
    between = torch.zeros_like(first).unsqueeze(2).repeat(1, 1, frames - 2, 1, 1)
    out = torch.cat([first.unsqueeze(2), between, last.unsqueeze(2)], dim=2)
    return network.spec.scale_factor * out


def conditions(
    network: LatentVideoModel,
    prompts: Sequence[str],
    image_B3HW: Float[Tensor, "b 3 h w"],
    concat_BCTHW: Float[Tensor, "b c t h_latent w_latent"],
    options: SamplingOptions,
) -> Mapping[str, Condition]:
    """The branches that guidance needs, see `guidance_weights`, "full" first.

    full: the prompt and the image's tokens; image: the negative (or empty) prompt and the image's tokens;
    null: that prompt and the tokens of the zero image. The concatenated latent is always present.
    """
    B = len(prompts)
    fs_B = None
    if options.frame_stride is not None:
        fs_B = torch.full((B,), options.frame_stride, dtype=torch.long, device=image_B3HW.device)

    def condition(texts: Sequence[str], image_tokens: Float[Tensor, "b l d"]) -> Condition:
        text_BLD = network.encode_text(list(texts))
        context = torch.cat([text_BLD, image_tokens], dim=1)
        return Condition(context, network.temporal_context(text_BLD, frames), concat_BCTHW, fs_B)

    frames, without = concat_BCTHW.shape[2], [options.negative_prompt] * B
    tokens = network.encode_image(image_B3HW, frames)
    branches = {
        "full": lambda: condition(prompts, tokens),
        "image": lambda: condition(without, tokens),
        "null": lambda: condition(without, network.encode_image(torch.zeros_like(image_B3HW), frames)),
    }
    return {name: branches[name]() for name in options.guidance_weights}
