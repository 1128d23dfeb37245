"""One network, several parameter sets: swapped phase by phase, or all resident."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from edg.core.device import out_of_memory
from edg.core.errors import is_out_of_memory
from edg.diffusion.schedule import Schedule
from edg.networks.latent_video import load
from edg.networks.latent_video.model import LatentVideoModel
from edg.networks.latent_video.spec import ModelSpec
from edg.systems.base import Placement
from edg.systems.edg.offload import ModuleOffloader

T = TypeVar("T")


class ParameterSets:
    """The parameter sets of a run in their order of use (the first while the noise is highest).

    Swapped (the default): one network in main memory. `network` reads a set's weights into it in place, and
    `on_device` copies the modules that a phase reads to the device. Resident: one network for each set,
    always on the device, so that both cost nothing. low_memory: the networks stay in main memory all the
    same, the denoiser's layers come to the device one at a time, the autoencoder takes frames and guidance
    its branches one by one. compiled: the denoiser by torch.compile, once for a shape; parameters and
    contexts may change, and `batches` fills up a batch that lacks clips.
    """

    def __init__(
        self,
        spec: ModelSpec,
        sets: Mapping[str, Any],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        resident: bool = False,
        batch_size: int = 1,
        low_memory: bool = False,
        compiled: bool = False,
    ):
        self.spec, self.sets = spec, dict(sets)
        self.names = tuple(self.sets)
        self.device, self.dtype = torch.device(device), dtype
        self.batch_size = batch_size
        self.sequential_cfg, self.compiled = low_memory, compiled
        self.offloader = ModuleOffloader(self.device, layer_by_layer=low_memory)
        self._on_device = self._shrunk = False
        host = self.device if resident and not low_memory else "cpu"
        first = self.names[: None if resident else 1]
        self._networks = {name: load.load_model(spec, self.sets[name], host, dtype) for name in first}
        self._loaded = {name: name for name in first}  # which set each network holds now
        for network in self._networks.values():
            network.vae_chunk = 1 if low_memory else None
            if compiled:
                network.unet.compile(**how_to_compile(self.device))
        network = self._networks[self.names[0]]
        for weights in self.sets.values():  # fail before the first step, not at the set's turn
            load.check(network, weights)
        self.schedule = network.schedule  # one for the whole run: merging can scale a later set's

    @property
    def resident(self) -> bool:
        return len(self._networks) == len(self.names)

    def network(self, index: int) -> LatentVideoModel:
        """The network with the parameters of set `index`; to compute with it, enter `on_device` first."""
        name = self.names[index]
        if name in self._networks and self._loaded[name] == name:
            return self._networks[name]
        (holder, network), *_ = self._networks.items()
        if self._loaded[holder] != name:
            assert not self._on_device, "a set is read into host tensors"
            load.assign(network, self.sets[name])
            self._loaded[holder] = name
        return network

    @property
    def shrunk(self) -> bool:
        """True after `shrink` has made a difference."""
        return self._shrunk

    def shrink(self) -> bool:
        """Take one clip and one frame at a time from now on; False when it was so already."""
        networks = self._networks.values()
        if self.batch_size == 1 and all(network.vae_chunk == 1 for network in networks):
            return False
        for network in networks:
            network.vae_chunk = 1
        self.batch_size, self._shrunk = 1, True
        return True

    def batches(self, clips: Sequence[T]) -> list[Sequence[T]]:
        """The clips in batches; for a compiled network all of one size, the last clip standing in for those
        that are missing."""
        size = self.batch_size
        found = [clips[at : at + size] for at in range(0, len(clips), size)]
        if self.compiled:
            return [[*batch, *batch[-1:] * (size - len(batch))] for batch in found]
        return found

    @contextmanager
    def on_device(self, phase: str, use: Sequence[int]) -> Iterator[None]:
        """Keep the parameters that `phase` (condition, denoise or decode) reads of the sets `use` on the
        device."""
        networks = [self.network(index) for index in use]
        with self.offloader.on_device(phase, networks):
            self._on_device = True
            try:
                yield
            finally:
                self._on_device = False


@dataclass(frozen=True)
class SingleParameterSet:
    """A loaded network (in training, say) with the interface of `ParameterSets`."""

    model: LatentVideoModel
    batch_size: int = 1
    names: tuple[str, ...] = ("now",)
    sequential_cfg: bool = False
    resident: bool = True
    compiled: bool = False
    shrunk: bool = False

    @property
    def spec(self) -> ModelSpec:
        return self.model.spec

    @property
    def schedule(self) -> Schedule:
        return self.model.schedule

    @property
    def device(self) -> torch.device:
        return self.model.device

    def shrink(self) -> bool:
        return False

    def network(self, index: int) -> LatentVideoModel:
        return self.model

    def batches(self, clips: Sequence[T]) -> list[Sequence[T]]:
        return [clips[at : at + self.batch_size] for at in range(0, len(clips), self.batch_size)]

    def on_device(self, phase: str, use: Sequence[int]) -> AbstractContextManager[None]:
        return nullcontext()


class Attempt:
    """A context that catches running out of memory and keeps it as `failure`."""

    def __init__(self, device: torch.device):
        self.device, self.failure = device, None

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if not isinstance(error, (MemoryError, RuntimeError)) or not is_out_of_memory(error):
            return False
        self.failure = out_of_memory(error, self.device)
        return True


def retry_with_smaller_batches(sets: ParameterSets | SingleParameterSet) -> Iterator[Attempt]:
    """Contexts for a piece of work: one, and where it runs out of memory another, with one clip and one frame
    at a time. All randomness belongs to the clip, so the second try gives the same. Raises MachineError
    where that is too much too."""
    while True:
        yield (attempt := Attempt(sets.device))
        if attempt.failure is None:
            return
        if not sets.shrink():
            raise attempt.failure
        if sets.device.type == "cuda":
            torch.cuda.empty_cache()


def load_sets(spec: ModelSpec, parameters: Mapping[str, Any], placement: Placement) -> ParameterSets:
    """Load parameter sets (name -> weights, in their order of use) as a placement says."""
    return ParameterSets(
        load.with_adapter_of(spec, parameters.values()),
        parameters,
        device=placement.device,
        dtype=placement.dtype,
        resident=placement.offload == "none",
        batch_size=placement.batch_size,
        low_memory=placement.offload == "layers",
        compiled=placement.compile,
    )


def how_to_compile(device: torch.device) -> dict[str, Any]:
    """Arguments of torch.compile for the denoiser: a graph for one shape. On CUDA the graph is replayed as a
    whole; on a CPU tensors keep the layout of `unet.layout`, where the compiler would choose channels last.
    """
    on_gpu = {"triton.cudagraphs": True}
    return {"dynamic": False, "options": on_gpu if device.type == "cuda" else {"layout_optimization": False}}
