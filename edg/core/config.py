"""YAML to frozen dataclasses and back, strictly: an unknown key is an error that names the nearest one."""

from __future__ import annotations

import contextlib
import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from edg.core import yaml_size
from edg.core.errors import BadFileError, EdgError, UsageError, nearest
from edg.core.files import read_small
from edg.core.paths import user_path
from edg.core.written import Scalars, plain, text_of

#: A field's type for a path that is kept as text, see `user_path`.
PathText = Annotated[str, "path"]
C = TypeVar("C")
MALFORMED = (ValueError, TypeError, LookupError, AttributeError, AssertionError)  # `3`, `a: !!int x`, ...


def read_yaml(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A YAML file as plain dictionaries and lists, interpolations resolved.

    overrides: `dotted.key=value`, over the file's; a mapping, too, stands for all that was there. A scalar
    that YAML takes for a number or a truth knows what was written, for `build`. Raises
    BadFileError when the file is missing, UsageError when it is not YAML or not a mapping, or an override is
    no assignment.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    path, assignments = Path(path), list(_assignments(overrides))
    try:
        text = read_small(path, yaml_size.MOST_BYTES).decode("utf-8-sig")
        yaml_size.check(text, overrides, path)
        scalars = Scalars(lambda scalar: OmegaConf.create(f"value: {scalar}")["value"])
        loaded = OmegaConf.create(scalars.marked(text))
        for key, assigned in assignments:
            dotlist = OmegaConf.from_dotlist([f"value={scalars.marked(assigned)}"])
            OmegaConf.update(loaded, key, OmegaConf.to_container(dotlist)["value"], merge=False)
        value = scalars.restored(OmegaConf.to_container(loaded, resolve=True))
    except EdgError:
        raise
    except UnicodeDecodeError as error:
        raise BadFileError(f"cannot read {path}: {error}") from error
    except (YAMLError, OmegaConfBaseException, RecursionError, *MALFORMED) as error:
        reason = " ".join(str(error).split())[:300] or "it is not a mapping of settings"
        raise UsageError(f"{path} is not valid YAML: {reason}") from error
    if not isinstance(value, dict) or list(value.values()) == [None]:  # a bare word is a key without value
        word = scalars.restored(next(iter(value), None)) if isinstance(value, dict) else None
        held = f"a {type(value).__name__}" if word is None else f"only {word!r}"
        raise UsageError(f"{path} holds {held}", expected="a mapping of settings")
    return value


def _assignments(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    for text in overrides:
        key, equals, value = text.partition("=")
        if not key.strip() or not equals:
            raise UsageError(f"{text!r} among the settings", expected="key=value, e.g. train.lr=1e-5")
        yield key.strip(), value


def keyed(key: str, default: Any) -> Any:
    """A dataclass field with another name in YAML files and records than in Python."""
    return dataclasses.field(default=default, metadata={"key": key})


def _key(field: dataclasses.Field) -> str:
    return field.metadata.get("key", field.name)


def load(cls: type[C], path: str | Path) -> C:
    """The dataclass `cls` filled from a YAML file."""
    return build(cls, read_yaml(path), str(path))


def build(cls: type[C], values: Mapping[str, Any], where: str = "", overrides: Sequence[str] = ()) -> C:
    """The dataclass `cls` from a mapping: nested dataclasses, tuples, Literals and Optionals are checked.

    where: what to call the mapping in errors, e.g. a file name; overrides: what `read_yaml` was given, named
    in errors where a value comes from there. Raises UsageError.
    """
    try:
        return _build(cls, values, where)
    except UsageError as error:
        typed = next((text for text in overrides if _join(where, text.partition("=")[0]) in error.given), "")
        if not typed:
            raise
        raise UsageError(f"{typed}: {error.given}", expected=error.expected, fix=error.fix) from None


def _build(cls: type[C], values: Mapping[str, Any], where: str) -> C:
    if not isinstance(values, Mapping):
        raise UsageError(f"{where or cls.__name__} is {values!r}", expected="a mapping")
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {_key(field): field for field in dataclasses.fields(cls) if field.init}
    for key in values:
        if key not in fields:
            raise UsageError(
                f"unknown key {_join(where, key)!r}", expected=", ".join(fields), fix=nearest(key, fields)
            )
    missing = [name for name, field in fields.items() if name not in values and _is_required(field)]
    if missing:
        raise UsageError(
            f"{where or cls.__name__} lacks {', '.join(missing)}", expected="every setting without a default"
        )
    names = {key: fields[key].name for key in values}
    return cls(
        **{names[key]: convert(hints[names[key]], value, _join(where, key)) for key, value in values.items()}
    )


def to_dict(value: Any) -> Any:
    """A dataclass (or anything inside one) as plain dictionaries, lists and scalars, for YAML or JSON. A
    field that came `later` is left out where it has its default."""
    if dataclasses.is_dataclass(value):
        fields = [(field, getattr(value, field.name)) for field in dataclasses.fields(value)]
        return {_key(f): to_dict(v) for f, v in fields if not (f.metadata.get("later") and v == f.default)}
    if isinstance(value, Mapping):
        return {str(key): to_dict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_dict(item) for item in value]
    return str(value) if isinstance(value, Path) else plain(value)


def later(default: Any) -> Any:
    """A field that a dataclass did not have at first, so that what was written before keeps its hash."""
    return dataclasses.field(default=default, metadata={"later": True})


def to_yaml(value: Any) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(to_dict(value)))


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _join(where: str, key: str) -> str:
    return f"{where}: {key}" if where.endswith((".yaml", ".yml")) else f"{where}.{key}".lstrip(".")


def convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type `hint`. Raises UsageError when it is another."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        return _convert_path(str, value, where)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, where)
    if origin is typing.Literal:
        value = text_of(value) if text_of(value) in arguments else plain(value)
        return _check(
            value in arguments,
            value,
            where,
            "one of " + ", ".join(map(str, arguments)),
            str(value),
            arguments,
        )
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, where)
    if origin in (tuple, list):
        return _convert_sequence(origin, arguments, value, where)
    if origin in (dict, Mapping) or hint is dict:
        _check(isinstance(value, Mapping), value, where, "a mapping")
        inner = arguments[1] if arguments else Any
        return {key: convert(inner, item, f"{where}.{key}") for key, item in value.items()}
    return _convert_scalar(hint, value, where)


def _convert_union(arguments: tuple, value: Any, where: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    choices = [argument for argument in arguments if argument is not type(None)]
    for choice in choices[:-1]:
        try:
            return convert(choice, value, where)
        except UsageError:
            continue
    return convert(choices[-1], value, where)


def _convert_sequence(origin: type, arguments: tuple, value: Any, where: str) -> Any:
    _check(isinstance(value, (list, tuple)), value, where, "a list")
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        _check(len(value) == len(arguments), value, where, f"{len(arguments)} values")
        inner = list(arguments)
    else:
        inner = [arguments[0] if arguments else Any] * len(value)
    return origin(convert(t, v, f"{where}[{i}]") for i, (t, v) in enumerate(zip(inner, value, strict=True)))


def _convert_path(kind: type, value: Any, where: str) -> Any:
    value = text_of(value)
    if not isinstance(value, (str, Path)):
        shown = "null" if value is None else repr(value)
        raise UsageError(
            f"{where} is {shown}",
            expected="a path",
            fix="quote text that YAML would read as another type: '\"TEXT\"'",
        )
    return kind(user_path(value, where))


def _convert_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is Path:
        return _convert_path(Path, value, where)
    value = text_of(value) if hint is str else plain(value)
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):  # YAML 1.1 reads 1e-4 as text
            return float(value)
    right = isinstance(value, hint) and not (isinstance(value, bool) and hint in (int, float))
    return _check(
        right,
        value,
        where,
        {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(
            hint, getattr(hint, "__name__", str(hint))
        ),
    )


def _check(ok: bool, value: Any, where: str, expected: str, name: str = "", known: tuple = ()) -> Any:
    if not ok:
        raise UsageError(
            f"{where} is {value!r}", expected=expected, fix=nearest(name, map(str, known)) if name else ""
        )
    return value
