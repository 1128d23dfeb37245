"""One network, several parameter sets: swapped phase by phase, or all resident."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from edg.diffusion.schedule import Schedule
from edg.networks.latent_video import load
from edg.networks.latent_video.model import LatentVideoModel
from edg.networks.latent_video.spec import ModelSpec
from edg.systems.base import Placement
from edg.systems.edg.offload import Residence


class ParameterSets:
    """The parameter sets of a run in their order of use (the first while the noise is highest).

    Swapped (the default) there is one network in main memory, and `use` reads the set's weights into it in
    place; `only` takes the parts of it that a phase reads to the device. Resident there is one network for
    each set, on the device for good, and both cost nothing. low_memory: the network waits in main memory
    even then, the denoiser's layers visit the device one at a time, the autoencoder takes frames and guidance
    its branches one by one. compiled: the denoiser by torch.compile, once for a shape; parameters and
    contexts may change, and `generate` fills up a batch that lacks clips.
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
        self.one_branch_at_a_time, self.compiled = low_memory, compiled
        self.residence = Residence(self.device, layer_by_layer=low_memory)
        self._lent = self._shrunk = False
        home = self.device if resident and not low_memory else "cpu"
        first = self.names[: None if resident else 1]
        self._networks = {name: load.load_model(spec, self.sets[name], home, dtype) for name in first}
        self._loaded = {name: name for name in first}  # which set each network holds now
        for network in self._networks.values():
            network.vae_chunk = 1 if low_memory else None
            if compiled:
                network.unet.compile(**how_to_compile(self.device))
        network = self._networks[self.names[0]]
        for (
            weights
        ) in self.sets.values():  # a set that does not fit is told before the first step, not at its turn
            load.check(network, weights)
        self.schedule = network.schedule  # one for the whole run: merging can scale a later set's

    @property
    def resident(self) -> bool:
        return len(self._networks) == len(self.names)

    def use(self, index: int) -> LatentVideoModel:
        """The network with the parameters of set `index`; to compute with it, enter `only` first."""
        name = self.names[index]
        if name in self._networks and self._loaded[name] == name:
            return self._networks[name]
        (home, network), *_ = self._networks.items()
        if self._loaded[home] != name:
            assert not self._lent, "a set is read where the parameters are at home"
            load.assign(network, self.sets[name])
            self._loaded[home] = name
        return network

    @property
    def shrunk(self) -> bool:
        """Whether `shrink` has made a difference."""
        return self._shrunk

    def shrink(self) -> bool:
        """One clip and one frame at a time from now on; False when it was so already."""
        networks = self._networks.values()
        if self.batch_size == 1 and all(network.vae_chunk == 1 for network in networks):
            return False
        for network in networks:
            network.vae_chunk = 1
        self.batch_size, self._shrunk = 1, True
        return True

    @contextmanager
    def only(self, phase: str, use: Sequence[int]) -> Iterator[None]:
        """Inside, the device holds what `phase` (condition, denoise or decode) reads of the sets `use`."""
        networks = [self.use(index) for index in use]
        with self.residence.only(networks, phase):
            self._lent = True
            try:
                yield
            finally:
                self._lent = False


@dataclass(frozen=True)
class OneNetwork:
    """A network that is there already (in training, say), as `generate` wants its parameter sets."""

    network: LatentVideoModel
    batch_size: int = 1
    names: tuple[str, ...] = ("now",)
    one_branch_at_a_time: bool = False
    resident: bool = True
    compiled: bool = False
    shrunk: bool = False

    @property
    def spec(self) -> ModelSpec:
        return self.network.spec

    @property
    def schedule(self) -> Schedule:
        return self.network.schedule

    @property
    def device(self) -> torch.device:
        return self.network.device

    def shrink(self) -> bool:
        return False

    def use(self, index: int) -> LatentVideoModel:
        return self.network

    def only(self, phase: str, use: Sequence[int]) -> AbstractContextManager[None]:
        return nullcontext()


def load_sets(spec: ModelSpec, parameters: Mapping[str, Any], placement: Placement) -> ParameterSets:
    """Parameter sets (name -> weights, in their order of use) on a device."""
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
    """The denoiser by torch.compile: a graph for one shape. On CUDA it is replayed as a whole and not by
    kernels; on a CPU tensors stay as `unet.layout` has them, where the compiler would take channels last."""
    on_gpu = {"triton.cudagraphs": True}
    return {"dynamic": False, "options": on_gpu if device.type == "cuda" else {"layout_optimization": False}}
