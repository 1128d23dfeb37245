"""The memory and operations of a run, estimated before it and without weights.

`estimate` takes one batch of clips through the functions of `generate` itself, on the meta device, where
tensors have shapes and no storage: condition, one guided step, decode. `MemoryTracker` counts live tensors.
Not counted: memory that kernels allocate for themselves and that the allocator keeps in reserve
(`MemoryEstimate.overhead_bytes` stands for them).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from edg.diffusion.schedule import Schedule, make_schedule
from edg.networks.latent_video.attention import MAX_SHORT_KV, SHORT_KV_DTYPES
from edg.networks.latent_video.load import build, with_adapter_of
from edg.networks.latent_video.model import LatentVideoModel
from edg.networks.latent_video.spec import ModelSpec
from edg.networks.latent_video.unet import layout
from edg.systems.base import MemoryEstimate, PhaseCost, Placement, Request
from edg.systems.edg.clip_state import ClipState, condition_batch, latent_shape
from edg.systems.edg.denoiser import denoiser
from edg.systems.edg.offload import parameters_of
from edg.systems.edg.options import SamplingOptions
from edg.systems.edg.parameter_sets import SingleParameterSet
from edg.systems.edg.sampling_schedule import sampling_schedule

# Bytes that are not counted: on a GPU the CUDA context, its libraries, the kernels' workspaces and waiting
# clips; on a CPU the interpreter with torch and open_clip. Assumed, not computed.
OVERHEAD = {"cuda": 1_000_000_000, "cpu": 600_000_000}
# Operation -> its floating-point operations. PyTorch's own table has lacked the CPU's attention since 2.14.
FLOPS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        torch.ops.aten._scaled_dot_product_flash_attention
    ],
    **flop_registry,
}


class MemoryTracker(TorchDispatchMode):
    """Bytes of the tensors made inside on devices of `kind`: alive now, and at the peak; and the operations
    of matrix products, convolutions and attention (a multiplication and an addition are two)."""

    def __init__(self, kind: str = "meta") -> None:
        super().__init__()
        self.kind = kind
        self.live = self.peak = self.flops = 0

    def reset(self) -> tuple[int, int]:
        """Start counting anew; returns (peak, flops) since the last reset."""
        counted = self.peak, self.flops
        self.peak, self.flops = self.live, 0
        return counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func._overloadpacket in FLOPS:
            self.flops += FLOPS[func._overloadpacket](*args, **kwargs, out_val=out)
        known = {storage._cdata for storage in storages((args, kwargs))}
        for storage in storages(out):
            if storage.device.type == self.kind and storage._cdata not in known:  # no view, not in place
                known.add(storage._cdata)
                self._allocated(storage)
        return out

    def _allocated(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, size).atexit = False

    def _freed(self, size: int) -> None:
        self.live -= size


def storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class FusedAttention(TorchFunctionMode):
    """Attention on the meta device as the kernels of `kind` (cuda, cpu) compute it, which meta by itself does
    not choose: without storing the matrix of weights. They ask that the last dimension has stride 1; a call
    that has not is left alone, stores its matrix, and is counted in `stored`."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.stored = kind, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        if any(part.stride(-1) != 1 for part in args[:3]):
            self.stored += 1
            return func(*args, **kwargs)
        return self._fused(*args, **kwargs)

    def _fused(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
    ) -> Tensor:
        aten, rest = torch.ops.aten, (dropout_p, is_causal)
        if self.kind == "cpu":
            out = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, *rest, attn_mask=attn_mask)
        else:
            out = aten._scaled_dot_product_efficient_attention(q, k, v, attn_mask, False, *rest)
        return out[0]


class MetaParameterSets(SingleParameterSet):
    """A network on the meta device; its schedule has values."""

    @cached_property
    def schedule(self) -> Schedule:
        return make_schedule(self.spec.schedule, self.spec.parameterization)


def build_on_meta(spec: ModelSpec, dtype: torch.dtype) -> LatentVideoModel:
    """The model on the meta device with parameters in `dtype`."""
    network = build(spec)
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)
        parameter.requires_grad_(False)
    return network


@torch.no_grad()
def estimate(
    spec: ModelSpec, parameters: Mapping[str, Any], request: Request, placement: Placement
) -> MemoryEstimate:
    """Estimate the cost of a batch of clips like `request` with these parameter sets.

    The image, the prompt and the seed do not matter; of the parameters only names are read. The device need
    not be there. Raises UsageError as `generate` does.
    """
    spec, sets = with_adapter_of(spec, parameters.values()), len(parameters)
    device, dtype, batch_size = placement.device.type, placement.dtype, placement.batch_size
    resident, low_memory = placement.offload == "none", placement.offload == "layers"
    network = build_on_meta(spec, dtype)
    network.vae_chunk = 1 if low_memory else None
    network.unet.layout = layout(torch.device(device))
    meta = MetaParameterSets(network, batch_size, tuple(f"set{i}" for i in range(sets)), low_memory)
    steps = sampling_schedule(meta.schedule, sets, request.options)
    with FusedAttention(device) as attention, MemoryTracker() as tracker:
        batch = [meta_clip(spec, request) for _ in range(batch_size)]
        costs = measure(meta, steps[0][0], batch, request.options, tracker.reset)
    counts = {"condition": len(steps), "denoise": sum(len(part) for _, part in steps), "decode": 1}
    whole = sum(map(size_of, network.parameters())) * (sets if resident else 1)
    moves = device == "cuda" and (low_memory or not resident)
    phases = tuple(
        PhaseCost(
            phase,
            offloaded_bytes(network, phase, len(steps[0][0]), low_memory) if moves else whole,
            *costs[phase],
            calls,
        )
        for phase, calls in counts.items()
    )
    host_bytes = whole if moves else 0
    few = (
        device == "cpu"
        and dtype in SHORT_KV_DTYPES
        and spec.unet.heads(spec.unet.model_channels)[1] <= MAX_SHORT_KV
    )
    return MemoryEstimate(phases, host_bytes, OVERHEAD[device], attention_note(spec, attention.stored, few))


def attention_note(spec: ModelSpec, stored: int, few: bool) -> str:
    """A phrase on stored attention weights. few: this machine has other kernels for attention to few keys."""
    if stored:
        return f"{stored} attention calls store their weights"
    if spec.unet.use_relative_position:
        return "attention over frames, with relative positions, stores its weights; that over space does not"
    if few:
        return f"attention to at most {MAX_SHORT_KV} keys stores its weights; attention to more keys does not"
    return "attention is never stored (fused kernels)"


def measure(
    sets: MetaParameterSets,
    use: Sequence[int],
    batch: Sequence[ClipState],
    options: SamplingOptions,
    reset: Callable[[], tuple[int, int]],
) -> dict[str, tuple[int, int]]:
    """(peak, flops) of each phase, as `reset` returns them. Work done once for all steps counts for the peak
    alone, and savings of approximations count for nothing: no step here has a time."""
    options = replace(options, guidance_interval=None, reuse=1)
    conditions = [condition_batch(sets.network(index), index, batch, options) for index in use]
    costs = {"condition": reset()}
    denoise = denoiser(sets, use, conditions, (), options)
    before, _ = reset()
    x = torch.cat([clip.x_1CTHW for clip in batch])
    denoise(x, x.new_zeros(len(batch), dtype=torch.long))
    peak, flops = reset()
    costs["denoise"] = max(before, peak), flops
    del denoise, conditions, x
    reset()
    sets.model.decode_latents(batch[0].x_1CTHW, 1 if options.perframe_ae else None)
    peak, flops = reset()
    return costs | {"decode": (peak, flops * len(batch))}


def meta_clip(spec: ModelSpec, request: Request, device: str = "meta") -> ClipState:
    """A clip of the request's size without content."""

    def noise(*what: object, shape: Sequence[int]) -> Tensor:
        return torch.zeros(tuple(shape), device=device)

    image = noise(shape=(1, 3, request.height, request.width))
    return ClipState(request, image, noise, noise(shape=latent_shape(spec, request)))


def offloaded_bytes(network: LatentVideoModel, phase: str, used: int, low_memory: bool) -> int:
    """Bytes of the parameters that are copied to the device for a phase, where `used` networks act at once (a
    blend): the last of them alone decodes. low_memory: the largest layer."""
    if low_memory and phase == "denoise":
        return max(sum(map(size_of, layer.parameters(recurse=False))) for layer in network.unet.modules())
    return (1 if phase == "decode" else used) * sum(map(size_of, parameters_of(network, phase)))


def size_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
