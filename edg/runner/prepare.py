"""From settings to a job: model, parameters, requests and device, checked before anything large is read."""

from __future__ import annotations

import math
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from edg import systems
from edg.core import options
from edg.core.config import to_dict
from edg.core.dist import World
from edg.core.errors import BadFileError, UsageError, require
from edg.core.files import LOCK_TIMEOUT, ensure_writable
from edg.core.formats import check_speed, parse_formats
from edg.core.hashing import cached_sha256, hash_value
from edg.core.log import log
from edg.core.shipped import shipped
from edg.core.video import read_image
from edg.data.prompts import Pair, passed_over, read_prompt_folder
from edg.runner.clip_folder import ClipFolder
from edg.runner.config import LONGEST_SIDE, PromptsConfig, SampleConfig, offload_of
from edg.runner.memory_report import one_line
from edg.systems.base import MemoryEstimate, Placement, Request, Selection, Spec, System
from edg.weights.tensors import FLOATS


@dataclass(frozen=True)
class Job:
    """Clips to make, and with what. parameters: by role, opened and not read."""

    config: SampleConfig
    system: System
    selection: Selection
    parameters: dict[str, Any]
    requests: list[Request]
    placement: Placement

    @property
    def spec(self) -> Spec:
        return self.selection.spec

    @property
    def outdir(self) -> Path:
        return self.config.outdir

    def load(
        self,
        identities: Mapping[str, Any],
        keep: dict[str, Any] | None = None,
        note: Callable[[str], None] | None = None,
    ) -> Any:
        """The model; the one in `keep` where it is the same, which it replaces where not. note: called with
        lines worth a note."""
        from edg.core.device import check_memory, dtype_name

        placement = self.placement
        how = [str(placement.device), dtype_name(placement.dtype), placement.batch_size]
        how += [placement.offload, placement.compile]
        same = hash_value([identities, to_dict(self.spec), *how])
        if keep is not None and same in keep:
            return keep[same]
        if keep is not None:
            keep.clear()
        expected = self.estimate()
        if expected is not None:
            check_memory(expected.peak_bytes, placement.device, "parameters and activations")
            if note is not None:
                note(one_line(expected, placement.device))
        model = self.system.part("load")(self.spec, self.parameters, placement)
        if keep is not None:
            keep[same] = model
        return model

    def estimate(self) -> MemoryEstimate | None:
        """Memory of the run, None where the system does not estimate it."""
        if self.system.estimate is None:
            return None
        return self.system.part("estimate")(self.spec, self.parameters, self.requests[0], self.placement)

    def folder(self, identities: Mapping[str, Any], world: World, origins: Mapping[str, Any]) -> ClipFolder:
        """The requests with all that decides or describes their files. origins: of the parameters (`origin`),
        a note for the records."""
        from edg.core.device import dtype_name

        output = self.config.output
        return ClipFolder(
            requests=self.requests,
            outdir=self.outdir,
            shared={
                "system": self.system.name,
                "model": {"name": self.spec.name, "spec_sha256": hash_value(to_dict(self.spec))},
                "sets": identities,
                "dtype": dtype_name(self.placement.dtype),
                "options": options.settings(self.requests[0].options),
            },
            notes=self._notes(world) | {"set_origins": dict(origins)} | dict(self.selection.notes),
            former=lambda record: former_settings(self.parameters, record),
            fps=self.spec.fps if output.fps is None else output.fps,
            crf=output.crf,
            formats=parse_formats(output.format),
            chunk=self.config.placement.chunk,
            overwrite=output.overwrite,
            patience=LOCK_TIMEOUT,
            preview=output.preview or self.selection.preview,
        )

    def _notes(self, world: World) -> dict[str, Any]:
        import torch

        selection, placement = self.selection, self.placement
        tables = {"set_tables": dict(selection.tables)} if self.config.weights.table else {}
        return {
            "command": ["edg", *sys.argv[1:]],
            "set_paths": {name: str(path) for name, path in selection.paths.items()},
            **tables,
            **{f"{name}_path": value for name, value in _file_options(selection.options).items()},
            "spec": to_dict(self.spec),
            "device": str(placement.device),
            "threads": torch.get_num_threads(),
            "batch_size": placement.batch_size,
            "low_memory": placement.offload == "layers",
            "compiled": placement.compile,
            "world_size": world.size,
            "versions": versions(),
        }


def _file_options(chosen: Any) -> dict[str, Any]:
    """The options that name a file and decide pixels, with the path."""
    from edg.core.config import PathText

    fields = options.declared(type(chosen)).values()
    return {f.name: getattr(chosen, f.name) for f in fields if f.kind == PathText and f.option.pixels}


def prepare(
    config: SampleConfig,
    world: World,
    pairs: Sequence[Pair] | None = None,
    note: Callable[[str], None] | None = None,
) -> Job:
    """The job that the settings ask for. pairs: None for those of the prompt folder. note: called with lines
    worth a note (default: rank 0 logs them). Raises EdgError."""
    from edg.core.device import choose, dtype_name, fix_threads, keep_memory, multiplies, usable_cores

    if note is None:
        note = log if world.is_first else lambda text: None
    system, spec, given = chosen_model(config)
    selection = system.part("select")(spec, config.weights.files(), given)
    spec = selection.spec
    check_numbers(config, spec)
    if pairs is None:
        pairs = read_prompts(config.prompts, system, selection, note)
    check_files(pairs, system, selection)
    place = config.placement
    device, dtype = choose(place.device, place.dtype, world.local_rank)
    fix_threads(place.threads or usable_cores())
    if device.type == "cpu":
        keep_memory()
        if not multiplies(dtype):
            name = dtype_name(dtype)
            note(f"this CPU has no {name} matrix products: this is probably slower than --dtype fp32")
    parameters = selection.open(note)
    requests = [
        request_for(config.prompts, spec, selection.options, pair, f"{pair.name}_sample{i}")
        for pair in pairs
        for i in range(config.prompts.n_samples)
    ]
    for line in selection.remarks(requests[0]) if requests else ():
        note(line)
    if system.check is not None:
        for line in system.part("check")(spec, parameters, requests):
            note(f"warning: {line}")
    batch_size = min(place.bs, place.chunk, len(requests))
    placement = Placement(device, dtype, batch_size, offload_of(place, selection.together), place.compile)
    return Job(config, system, selection, parameters, requests, placement)


def chosen_model(config: SampleConfig) -> tuple[System, Spec | None, dict[str, Any]]:
    """(system, model if it is named, given options). Raises UsageError for a misspelt model."""
    model, given = config.model, dict(config.options)
    system, spec = config.system, None
    if model.config is not None:
        system, spec = systems.find(model.config, model.system)
    if config.prompts.size == "auto":
        given = {**system.implied.get("auto_size", {}), **given}
    return system, spec, given


def check(config: SampleConfig) -> None:
    """Raise EdgError for settings that are wrong whatever is in the files: all of them where the model is
    known, else those that need none."""
    system, spec, given = chosen_model(config)
    files = config.weights.files()
    if system.check_options is not None:
        chosen = system.part("check_options")(spec, files, given)
        spec = spec or chosen
    if spec is not None:
        check_numbers(config, spec)
        frame_size(config.prompts, spec)


def read_prompts(
    config: PromptsConfig, system: System, selection: Selection, note: Callable[[str], None]
) -> Sequence[Pair]:
    """The prompts of the folder, with the files that the system wants."""
    inputs = selection.inputs or system.inputs
    folder = here_or_shipped(Path(config.prompt_dir)) if config.prompt_dir else None
    folder = folder or default_prompts(system, selection.spec)
    wants = {"image": inputs.image, "last_image": inputs.last_image, "video": inputs.video}
    pairs = read_prompt_folder(folder, **wants, follow=config.follow_links)
    if line := passed_over(folder, pairs):
        note(line)
    return pairs


def check_files(pairs: Sequence[Pair], system: System, selection: Selection) -> None:
    """Raise UsageError where a pair lacks a file that the system requires, or has one that it does not use.
    A required last image may be missing: the first takes its place."""
    inputs = selection.inputs or system.inputs
    for pair in pairs:
        for name in ("image", "last_image", "video"):
            given, need = getattr(pair, name) is not None, getattr(inputs, name)
            label = name.replace("_", " ")
            enough = given or need != "required" or name == "last_image"
            require(enough, f"{pair.name} has no {label}", f"one, which {system.name} needs")
            require(not given or need != "no", f"{pair.name} with {label}", f"none: {system.name} uses none")


def default_prompts(system: System, spec: Spec) -> Path:
    """The prompts that fit a model: here, or those that come with the package."""
    name = system.part("prompts")(spec.name) if system.prompts is not None else "scenes"
    return here_or_shipped(Path("prompts") / name)


def here_or_shipped(folder: Path) -> Path:
    """The folder, or that of the package where a relative `prompts/...` is not here."""
    known = not folder.is_absolute() and folder.parts[:1] == ("prompts",) and not folder.exists()
    home = shipped(*folder.parts)
    return home if known and home.exists() else folder


def request_for(config: PromptsConfig, spec: Spec, chosen: Any, pair: Pair, name: str) -> Request:
    """The request of a clip. Raises UsageError."""

    def image_size() -> tuple[int, int]:
        with suppress(BadFileError):  # the clip will fail with this reason, the others will not
            if pair.image is not None:
                return read_image(pair.image).shape[:2]
        return spec.height, spec.width

    height, width = frame_size(config, spec, image_size)
    frames = spec.frames if config.video_length is None else config.video_length
    files = {"image": pair.image, "last_image": pair.last_image, "video": pair.video}
    return Request(name, pair.prompt, config.seed, frames, height, width, chosen, **files)


# ---- sizes and numbers -------------------------------------------------------------------------------------


def frame_size(
    config: PromptsConfig, spec: Spec, image: Callable[[], tuple[int, int]] | None = None
) -> tuple[int, int]:
    """Height and width in pixels. image: gives (height, width) of a picture, read for --size auto only.
    Raises UsageError, with the nearest sizes, for others."""
    if config.size is None:
        sizes = config.height or spec.height, config.width or spec.width
    elif config.height is not None or config.width is not None:
        raise UsageError("--size with --height or --width", expected="one of them")
    elif config.size == "auto":
        return bucket(spec, *image()) if image else (spec.height, spec.width)
    else:
        found = re.fullmatch(r"(\d+)x(\d+)", config.size)
        if not found:
            raise UsageError(f"--size {config.size}", expected="auto or HEIGHTxWIDTH, such as 320x512")
        sizes = int(found[1][:9]), int(found[2][:9])
    for name, size in zip(("height", "width"), sizes, strict=True):
        require(size <= LONGEST_SIDE, f"--{name} {size}", f"at most {LONGEST_SIDE}")
    spec.check_size(*sizes)
    return sizes


def bucket(spec: Spec, height: int, width: int) -> tuple[int, int]:
    """The size that the model was made for, or the same turned: the one nearer in shape to an image."""
    sizes = ((spec.height, spec.width), (spec.width, spec.height))
    return min(sizes, key=lambda size: abs(math.log(size[0] / size[1]) - math.log(height / width)))


def check_numbers(config: SampleConfig, spec: Spec) -> None:
    """Raise UsageError for a number that does not fit the model or the formats, and for settings that exclude
    each other."""
    if config.prompts.video_length is not None:
        spec.check_frames(config.prompts.video_length)
    output, place = config.output, config.placement
    fps = spec.fps if output.fps is None else output.fps
    check_speed(parse_formats(output.format), fps, output.crf)
    require(
        not (place.compile and place.low_memory),
        "--compile with --low-memory", "one of them: layers that are moved are not compiled",
    )  # fmt: skip


# ---- parameters --------------------------------------------------------------------------------------------


def identify_parameters(parameters: dict[str, Any], outdir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rank 0: the identity of all parameters, which may take reading them all, so first that clips can be
    written; and their origins."""
    ensure_writable(outdir)
    check_bases(parameters)
    return identified(parameters)


def identified(parameters: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(identities, origins) of parameters by role."""
    identities = {name: identity(weights) for name, weights in parameters.items()}
    return identities, {name: found for name, weights in parameters.items() if (found := origin(weights))}


def check_bases(sets: dict[str, Any]) -> None:
    """Open again, checking the base's hash, every set that holds only what a merge changed.

    The hash is remembered, so that the ranks after the first do not read the base for it.
    """
    from edg.networks import open_weights

    for name, weights in sets.items():
        if weights.provenance.get("base"):
            sets[name] = open_weights(weights.path, table=weights.table)


# ---- identities for the record -----------------------------------------------------------------------------


def identity(weights: Any) -> dict[str, Any]:
    """A parameter set's hash of numbers and dtypes, wherever and however it lies. What made it, its record
    can only claim (`origin`)."""
    from edg.weights.hashing import numbers_sha256

    dtypes = sorted({info.dtype for info in weights.infos().values() if info.dtype in FLOATS})
    return {"numbers_sha256": numbers_sha256(weights), "dtypes": dtypes}


def origin(weights: Any) -> dict[str, Any]:
    """The merge that a set's record names: output, recipe, hashes of the inputs; and what it was exported as.
    {} where none is named. A note beside the identity, and the identity of records by earlier code."""
    from edg.merging.recipe import same_result

    made = weights.provenance
    recipe, inputs = made.get("recipe"), made.get("inputs")
    if not isinstance(recipe, Mapping) or not isinstance(inputs, list):
        return {}
    steps = {key: value for key, value in same_result(recipe).items() if key != "inputs"}  # there are paths
    hashes = {str(item.get("name")): item.get("sha256") for item in inputs if isinstance(item, Mapping)}
    found = {"output": made.get("output"), "recipe": steps, "inputs": hashes}
    return found | ({"exported": made["exported"]} if "exported" in made else {})


def former_settings(sets: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `sets` as earlier code wrote them in this record, where these are honestly the same
    sets; {} otherwise, and for a record in today's form.

    Earlier records hold the hashes of foreign files, which are computed again here, and of merged ones what
    their own record claims. Such a claim counts where the numbers are computed from it (a merge in memory);
    where the file is the one that the clip was made with, untouched since, and no export; or else where
    merging again, of the inputs that it names, gives its numbers. An export with another dtype never does."""
    then = (record.get("settings") or {}).get("sets")
    if not isinstance(then, Mapping) or then.keys() != sets.keys():
        return {}
    if all(isinstance(old, Mapping) and "numbers_sha256" in old for old in then.values()):
        return {}
    found: dict[str, Any] = {}
    for name, weights in sets.items():
        old = then[name] if isinstance(then[name], Mapping) else {}
        if "numbers_sha256" in old:
            found[name] = identity(weights)
        elif "sha256" in old:
            found[name] = {"sha256": [cached_sha256(file.path) for file in weights.files]}
        else:
            found[name] = {key: value for key, value in origin(weights).items() if key != "exported"}
            if found[name] != old or not _is_proven(name, weights, record):
                return {}
    return {"sets": found}


def _is_proven(name: str, weights: Any, record: Mapping[str, Any]) -> bool:
    """True if what a set's own record claims may stand for its numbers, as `former_settings` says."""
    from edg.merging.provenance import is_as_recorded

    if weights.container == "memory":
        return True
    paths = record.get("set_paths")
    try:
        made = datetime.strptime(str(record.get("made_at")), "%Y-%m-%dT%H:%M:%S%z").timestamp()
        then = os.stat(paths[name])
        same = any(os.path.samestat(then, file.stat) for file in weights.files)
        changed = max(max(file.stat.st_mtime, file.stat.st_ctime) for file in weights.files)
    except (OSError, ValueError, LookupError, TypeError):
        same, made, changed = False, 0, 0
    return (same and changed < made and "exported" not in weights.provenance) or is_as_recorded(weights)


def versions() -> dict[str, str]:
    import edg

    found = {"edg": edg.__version__, "python": platform.python_version()}
    for name in ("torch", "numpy", "open_clip_torch", "pillow", "av"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
