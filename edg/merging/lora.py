"""LoRA files (Hu et al. 2022): low-rank changes of single layers, merged into a model's weights.

A layer's change is scale * alpha / rank * up @ down. Layouts: kohya (`lora_unet_..._to_q.lora_down.weight`,
with `.alpha`), peft and diffusers (`unet....to_q.lora_A.weight`). The names are those of the model's modules,
with dots or with underscores for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edg.core.errors import BadFileError, UsageError, nearest

#: End of a tensor's name -> part of the pair, in the layouts that are in use.
PARTS = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".alpha": "alpha",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
}
UNET, TEXT = "unet", "text"
#: Start of a layer's name -> the model it belongs to.
STARTS = {
    "lora_unet_": UNET,
    "lora_te_": TEXT,
    "base_model.model.": UNET,
    "unet.": UNET,
    "text_encoder.": TEXT,
}


@dataclass(frozen=True)
class LoraPair:
    """The change of one layer. down: (rank, in) or (rank, in, kh, kw). up: (out, rank) or (out, rank, 1, 1).
    alpha: the rank where the file has none."""

    down: Tensor
    up: Tensor
    alpha: float | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def delta(self, scale: float = 1.0, ignore_alpha: bool = False) -> Tensor:
        """The change of the weight in float32, (out, in) or (out, in, kh, kw).

        ignore_alpha: scale alone, without alpha / rank, as IV-Mixed Sampler's converter has it.
        """
        factor = scale if ignore_alpha or self.alpha is None else scale * self.alpha / self.rank
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return factor * product.reshape(len(self.up), *self.down.shape[1:])


def read_pairs(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, LoraPair]]:
    """Model ("unet" or "text") -> layer, as the file writes it -> its pair. Raises BadFileError for a tensor
    that belongs to no pair, half a pair, and shapes that do not fit each other."""
    parts: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name in tensors:
        end = next((end for end in PARTS if name.endswith(end)), None)
        if end is None:
            raise BadFileError(f"{name!r} in a LoRA file", expected="lora_down, lora_up and alpha of layers")
        start = next((start for start in STARTS if name.startswith(start)), "")
        layer = name.removeprefix(start).removesuffix(end)
        parts.setdefault((STARTS.get(start, UNET), layer), {})[PARTS[end]] = tensors[name]
    found: dict[str, dict[str, LoraPair]] = {}
    for (model, layer), pair in parts.items():
        if not {"down", "up"} <= pair.keys():
            raise BadFileError(f"{layer} of a LoRA file has {', '.join(pair)} alone", expected="down and up")
        down, up = pair["down"], pair["up"]
        fits = min(down.ndim, up.ndim) >= 2 and up.shape[1] == len(down) and up[0, 0].numel() == 1
        if not fits:
            raise BadFileError(
                f"{layer}: down {tuple(down.shape)}, up {tuple(up.shape)}", expected="one rank"
            )
        alpha = float(pair["alpha"]) if "alpha" in pair else None
        found.setdefault(model, {})[layer] = LoraPair(down, up, alpha)
    return found


def resolve(layers: Iterable[str], modules: Iterable[str]) -> dict[str, str]:
    """Layer of a LoRA file -> the module it means. Names are looked up, not taken apart, as an underscore may
    stand for a dot. Raises UsageError for a layer that the model does not have."""
    known = {name.replace(".", "_"): name for name in modules}
    found = {}
    for layer in layers:
        flat = layer.replace(".", "_")
        if flat not in known:
            raise UsageError(
                f"the LoRA changes {layer!r}, a layer that the model does not have",
                expected="a LoRA of the same base model",
                fix=nearest(flat, known),
            )
        found[layer] = known[flat]
    return found


def add_lora(weight: Tensor, pair: LoraPair, scale: float, ignore_alpha: bool = False) -> Tensor:
    """weight + the pair's change, in the weight's dtype and shape. Raises UsageError where they do not fit.

    A 1x1 convolution and a linear layer are the same matrix.
    """
    change = pair.delta(scale, ignore_alpha)
    if change.numel() != weight.numel() or change.shape[:2] != weight.shape[:2]:
        raise UsageError(
            f"a LoRA for a layer of {tuple(change.shape)}",
            expected=f"{tuple(weight.shape)}, the model's",
            fix="a LoRA of the same base model",
        )
    return (weight.float() + change.view_as(weight)).to(weight.dtype)


def weight_names(names: Iterable[str]) -> dict[str, str]:
    """Module -> name of its weight, for the tensors of a model."""
    return {name.removesuffix(".weight"): name for name in names if name.endswith(".weight")}


def merged_tensors(
    weights: Mapping[str, Tensor], pairs: Mapping[str, LoraPair], scale: float, ignore_alpha: bool = False
) -> dict[str, Tensor]:
    """The tensors of a model that a LoRA changes, by name, changed."""
    modules = weight_names(weights)
    places = resolve(pairs, modules)
    with torch.no_grad():
        return {
            modules[places[layer]]: add_lora(weights[modules[places[layer]]], pair, scale, ignore_alpha)
            for layer, pair in pairs.items()
        }
