"""Settings of `edg sample`: one dataclass, filled by flags, YAML, sweeps and Python alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from edg import systems
from edg.core import options
from edg.core.config import PathText
from edg.core.errors import UsageError, nearest, require
from edg.core.options import NamedPath, option
from edg.systems.base import Offload, System, WeightFiles

LONGEST_SIDE, MOST_THREADS = 16_384, 4096  # pixels; threads of a process
SEED_LIMIT = 2**63
IGNORED = ("ckpt_path", "module", "local_rank")  # options of the release without a meaning here

_prompts = partial(option, group="what to make")
_weights = partial(option, group="model and parameters")
_files = partial(option, group="files")
_machine = partial(option, group="machine")


@dataclass(frozen=True)
class ModelConfig:
    """The model that is sampled."""

    system: str | None = _weights(None, "family of models (default: that of the model)", metavar="NAME")
    config: PathText | None = _weights(
        None,
        "the model (default: detected from the weights)",
        flags=("--config", "--spec"),
        metavar="NAME|YAML",
    )


@dataclass(frozen=True)
class WeightsConfig:
    """Files of parameters, by name."""

    sets: tuple[NamedPath, ...] = _weights((), "parameter sets by name, in order of use", metavar="NAME=FILE")
    table: tuple[str, ...] = _weights(
        (),
        "table to read from a file with several, e.g. ema_state_dict (the raw weights)",
        metavar="[NAME=]TABLE",
    )

    def files(self) -> WeightFiles:
        """The files as a system's `select` takes them. Raises UsageError for a malformed name."""
        paths: dict[str, Path] = {}
        for text in self.sets:
            name, equals, path = text.partition("=")
            require(
                name and equals and path and name not in paths, f"--sets {text}", "NAME=FILE, each NAME once"
            )
            paths[name] = Path(path)
        return WeightFiles(paths, self.table)


@dataclass(frozen=True)
class PromptsConfig:
    """Prompts, and the clips to make of each."""

    prompt_dir: PathText | None = _prompts(
        None, "images and their prompts (default: the model's folder in prompts/)", metavar="DIR"
    )
    follow_links: bool = _prompts(False, "links in the prompt folder may lead out of it")
    n_samples: int = _prompts(1, "clips per prompt", low=1, high=10**6)
    seed: int = _prompts(
        123, "random seed; a clip's noise depends on it and the clip's ID", low=0, high=SEED_LIMIT - 1
    )
    height: int | None = _prompts(None, "pixels (default: the model's)", low=1, high=LONGEST_SIDE)
    width: int | None = _prompts(None, "pixels (default: the model's)", low=1, high=LONGEST_SIDE)
    size: str | None = _prompts(
        None, "auto: the model's size, in the orientation of each image", metavar="auto|HxW"
    )
    video_length: int | None = _prompts(
        None, "number of frames (default: the model's)", flags=("--video_length", "--frames"), metavar="N"
    )


@dataclass(frozen=True)
class OutputConfig:
    """Files that are written."""

    savedir: PathText = _files("output", "folder of the results", metavar="DIR")
    format: str = _files("mp4", "mp4, gif, webp, png or mov; several: mp4,gif", metavar="NAMES")
    fps: float | None = _files(
        None, "frames per second of the written files (default: the model's)", low=0.1, high=240
    )
    crf: int = _files(
        10, "quality of the mp4: 0 best (written as 1, which more players can play), 51 worst", low=0, high=51
    )
    preview: bool = _files(False, "ID.preview.png: the clip as predicted so far, while it is made")
    overwrite: bool = _files(False, "replace clips that were made with other settings")


@dataclass(frozen=True)
class PlacementConfig:
    """The machine, and how the model runs on it."""

    device: str = _machine("auto", "auto, cpu, cuda or cuda:N")
    dtype: str = _machine("auto", "auto (fp32 on cpu, fp16 on cuda), fp32, fp16, bf16")
    threads: int | None = _machine(
        None,
        "CPU threads of each process; the same number gives bit-identical frames (all cores)",
        low=1,
        high=MOST_THREADS,
    )
    resident: bool = _machine(False, "keep every parameter set on the device instead of swapping")
    low_memory: bool = _machine(
        False,
        "move layers to the GPU one by one, split guidance and frames (slower)",
        flags=("--low-memory",),
    )
    bs: int = _machine(
        1, "clips per network call; 1 gives bit-identical frames", low=1, high=10_000, names=("batch_size",)
    )
    compile: bool = _machine(False, "torch.compile: a minute or more to compile, then faster steps")
    chunk: int = _machine(8, "clips that share one swap of parameter sets", low=1, high=10**6)


PARTS = {
    "model": ModelConfig,
    "prompts": PromptsConfig,
    "weights": WeightsConfig,
    "output": OutputConfig,
    "placement": PlacementConfig,
}


def completed(model: str | None, given: Mapping[str, Any], loaded: Mapping[str, Any]) -> dict[str, Any]:
    """The given values over those that the model's system suggests where nobody gave any. loaded: the values
    that came with the model, as in `load(model, **loaded)`; by field name, as the given ones."""
    system = systems.of(given.get("system"), model)
    if model is None or system.defaults is None:
        return dict(given)
    return {**system.part("defaults")(model, loaded, given), **given}


@dataclass(frozen=True)
class SampleConfig:
    """Everything of one `edg sample`. options: the system's, those that are given, by field name."""

    model: ModelConfig = ModelConfig()
    weights: WeightsConfig = WeightsConfig()
    prompts: PromptsConfig = PromptsConfig()
    options: Mapping[str, Any] = field(default_factory=dict)
    placement: PlacementConfig = PlacementConfig()
    output: OutputConfig = OutputConfig()

    @property
    def system(self) -> System:
        return systems.of(self.model.system, self.model.config)

    @property
    def outdir(self) -> Path:
        """The folder that clips go to: --savedir, or the system's own below it."""
        system, folder = self.system, Path(self.output.savedir)
        if system.subfolder is None:
            return folder
        return folder / system.part("subfolder")(system.part("options")(**self.options))

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> SampleConfig:
        """The settings by any of their names, None for those that are not given. Raises UsageError, with the
        nearest name for an unknown one."""
        values = {name: value for name, value in values.items() if _known(name) not in IGNORED}
        split: dict[str, dict[str, Any]] = {part: {} for part in (*PARTS, "options")}
        model = options.names(ModelConfig)
        split["model"] = {k: v for k, v in values.items() if _known(k) in model}
        chosen = options.from_values(ModelConfig, split["model"])
        own = systems.of(chosen.system, chosen.config).part("options")
        places = {name: part for part, kind in PARTS.items() for name in options.names(kind)}
        places |= dict.fromkeys(options.names(own), "options")
        for name, value in values.items():
            key = _known(name)
            if key not in places:
                raise UsageError(f"no option {name!r}", fix=nearest(key, places) or "see edg sample --help")
            split[places[key]][key] = value
        built = {part: options.from_values(kind, split[part]) for part, kind in PARTS.items()}
        return cls(**built, options=options.converted(own, split["options"]))

    def changed(self, **values: Any) -> SampleConfig:
        """These settings with others in their place."""
        return SampleConfig.from_values({**self.given(), **values})

    def given(self) -> dict[str, Any]:
        """The settings that are not the default, by field name."""
        found = {}
        for part, kind in PARTS.items():
            value, default = getattr(self, part), kind()
            for one in fields(kind):
                if getattr(value, one.name) != getattr(default, one.name):
                    found[one.name] = getattr(value, one.name)
        return found | dict(self.options)

    def arguments(self) -> list[str]:
        """These settings as arguments of `edg sample`."""
        kinds = {
            name: kind
            for kind in (*PARTS.values(), self.system.part("options"))
            for name in options.declared(kind)
        }
        return [
            flag
            for name, value in self.given().items()
            for flag in options.as_flags(kinds[name], {name: value})
        ]


def _known(name: str) -> str:
    return str(name).replace("-", "_")


def offload_of(placement: PlacementConfig, together: bool) -> Offload:
    """The parameters that leave the device. together: the system needs all parameter sets at once."""
    if placement.low_memory:
        return "layers"
    return "none" if placement.resident or together else "parameter_sets"
