"""Trainable parameters, chosen by kind or name, and low-rank updates (LoRA) of the temporal blocks.

    choose(model, ["adapter"])                 queries, Q-Former and every cc_projection
    choose(model, ["adapter", "temporal"])     and the temporal transformers
    choose(model, ["all"])                     the paper's: the whole UNet, image projector, adapter
    add_lora(model, 16); choose(model, ["adapter", "lora"])

LoRA (Hu et al. 2021) is done by peft, which is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import ModuleType

import torch
from torch import Tensor, nn

from edg.core.errors import MachineError, UsageError, nearest
from edg.core.seeding import generator
from edg.networks.latent_video.keys import FAMILY, KINDS, is_adapter

#: Components that can be trained. The rest (autoencoder, text and image tower) runs without gradients.
LEARNING = ("adapter", "unet", "image_proj")
BASE, LORA, NAME = ".base_layer.", ".lora_", "default"
TEMPORAL = ("temporal", "init_attn")


def choose(model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Parameter]:
    """Make the parameters that match `patterns` trainable and freeze the others; returns them by name, in the
    model's order.

    patterns: "all" (adapter, UNet and image projector: what the paper trains), "lora", kinds of modules as in
    recipes ("adapter", "temporal", "init_attn", "unet", "image_proj", ...; see keys.KINDS), or globs
    on the published names ("*.attn2.to_v.weight"). LoRA's own parameters match "all" and "lora" only. Raises
    UsageError for a pattern that matches nothing that can be trained.
    """
    if not patterns:
        raise UsageError(
            "nothing to train", expected=f"one or more of all, lora, {', '.join(LEARNING)}, or globs"
        )
    named = dict(model.named_parameters())
    chosen: set[str] = set()
    for pattern in patterns:
        matching = {name for name in named if _matches(name, pattern)}
        found = {name for name in matching if FAMILY.component(published(name)) in LEARNING}
        if not found:
            raise _no_match(pattern, bool(matching), named)
        chosen |= found
    for name, parameter in named.items():
        parameter.requires_grad_(name in chosen)
    return {name: parameter for name, parameter in named.items() if name in chosen}


def _matches(name: str, pattern: str) -> bool:
    if pattern == "all":
        return FAMILY.component(published(name)) in LEARNING
    if LORA in name:
        return pattern == "lora"
    return FAMILY.matches(published(name), [pattern])


def _no_match(pattern: str, frozen: bool, names: Iterable[str]) -> UsageError:
    """The error for a pattern without trainable parameters. frozen: it matches other parameters."""
    what = f"the pattern {pattern!r} of trainable"
    if frozen:
        return UsageError(f"{what} matches frozen parameters", expected=f"parts of {', '.join(LEARNING)}")
    if pattern == "adapter":
        return UsageError(
            f"{what}, in a model without a text adapter", fix="set adapter: identity or adapter: released"
        )
    if pattern == "lora":
        return UsageError(f"{what}, in a model without LoRA", fix="set a LoRA rank")
    if pattern in KINDS:
        return UsageError(
            f"{what} matches nothing in this model", expected=f"a part of {', '.join(LEARNING)}"
        )
    known = ("all", "lora", *KINDS)
    return UsageError(
        f"{what} matches no parameter",
        expected="all, lora, a kind of modules, or a glob on names",
        fix=nearest(pattern, known) or nearest(pattern, [published(name) for name in names]),
    )


def published(name: str) -> str:
    """The name of a parameter in checkpoints: peft calls the weight that LoRA changes `base_layer.weight`."""
    return name.replace(BASE, ".")


def _peft() -> ModuleType:
    try:
        import peft
    except ImportError as error:
        raise MachineError(f"peft cannot be imported ({error})", fix="pip install peft") from error
    return peft


def add_lora(
    model: nn.Module, rank: int, alpha: float | None = None, patterns: Sequence[str] = TEMPORAL, seed: int = 0
) -> dict[str, nn.Parameter]:
    """Add an update (alpha / rank) B A to every nn.Linear that matches the patterns (never the adapter's).

    The output does not change: B (out, rank) is 0, and A (rank, in) is drawn from (seed, name) as
    U(-in^-1/2, in^-1/2). alpha: None is rank. Returns A's and B's by name, requiring gradients; the flags of
    the others do not change. Raises MachineError without peft, UsageError for a rank below 1, a second call,
    or patterns without a linear layer.
    """
    if rank < 1:
        raise UsageError(f"a LoRA of rank {rank}", expected="at least 1")
    if lora_layers(model):
        raise UsageError("the model has LoRA layers already", fix="call merge_lora(model) first")
    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and FAMILY.component(f"{name}.weight") in LEARNING
        and not is_adapter(f"{name}.weight")
        and ("all" in patterns or FAMILY.matches(f"{name}.weight", patterns))
    ]
    if not targets:
        raise UsageError(
            f"LoRA on {', '.join(patterns)}: no linear layer matches",
            fix="set lora.on, for instance to temporal",
        )
    peft = _peft()
    flags = {id(parameter): parameter.requires_grad for parameter in model.parameters()}
    config = peft.LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=targets)
    peft.inject_adapter_in_model(config, model)
    added = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(flags.get(id(parameter), True))
        if LORA in name:
            added[name] = parameter
            _draw_lora(name, parameter, seed)
    return added


@torch.no_grad()
def _draw_lora(name: str, parameter: nn.Parameter, seed: int) -> None:
    if ".lora_B." in name:
        parameter.zero_()
    else:
        drawn = torch.rand(parameter.shape, generator=generator(seed, "lora", name))
        parameter.copy_((2 * drawn - 1) * parameter.shape[1] ** -0.5)


def lora_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers with LoRA, by published name."""
    return {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and hasattr(module, "base_layer")
    }


@torch.no_grad()
def _weight(layer: nn.Module) -> Tensor:
    """W + (alpha / rank) B A, added in float32, in W's dtype."""
    low, high = layer.lora_A[NAME].weight.float(), layer.lora_B[NAME].weight.float()
    weight = layer.base_layer.weight
    return (weight.float() + layer.scaling[NAME] * high @ low).to(weight.dtype)


def published_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with published names and LoRA added to the weights. The model does not change; tensors
    without LoRA are shared with it."""
    layers = lora_layers(model)
    state = {published(n): t.detach() for n, t in model.state_dict().items() if LORA not in n}
    return {
        name: _weight(layers[name.removesuffix(".weight")])
        if name.endswith(".weight") and name.removesuffix(".weight") in layers
        else tensor
        for name, tensor in state.items()
    }


@torch.no_grad()
def merge_lora(model: nn.Module) -> list[str]:
    """Add LoRA's updates to the weights and remove its layers: the model has its published names again.
    Returns the names of the changed weights; none without LoRA."""
    layers = lora_layers(model)
    for name, layer in layers.items():
        plain = layer.base_layer
        plain.weight.copy_(_weight(layer))
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, plain)
    if hasattr(model, "peft_config"):
        del model.peft_config
    return [f"{name}.weight" for name in layers]
