"""Kinds of training data, as the key `data` of a training's YAML file names them.

A kind is a frozen dataclass: its fields are the settings, `open` gives the samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from edg.data.batches import SampleSource
from edg.data.captions import require_captions
from edg.data.clips import ClipDataset, SkippedVideos, read_videos
from edg.data.readers import Backend
from edg.data.transforms import ClipSettings

#: data.kind -> "module:attribute", imported when it is used
DATA_KINDS = {
    "videos": "edg.data.kinds:VideoData",
    "cache": "edg.data.kinds:CacheData",
    "sprites": "edg.sprites.data:SpritesData",
}
SKIPPED = "skipped.jsonl"  # in the run's folder
SampleType = Literal["clips", "frames"]


class TrainingRun(Protocol):
    """The settings of a training that its data depends on. folder: of checkpoints and logs."""

    seed: int

    @property
    def folder(self) -> Path: ...


class TrainingSpec(Protocol):
    """The properties of a model that its training data depends on. latent_factor: pixels per latent cell,
    along one side. clip_settings: the fields of ClipSettings, the model's own size where none is given."""

    @property
    def latent_factor(self) -> int: ...

    def clip_settings(self, **settings: Any) -> ClipSettings: ...


OpenCache = Callable[[Path], SampleSource]  # opens clips that the system has encoded


class DataKind(Protocol):
    """Settings of training data. changes: False for data that is computed from the seed alone."""

    kind: str
    changes: ClassVar[bool]

    @property
    def sample_type(self) -> SampleType: ...

    def open(self, run: TrainingRun, spec: TrainingSpec, open_cache: OpenCache) -> SampleSource:
        """The samples for a run. Raises EdgError."""
        ...


@dataclass(frozen=True)
class VideoData:
    """A folder of videos with captions, or a csv whose files lie under `root`.

    columns: see sources.read_csv.
    require_captions: a video without a caption is an error.
    reader: see readers.open_video.
    The other fields are those of transforms.ClipSettings, the spec's where not given.
    """

    kind: str
    root: Path | None = None
    csv: Path | None = None
    columns: str = "auto"
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    stride: tuple[int, int] = (1, 6)
    fixed_fps: float | None = None
    random_start: bool = True
    fps_max: int | None = None
    flip: bool = False
    require_captions: bool = False
    reader: Backend = "auto"

    changes: ClassVar[bool] = True
    sample_type: ClassVar[SampleType] = "clips"

    def open(self, run: TrainingRun, spec: TrainingSpec, open_cache: OpenCache) -> SampleSource:
        clip = spec.clip_settings(**{name: getattr(self, name) for name in CLIP_FIELDS})
        videos = read_videos(self.root, self.csv, self.columns, self.require_captions)
        skipped = SkippedVideos(run.folder / SKIPPED)
        return ClipDataset(videos, clip, run.seed, skipped, reader=self.reader)


CLIP_FIELDS = {field.name for field in fields(VideoData)} & {field.name for field in fields(ClipSettings)}


@dataclass(frozen=True)
class CacheData:
    """A folder that `edg encode` wrote. require_captions: a clip without a caption is an error."""

    kind: str
    path: Path
    require_captions: bool = False

    changes: ClassVar[bool] = True
    sample_type: ClassVar[SampleType] = "clips"

    def open(self, run: TrainingRun, spec: TrainingSpec, open_cache: OpenCache) -> SampleSource:
        clips = open_cache(self.path)
        if self.require_captions:
            require_captions(clips.videos)
        return clips
