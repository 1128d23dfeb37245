"""Names of tensors in the published form, and names near to a misspelt one."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from edg.weights.family import UNKNOWN, Family

#: Parts of names that compile, FSDP, activation checkpointing and their kin put between a module and its
#: parameters: taken off wherever they stand.
WRAPPERS = frozenset(
    [
        "_orig_mod",
        "_forward_module",
        "_original_module",
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "_offload_wrapped_module",
        "_fpw_module",
    ]
)
#: Parts that a model may have of its own: taken off inside a name only where a published name remains. Those
#: have neither a part `module` nor one that begins with an underscore.
LIKE_WRAPPERS = re.compile(r"module|_(\w+_)?(mod|module|model|wrapped|flat|fpw|fsdp|ddp|dp)")
LORA = re.compile(
    r"(^|[._])(lora[ab]?|loha|lokr|dora|glora|lycoris|oft|boft|ia3|vera|hada_w[12]|lokr_w[12])([._]|$)",
    re.IGNORECASE,
)
AVERAGED = {"ema", "swa", "avg", "average", "averaged", "averages", "shadow", "polyak", "teacher"}
MAX_COPIES = 16  # of a model in one table; more are none, and would be compared with every name
WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")


def normalise(names: Iterable[str], family: Family = UNKNOWN) -> tuple[dict[str, str], list[str]]:
    """(published name -> name in the file, notes).

    A common prefix and the wrappers of training frameworks are removed, EMA copies left out, former names
    replaced by the family's. Raises ValueError if two names become one."""
    names, notes = list(names), []
    ema = _averaged(names, family)
    if 0 < len(ema) < len(names):
        names = [n for n in names if n not in ema]
        notes.append(f"{len(ema)} EMA keys ignored")
    prefix = wrapper_prefix(names, family)
    if prefix:
        count = sum(name.startswith(prefix) for name in names)
        notes.append(f"prefix {prefix!r} removed from {'every name' if count == len(names) else count}")
    short = {name: name.removeprefix(prefix) for name in names}
    bare = _without_wrappers(short, family)
    if removed := [part for name in names for part in _parts_less(short[name], bare[name])]:
        count = sum(short[name] != bare[name] for name in names)
        listed = ", ".join(repr(f"{part}.") for part in sorted(set(removed)))
        notes.append(f"{listed} removed from inside {count} names")
    result, renamed = {}, Counter()
    for name in names:
        fixed = bare[name]
        for old, new in family.renames.items():
            renamed[old] += old in fixed
            fixed = fixed.replace(old, new)
        if fixed in result:
            raise ValueError(f"{result[fixed]!r} and {name!r} both become {fixed!r}")
        result[fixed] = name
    notes += [f"{n} keys renamed from {old} to {family.renames[old]}" for old, n in renamed.items() if n]
    return result, notes


def words(key: object) -> set[str]:
    """Lower-case words of a key: 'EMACallback' is {'ema', 'callback'}."""
    return {word.lower() for word in WORD.findall(key[:1000])} if isinstance(key, str) else set()


def _averaged(names: list[str], family: Family) -> set[str]:
    """Names of averaged copies: those of the release (`model_ema.`), which have no dots, and those with such
    a word in front of a published name that is there without it too."""
    bare = {name: without_wrapper_parts(name) for name in names}
    heads = {family.prefix(name) for name in bare.values()} - {None}
    copies = {head for head in heads if words(head) & AVERAGED}
    copies = tuple(copies) if heads - copies and len(copies) <= MAX_COPIES else ()
    return {
        name
        for name, short in bare.items()
        if short.startswith(copies) or (family.prefix(short) is None and "model_ema" in short.split(".")[:-1])
    }


def without_wrapper_parts(name: str) -> str:
    """The name without every part that a training framework may have put into it."""
    return _drop_parts(name, _like_wrapper)


def _without_wrappers(names: Mapping[str, str], family: Family) -> dict[str, str]:
    """Names (values) without wrappers: everything like one is removed where a published name remains,
    certain ones in any case."""
    bare = {name: without_wrapper_parts(short) for name, short in names.items()}
    prefix = wrapper_prefix(list(bare.values()), family) if bare != dict(names) else ""  # before the wrappers
    found = {}
    for name, short in names.items():
        found[name] = bare[name].removeprefix(prefix)
        if family.component(found[name]) == "other":
            found[name] = _drop_parts(short, WRAPPERS.__contains__).removeprefix(prefix)
    return found


def _drop_parts(name: str, is_wrapper: Callable[[str], object]) -> str:
    if "_" not in name and "module" not in name:
        return name
    *modules, last = name.split(".")
    return ".".join([*(part for part in modules if not is_wrapper(part)), last])


def _like_wrapper(part: str) -> bool:
    return part in WRAPPERS or bool(LIKE_WRAPPERS.fullmatch(part))


def _parts_less(long: str, short: str) -> list[str]:
    """The parts of a dotted name that a shorter form of it lacks."""
    return list((Counter(long.split(".")) - Counter(short.split("."))).elements())


def wrapper_prefix(names: list[str], family: Family) -> str:
    """The prefix before all published names, or the wrappers before all names, '' where there is none."""
    heads = {family.prefix(name) for name in names} - {None}
    prefix = min(heads, key=len, default="")
    if prefix and all(head.startswith(prefix) for head in heads):
        return prefix
    prefix = ""
    while True:
        inner = [n[len(prefix) :] for n in names]
        first = inner[0].split(".")[0] if inner else ""
        if first not in WRAPPERS | {"module"} or not all(n.startswith(f"{first}.") for n in inner):
            return prefix
        prefix += f"{first}."


def is_lora(names: Iterable[str]) -> bool:
    """True for low-rank changes to a model, of any trainer: at least half of the names have the word."""
    names = list(names)
    return 0 < len(names) <= 2 * sum(bool(LORA.search(name)) for name in names)


def near_names(pattern: str, names: Iterable[str], family: Family) -> str:
    """'did you mean ...' for a pattern that matches none of the names: the nearest kind that one of them has
    and the nearest parts of names, each with a name that has it. '' when nothing is near."""
    parts: dict[str, str] = {}
    met: set[str] = set()
    for name in names:
        met |= family.kinds(name)
        for part in name.split("."):
            parts.setdefault(part, name)
    pieces = [piece for piece in re.split(r"[.*?\[\]]+", pattern) if len(piece) > 1 and piece not in parts]
    found = [repr(kind) for piece in pieces for kind in _close(piece, met)]
    found += [f"{part!r} as in {parts[part]!r}" for piece in pieces for part in _close(piece, parts)]
    if not pieces:  # every part is there, but not so together
        found = [repr(name) for name in _close(pattern, dict.fromkeys(parts.values()))]
    return f"did you mean {' or '.join(dict.fromkeys(found))}?" if found else ""


def _close(text: str, known: Iterable[str]) -> list[str]:
    by_small = {one.lower(): one for one in known}
    return [by_small[hit] for hit in difflib.get_close_matches(text.lower(), by_small, n=2, cutoff=0.6)]


def prefix_hint(ours: Iterable[str], theirs: Iterable[str]) -> str:
    """'did you mean ...' when the names of two sets differ only by a prefix, '' otherwise."""
    by_end = {}
    for name in theirs:
        by_end.setdefault(name.rsplit(".", 2)[-1], []).append(name)
    found = Counter()
    for name in list(ours)[:50]:
        for other in by_end.get(name.rsplit(".", 2)[-1], ())[:2000]:
            if other.endswith(f".{name}"):
                found[f"the second has the prefix {other[: -len(name)]!r}"] += 1
            elif name.endswith(f".{other}"):
                found[f"the first has the prefix {name[: -len(other)]!r}"] += 1
    best = found.most_common(1)
    return f"did you mean the same names? {best[0][0]}" if best else ""
