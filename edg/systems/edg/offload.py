"""Where parameters lie: at home (main memory, or the device where nothing has to move), and on the device
while the phase runs that reads them.

Sampling changes no parameter, so nothing is ever carried back: what leaves the device is dropped there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from edg.networks.latent_video.model import LatentVideoModel

# What each phase of `generate` reads, as attributes of the model. The image is encoded by the autoencoder.
PHASES = {
    "condition": (
        "cond_stage_model",
        "embedder",
        "image_proj_model",
        "queries",
        "qformer",
        "first_stage_model",
    ),
    "denoise": ("model",),
    "decode": ("first_stage_model",),
}


def parameters_of(network: LatentVideoModel, phase: str) -> list[nn.Parameter]:
    return [p for name, p in network.named_parameters() if name.split(".")[0] in PHASES[phase]]


class Residence:
    """Carries parameters to `device` for as long as they are used; none moves where that is their home.

    layer_by_layer: the denoiser's layers come one at a time, each for its own forward pass alone.
    """

    def __init__(self, device: torch.device, layer_by_layer: bool = False):
        self.device, self.layer_by_layer = device, layer_by_layer

    def carry(self, home: Tensor) -> Tensor:
        """A parameter's values on the device: the same tensor where they lie there already."""
        return home.to(self.device)

    @contextmanager
    def only(self, networks: Sequence[LatentVideoModel], phase: str) -> Iterator[None]:
        """What `phase` reads of the networks is on the device inside, at home before and after."""
        with ExitStack() as stack:
            for network in networks:
                if self.layer_by_layer and phase == "denoise":
                    stack.enter_context(self._each_layer(network.unet))
                else:
                    stack.enter_context(self._here(parameters_of(network, phase)))
            yield

    @contextmanager
    def _here(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        homes = [(parameter, parameter.data) for parameter in parameters]
        try:
            for parameter, home in homes:
                parameter.data = self.carry(home)
            yield
        finally:
            for parameter, home in homes:
                parameter.data = home

    @contextmanager
    def _each_layer(self, network: nn.Module) -> Iterator[None]:
        """Every module that owns parameters has them on the device while it runs, by hooks; so it does not
        matter who calls it, or in which order."""
        with ExitStack() as hooks:
            for layer in network.modules():
                homes = [(parameter, parameter.data) for parameter in layer.parameters(recurse=False)]

                def come(layer, given, homes=homes) -> None:
                    for parameter, home in homes:
                        parameter.data = self.carry(home)

                def go(layer, given, made, homes=homes) -> None:
                    for parameter, home in homes:
                        parameter.data = home

                if homes:
                    hooks.callback(layer.register_forward_pre_hook(come).remove)
                    hooks.callback(layer.register_forward_hook(go, always_call=True).remove)
            yield
