"""One network, several parameter sets: swapped phase by phase, or all resident."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from edg.systems.edg import load
from edg.systems.edg.model import LatentVideoModel
from edg.systems.edg.spec import ModelSpec


class ParameterSets:
    """The parameter sets of a run in their order of use (the first while the noise is highest).

    Swapped (the default) there is one network in memory, and `use` reads the set's weights into it in place;
    resident there is one network for each set and `use` costs nothing.
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
    ):
        self.spec, self.sets = spec, dict(sets)
        self.names = tuple(self.sets)
        self.device, self.dtype = torch.device(device), dtype
        self.batch_size = batch_size
        first = self.names[: None if resident else 1]
        self._networks = {name: load.load_model(spec, self.sets[name], self.device, dtype) for name in first}
        self._loaded = {name: name for name in first}  # which set each network holds now
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
        """The network with the parameters of set `index`."""
        name = self.names[index]
        if name in self._networks and self._loaded[name] == name:
            return self._networks[name]
        (home, network), *_ = self._networks.items()
        if self._loaded[home] != name:
            load.assign(network, self.sets[name])
            self._loaded[home] = name
        return network
