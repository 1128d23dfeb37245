"""Groups unet, unet_full, vae, adapter, resampler, text_encoder, image_encoder, keys: weights by rule, one
forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edg.core.errors import UsageError, nearest
from edg.networks.latent_video import published_yaml
from edg.networks.latent_video.adapter import QFormer
from edg.networks.latent_video.clip_encoders import ImageEncoder, ImageProjector, TextEncoder
from edg.networks.latent_video.load import build as build_model
from edg.networks.latent_video.presets import PRESETS
from edg.networks.latent_video.spec import AdapterSpec, ImageSpec, ModelSpec, TextSpec
from edg.networks.latent_video.unet import UNet
from edg.networks.latent_video.vae import AutoencoderKL
from edg.verify import rules
from edg.verify.cases import Case


def filled(case: Case, make: Callable[[], nn.Module], prefix: str | None = None) -> nn.Module:
    """A module with the rule's weights in the case's dtype, built on meta and filled tensor by tensor."""
    with torch.device("meta"):
        module = make()
    module = module.to(case.dtype).to_empty(device=case.device).eval()
    for name, target in module.state_dict().items():
        full = (case.key_prefix if prefix is None else prefix) + name
        target.copy_(rules.weight(case.seed, full, tuple(target.shape)))
    return module


def cast(case: Case, name: str) -> Tensor:
    return case.input(name).to(case.dtype)


def unet(case: Case) -> dict[str, Tensor]:
    """y, and the outputs of inner modules that the case asks for (mid/NAME)."""
    network = filled(case, lambda: UNet(published_yaml.unet_spec(case.config["unet_config"])))
    out: dict[str, Tensor] = {}
    for name in case.expected:
        if name.startswith("mid/"):
            hook = lambda module, args, result, name=name: out.__setitem__(name, result)  # noqa: E731
            network.get_submodule(name.removeprefix("mid/")).register_forward_hook(hook)
    fs = case.input("fs") if case.has_input("fs") else None
    words = cast(case, "temporal_context") if case.has_input("temporal_context") else None
    out["y"] = network(cast(case, "x"), case.input("timesteps"), cast(case, "context"), fs, words)
    return out


unet_full = unet


def vae(case: Case) -> dict[str, Tensor]:
    network = filled(case, lambda: AutoencoderKL(published_yaml.vae_spec(case.config)))
    x = cast(case, "x")
    posterior = network.encode(x)
    return {
        "moments": network.moments(x),
        "mean": posterior.mode(),
        "logvar": posterior.logvar,
        "latent": case.config["scale_factor"] * posterior.sample(cast(case, "noise")),
        "decoded": network.decode(cast(case, "z")),
    }


class _Adapter(nn.Module):
    """`queries` and `qformer` under their published names, without the model around them."""

    def __init__(self, spec: AdapterSpec):
        super().__init__()
        self.queries = nn.Parameter(torch.empty(spec.num_queries, spec.width))
        self.qformer = QFormer(spec)


def adapter(case: Case) -> dict[str, Tensor]:
    config, text = case.config, cast(case, "text")
    spec = AdapterSpec(
        num_queries=config["num_queries"],
        width=config["query_dim"],
        context_dim=config.get("context_dim", text.shape[-1]),
        heads=config["heads"],
        dim_head=config["dim_head"],
    )
    parts = filled(case, lambda: _Adapter(spec))
    return {"temporal_context": parts.qformer(parts.queries, text[:, : config.get("text_tokens", 77)])}


def resampler(case: Case) -> dict[str, Tensor]:
    network = filled(case, lambda: ImageProjector(published_yaml.resampler_spec(case.config)))
    return {"y": network(cast(case, "x"))}


def text_encoder(case: Case) -> dict[str, Tensor]:
    clip = published_yaml.clip_spec(case.config["clip"])
    network = filled(case, lambda: TextEncoder(TextSpec(clip=clip, layer=case.config["layer"])))
    tokens = network.tokenize(case.config["prompts"])
    return {"tokens": tokens, "embedding": network(tokens.to(case.device))}


def image_encoder(case: Case) -> dict[str, Tensor]:
    clip = published_yaml.clip_spec(case.config["clip"])
    network = filled(case, lambda: ImageEncoder(ImageSpec(clip=clip)))
    out = {}
    for name in case.input_names:
        index, image = name.rsplit("_", 1)[-1], case.input(name)
        out[f"preprocessed_{index}"] = network.preprocess(image)
        out[f"tokens_{index}"] = network(image)
    return out


def keys(case: Case) -> dict[str, Tensor]:
    """The number of names or shapes of the spec's state_dict disagree with the manifest, each way."""
    spec = named_spec(str(case.raw["config"]), case.raw.get("override") or {})
    ours = {
        name: [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
        for name, tensor in build_model(spec).state_dict().items()
    }
    theirs = case.manifest
    return {
        "missing": torch.tensor(len(theirs.keys() - ours.keys())),
        "unexpected": torch.tensor(len(ours.keys() - theirs.keys())),
        "of another shape": torch.tensor(
            sum(ours[name] != theirs[name] for name in ours.keys() & theirs.keys())
        ),
    }


def named_spec(config: str, override: dict) -> ModelSpec:
    """`inference_512_v1.0.yaml` -> dynamicrafter-512, with fields of the UNet replaced."""
    size = next((part for part in Path(config).stem.split("_") if part.isdigit()), None)
    if f"dynamicrafter-{size}" not in PRESETS:
        raise UsageError(f"a keys case for {config!r}", expected=", ".join(PRESETS))
    spec = PRESETS[f"dynamicrafter-{size}"]
    for key, value in override.items():
        spec = replace(spec, **_overridden(spec, key, value))
    return spec


def _overridden(spec: ModelSpec, key: str, value: Any) -> dict[str, Any]:
    """The part of the spec that owns a published key, with the key's new value."""
    if key == "use_dynamic_rescale":
        base = (spec.schedule.base_scale or 0.7) if value else None
        return {"schedule": replace(spec.schedule, base_scale=base)}
    for part in ("unet", "resampler", "vae"):
        if hasattr(getattr(spec, part), key):
            plain = tuple(value) if isinstance(value, list) else value
            return {part: replace(getattr(spec, part), **{key: plain})}
    raise UsageError(f"override of {key!r}", fix=nearest(key, vars(spec.unet)))
