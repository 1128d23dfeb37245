"""Placement of parameters: on the host (main memory, or the device where nothing has to move), and on the
device during the phase that reads them.

Sampling changes no parameter, so nothing is copied back: copies on the device are dropped there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from edg.networks.latent_video.model import LatentVideoModel

# Attributes of the model that each phase of `generate` reads. The autoencoder encodes the image.
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
    """The parameters that a phase reads."""
    return [p for name, p in network.named_parameters() if name.split(".")[0] in PHASES[phase]]


class ModuleOffloader:
    """Copies parameters to `device` while they are used; none moves that lies there already.

    layer_by_layer: the denoiser's layers come one at a time, each for its own forward pass alone.
    """

    def __init__(self, device: torch.device, layer_by_layer: bool = False):
        self.device, self.layer_by_layer = device, layer_by_layer

    def to_device(self, host: Tensor) -> Tensor:
        """A host tensor on the device: the same tensor where it lies there already."""
        return host.to(self.device)

    @contextmanager
    def on_device(self, phase: str, networks: Sequence[LatentVideoModel]) -> Iterator[None]:
        """Keep the parameters that `phase` reads of the networks on the device."""
        with ExitStack() as stack:
            for network in networks:
                if self.layer_by_layer and phase == "denoise":
                    stack.enter_context(self._each_layer(network.unet))
                else:
                    stack.enter_context(self._parameters(parameters_of(network, phase)))
            yield

    @contextmanager
    def _parameters(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        hosts = [(parameter, parameter.data) for parameter in parameters]
        try:
            for parameter, host in hosts:
                parameter.data = self.to_device(host)
            yield
        finally:
            for parameter, host in hosts:
                parameter.data = host

    @contextmanager
    def _each_layer(self, network: nn.Module) -> Iterator[None]:
        """Keep the parameters of every module on the device while it runs, by hooks, whoever calls it and in
        whatever order."""
        with ExitStack() as hooks:
            for layer in network.modules():
                hosts = [(parameter, parameter.data) for parameter in layer.parameters(recurse=False)]

                def pre_hook(layer, args, hosts=hosts) -> None:
                    for parameter, host in hosts:
                        parameter.data = self.to_device(host)

                def post_hook(layer, args, output, hosts=hosts) -> None:
                    for parameter, host in hosts:
                        parameter.data = host

                if hosts:
                    hooks.callback(layer.register_forward_pre_hook(pre_hook).remove)
                    hooks.callback(layer.register_forward_hook(post_hook, always_call=True).remove)
            yield
