"""Reading a pickle as data: a small machine that knows tensors and containers, and calls nothing else.

A pickle is a program. Python's unpickler imports what it names and calls it; this one walks over the
opcodes that `pickletools` decodes and builds plain lists, dicts, tuples, numbers and strings. Names of
classes and functions become `Global`, whatever they would have returned becomes `Stub`; neither can do
anything. What torch uses to describe a tensor becomes `TensorRef`. So no code of a file ever runs, and a
training checkpoint full of foreign objects still yields its tensors.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import BinaryIO

from edg.weights.tensors import ITEMSIZE

MAX_OPCODES = 2_000_000
MAX_DIMENSIONS = 64
MAX_NAME = 1000  # characters of a class name
PAIR = 8  # what an entry of a dict made in one call counts, in operations: its memory is that much larger
MAX_INT = 1 << 32  # of a key: larger ones can be chosen so that all of them meet in one place of a table
STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "UntypedStorage": "uint8",
}  # fmt: skip


class PickleError(ValueError):
    """The pickle is malformed or too large; the text says how."""


@dataclass(frozen=True)
class Global:
    """The name of a class or function. Never imported."""

    name: str


class Stub:
    """Stands for the object some foreign class would have made. Takes anything, does nothing."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name


@dataclass(frozen=True)
class StorageRef:
    """A storage: record key, dtype ('' when untyped), number of elements (bytes when untyped)."""

    key: str
    dtype: str
    numel: int


@dataclass(frozen=True)
class TensorRef:
    storage: StorageRef
    dtype: str
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Mark:
    __slots__ = ()


MARK = _Mark()


def load(data: bytes) -> tuple[object, dict[str, int]]:
    """The object a pickle describes and the foreign names that were ignored, with how often each was used.

    Raises PickleError."""
    return PickleMachine(data).run()


class PickleMachine:
    """data: the pickle, or a stream that begins with one and is left behind its end. left: operations it may
    take. After `run`: left, those not used; foreign, the names that were ignored; storages: what the tensors
    lie in, by key."""

    def __init__(self, data: bytes | BinaryIO, left: int = MAX_OPCODES):
        self.data, self.stack, self.memo, self.foreign = data, [], {}, {}
        self.storages: dict[str, StorageRef] = {}
        self.left = left

    def run(self) -> tuple[object, dict[str, int]]:
        try:
            for opcode, arg, _ in pickletools.genops(self.data):
                self.spend(1)
                if opcode.name == "STOP":
                    return self.stack.pop(), self.foreign
                self.step(opcode.name, arg)
        except PickleError:
            raise
        except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError, MemoryError) as error:
            raise PickleError(f"malformed ({type(error).__name__}: {error})"[:200]) from error
        raise PickleError("no end")

    def spend(self, count: int) -> None:
        """Count work: an opcode, and every item that an opcode walks over or copies once more (a list in the
        memo costs two bytes to name again)."""
        self.left -= count
        if self.left < 0:
            raise PickleError(f"more than {MAX_OPCODES} operations")

    def step(self, name: str, arg) -> None:
        stack = self.stack
        if name in PUSH_ARGUMENT:
            stack.append(arg)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in NEW_CONTAINER:
            stack.append(NEW_CONTAINER[name]())
        elif name in MEMO_PUT:
            place = len(self.memo) if arg is None else int(arg)
            if not is_key(place):
                raise PickleError("a place in the memo that no pickle needs")
            self.memo[place] = stack[-1]
        elif name in MEMO_GET:
            stack.append(self.memo[int(arg)])
        elif name.startswith("EXT"):
            stack.append(self.global_name(f"copyreg.extension_{arg}"))
        elif name not in ("PROTO", "FRAME"):
            method = getattr(self, f"op_{name.lower()}", None)
            if method is None:
                raise PickleError(f"operation {name} is not allowed in a checkpoint")
            method(arg)

    # --- containers
    # -------------------------------------------------------------------------------------------
    def to_mark(self) -> list:
        items = []
        while (item := self.stack.pop()) is not MARK:
            items.append(item)
        return items[::-1]

    def op_mark(self, _):
        self.stack.append(MARK)

    def op_pop(self, _):
        self.stack.pop()

    def op_pop_mark(self, _):
        self.to_mark()

    def op_dup(self, _):
        self.stack.append(self.stack[-1])

    def op_tuple(self, _):
        self.stack.append(tuple(self.to_mark()))

    op_frozenset = op_tuple

    def op_tuple1(self, _):
        self.stack[-1:] = [tuple(self.stack[-1:])]

    def op_tuple2(self, _):
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def op_tuple3(self, _):
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def op_list(self, _):
        self.stack.append(self.to_mark())

    def op_dict(self, _):
        items = self.to_mark()
        self.stack.append({})
        self.set_items(items)

    def op_append(self, _):
        self.extend([self.stack.pop()])

    def op_appends(self, _):
        self.extend(self.to_mark())

    op_additems = op_appends

    def extend(self, items):
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def op_setitem(self, _):
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def op_setitems(self, _):
        self.set_items(self.to_mark())

    def set_items(self, items):
        target = self.stack[-1]
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                if is_key(key):
                    self.spend(key_cost(key))
                    target[key] = value

    # --- objects: only tensors and OrderedDict mean anything
    # -------------------------------------------------
    def global_name(self, name: str) -> Global:
        if len(name) > MAX_NAME:
            raise PickleError(f"a class name of {len(name)} characters")
        if not known(name):
            self.foreign[name] = self.foreign.get(name, 0) + 1
        return Global(name)

    def op_global(self, arg):
        self.stack.append(self.global_name(str(arg).replace(" ", ".", 1)))

    def op_stack_global(self, _):
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickleError("a class name that is no text")
        if len(name) + len(module) > MAX_NAME:
            raise PickleError(f"a class name of {len(name) + len(module)} characters")
        self.spend(len(name) + len(module))  # three bytes make a new text of two from the memo
        self.stack.append(self.global_name(f"{module}.{name}"))

    def op_reduce(self, _):
        args, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self.call(function, args))

    op_newobj = op_reduce

    def op_newobj_ex(self, _):
        self.stack.pop()
        self.op_reduce(None)

    def op_inst(self, arg):
        self.to_mark()
        self.stack.append(Stub(self.global_name(str(arg).replace(" ", ".", 1)).name))

    def op_obj(self, _):
        items = self.to_mark()
        self.stack.append(Stub(getattr(items[0], "name", "?")) if items else Stub("?"))

    def op_build(self, _):
        self.stack.pop()  # the state of an object we did not make

    def op_binpersid(self, _):
        pid = self.stack.pop()
        if not (
            isinstance(pid, tuple)
            and len(pid) in (5, 6)
            and pid[0] == "storage"
            and isinstance(pid[1], Global)
        ):
            raise PickleError("a persistent id that is no torch storage")
        if len(pid) == 6 and pid[5] is not None:  # the legacy format of torch before 0.4
            raise PickleError("a storage that is a view of another")
        kind = pid[1].name.rsplit(".", 1)[-1]
        key, numel = pid[2], pid[4]
        if not isinstance(key, str) or not isinstance(numel, int) or isinstance(numel, bool) or numel < 0:
            raise PickleError("a storage with a bad key or size")
        dtype = "" if kind == "UntypedStorage" else STORAGES.get(kind, kind)
        storage = StorageRef(key, dtype, numel)
        self.storages.setdefault(key, storage)
        self.stack.append(storage)

    def call(self, function, args):
        while isinstance(function, Global) and isinstance(args, tuple):
            self.spend(len(args))
            if function.name == FROM_TYPE and len(args) > 2:  # (function, class, its arguments, state)
                function, args = args[0], args[2]
                continue
            handler = HANDLERS.get(function.name)
            if handler is None:
                return Stub(function.name)
            self.spend(sum(len(a) for a in args if isinstance(a, (tuple, list))))
            if handler is make_dict and args and isinstance(args[-1], (list, tuple)):
                pairs = (a for a in args[-1] if isinstance(a, (list, tuple)) and a)
                self.spend(sum(PAIR + key_cost(pair[0]) for pair in pairs))
            return handler(*args)
        return Stub("?")


def known(name: str) -> bool:
    module, _, last = name.rpartition(".")
    return (
        name in HANDLERS
        or name == FROM_TYPE
        or (module in ("torch", "torch.storage") and (last in STORAGES or last in ITEMSIZE))
    )


def integers(values, what: str) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)) or len(values) > MAX_DIMENSIONS:
        raise PickleError(f"a bad tensor {what}")
    for value in values:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 62:
            raise PickleError(f"a bad tensor {what}: {type(value).__name__}")
    return tuple(values)


def rebuild_tensor(storage, first, shape, strides, *rest):
    if not isinstance(storage, StorageRef):
        return Stub("tensor")
    return tensor_ref(storage, storage.dtype or "uint8", first, shape, strides)


def rebuild_tensor_v3(storage, first, shape, strides, requires_grad, hooks, dtype, *rest):
    if not isinstance(storage, StorageRef) or not isinstance(dtype, Global):
        return Stub("tensor")
    return tensor_ref(storage, dtype.name.rsplit(".", 1)[-1], first, shape, strides)


def tensor_ref(storage, dtype, first, shape, strides):
    shape, strides, (first,) = (
        integers(shape, "shape"),
        integers(strides, "stride"),
        integers((first,), "offset"),
    )
    if len(shape) != len(strides):
        raise PickleError("a tensor whose shape and strides differ in length")
    return TensorRef(storage, dtype, first, shape, strides)


def is_key(key) -> bool:
    """Whether an entry of a dict is kept. Nobody can choose texts whose hashes meet, but large numbers."""
    return isinstance(key, (str, bytes, type(None))) or (isinstance(key, int) and -MAX_INT < key < MAX_INT)


def key_cost(key) -> int:
    """Operations that hashing and comparing a key count: a long one takes as long as many short ones."""
    return len(key) >> 6 if isinstance(key, (str, bytes)) else 0


def make_dict(*args):
    made = {}
    pairs = args[-1] if args and isinstance(args[-1], (list, tuple)) else ()
    for pair in pairs:
        if isinstance(pair, (list, tuple)) and len(pair) == 2 and is_key(pair[0]):
            made[pair[0]] = pair[1]
    return made


HANDLERS = {
    "collections.OrderedDict": make_dict,
    "collections.defaultdict": make_dict,
    "torch.Size": lambda sizes=(), *_: integers(sizes, "size"),
    "torch._utils._rebuild_tensor": rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
}
FROM_TYPE = "torch._tensor._rebuild_from_type_v2"  # a call wrapped in another: followed by `call`
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
NEW_CONTAINER = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list}
MEMO_PUT = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
MEMO_GET = {"GET", "BINGET", "LONG_BINGET"}
PUSH_ARGUMENT = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING",
    "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
