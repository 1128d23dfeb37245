"""`edg sample`: flags -> requests, parameter sets and a system -> the runner."""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from edg.core.config import to_dict
from edg.core.dist import World, world, world_from_environment
from edg.core.errors import BadFileError, UsageError
from edg.core.files import PATIENCE, ensure_writable
from edg.core.formats import parse_formats
from edg.core.hashing import cached_sha256, hash_value
from edg.core.log import say
from edg.core.shipped import shipped
from edg.core.video import read_image
from edg.data.prompts import Pair, passed_over, read_folder
from edg.runner import flags
from edg.runner.memory_report import in_a_line, is_resident, plan_of
from edg.runner.sample import Run, run
from edg.systems.base import Request, Spec, System
from edg.systems.edg import merged_sets
from edg.weights.tensors import FLOATS


def sample(args: argparse.Namespace, keep: dict[str, Any] | None = None) -> int:
    """Run `edg sample`; returns the exit code. Raises EdgError.

    keep: the network of the call before, used again where it is the same, and replaced where not.
    """
    here = world_from_environment()
    sleep_when_idle(here)
    for line in flags.remarks(args) if here.is_first else ():
        say(line)
    ready = prepare(args, here)
    with world(ready.device.type) as here:
        identities, origins = here.first(lambda: identify_sets(ready.sets, ready.outdir))
        if not here.is_first:
            check_bases(ready.sets)
        job = ready.run(identities, here, origins)
        run(job, ready.system, lambda: ready.load(identities, keep, here.is_first), here)
    return 0


@dataclass(frozen=True)
class Prepared:
    """What flags stand for, checked, before anything large is read. note: for the records."""

    args: argparse.Namespace
    system: System
    spec: Spec
    sets: dict[str, Any]
    paths: Mapping[str, Path]
    requests: list[Request]
    device: Any
    dtype: Any
    note: Mapping[str, Any]

    @property
    def outdir(self) -> Path:
        return Path(self.args.savedir) / str(self.args.M)

    def load(self, identities: Any, keep: dict[str, Any] | None = None, aloud: bool = True) -> Any:
        """The network; the one in `keep` where it is the same, which it replaces where not."""
        from edg.core.device import dtype_name, need_memory

        args, spec = self.args, self.spec
        how = {"resident": is_resident(args), "low_memory": args.low_memory, "compiled": args.compile}
        device, dtype = str(self.device), dtype_name(self.dtype)
        same = hash_value([identities, to_dict(spec), device, dtype, args.bs, how])
        if keep is not None and same in keep:
            return keep[same]
        if keep is not None:
            keep.clear()
        expected = plan_of(args, self.system, spec, self.sets, self.device.type, self.requests[0])
        need_memory(expected.peak, self.device, "parameters and activations")
        if aloud:
            say(in_a_line(expected, self.device))
        model = self.system.load(
            spec, self.sets, device=self.device, dtype=self.dtype, batch_size=args.bs, **how
        )
        if keep is not None:
            keep[same] = model
        return model

    def run(self, identities: Any, here: World, origins: Mapping[str, Any]) -> Run:
        """The job for the runner. origins: of the sets (`origin`), a note for the records."""
        from edg import systems
        from edg.core.device import dtype_name

        args, spec = self.args, self.spec
        return Run(
            requests=self.requests,
            outdir=self.outdir,
            shared={
                "system": systems.DEFAULT,
                "model": {"name": spec.name, "spec_sha256": hash_value(to_dict(spec))},
                "sets": identities,
                "dtype": dtype_name(self.dtype),
                "options": options_settings(self.requests[0].options),
            },
            notes=notes(args, self.paths, spec, str(self.device), here)
            | {"set_origins": dict(origins)}
            | dict(self.note),
            former=lambda record: former_settings(self.sets, record),
            fps=args.fps,
            crf=args.crf,
            formats=parse_formats(args.format),
            chunk=args.chunk,
            overwrite=args.overwrite,
            patience=PATIENCE,
            preview=args.preview or args.preview_decoder is not None,
            preview_decoder=preview_decoder(args),
        )


def prepare(
    args: argparse.Namespace, here: World, pairs: Sequence[Pair] | None = None, aloud: bool | None = None
) -> Prepared:
    """Flags -> what is to be made and with what. pairs: None for those of the prompt folder. aloud: whether
    notes are told (by rank 0 where None). Raises EdgError."""
    from edg import systems
    from edg.core.device import choose, dtype_name, fix_threads, keep_memory, multiplies, usable_cores

    aloud = here.is_first if aloud is None else aloud
    system = systems.get(systems.DEFAULT)
    if args.config:
        find_spec(system, args.config, {})  # a misspelt model is told before its missing files
    inside = None
    if merged_sets.asked(args):
        inside = merged_sets.choose(
            args, lambda paths: find_spec(system, args.config, paths, tables_of(args, paths))
        )
    paths = inside.paths if inside else flags.set_paths(args)
    spec = find_spec(system, args.config, paths, tables_of(args, paths))
    options = flags.sampling_options(args, system, spec, len(inside.recipe.outputs if inside else paths))
    flags.check_numbers(args, spec)
    if pairs is None:
        prompt_dir = args.prompt_dir or default_prompts(spec.name)
        pairs = read_folder(prompt_dir, ends=args.interp, follow=args.follow_links)
        if aloud and (line := passed_over(prompt_dir, pairs)):
            say(line)
    device, dtype = choose(args.device, args.dtype, here.local_rank)
    fix_threads(args.threads or usable_cores())
    if device.type == "cpu":
        keep_memory()
        if aloud and not multiplies(dtype):
            name = dtype_name(dtype)
            say(f"torch knows of no {name} products of this processor: likely slower than --dtype fp32")
    tables = {} if inside else tables_of(args, paths)
    sets = merged_sets.open_sets(inside, args, spec, aloud) if inside else open_sets(paths, aloud, tables)
    requests = [
        request_for(args, spec, options, pair, f"{pair.name}_sample{i}")
        for pair in pairs
        for i in range(args.n_samples)
    ]
    for line in system.check(spec, sets, requests, preview_decoder(args)) if aloud else ():
        say(f"warning: {line}")
    args.bs = min(args.bs, args.chunk, len(requests))
    note = inside.note if inside else {}
    return Prepared(args, system, spec, sets, paths, requests, device, dtype, note)


def check(args: argparse.Namespace) -> None:
    """Raise EdgError for flags that are wrong whatever is in the files: all of them where --config or the
    embedded weights tell the model, else those that need none."""
    from edg import systems

    system, inside = systems.get(systems.DEFAULT), merged_sets.asked(args)
    model = args.config or ("sprites" if inside and not (args.base or args.tuned) else None)
    spec = find_spec(system, model, {}) if model else None
    sets = merged_sets.check(args, spec and spec.name) if inside else len(args.sets or "12")
    if spec:
        flags.sampling_options(args, system, spec, sets)
        flags.check_numbers(args, spec)
        flags.frame_size(args, spec)
        if args.preview_decoder is not None:
            system.check(spec, {}, [], preview_decoder(args))


def preview_decoder(args: argparse.Namespace) -> str | None:
    """The file that --preview_decoder names. Raises UsageError for one that is to be fetched first."""
    from edg.systems.edg.files import FILES
    from edg.sprites import WEIGHTS

    name, taesd = args.preview_decoder, FILES["taesd"].path
    if name == "taesd" and not taesd.exists():
        raise UsageError(f"--preview_decoder taesd, and no {taesd}", fix="edg fetch taesd")
    if name == "":
        raise UsageError("--preview_decoder is empty", expected="sprites, taesd or a file")
    known = {"sprites": str(WEIGHTS / "tiny_decoder.safetensors"), "taesd": str(taesd)}
    return known.get(name, name)


def request_for(args: argparse.Namespace, spec: Spec, options: Any, pair: Pair, name: str) -> Request:
    """The request of a clip as the flags say. Raises UsageError."""

    def image_size() -> tuple[int, int]:
        try:
            return read_image(pair.image).shape[:2]
        except BadFileError:  # the clip will fail with this reason, the others will not
            return spec.height, spec.width

    height, width = flags.frame_size(args, spec, image_size)
    frames = flags.frame_count(args, spec)
    return Request(name, pair.prompt, pair.image, args.seed, frames, height, width, options, pair.last)


def sleep_when_idle(here: World) -> None:
    """Processes that share cores: idle threads sleep instead of spinning (read when torch is loaded)."""
    if here.size > 1:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


# ---- inputs ------------------------------------------------------------------------------------------------


def tables_of(args: argparse.Namespace, paths: Mapping[str, Path]) -> dict[str, str]:
    """Which of several tables in its file each parameter set is, by --table. Raises UsageError."""
    from edg.weights.tables import by_input

    return by_input(args.table or (), paths)


def find_spec(
    system: System, name: str | None, paths: Mapping[str, Path], tables: Mapping[str, str] | None = None
) -> Spec:
    """The model: as given, or told by the first parameter set's names and shapes. Raises UsageError."""
    from edg.weights.store import open_weights, refuse_lora

    if name:
        return system.spec(_published_name(name))
    first_name, first = next(iter(paths.items()))
    weights = open_weights(first, check_base=False, table=(tables or {}).get(first_name, ""))
    refuse_lora(weights)
    found, why = system.identify(weights)
    if found is None:
        raise UsageError(
            f"cannot tell which model {first} is ({why})", expected="--config with a model or a YAML file"
        )
    return system.spec(found)


def _published_name(name: str) -> str:
    """The published configuration files by name, so that the release's command line works without them."""
    match = re.fullmatch(r"inference_(256|512|1024)_v1\.0\.ya?ml", Path(name).name)
    return f"dynamicrafter-{match[1]}" if match and not Path(name).exists() else name


def open_sets(paths: Mapping[str, Path], aloud: bool, tables: Mapping[str, str]) -> dict[str, Any]:
    """The parameter sets, opened (not read, not checked); aloud: with what is worth saying about them;
    tables: name -> which of several tables in its file."""
    from edg.weights.store import open_weights, refuse_lora

    sets = {
        name: open_weights(path, check_base=False, table=tables.get(name, "")) for name, path in paths.items()
    }
    for weights in sets.values():
        refuse_lora(weights)
    for name, weights in sets.items():
        for note in weights.notes if aloud else ():
            say(f"{name}: {note}")
    return sets


def identify_sets(sets: dict[str, Any], outdir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rank 0: every set's identity, which may take reading it all, so first that its clips can be written;
    and every set's origin."""
    ensure_writable(outdir)
    check_bases(sets)
    return identified(sets)


def identified(sets: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(identities, origins) of parameter sets by name."""
    identities = {name: identity(weights) for name, weights in sets.items()}
    return identities, {name: found for name, weights in sets.items() if (found := origin(weights))}


def check_bases(sets: dict[str, Any]) -> None:
    """Open again, checking the base's hash, every set that holds only what a merge changed.

    The hash is remembered, so that the ranks after the first do not read the base for it.
    """
    from edg.weights.store import open_weights

    for name, weights in sets.items():
        if weights.provenance.get("base"):
            sets[name] = open_weights(weights.path, table=weights.table)


def default_prompts(model: str) -> Path:
    """prompts/sprites for the embedded model, else prompts/scenes: here or beside the package."""
    folder = Path("prompts") / ("sprites" if model == "sprites" else "scenes")
    home = shipped(*folder.parts)
    return folder if folder.exists() or not home.exists() else home


# ---- what goes into the record -----------------------------------------------------------------------------


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


def options_settings(options: Any) -> dict[str, Any]:
    """The options as settings: a file counts by its content, and what came later only where it is used, so
    that folders made before it go on."""
    kept = replace(options, analytic_init=None, analytic_init_sha256=None)
    unused = {f.name for f in fields(kept) if "later" in f.metadata and getattr(kept, f.name) == f.default}
    settings = to_dict(kept)
    settings = {name: value for name, value in settings.items() if name not in unused}
    if options.analytic_init is not None:
        known = options.analytic_init_sha256
        settings["analytic_init"] = known or cached_sha256(options.analytic_init)
    return settings


def notes(
    args: argparse.Namespace, paths: Mapping[str, Path], spec: Spec, device: str, here: World
) -> dict[str, Any]:
    import torch

    return {
        "command": ["edg", *sys.argv[1:]],
        "set_paths": {name: str(path) for name, path in paths.items()},
        **({"set_tables": tables_of(args, paths)} if args.table else {}),
        "analytic_init_path": args.analytic_init_path,
        "spec": to_dict(spec),
        "device": device,
        "threads": torch.get_num_threads(),
        "batch_size": args.bs,
        "low_memory": args.low_memory,
        "compiled": args.compile,
        "world_size": here.size,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    import edg

    found = {"edg": edg.__version__, "python": platform.python_version()}
    for name in ("torch", "numpy", "open_clip_torch", "pillow", "av"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
