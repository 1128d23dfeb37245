"""The table of tensors in a checkpoint's top object, where several may lie: raw weights, averaged copies, the
state of an optimizer, tables inside tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edg.core.errors import BadFileError, UsageError, nearest
from edg.weights.keys import AVERAGED, words
from edg.weights.readers.pickle_machine import (
    ARRAYS,
    CARRIERS,
    StorageRef,
    Stub,
    TensorRef,
    children,
    first_tensor,
)

# Names of tables that hold a model, the likelier first.
MODEL = (
    "state_dict", "module", "model", "params", "weights", "model_state_dict", "model_state", "network", "net",
)  # fmt: skip
BESIDE = {
    "optim", "optims", "optimizer", "optimizers", "opt", "scheduler", "schedulers", "sched", "scaler", "rng",
    "hyper", "hparams", "args", "config", "cfg", "callbacks", "loops", "metrics", "history", "step", "epoch",
}  # fmt: skip
HELP = "table to read from a file with several, e.g. ema_state_dict (default: the raw weights)"
TOP = "."  # what --table calls the outermost table
MAX_TENSORS = 100_000
MAX_DEPTH = 32
MUCH_LARGER = 10
SHOWN, MAX_SHOWN = 6, 80


@dataclass(frozen=True)
class Table:
    """One dict that holds tensors itself. path: keys and indices from the top; tensors: how many; numel:
    their elements; inside: the dict."""

    path: tuple
    tensors: int
    numel: int
    inside: dict

    @property
    def name(self) -> str:
        return ".".join(str(key) for key in self.path) or TOP

    @property
    def averaged(self) -> bool:
        return any(words(key) & AVERAGED for key in self.path)

    @property
    def beside(self) -> bool:
        return not self.averaged and any(words(key) & BESIDE for key in self.path)

    @property
    def rank(self) -> tuple[int, int]:
        last = self.path[-1] if self.path else None
        return (MODEL.index(last) if last in MODEL else len(MODEL)), len(self.path)

    def __str__(self) -> str:
        what = "averaged weights, " * self.averaged
        return f"{self.name[:MAX_SHOWN]!r} ({what}{self.tensors} tensors)"


def choose_table(path: Path, top: object, asked: str = "") -> tuple[dict, dict[str, str], list[str]]:
    """(name -> tensor, metadata, notes) of a checkpoint. asked: the table's name, as `Table.name` has it or
    its last part; '' for the raw weights. Raises BadFileError where there is none, where it is not clear
    which, and for a tensor of it that cannot be read; UsageError for a table that is not there."""
    _check_top(path, top, asked)
    tables = list(_tables(top))
    table = _asked(path, tables, asked) if asked else _choose(path, top, tables)
    others = [other for other in tables if other is not table]
    _check_readable(path, table, bool(asked))
    if table.tensors > MAX_TENSORS:
        raise BadFileError(f"{path} holds {table.tensors} tensors", expected=f"at most {MAX_TENSORS}")
    found = {key: value for key, value in table.inside.items() if isinstance(value, TensorRef)}
    ignored = sum(isinstance(key, str) for key in table.inside) - len(found)
    notes = [f"{ignored} entries that are not tensors were ignored"] if ignored else []
    if not asked and table.averaged:
        notes.append(f"{table} is read, since there are no raw weights")
    shown = [other for other in others if not other.beside]
    if shown:
        notes.append(f"{table} is read, not {_listed(shown)}; choose another with --table NAME")
    metadata = {
        key: repr(value)
        for key, value in table.inside.items()
        if isinstance(key, str) and type(value) in (int, float)
    }
    if isinstance(top, dict) and isinstance(top.get("edg"), str):
        metadata["edg"] = top["edg"]
    return found, metadata, notes


def _check_top(path: Path, top: object, asked: str) -> None:
    # What `edg train` goes on from.
    if isinstance(top, dict) and "average" in top and "optimizer_states" in top:
        folder = path.resolve().parent
        raise BadFileError(
            f"{path} is a step of a training run, not a model",
            expected=f"the run's result, {folder.parent / folder.name}.safetensors",
            fix="run the same edg train command to the end, which writes it",
        )
    if not isinstance(top, dict) and not asked:
        tables = list(_tables(top))
        raise BadFileError(
            f"{path} has no table of tensors at its top level"
            + f", only {_listed(tables)} inside" * bool(tables),
            expected="a state dict",
            fix="give --table NAME" if tables else "save it as model.state_dict()",
        )


def _tables(top: object) -> Iterator[Table]:
    """Every dict that holds tensors, the outer ones first, each once."""
    waiting, seen = [(top, ())], set()
    for _ in range(MAX_DEPTH):
        later = []
        for item, way in waiting:
            if id(item) in seen or isinstance(item, Stub):
                continue
            seen.add(id(item))
            inner = list(children(item))
            if isinstance(item, dict):
                own = [(key, value) for key, value in inner if isinstance(value, TensorRef)]
                own = [pair for pair in own if way or not _is_beside(pair[0])]
                if own:
                    numel = sum(_numel(value) for _, value in own)
                    yield Table(_path(way), len(own), numel, item)
            later += [(value, (way, key)) for key, value in inner if not isinstance(value, TensorRef)]
        waiting = later


def _is_beside(key: object) -> bool:
    """True for a tensor at the top that is a counter or a state: names of parameters have dots."""
    return "." not in str(key) and bool(words(key) & BESIDE)


def _numel(ref: TensorRef) -> int:
    numel = 1
    for size in ref.shape:
        numel = min(numel * size, 1 << 62)
    return numel


def _path(way: tuple) -> tuple:
    keys: list[object] = []
    while way:
        way, key = way
        keys.append(key)
    return tuple(reversed(keys))


def _listed(tables: list[Table]) -> str:
    more = f" and {len(tables) - SHOWN} more" if len(tables) > SHOWN else ""
    return ", ".join(map(str, tables[:SHOWN])) + more


def _asked(path: Path, tables: list[Table], name: str) -> Table:
    found = [table for table in tables if table.name == name]
    found = found or [table for table in tables if table.path and str(table.path[-1]) == name]
    if len(found) != 1:
        raise UsageError(
            f"--table {name}: {path} has {len(found) or 'no'} such table{'s' * (len(found) > 1)}",
            expected=_listed(found or tables) or "a file with tables",
            fix=nearest(name[:200], [table.name[:200] for table in tables[:100]]),
        )
    return found[0]


def _choose(path: Path, top: dict, tables: list[Table]) -> Table:
    """The raw weights, by name and size; never by the order of the file."""
    models = [table for table in tables if not table.beside]
    pool = [table for table in models if not table.averaged] or models
    if not pool:
        raise _nothing(path, top)
    if len(pool) == 1:
        return pool[0]
    first, second = sorted(pool, key=lambda table: table.rank)[:2]
    if first.rank[0] < len(MODEL) and first.rank != second.rank:
        return first
    large, next_large = sorted(pool, key=lambda table: -table.numel)[:2]
    if large.numel >= MUCH_LARGER * next_large.numel or all(_within(table, large) for table in pool):
        return large
    raise BadFileError(
        f"{path} holds several tables of tensors: {_listed(pool)}",
        expected="one of them",
        fix="give --table NAME",
    )


def _within(inner: Table, outer: Table) -> bool:
    return inner.path[: len(outer.path)] == outer.path


def _nothing(path: Path, top: dict) -> BadFileError:
    if any("zero" in str(key) or "optimizer" in str(key) for key in top):
        return BadFileError(
            f"{path} is an optimizer shard, not a model",
            expected="a state dict",
            fix="run zero_to_fp32.py first",
        )
    way = first_tensor(top)
    where = f"; there are some in {_dotted(way)!r}, but that is not a table" if way is not None else ""
    return BadFileError(
        f"{path} has no named tensors{where}", expected="a state dict", fix="save it as model.state_dict()"
    )


def _dotted(way: tuple) -> str:
    return ".".join(str(key) for key in way)[:MAX_SHOWN]


def _check_readable(path: Path, table: Table, asked: bool) -> None:
    """Raise BadFileError for a tensor of the table that would be left out: of a kind that is not read, under
    a key that is no text, inside of something else. What is named as an average or as the state of an
    optimizer is another table; asked: so is every other table."""
    seen: set[int] = set()  # what holds no tensor
    for key, value in table.inside.items():
        kind = _left_out(key, value, asked, seen)
        if kind:
            way = () if isinstance(value, Stub) else first_tensor(value) or ()
            raise BadFileError(
                f"{path}: {_dotted((key, *way))!r} is {kind}",
                expected="plain named tensors",
                fix="save it again as such, for instance with tensor.to_dense() or tensor.dequantize()"
                if isinstance(value, (TensorRef, Stub))
                else f"give --table {table.name[:MAX_SHOWN]} to read the others",
            )


def _left_out(key: object, value: object, asked: bool, seen: set[int]) -> str:
    if isinstance(value, TensorRef):
        return value.odd or (
            "" if isinstance(key, str) else f"a tensor under a key of type {type(key).__name__}"
        )
    if isinstance(value, StorageRef):
        return "a storage without a tensor"
    if isinstance(value, Stub):
        if value.name in ARRAYS:
            return "a NumPy array"
        inside = first_tensor(value, seen=seen) is not None
        return f"a {value.name[:60]} with tensors inside" if inside else ""
    another = words(key) & (AVERAGED | BESIDE) or (asked and isinstance(value, dict))
    if another or not isinstance(value, CARRIERS) or first_tensor(value, seen=seen) is None:
        return ""
    return f"a tensor inside of a {type(value).__name__}"


def by_input(texts: Sequence[str], names: Iterable[str]) -> dict[str, str]:
    """--table [INPUT=]NAME as a table input -> name; without an input for each that is not named. Raises
    UsageError."""
    names, every, found = list(names), "", {}
    for text in texts:
        name, equals, table = text.partition("=")
        if equals and name in names and table and name not in found:
            found[name] = table
        elif text and not every and not (equals and name in found):
            every = text
        else:
            raise UsageError(f"--table {text}", expected="[INPUT=]NAME, each input once: " + ", ".join(names))
    return (dict.fromkeys(names, every) if every else {}) | found
