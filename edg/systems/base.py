"""What every system speaks: Request in, Result out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edg.core.files import checkpoints


@dataclass(frozen=True)
class Request:
    """One clip to make. Everything that decides its pixels is in here or in the parameter sets.

    id: unique in a run, also the stem of the output file (`0000-cat_sample0`).
    seed: the run's seed; the clip's own randomness is drawn from (seed, id).
    height, width: pixels. frames: number of frames. options: the system's own frozen dataclass.
    last: the picture of the last frame, None for one image alone. image_bytes, last_bytes: these files as
    they were read for this clip, None before; what is decoded is what the record hashes.
    """

    id: str
    prompt: str
    image: Path
    seed: int
    frames: int
    height: int
    width: int
    options: Any
    last: Path | None = None
    image_bytes: bytes | None = field(default=None, repr=False, compare=False)
    last_bytes: bytes | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Result:
    """A finished clip: frames as uint8 (T, H, W, 3), or the reason why there is none. warnings: what is worth
    telling of a clip that was made."""

    request: Request
    frames: np.ndarray | None
    error: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class PhaseCost:
    """What one phase of a run asks of the device, in bytes: parameters that lie there, and other tensors at
    the peak. flops: floating-point operations of one call; calls: how many of them a batch of clips takes."""

    name: str
    parameters: int
    activations: int
    flops: int
    calls: int

    @property
    def peak(self) -> int:
        return self.parameters + self.activations


@dataclass(frozen=True)
class Plan:
    """What a run asks of the machine, phase by phase. waiting: bytes of parameters in main memory beside the
    device. beside: bytes for what is no tensor (libraries, workspaces), assumed. note: what is assumed."""

    phases: tuple[PhaseCost, ...]
    waiting: int
    beside: int
    note: str

    def __getitem__(self, name: str) -> PhaseCost:
        return next(phase for phase in self.phases if phase.name == name)

    @property
    def largest(self) -> PhaseCost:
        return max(self.phases, key=lambda phase: phase.peak)

    @property
    def peak(self) -> int:
        """Bytes of tensors on the device at the worst moment."""
        return self.largest.peak

    @property
    def need(self) -> int:
        """Bytes that the device should have free."""
        return self.peak + self.beside


class Progress(Protocol):
    """Told of every step."""

    def __call__(
        self, phase: str, done: int, total: int, *, request: Request | None = None, share: float = 0
    ) -> None:
        """done of the phase's total steps. request: the clip, or the first of those that share the step.
        share: how much of the whole call is done, 0..1."""
        ...


#: (request, moment in words, frames uint8 (T, h, w, 3)): a clip as it is predicted so far, of
#: any size.
Watch = Callable[[Request, str, np.ndarray], None]


class Spec(Protocol):
    """What is asked of any system's model spec, a frozen dataclass. height, width: pixels, the size it was
    made for; size_multiple: what they must be multiples of. frames: clip length. latent_factor: pixels in a
    row that become one value."""

    name: str
    height: int
    width: int
    frames: int

    @property
    def size_multiple(self) -> int: ...

    @property
    def latent_factor(self) -> int: ...

    def clip(
        self, frames: int | None = None, height: int | None = None, width: int | None = None, **more: Any
    ) -> Any:
        """The ClipSpec of training clips, its own size where none is given. Raises UsageError."""
        ...


class Embedder(Protocol):
    """Texts and pictures in one space. note: why cosines between the two mean nothing, "" where they do."""

    note: str

    def embed_text(self, prompts: Sequence[str]) -> np.ndarray:
        """(B, D) float32, of length 1."""
        ...

    def text_remarks(self, prompts: Sequence[str]) -> Sequence[str]:
        """Lines on prompts that are not read to their end."""
        ...

    def embed_image(self, frames: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, 3) -> (B, D) float32, of length 1."""
        ...


class Training(Protocol):
    """What is asked of any system's training run, a frozen dataclass that a YAML file fills. init, vae: the
    parameter sets that it starts from; result: the one that it leaves; folder: its checkpoints and logs;
    kind: what is trained; data: what on, see runner/train.py."""

    name: str
    kind: str
    spec: str
    seed: int
    out: Path
    data: dict[str, Any]
    init: str | None
    vae: str | None

    @property
    def result(self) -> Path: ...

    @property
    def folder(self) -> Path: ...


class Trainer(Protocol):
    """How runs are trained. data: a sequence of samples."""

    def is_made(self, run: Any, world: Any) -> bool:
        """Whether the result is there. Raises UsageError when it was made by other settings."""
        ...

    def made_of_other_data(self, run: Any, data: Any) -> str:
        """How the data of a finished run differs from what it was trained on, in words, "" where it does
        not."""
        ...

    def cached(self, run: Any, folder: Path) -> Any:
        """The data that the system has encoded in a folder. Raises EdgError where it does not fit the run."""
        ...

    def train_run(self, run: Any, data: Any, world: Any, device: str) -> Path: ...


class System(Protocol):
    """A family of models. `sets`: a parameter set's name -> its weights (a lazy mapping name -> tensor)."""

    def spec(self, name: str) -> Spec:
        """A model by name or YAML file. Raises EdgError for an unknown one."""
        ...

    def identify(self, weights: Mapping[str, Any]) -> tuple[str | None, str]:
        """(a name for `spec` or None, the reason in words), from names and shapes."""
        ...

    def options(self, spec: Any, settings: Mapping[str, Any], released: bool = False) -> Any:
        """Checked options for `Request.options`, a frozen dataclass. settings: by field, None for the default
        (the model's where it has one). released: the published behaviour where nothing is set."""
        ...

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
    ) -> Any: ...

    def plan(
        self,
        spec: Any,
        sets: Mapping[str, Any],
        request: Request,
        *,
        device: str = "cpu",
        dtype: Any = None,
        resident: bool = False,
        batch_size: int = 1,
        low_memory: bool = False,
    ) -> Plan:
        """What clips like `request` will cost; of `sets` only names are looked at. device: cuda or cpu, there
        or not."""
        ...

    def check(
        self,
        spec: Any,
        sets: Mapping[str, Any],
        requests: Sequence[Request],
        preview_decoder: str | Path | None = None,
    ) -> Sequence[str]:
        """Lines worth a warning before anything is made. Raises EdgError for whatever would stop these
        requests."""
        ...

    def generate(
        self,
        model: Any,
        requests: Sequence[Request],
        progress: Progress | None = None,
        watch: Watch | None = None,
        preview_decoder: str | Path | None = None,
    ) -> Iterator[Result]:
        """watch: told a few times what every clip will look like, where the system can tell; with the file of
        a decoder where it takes one."""
        ...

    def embedder(self, spec: Any, weights: Mapping[str, Any], *, device: Any = "cpu") -> Embedder:
        """The text and image towers of a parameter set, without the rest of it. Raises BadFileError."""
        ...

    def training(self) -> type[Training]:
        """The settings of a training run."""
        ...

    def trainer(self) -> Trainer: ...


@dataclass(frozen=True)
class RemoteFile:
    """A published file: its repository, its name there, and its folder under CKPT_PATH."""

    repo: str
    file: str
    folder: str

    @property
    def path(self) -> Path:
        return checkpoints() / self.folder / self.file
