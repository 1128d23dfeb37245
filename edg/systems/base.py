"""Types that all systems share: Request in, Result out, and the System, a description as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from edg.core.errors import require
from edg.core.files import checkpoints

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from edg.core.dist import World
    from edg.data.batches import SampleSource

Need = Literal["no", "optional", "required"]
Offload = Literal["none", "parameter_sets", "layers"]
FILES = ("image", "last_image", "video")  # of a request


# ---- a clip ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """One clip to make. Everything that decides its pixels is in here or in the parameters.

    id: unique in a run, also the stem of the output file (`0000-cat_sample0`).
    seed: the run's seed; the clip's own randomness is drawn from (seed, id).
    height, width: pixels. frames: number of frames. options: the system's own frozen dataclass.
    image, last_image: pictures of the first and the last frame. video: reference or source clip.
    contents: bytes of these files by name, as they were read for this clip, so that the record hashes what
    was decoded; empty before they are read.
    """

    id: str
    prompt: str
    seed: int
    frames: int
    height: int
    width: int
    options: Any
    image: Path | None = None
    last_image: Path | None = None
    video: Path | None = None
    contents: Mapping[str, bytes] = field(default_factory=dict, repr=False, compare=False)

    @property
    def files(self) -> dict[str, Path]:
        """The files that are given, by name."""
        return {name: path for name in FILES if (path := getattr(self, name)) is not None}


@dataclass(frozen=True)
class Result:
    """A finished clip: frames as uint8 (T, H, W, 3), or the reason why there is none.

    info: plain values for the record. artifacts: tensors to save beside the clip as ID.safetensors.
    """

    request: Request
    frames: np.ndarray | None
    error: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    artifacts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Placement:
    """Device, precision and memory use of a model; no effect on what it computes.

    batch_size: clips per network call. offload: what leaves the device while it is not needed: nothing, all
    parameter sets but the one in use, or every layer. compile: torch.compile for the network.
    """

    device: torch.device
    dtype: torch.dtype
    batch_size: int = 1
    offload: Offload = "parameter_sets"
    compile: bool = False


class Observer(Protocol):
    """Receiver of a run's progress and previews."""

    wants_preview: bool

    def step(self, phase: str, done: int, total: int, request: Request, share: float) -> None:
        """done of the phase's total steps. request: the clip, or the first of those that share the step.
        share: part of the whole call that is done, 0..1."""
        ...

    def preview(self, request: Request, label: str, frames: np.ndarray) -> None:
        """frames: the clip as predicted so far, uint8 (T, h, w, 3) of any size."""
        ...


class Silent:
    """An Observer that ignores everything."""

    wants_preview = False

    def step(self, phase: str, done: int, total: int, request: Request, share: float) -> None: ...

    def preview(self, request: Request, label: str, frames: np.ndarray) -> None: ...


# ---- a model -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inputs:
    """The files that a request of a system may hold."""

    image: Need = "required"
    last_image: Need = "no"
    video: Need = "no"


class Spec(Protocol):
    """A named model, a frozen dataclass that needs no torch. height, width: pixels it was made for; frames:
    clip length; fps: frames per second of the written clips."""

    name: str
    height: int
    width: int
    frames: int
    fps: float

    def check_size(self, height: int, width: int) -> None:
        """Raise UsageError, with the nearest that fits, for a size in pixels that the model cannot make."""
        ...

    def check_frames(self, frames: int) -> None:
        """Raise UsageError for a number of frames that the model cannot make."""
        ...


@dataclass(frozen=True)
class WeightFiles:
    """The parameters that the user named. files: role -> path in the order given (`--sets`), empty for the
    system's own choice; tables: TABLE or ROLE=TABLE, which of several tables in a file (`--table`)."""

    files: Mapping[str, Path] = field(default_factory=dict)
    tables: Sequence[str] = ()


@dataclass(frozen=True)
class Selection:
    """A model and its parameters, chosen but not read.

    paths: role -> file, in the order of use. options: the system's, with everything settled that depends on
    the model and the roles. open: gives the parameters by role; its argument is called with lines worth a
    note. tables: role -> table inside its file. together: all parameter sets are needed at once. inputs:
    files that these options ask for, None for the system's own. remarks: lines on clips like a request.
    preview: the options ask for previews. notes: for the records.
    """

    spec: Any
    paths: Mapping[str, Path]
    options: Any
    open: Callable[[Callable[[str], None]], dict[str, Any]]
    tables: Mapping[str, str] = field(default_factory=dict)
    together: bool = False
    inputs: Inputs | None = None
    remarks: Callable[[Request], Sequence[str]] = lambda request: ()
    preview: bool = False
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PhaseCost:
    """Bytes that one phase of a run needs on the device: parameters that lie there, and other tensors at the
    peak. flops: floating-point operations of one call; calls: how many of them a batch of clips takes."""

    name: str
    parameters: int
    activations: int
    flops: int
    calls: int

    @property
    def peak(self) -> int:
        return self.parameters + self.activations


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory and operations of a run, phase by phase. host_bytes: parameters in main memory beside the
    device. overhead_bytes: libraries and workspaces, assumed. note: what is assumed."""

    phases: tuple[PhaseCost, ...]
    host_bytes: int
    overhead_bytes: int
    note: str

    def __getitem__(self, name: str) -> PhaseCost:
        return next(phase for phase in self.phases if phase.name == name)

    @property
    def largest(self) -> PhaseCost:
        return max(self.phases, key=lambda phase: phase.peak)

    @property
    def peak_bytes(self) -> int:
        """Bytes of tensors on the device at the worst moment."""
        return self.largest.peak

    @property
    def required_bytes(self) -> int:
        """Bytes that the device should have free."""
        return self.peak_bytes + self.overhead_bytes


class Embedder(Protocol):
    """Texts and pictures in one space. note: why cosines of the two have no meaning, "" if they have one."""

    note: str

    def embed_text(self, prompts: Sequence[str]) -> np.ndarray:
        """(B, D) float32, of length 1."""
        ...

    def text_remarks(self, prompts: Sequence[str]) -> Sequence[str]:
        """Warnings about prompts that are not read to their end."""
        ...

    def embed_image(self, frames: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, 3) -> (B, D) float32, of length 1."""
        ...


@dataclass(frozen=True)
class RemoteFile:
    """A published file: its repository, its name there, and its folder under CKPT_PATH."""

    repo: str
    file: str
    folder: str

    @property
    def path(self) -> Path:
        return checkpoints() / self.folder / self.file


@dataclass(frozen=True)
class DemoSlider:
    """An option that visitors of `edg demo` may change. title: its label for visitors. help: its effect, as
    measured."""

    low: float
    high: float
    step: float
    start: float
    title: str
    help: str


@dataclass(frozen=True)
class DemoSetup:
    """A model as `edg demo` shows it.

    model, options: as for `edg.load`, of the clips to show.
    others: options of models for comparison.
    one_network: all of them share the memory of one.
    sliders: option -> its DemoSlider.
    steps: their number at first.
    about: a sentence or two for visitors, Markdown.
    small: clips are enlarged without smoothing.
    warm_up: imports that take seconds.
    doubt: (image) -> why the model cannot represent this picture, "" if it may.
    """

    model: str
    options: Mapping[str, Any]
    others: Mapping[str, Mapping[str, Any]]
    one_network: bool
    sliders: Mapping[str, DemoSlider]
    steps: int
    about: str = ""
    small: bool = False
    warm_up: Callable[[], None] = lambda: None
    doubt: Callable[[Path], str] = lambda image: ""


@dataclass(frozen=True)
class Command:
    """A command of `edg`. add and run are "module:function": one adds arguments to a parser, the other takes
    the parsed ones. single_process: what to do instead of starting it under torchrun, "" for a command that
    runs under it. polls_signals: it checks itself whether a signal came (core/process.py); else the handler
    raises, as the command has but one thread. reads_argv: add takes
    the arguments too, as its flags depend on them."""

    help: str
    add: str
    run: str
    single_process: str = ""
    polls_signals: bool = True
    reads_argv: bool = False


# ---- training ----------------------------------------------------------------------------------------------


class Training(Protocol):
    """Settings of a training run, a frozen dataclass that a YAML file fills.

    kind: the network that is trained. data: see data/kinds.py. init, vae: parameter sets that it starts from.
    """

    name: str
    kind: str
    spec: str
    seed: int
    out: Path
    data: dict[str, Any]
    init: str | None
    vae: str | None

    @property
    def sample_type(self) -> Literal["clips", "frames"]:
        """The samples that this kind of training needs."""
        ...

    @property
    def result(self) -> Path:
        """The trained parameter set."""
        ...

    @property
    def folder(self) -> Path:
        """Folder of checkpoints and logs."""
        ...


class Trainer(Protocol):
    """A module that trains runs."""

    def is_finished(self, config: Any, world: World) -> bool:
        """True if the result is there. Raises UsageError if it was made with other settings."""
        ...

    def data_change(self, config: Any, data: SampleSource) -> str:
        """Describe how the data differs from what a finished run was trained on, "" if it does not."""
        ...

    def open_cache(self, config: Any, folder: Path) -> SampleSource:
        """Open the data that the system has encoded in a folder. Raises EdgError if it does not fit."""
        ...

    def run_training(self, config: Any, data: SampleSource, world: World, device: str) -> Path:
        """Train, and return the path of the parameter set."""
        ...


# ---- a system ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class System:
    """A family of models with one way of sampling, as data.

    Each part is "module:attribute", imported when it is used, so that `--help` stays fast. A part that is
    None is something the system does not do; `part` then raises UsageError.
    """

    name: str
    title: str
    inputs: Inputs
    specs: str  # -> Mapping[str, Spec]; names are unique over all systems
    options: str  # -> the Options class, a frozen dataclass of `option` fields
    select: str  # (spec | None, WeightFiles, given options) -> Selection
    load: str  # (spec, parameters, Placement) -> Model
    generate: str  # (model, requests, Observer) -> Iterator[Result]
    check: str | None = None  # (spec, parameters, requests) -> warnings; raises whatever would stop them
    check_options: str | None = None  # (spec | None, WeightFiles, given) -> spec | None; opens no file
    read_spec: str | None = None  # (path of a YAML file) -> Spec
    identify: str | None = None  # (weights) -> (spec name or None, reason)
    estimate: str | None = None  # (spec, parameters, request, Placement) -> MemoryEstimate
    plan_options: str | None = None  # (spec, WeightFiles, given) -> (options, roles, together); no files
    files: str | None = None  # -> Mapping[str, RemoteFile]: what `edg fetch` gets
    train: str | None = None  # -> Trainer
    train_config: str | None = None  # -> type[Training]
    embed: str | None = None  # (spec, parameters, device) -> Embedder
    verify: str | None = None  # -> Mapping[group, Callable[[Case], dict[str, Tensor]]]
    prompts: str | None = None  # (spec) -> name of the prompt folder beside the package that fits it
    demo: str | None = (
        None  # -> Mapping[model, () -> DemoSetup | None], the preferred first; None: no weights
    )
    defaults: str | None = None  # (model, given to load, given to a clip) -> options that nobody gave
    commands: Mapping[str, Command] = field(default_factory=dict)
    implied: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    # "last_image" | "auto_size" -> options that a request with it takes where they are not given
    dotted: str | None = None  # the option of NAME.SETTING=X items, which a sweep writes as NAME.SETTING: X
    subfolder: str | None = None  # (options) -> "1000": where under --savedir clips go

    def part(self, name: str) -> Any:
        """The part of that name, imported. Raises UsageError where the system has none."""
        place = getattr(self, name)
        require(
            place is not None,
            f"{self.name} ({self.title}) has no part {name!r}",
            PARTS.get(name, "a system that has it"),
        )
        return load_part(place)

    @cached_property
    def known_specs(self) -> Mapping[str, Spec]:
        return self.part("specs")


PARTS = {
    "identify": "the name of a model: this system does not detect models from their weights",
    "estimate": "a system that estimates its memory",
    "plan_options": "a system that estimates its memory",
    "train": "a system that can be trained",
    "train_config": "a system that can be trained",
    "embed": "a system with text and image towers",
    "verify": "a system with reference cases",
    "read_spec": "the name of a model: this system reads no YAML files",
}


def load_part(place: str) -> Any:
    """The object at "module:attribute", or the module."""
    module, _, attribute = place.partition(":")
    found = import_module(module)
    return getattr(found, attribute) if attribute else found
