"""Match the inputs of a merge by name, and replace missing tensors of optional groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from edg.core.errors import UsageError
from edg.weights import keys
from edg.weights.family import Family
from edg.weights.store import Weights, refuse_lora
from edg.weights.tensors import StoredTensor, TensorInfo


@dataclass(frozen=True)
class Aligned:
    """One tensor of the result: its source in each input, the base first, and whether the base has it."""

    name: str
    sources: Mapping[str, StoredTensor]
    in_base: bool

    @property
    def info(self) -> TensorInfo:
        return next(iter(self.sources.values())).info


class IdentityProjection(StoredTensor):
    """The identity projection: on concat(x, context) its weight is [I | 0], its bias 0."""

    def __init__(self, info: TensorInfo):
        self.info = info

    def _read(self, start, out):
        out.zero_()
        if len(self.info.shape) == 2:
            rows, columns = self.info.shape
            for row in range(start // columns, min(rows, columns, -(-(start + out.numel()) // columns))):
                if start <= row * columns + row < start + out.numel():
                    out[row * columns + row - start] = 1


def align(
    inputs: Mapping[str, Weights], missing: str, family: Family
) -> tuple[list[Aligned], list[str], list[str]]:
    """(tensors in the order of the base file, names left out, notes).

    missing: 'identity' | 'error' | 'drop' (`recipe.Recipe`); family: of all inputs. Raises UsageError for
    differing names or shapes, BadFileError for a LoRA beside a model.
    """
    base_name, base = next(iter(inputs.items()))
    if not all(keys.is_lora(weights) for weights in inputs.values()):  # two of them are merged by name
        for weights in inputs.values():
            refuse_lora(weights)
    names = list(dict.fromkeys(name for weights in inputs.values() for name in weights))
    without = {
        group: {n for n, weights in inputs.items() if not any(map(belongs, weights))}
        for group, belongs in family.optional.items()
    }
    aligned, absent, unmatched, replaced = [], [], [], Counter()
    for name in names:
        lacking = [n for n, weights in inputs.items() if name not in weights]
        if lacking and missing == "drop":
            absent.append(name)
            continue
        group = family.component(name)
        if lacking and not (missing == "identity" and without.get(group, set()).issuperset(lacking)):
            unmatched.append(name)
            continue
        donor = next(weights.tensors[name] for weights in inputs.values() if name in weights)
        stand_in = IdentityProjection(donor.info) if family.identities(name) else donor
        replaced[group] += bool(lacking)
        sources = {n: weights.tensors.get(name, stand_in) for n, weights in inputs.items()}
        aligned.append(Aligned(name, sources, name in base))
    if unmatched:
        raise _names_differ(inputs, unmatched, family)
    _check_shapes(inputs, aligned)
    if not aligned:
        raise UsageError(
            f"{' and '.join(inputs)} have no tensor name in common", expected="files of the same model"
        )
    notes = [f"{len(absent)} tensors that are not in every input are left out"] if absent else []
    notes += [
        f"{', '.join(sorted(without[group]))}: no {group}; one that has no effect is used ({count} tensors)"
        for group, count in replaced.items()
        if count
    ]
    aligned.sort(key=lambda a: (a.sources[base_name].where[0] == "", a.sources[base_name].where))
    return aligned, absent, notes


def _names_differ(inputs: Mapping[str, Weights], unmatched: list[str], family: Family) -> UsageError:
    parts = []
    for name, weights in inputs.items():
        only = [n for n in unmatched if n in weights]
        if only:
            more = f" and {len(only) - 10} more" if len(only) > 10 else ""
            parts.append(
                f"{len(only)} in {name}, but not in every input: " + ", ".join(map(repr, only[:10])) + more
            )
    hint = ""
    tables = list(inputs.values())
    for other in tables[1:]:
        first = [n for n in unmatched if n in tables[0]]
        second = [n for n in unmatched if n in other]
        hint = hint or keys.prefix_hint(first, second)
    groups = {family.component(name) for name in unmatched}
    fix = "set missing: drop to leave them out"
    if groups <= family.optional.keys():
        neutral = " and ".join(sorted(groups))
        fix = f"set missing: identity to use a neutral {neutral}, or drop to leave them out"
    given = f"{' and '.join(str(w.path) for w in tables)} have different tensor names: " + "; ".join(parts)
    return UsageError(given, expected="the same names", fix=hint or fix)


def _check_shapes(inputs: Mapping[str, Weights], aligned: list[Aligned]) -> None:
    wrong = []
    for tensor in aligned:
        shapes = {n: source.info.shape for n, source in tensor.sources.items()}
        if len(set(shapes.values())) > 1:
            wrong.append(f"{tensor.name}: " + " vs ".join(f"{tuple(s)} in {n}" for n, s in shapes.items()))
    if wrong:
        more = f" and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise UsageError(
            f"{len(wrong)} shapes differ: " + "; ".join(wrong[:10]) + more,
            expected="files of the same model",
            fix="check that they belong to the same model family and resolution",
        )
