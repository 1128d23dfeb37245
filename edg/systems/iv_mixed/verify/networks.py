"""Groups `iv_net`, `iv_run`, `iv_vc_unet`, `iv_keys`, `iv_keymap`: networks, their names, runs with them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from edg.diffusion.zigzag import IMAGE, VIDEO
from edg.networks.latent_video import diffusers_names, published_yaml
from edg.networks.latent_video.load import build
from edg.networks.latent_video.presets import VIDEOCRAFTER_2
from edg.networks.latent_video.spec import MotionSpec, UNetSpec
from edg.networks.latent_video.unet import UNet
from edg.systems.iv_mixed.verify import loops
from edg.verify import rules
from edg.verify.cases import Case


def on_meta(spec: UNetSpec) -> UNet:
    with torch.device("meta"):
        return UNet(spec)


def by_rule(spec: UNetSpec, seeds: Mapping[str, int]) -> UNet:
    """A UNet with weights by rule under diffusers' names. seeds: of the image model's tensors ("base") and
    of those of motion modules ("adapter")."""
    unet = UNet(spec)
    shapes = stored_shapes(unet)
    buffers = {diffusers_names.diffusers_names([name], spec)[name] for name, _ in unet.named_buffers()}
    weights = {
        name: rules.weight(seeds["adapter" if ".motion_modules." in name else "base"], name, shape)
        for name, shape in shapes.items()
        if name not in buffers
    }
    tables = {
        diffusers_names.diffusers_names([name], spec)[name]: table for name, table in unet.named_buffers()
    }
    diffusers_names.load_diffusers(unet, weights | tables)
    return unet.eval()


def stored_shapes(unet: UNet) -> dict[str, tuple[int, ...]]:
    """Names and shapes as a checkpoint in diffusers' layout stores them."""
    state = unet.state_dict()
    names = diffusers_names.diffusers_names(state, unet.spec)
    shapes = {names[name]: tuple(tensor.shape) for name, tensor in state.items()}
    for name in ("transformer_in.proj_in.weight", "transformer_in.proj_out.weight"):
        if name in shapes:
            shapes[name] = shapes[name][:2]
    return shapes


def spec_of(kind: str, config: Mapping[str, Any]) -> UNetSpec:
    """The UNet that a case's network describes."""
    if kind == "vc_unet":
        return published_yaml.unet_spec(config["unet_config"])
    if kind != "unet_motion":
        return diffusers_names.unet_spec(config["params"])
    adapter = config["adapter"]
    motion = MotionSpec(
        adapter["motion_num_attention_heads"],
        adapter["motion_max_seq_length"],
        adapter["use_motion_mid_block"],
    )
    return replace(diffusers_names.unet_spec(config["base"]), motion=motion)


def net(case: Case) -> dict[str, Tensor]:
    """One forward pass of a network in diffusers' layout; single pictures are clips of one frame."""
    raw, kind = case.raw, case.config["kind"]
    seeds = {
        "base": raw.get("weight_seed", raw.get("weight_seed_base")),
        "adapter": raw.get("weight_seed_adapter"),
    }
    unet = by_rule(spec_of(kind, case.config), seeds).to(case.device, case.dtype)
    x, context = case.input("x").to(case.dtype), case.input("context").to(case.dtype)
    if kind == "unet2d":
        return {"y": unet(x[:, :, None], case.input("timesteps"), context)[:, :, 0].float()}
    return {"y": unet(x, case.input("timesteps"), context).float()}


def seeds_of(case: Case, name: str) -> dict[str, int]:
    """Seeds of a network's weights: its own by `name`, or those of image model and motion modules."""
    raw = case.raw
    return {"base": raw.get(name, raw.get("weight_seed_base")), "adapter": raw.get("weight_seed_adapter")}


def vc_unet(case: Case) -> dict[str, Tensor]:
    """One forward pass of the native VideoCrafter2 UNet."""
    unet = rules.fill(
        on_meta(spec_of("vc_unet", case.config)), case.seed, case.key_prefix, device=case.device
    )
    unet = unet.eval().to(case.dtype)
    fps = case.input("fps") if case.has_input("fps") else None
    x, context = case.input("x").to(case.dtype), case.input("context").to(case.dtype)
    return {"y": unet(x, case.input("timesteps"), context, fps).float()}


def run(case: Case) -> dict[str, Tensor]:
    """A whole published run with small networks."""
    config, raw = case.config, case.raw
    video = config["video_net"]
    if video["kind"] == "vc_unet":
        prefix = config.get("video_key_prefix", "")
        v = rules.fill(on_meta(spec_of("vc_unet", video)), raw["weight_seed_v"], prefix, device="cpu").eval()
    else:
        seeds = {
            "base": raw.get("weight_seed_v", raw.get("weight_seed_base")),
            "adapter": raw.get("weight_seed_adapter"),
        }
        v = by_rule(spec_of(video["kind"], video), seeds)
    i = by_rule(spec_of(config["image_net"]["kind"], config["image_net"]), {"base": raw["weight_seed_i"]})
    v, i = v.to(case.device, case.dtype), i.to(case.device, case.dtype)
    fps = config.get("fps")

    def video_net(x: Tensor, t_B: Tensor, context: Tensor) -> Tensor:
        fps_B = None if fps is None else torch.full_like(t_B, fps)
        return v(x.to(case.dtype), t_B, context, fps_B).float()

    def image_net(x: Tensor, t_B: Tensor, context: Tensor) -> Tensor:
        return i(x[:, :, None].to(case.dtype), t_B, context)[:, :, 0].float()

    return loops.run(case, {VIDEO: video_net, IMAGE: loops.per_frame(image_net)})


def keys(case: Case) -> dict[str, Tensor]:
    """Names and shapes of a published checkpoint: how many are missing, unknown, or of another shape."""
    wanted = {name: tuple(shape) for name, (shape, _) in case.manifest.items()}
    found = published_shapes(case, wanted)
    differing = [name for name in wanted.keys() & found.keys() if wanted[name] != found[name]]
    return {
        "missing": torch.tensor(len(wanted.keys() - found.keys())),
        "unknown": torch.tensor(len(found.keys() - wanted.keys())),
        "other_shape": torch.tensor(len(differing)),
    }


def published_shapes(case: Case, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Names and shapes that our networks have in the layout of the case."""
    if isinstance(case.config, str):
        return {name: tuple(tensor.shape) for name, tensor in build(VIDEOCRAFTER_2).state_dict().items()}
    if case.config["class"] != "MotionAdapter":
        return stored_shapes(on_meta(diffusers_names.unet_spec(case.config["params"])))
    adapter = case.config["params"]
    with torch.device("meta"):
        stand_in = {name: torch.empty(shape) for name, shape in wanted.items()}
    assert adapter["motion_num_attention_heads"] == diffusers_names.MOTION_HEADS
    shapes = stored_shapes(on_meta(diffusers_names.with_motion(diffusers_names.STABLE_DIFFUSION_1, stand_in)))
    return {name: shape for name, shape in shapes.items() if ".motion_modules." in name}


def keymap(case: Case) -> dict[str, Tensor]:
    """Native names and those of diffusers' layout: how many pairs differ."""
    wanted = json.loads(gzip.decompress(case.path.read_bytes()))
    names = diffusers_names.diffusers_names(on_meta(VIDEOCRAFTER_2.unet).state_dict(), VIDEOCRAFTER_2.unet)
    return {"differing": torch.tensor(len(set(wanted.items()) ^ set(names.items())))}
