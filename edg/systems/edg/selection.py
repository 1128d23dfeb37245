"""Selection of a model, its parameter sets and the options of its clips, by the options that a user gave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from edg.core.errors import UsageError, require
from edg.core.files import checkpoints
from edg.core.hashing import cached_sha256
from edg.core.options import declared
from edg.networks.latent_video.identify import identify
from edg.networks.latent_video.models import load_spec
from edg.networks.latent_video.spec import ModelSpec
from edg.systems.base import Inputs, Selection, WeightFiles
from edg.systems.edg import merged_sets
from edg.systems.edg.files import decoder_file
from edg.systems.edg.options import SamplingOptions
from edg.systems.edg.preview import read_tiny_decoder

Given = Mapping[str, Any]
Open = Callable[[Callable[[str], None]], dict[str, Any]]


def select(spec: ModelSpec | None, weights: WeightFiles, given: Given) -> Selection:
    """The model (found by the first parameter set where spec is None), its parameter sets and its options.

    Reads names and shapes only. Raises UsageError for options that contradict each other.
    """
    typed = SamplingOptions(**given)
    if merged_sets.is_asked(given):
        merging = merged_sets.choose(typed, given, weights, partial(_spec_of, spec, weights))
        settled = partial(settle, merging.spec, count=len(merging.recipe.outputs))
        options = settled(merging.given)
        chosen = Selection(
            merging.spec, merging.paths, options, partial(merged_sets.open_sets, merging),
            notes=merging.notes, remarks=partial(merged_sets.remarks, merging, settled),
        )  # fmt: skip
    else:
        paths = set_paths(typed, weights.files)
        spec, tables = _spec_of(spec, weights, paths), tables_of(weights, paths)
        options = settle(spec, given, len(paths))
        chosen = Selection(spec, paths, options, partial(open_sets, paths, tables), tables=tables)
    inputs = Inputs(image="required", last_image="required" if options.interp else "no")
    opened = partial(_open, chosen.open, _remarks(given))
    preview = options.preview_decoder is not None
    return replace(chosen, open=opened, inputs=inputs, together=options.blend == "soft", preview=preview)


def _remarks(given: Given) -> list[str]:
    """Notes on the given options."""
    scale = given.get("image_guidance_scale")
    if scale is None or "multiple_cond_cfg" in given:
        return []
    return [f"--cfg_img {scale:g} turns image guidance on, as --multiple_cond_cfg does"]


def _open(opened: Open, remarks: Sequence[str], note: Callable[[str], None]) -> dict[str, Any]:
    for line in remarks:
        note(line)
    return opened(note)


def check_options(spec: ModelSpec | None, weights: WeightFiles, given: Given) -> ModelSpec | None:
    """Raise UsageError for options that are wrong whatever is in the files; the model where it is known.

    No weights are opened; where the model is not known, only what needs none is checked.
    """
    typed = SamplingOptions(**given)
    if merged_sets.is_asked(given):
        if spec is None and not (typed.base or typed.tuned):
            spec = load_spec("sprites")
        count = merged_sets.check(typed, given, weights, spec and spec.name)
    else:
        count = len(weights.files or "12")
    if spec is not None:
        options = settle(spec, given, count)
        if options.preview_decoder is not None:
            read_tiny_decoder(options.preview_decoder, spec)
    return spec


def plan_options(
    spec: ModelSpec, weights: WeightFiles, given: Given
) -> tuple[SamplingOptions, Sequence[str], bool]:
    """(options, names of the parameter sets, all needed at once) of a run that is only estimated."""
    roles = tuple(weights.files or ("dyn", "con"))
    options = settle(spec, given, len(roles))
    return options, roles, options.blend == "soft"


def settle(spec: ModelSpec, given: Given, count: int) -> SamplingOptions:
    """The options of clips of a model with `count` parameter sets. Raises UsageError."""
    typed = SamplingOptions(**given)
    pixels = {name for name, field in declared(SamplingOptions).items() if field.option.pixels}
    fit = _fit(typed)
    base = SamplingOptions(perframe_ae=spec.perframe_ae)
    options = replace(
        base.as_released() if typed.released else base,
        **{name: value for name, value in given.items() if name in pixels},
    )
    noise = _initial_noise(typed)
    options = replace(
        options,
        switch_at=_switch_at(typed, given, count),
        image_guidance_scale=_image_guidance(typed, given),
        crop=fit == "crop",
        pad=fit == "pad",
        analytic_init=noise,
        analytic_init_sha256=noise and cached_sha256(noise),
        preview_decoder=decoder_file(typed.preview_decoder),
    )
    options.check()
    return options


def _fit(typed: SamplingOptions) -> str:
    require(
        not typed.img_crop or typed.fit in (None, "crop"), f"--img_crop with --fit {typed.fit}", "one of them"
    )
    return typed.fit or ("crop" if typed.img_crop else "stretch")


def _image_guidance(typed: SamplingOptions, given: Given) -> float | None:
    scale = typed.image_guidance_scale
    require(
        scale is None or given.get("multiple_cond_cfg") is not False,
        "--cfg_img with --multiple_cond_cfg off", "one or the other",
    )  # fmt: skip
    return typed.guidance_scale if scale is None and typed.multiple_cond_cfg else scale


def _switch_at(typed: SamplingOptions, given: Given, count: int) -> tuple[int, ...]:
    named = [f"--{name}" for name in ("T", "switch_at") if name in given]
    require(len(named) < 2, "both --T and --switch_at", "one of them")
    soft = typed.blend == "soft"
    require(not soft or count == 2, f"--blend soft with {count} parameter sets", "exactly two sets")
    if named:
        require(not soft, f"{named[0]} with --blend soft, which has no switch", "one or the other")
        require(count > 1, f"{named[0]} with one parameter set", "at least two sets to switch between")
    if "switch_at" not in given and count <= 2:
        points = () if count == 1 else (500 if typed.T is None else typed.T,)
    else:
        points = tuple(given.get("switch_at", ()))
    require(
        len(points) == count - 1,
        f"{count} parameter sets and {len(points)} switch timesteps", f"--switch_at with {count - 1} values",
    )  # fmt: skip
    return points


def _initial_noise(typed: SamplingOptions) -> str | None:
    if not typed.whether_analytic_init:
        return None
    path = typed.analytic_init or checkpoints() / "dynamicrafter_analytic_init/initial_noise_512.pt"
    require(
        Path(path).exists(),
        f"no initial noise at {path}", "a file", "run edg fetch analytic-init, or give --analytic_init_path",
    )  # fmt: skip
    return str(path)


# ---- parameter sets ----------------------------------------------------------------------------------------


def set_paths(typed: SamplingOptions, named: Mapping[str, Path]) -> dict[str, Path]:
    """Parameter sets by name, in their order of use. Raises UsageError."""
    dyn, con = typed.dynamic_path, typed.consistency_path
    if named:
        require(not (dyn or con), "--sets together with --dynamic_path or --consistency_path", "one of them")
        return dict(named)
    if bool(dyn) != bool(con):
        alone = "--dynamic_path" if dyn else "--consistency_path"
        raise UsageError(f"{alone} alone", expected="both, or one set as --sets NAME=FILE")
    if dyn and con:
        return {"dyn": Path(dyn), "con": Path(con)}
    return {name: _merged(name) for name in ("dyn", "con")}


def _merged(name: str) -> Path:
    folder = checkpoints() / "merge"
    for suffix in (".pt", ".safetensors"):
        if (path := folder / (name + suffix)).exists():
            return path
    raise UsageError(
        f"no {name}.pt under {folder}",
        expected="--dynamic_path and --consistency_path",
        fix="make them with run_merge.py, or run `bash run.sh`",
    )


def tables_of(weights: WeightFiles, paths: Mapping[str, Path]) -> dict[str, str]:
    """The table that each parameter set is read from, of several in its file. Raises UsageError."""
    from edg.weights.tables import by_input

    return by_input(weights.tables, paths)


def _spec_of(spec: ModelSpec | None, weights: WeightFiles, paths: Mapping[str, Path]) -> ModelSpec:
    """The given model, else the one identified by the first parameter set's names and shapes."""
    from edg.networks import open_weights
    from edg.weights.store import refuse_lora

    if spec is not None:
        return spec
    name, first = next(iter(paths.items()))
    opened = open_weights(first, check_base=False, table=tables_of(weights, paths).get(name, ""))
    refuse_lora(opened)
    found, why = identify(opened)
    if found is None:
        raise UsageError(
            f"cannot tell which model {first} is ({why})", expected="--config with a model or a YAML file"
        )
    return load_spec(found)


def open_sets(
    paths: Mapping[str, Path], tables: Mapping[str, str], note: Callable[[str], None]
) -> dict[str, Any]:
    """The parameter sets, opened lazily. note: called with lines worth a note."""
    from edg.networks import open_weights
    from edg.weights.store import refuse_lora

    sets = {
        name: open_weights(path, check_base=False, table=tables.get(name, "")) for name, path in paths.items()
    }
    for weights in sets.values():
        refuse_lora(weights)
    for name, weights in sets.items():
        for line in weights.notes:
            note(f"{name}: {line}")
    return sets
