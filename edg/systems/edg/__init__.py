"""EDG on DynamiCrafter's latent video UNet (Tian et al., CVPR 2025)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edg.systems.base import Plan, Progress, Request, Result, Watch

if TYPE_CHECKING:
    from edg.networks.latent_video.spec import ModelSpec
    from edg.systems.edg.clip_embedder import Towers
    from edg.systems.edg.options import SamplingOptions
    from edg.systems.edg.training.config import Run


class EdgSystem:
    """`load` once, `generate` as often as wanted; the method itself is in `generate.py`."""

    def spec(self, name: str) -> ModelSpec:
        """A known model by name, or a YAML file, see `find.load_spec`."""
        from edg.networks.latent_video.models import load_spec

        return load_spec(name)

    def identify(self, weights: Mapping[str, Any]) -> tuple[str | None, str]:
        """(name of a known model or None, the reason in words), see `family.identify`."""
        from edg.networks.latent_video.identify import identify

        return identify(weights)

    def options(
        self, spec: ModelSpec, settings: Mapping[str, Any], released: bool = False
    ) -> SamplingOptions:
        """SamplingOptions from their fields by name, None for the default. Raises UsageError."""
        from edg.systems.edg.options import SamplingOptions

        options = SamplingOptions(perframe_ae=spec.perframe_ae)
        options = options.released() if released else options
        options = replace(options, **{key: value for key, value in settings.items() if value is not None})
        options.check()
        return options

    def load(
        self,
        spec: Any,
        sets: Mapping[str, Any],
        *,
        device: Any = "cpu",
        dtype: Any = None,
        resident: bool = False,
        batch_size: int = 1,
        low_memory: bool = False,
        compiled: bool = False,
    ) -> Any:
        """Parameter sets (name -> weights, in their order of use) on `device`; dtype None is float32."""
        import torch

        from edg.networks.latent_video.load import with_adapter_of
        from edg.systems.edg.parameter_sets import ParameterSets

        return ParameterSets(
            with_adapter_of(spec, sets.values()),
            sets,
            device=device,
            dtype=dtype or torch.float32,
            resident=resident,
            batch_size=batch_size,
            low_memory=low_memory,
            compiled=compiled,
        )

    def plan(
        self, spec: Any, sets: Mapping[str, Any], request: Request, *, dtype: Any = None, **how: Any
    ) -> Plan:
        """Bytes and operations of clips like `request`, before any weights are read, see `footprint.plan`."""
        import torch

        from edg.networks.latent_video.load import with_adapter_of
        from edg.systems.edg.memory import plan

        spec = with_adapter_of(spec, sets.values())
        return plan(spec, request, sets=len(sets), dtype=dtype or torch.float32, **how)

    def check(
        self,
        spec: Any,
        sets: Mapping[str, Any],
        requests: Sequence[Request],
        preview_decoder: str | Path | None = None,
    ) -> list[str]:
        """Raise EdgError for whatever would stop these requests, and return lines on what of them will not
        count; reads names and shapes only, but for the decoder."""
        from edg.networks.latent_video.load import with_adapter_of
        from edg.systems.edg.preview import read_tiny_decoder
        from edg.systems.edg.sampling_schedule import check, remarks

        check(with_adapter_of(spec, sets.values()), sets, requests)
        if preview_decoder is not None:
            read_tiny_decoder(preview_decoder, spec)
        return remarks(spec, requests)

    def generate(
        self,
        model: Any,
        requests: Sequence[Request],
        progress: Progress | None = None,
        watch: Watch | None = None,
        preview_decoder: str | Path | None = None,
    ) -> Iterator[Result]:
        from edg.systems.edg.generate import generate

        return generate(model, requests, progress, watch, preview_decoder)

    def embedder(self, spec: Any, weights: Mapping[str, Any], *, device: Any = "cpu") -> Towers:
        """CLIP's towers, see `embedding.load_towers`."""
        from edg.systems.edg.clip_embedder import load_towers

        return load_towers(spec, weights, device)

    def training(self) -> type[Run]:
        """The settings of a training run: no Lightning is needed to find a misspelt one."""
        from edg.systems.edg.training.config import Run

        return Run

    def trainer(self) -> Any:
        from edg.systems.edg.training import run

        return run
