"""Group `iv_lora`: a LoRA file merged into the layers of an image model, as meant and as published."""

from __future__ import annotations

from torch import Tensor

from edg.merging.lora import LoraPair, merged_tensors, read_pairs
from edg.verify import rules
from edg.verify.cases import Case

FILE = "FILE:"


def merge(case: Case) -> dict[str, Tensor]:
    names = [name.removeprefix(FILE) for name in case.input_names if name.startswith(FILE)]
    pairs = read_pairs({name: case.input(FILE + name) for name in names})
    config, seeds = case.config, {"unet": case.raw["weight_seed"], "text": case.raw.get("weight_seed_text")}
    ways = {
        "merged": ("unet", config["scale"], False),
        "merged_published": ("unet", config["published_alpha"], True),
        "text_published": ("text", config["published_alpha"], True),
    }
    found = {}
    for way, (model, scale, ignore_alpha) in ways.items():
        modules = case.raw["modules"].get(model, [])
        by_flat = {name.replace(".", "_"): name for name in modules}
        weights = {
            f"{by_flat[layer]}.weight": rules.weight(seeds[model], f"{by_flat[layer]}.weight", shape_of(pair))
            for layer, pair in pairs.get(model, {}).items()
        }
        merged = merged_tensors(weights, pairs.get(model, {}), scale, ignore_alpha)
        found |= {f"{way}/{name.removesuffix('.weight')}": tensor for name, tensor in merged.items()}
    return {name: tensor for name, tensor in found.items() if name in case.raw["outputs"]}


def shape_of(pair: LoraPair) -> tuple[int, ...]:
    """The shape of the layer's weight."""
    return (len(pair.up), *pair.down.shape[1:])
