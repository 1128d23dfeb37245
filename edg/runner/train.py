"""`edg train CONFIG [key=value ...]`: a YAML file of one training run, or of several in a row (`stages`).

    spec: dynamicrafter-512            all keys: systems/edg/train_options.py, Run
    data: {kind: videos, root: ...}    what is learnt from, see SOURCES
    train: {steps: 20000, ...}

In a file with `stages: {name: {...}}` every stage is a run of its own settings over the file's common ones
(see `over`), and `init: name` means the result of an earlier one. To resume, run the same command again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edg import systems
from edg.core import config
from edg.core.arguments import Parser, as_path, whole
from edg.core.device import fix_threads, keep_memory, usable_cores
from edg.core.dist import world
from edg.core.errors import BadFileError, EdgError, UsageError, nearest
from edg.core.files import LOCK_TIMEOUT, lock_folder, remove_leftovers
from edg.core.process import stopping
from edg.core.written import is_written
from edg.systems.base import Trainer, Training

SKIPPED = "skipped.jsonl"
MOST_CLIPS = 10**7  # of the sprites world, drawn into memory


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "config", type=as_path, metavar="CONFIG", help="a YAML file, e.g. configs/train/sprites.yaml"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="settings to change, dotted: train.lr=1e-5"
    )
    parser.add_argument("--stages", metavar="NAME,...", help="only these stages of the file")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="(auto)")
    parser.add_argument("--threads", type=whole(0, 4096), default=0, help="CPU threads (all cores)")


def train(args) -> int:
    """Run the stages that are not finished; prints one line for each."""
    runs = read_runs(args.config, args.overrides, args.stages.split(",") if args.stages else None)
    check_starts(runs)
    for run in runs:
        data_of(run)
    import torch

    trainer = systems.get().part("train")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    with world(device) as here:
        fix_threads(args.threads or max(1, usable_cores() // here.size))
        if device == "cpu":
            keep_memory()
        for run in runs:
            stopping.check()
            if here.first(lambda run=run: trainer.is_made(run, here)):
                said = "is there already" + here.first(lambda run=run: changed(run, trainer))
            else:
                with ExitStack() as stack:
                    here.first(lambda run=run, stack=stack: hold(run, stack))
                    trainer.train_run(run, source(run), here, device)
                said = "done" + skipped(run)
            if here.is_first:
                print(f"{run.name}: {run.result} {said}", flush=True)
    return 0


def changed(run: Training, trainer: Trainer) -> str:
    """`; the data changed since`, or why that cannot be known, or nothing. What is drawn does not change."""
    if run.data.get("kind") == "sprites":
        return ""
    try:
        why = trainer.made_of_other_data(run, source(run))
    except EdgError as error:
        return f"; its data cannot be compared with what it was trained on: {error}"
    return f"; {why} since it was trained: train again with another out=FOLDER" if why else ""


def check_starts(runs: list[Training]) -> None:
    """Raise BadFileError, before anything is trained, for an init or vae that is not there."""
    made: dict[str, str] = {}
    for run in runs:
        for key, path in (("init", run.init), ("vae", run.vae)):
            if path is not None and path not in made and not Path(path).exists():
                raise BadFileError(
                    f"the {key} of {run.name} is {path!r}, which does not exist",
                    expected="a file, or the name of a stage before it",
                    fix=nearest(path, made.values()),
                )
        made[str(run.result)] = run.name


def hold(run: Training, stack: ExitStack) -> None:
    """Have the run's folder to ourselves until the stack closes; leftovers go from it, and from where the
    result is written. Raises MachineError."""
    stack.enter_context(lock_folder(run.folder, LOCK_TIMEOUT))
    remove_leftovers(run.result.parent)


def skipped(run: Training) -> str:
    """`; skipped videos: 3, see FILE`, or nothing."""
    from edg.data.clips import Skipped

    file = run.folder / SKIPPED
    count = len(Skipped(file).entries())
    return f"; skipped videos: {count}, see {file}" if count else ""


def read_runs(path: str | Path, overrides: list[str], only: list[str] | None = None) -> list[Training]:
    """The file's runs in order. Raises UsageError for unknown keys and stages, BadFileError for the file."""
    settings = systems.get().part("train_config")
    values = config.read_yaml(path, overrides)
    stages = values.pop("stages", None)
    if stages is None and only:
        raise UsageError(f"{path} has no stages", fix="leave --stages out")
    if stages is None:
        named = {"name": Path(path).stem, **values}
        return [_settled(config.build(settings, named, str(path), overrides))]
    _check_stages(stages, path)
    for name in only or ():
        if name not in stages:
            raise UsageError(
                f"{path} has no stage {name!r}", expected=", ".join(stages), fix=nearest(name, stages)
            )
    runs = []
    for name, own in stages.items():
        merged = {key: over(values.get(key), value) for key, value in (own or {}).items()}
        merged = {**values, **merged, "name": name}
        for text in overrides:
            key = text.partition("=")[0].strip()
            if _at(values, key) != _at(merged, key):
                given = f"{text}: the stages of {path} set {key} themselves"
                raise UsageError(given, fix=f"stages.NAME.{text}")
        run = _settled(config.build(settings, merged, f"stages.{name}"))
        earlier = {key: value for key, value in (("init", run.init), ("vae", run.vae)) if value in stages}
        runs.append(replace(run, **{k: str(run.out / f"{v}.safetensors") for k, v in earlier.items()}))
    return [run for run in runs if not only or run.name in only]


def _settled(run: Training) -> Training:
    """The run with its data's settings as their kind reads them, where YAML took a text for a number: what is
    recorded is what was meant. What is wrong with them is told by `source`."""
    if not any(map(is_written, run.data.values())) or run.data.get("kind") not in SOURCES:
        return run
    read = config.build(SOURCES[run.data["kind"]][0], run.data, "data")
    meant = {key: getattr(read, key) if is_written(value) else value for key, value in run.data.items()}
    return replace(run, data=config.to_dict(meant))


def _check_stages(stages: Any, path: str | Path) -> None:
    if not isinstance(stages, Mapping) or not stages:
        raise UsageError(f"the stages of {path} are {stages!r}", expected="stages: {name: {settings}}")
    for name, own in stages.items():
        if not isinstance(name, str) or not isinstance({} if own is None else own, Mapping):
            raise UsageError(f"stages.{name} is {own!r}", expected="a name, and a mapping of settings")


def over(common: Any, own: Any) -> Any:
    """A stage's setting over the common one: mappings are merged, key by key, unless their `kind` differs."""
    both = isinstance(common, Mapping) and isinstance(own, Mapping)
    if not both or own.get("kind", common.get("kind")) != common.get("kind"):
        return own
    return {**common, **{key: over(common.get(key), value) for key, value in own.items()}}


def _at(values: Any, key: str) -> Any:
    """The value of a dotted key, None where there is none."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


# ---- data --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sprites:
    """Clips (a split of sprites.world.SPEEDS) or single frames ("stills") of the sprites world, `count` of
    them, drawn from the run's seed. focus: weight of the error where the shape is (or passes)."""

    kind: str
    split: Literal["base", "tuned", "tuned_equal", "tuned_fast", "stills"]
    count: int
    focus: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST_CLIPS:
            raise UsageError(f"data.count is {self.count}", expected=f"1 to {MOST_CLIPS:,}")
        if not 0 < self.focus <= 1e6:
            raise UsageError(f"data.focus is {self.focus}", expected="above 0, at most 1e6")


@dataclass(frozen=True)
class Cache:
    """A folder that `edg encode` wrote. require_captions: a clip without one is an error."""

    kind: str
    path: Path
    require_captions: bool = False


@dataclass(frozen=True)
class Videos:
    """A folder of videos with captions, or a csv whose files lie under `root`; columns: see sources.read_csv.
    require_captions: a video without one is an error. The rest as in data.transforms.ClipSpec; frames,
    height, width: the spec's where not given."""

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


def source(run: Training) -> Any:
    """The run's data as train.fit wants it. Raises UsageError for an unknown kind or key."""
    settings = data_of(run)
    return SOURCES[settings.kind][1](run, settings)


def data_of(run: Training) -> Any:
    """The settings of a run's data, checked. Raises UsageError."""
    kind = run.data.get("kind")
    if not isinstance(kind, str) or kind not in SOURCES:
        raise UsageError(
            f"data.kind is {kind!r}", expected=", ".join(SOURCES), fix=nearest(str(kind), SOURCES)
        )
    if (run.kind == "autoencoder") != (run.data.get("split") == "stills"):
        raise UsageError(
            f"{run.name}: kind {run.kind} with data {run.data}",
            expected="single frames (kind: sprites, split: stills) for an autoencoder, clips for a denoiser",
        )
    return config.build(SOURCES[kind][0], run.data, "data")


def _sprites(run: Training, data: Sprites) -> Any:
    import torch

    from edg.data.batches import Table
    from edg.sprites.data import clip_tensors, latent_weight, stills
    from edg.sprites.world import FPS, clips

    if data.split == "stills":
        return Table(stills(run.seed, data.count, data.focus))
    drawn = clip_tensors(list(clips(data.split, run.seed, data.count)), data.split)
    spec = systems.find(run.spec)[1]
    weight = latent_weight(drawn.pop("cover"), spec.latent_factor, data.focus)
    return Table({**drawn, "weight": weight, "fps": torch.full((data.count,), FPS)})


def _cache(run: Training, data: Cache) -> Any:
    from edg.data.captions import need_captions

    clips = systems.get().part("train").cached(run, data.path)
    if data.require_captions:
        need_captions(clips.videos)
    return clips


def _videos(run: Training, data: Videos) -> Any:
    from edg.data.clips import ClipDataset, Skipped, read_videos

    spec = systems.find(run.spec)[1]
    clip = spec.clip(
        data.frames,
        data.height,
        data.width,
        stride=data.stride,
        fixed_fps=data.fixed_fps,
        random_start=data.random_start,
        fps_max=data.fps_max,
        flip=data.flip,
    )
    videos = read_videos(data.root, data.csv, data.columns, data.require_captions)
    return ClipDataset(videos, clip, run.seed, Skipped(run.folder / SKIPPED))


SOURCES: dict[str, tuple[type, Callable[[Any, Any], Any]]] = {
    "videos": (Videos, _videos),
    "cache": (Cache, _cache),
    "sprites": (Sprites, _sprites),
}
