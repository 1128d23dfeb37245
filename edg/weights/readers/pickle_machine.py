"""Read a pickle as data, by a small machine that knows tensors and containers and calls nothing else.

A pickle is a program. Python's unpickler imports what it names and calls it; this one walks over the
opcodes that `pickletools` decodes and builds plain lists, dicts, tuples, numbers and strings. Names of
classes and functions become `Global`, whatever they would have returned becomes `Stub`; neither can do
anything. What torch uses to describe a tensor becomes `TensorRef`. So no code of a file ever runs, and a
training checkpoint full of foreign objects still yields its tensors.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable
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
    """Stands for the object some foreign class would have made. Takes anything, does nothing; held: those of
    the things it was given that may hold tensors."""

    __slots__ = ("held", "name")

    def __init__(self, name: str, given: Iterable[object] = ()):
        self.name, self.held = name, []
        self.hold(given)

    def hold(self, given: Iterable[object]) -> None:
        self.held += (item for item in given if isinstance(item, CARRIERS))


class OddKey:
    """Stands for a key that no table of ours is asked for (a tuple, a float, a huge number), by identity."""

    __slots__ = ("text",)

    def __init__(self, key: object):
        short = isinstance(key, float) or (isinstance(key, int) and key.bit_length() < 100)
        self.text = repr(key) if short else f"a {type(key).__name__}"

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class StorageRef:
    """A storage: record key, dtype ('' when untyped), number of elements (bytes when untyped), and whether it
    is one of the meta device, which has no values."""

    key: str
    dtype: str
    numel: int
    meta: bool = False


@dataclass(eq=False)
class TensorRef:
    """A tensor by its description. neg, conj: its values are the negatives, the conjugates, of what is
    stored. odd: the kind of tensor whose values are not read here, '' for one that is read."""

    storage: StorageRef | None
    dtype: str
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    neg: bool = False
    conj: bool = False
    odd: str = ""


CARRIERS = (dict, list, tuple, Stub, StorageRef, TensorRef)


def odd_tensor(kind: str) -> TensorRef:
    return TensorRef(None, "", 0, (), (), odd=kind)


def children(value: object) -> Iterable[tuple[object, object]]:
    """(key or index, item) of everything in a container, or given to a foreign object, that may hold
    tensors."""
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, (list, tuple)):
        pairs = enumerate(value)
    else:
        pairs = enumerate(value.held) if isinstance(value, Stub) else ()
    return ((key, item) for key, item in pairs if isinstance(item, CARRIERS))


def first_tensor(
    value: object, spend: Callable[[int], None] = lambda count: None, seen: set[int] | None = None
) -> tuple | None:
    """Keys and indices from `value` down to a tensor or storage in it, None where there is none. seen:
    containers by identity that hold none, to which this search adds."""
    waiting, seen = [(value, None)], set() if seen is None else seen
    while waiting:
        item, way = waiting.pop()
        if isinstance(item, (TensorRef, StorageRef)):
            steps: list[object] = []
            while way is not None:
                way, step = way
                steps.append(step)
            return tuple(reversed(steps))
        if id(item) not in seen:
            seen.add(id(item))
            spend(1 + (len(item) if isinstance(item, (dict, list, tuple)) else 0))
            waiting += [(inner, (way, key)) for key, inner in children(item)][::-1]
    return None


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
        raise PickleError("it does not end")

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
                raise PickleError("an index of the memo that no pickle needs")
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
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, Stub):
            target.hold(items)
        else:
            self.change(target)

    def op_setitem(self, _):
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def op_setitems(self, _):
        self.set_items(self.to_mark())

    def set_items(self, items):
        target = self.stack[-1]
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                self.spend(key_cost(key))
                put(target, key, value)
        elif isinstance(target, Stub):
            target.hold(items)
        else:
            self.change(target)

    def change(self, target: object) -> None:
        """Something is done to an object that torch would carry out and this machine does not."""
        if isinstance(target, TensorRef):
            target.odd = target.odd or "a tensor that is changed after it was made"
        elif isinstance(target, (dict, list, StorageRef)):
            raise PickleError(f"a {type(target).__name__} changed in a way that no torch.save writes")

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
            raise PickleError("a class name that is not text")
        if len(name) + len(module) > MAX_NAME:
            raise PickleError(f"a class name of {len(name) + len(module)} characters")
        self.spend(len(name) + len(module))  # three bytes make a new text of two from the memo
        self.stack.append(self.global_name(f"{module}.{name}"))

    def op_reduce(self, _):
        args, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self.call(function, args))

    op_newobj = op_reduce

    def op_newobj_ex(self, _):
        keywords = self.stack.pop()
        self.op_reduce(None)
        if isinstance(self.stack[-1], Stub):
            self.stack[-1].hold([keywords])
        elif keywords:
            self.change(self.stack[-1])

    def op_inst(self, arg):
        items = self.to_mark()
        self.stack.append(Stub(self.global_name(str(arg).replace(" ", ".", 1)).name, items))

    def op_obj(self, _):
        items = self.to_mark()
        self.stack.append(Stub(getattr(items[0], "name", "?"), items) if items else Stub("?"))

    def op_build(self, _):
        """The state of an object: of one we did not make, or the attributes of an OrderedDict."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Stub):
            target.hold([state])
        elif not isinstance(target, (dict, list)):
            self.change(target)

    def op_binpersid(self, _):
        pid = self.stack.pop()
        if not (
            isinstance(pid, tuple)
            and len(pid) in (5, 6)
            and pid[0] == "storage"
            and isinstance(pid[1], Global)
        ):
            raise PickleError("a persistent id that is not a torch storage")
        if len(pid) == 6 and pid[5] is not None:  # the legacy format of torch before 0.4
            raise PickleError("a storage that is a view of another")
        kind = pid[1].name.rsplit(".", 1)[-1]
        key, numel = pid[2], pid[4]
        if not isinstance(key, str) or not isinstance(numel, int) or isinstance(numel, bool) or numel < 0:
            raise PickleError("a storage with a bad key or size")
        dtype = "" if kind == "UntypedStorage" else STORAGES.get(kind, kind)
        storage = StorageRef(key, dtype, numel, pid[3] == "meta")
        known = self.storages.setdefault(key, storage)
        if _plain(known) != _plain(storage):  # torch goes by the first, whatever the second is called
            raise PickleError("a storage that is described in two ways")
        self.stack.append(storage)

    def call(self, function, args):
        while isinstance(function, Global) and isinstance(args, tuple):
            self.spend(len(args))
            # The state is set as attributes, of which `data` is one: it may change the values.
            state = args[3:] if function.name in WITH_STATE else ()
            if state and first_tensor(state, self.spend) is not None:
                return odd_tensor("a tensor with more tensors in its attributes")
            if function.name in FROM_TYPE and len(args) > 2:  # (function, class, its arguments, state)
                function, args = args[0], args[2]
                continue
            handler = HANDLERS.get(function.name)
            if handler is None:
                return Stub(function.name, args)
            self.spend(sum(len(a) for a in args if isinstance(a, (tuple, list))))
            if handler in (make_dict, make_default) and args and isinstance(args[-1], (list, tuple)):
                pairs = (a for a in args[-1] if isinstance(a, (list, tuple)) and a)
                self.spend(sum(PAIR + key_cost(pair[0]) for pair in pairs))
            elif args and isinstance(args[-1], dict):
                self.spend(PAIR * len(args[-1]))
            return handler(*args)
        return Stub(getattr(function, "name", "?"), (function, args))


def _plain(storage: StorageRef) -> tuple:
    return storage.dtype or "uint8", storage.numel, storage.meta


def known(name: str) -> bool:
    module, _, last = name.rpartition(".")
    return (
        name in HANDLERS
        or name in FROM_TYPE
        or (module in ("torch", "torch.storage") and (last in STORAGES or last in ITEMSIZE))
    )


def integers(values, what: str) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)) or len(values) > MAX_DIMENSIONS:
        raise PickleError(f"a bad tensor {what}")
    for value in values:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 62:
            raise PickleError(f"a bad tensor {what}: {type(value).__name__}")
    return tuple(values)


def rebuild_tensor(storage, first, shape, strides, requires_grad=False, hooks=None, metadata=None):
    if not isinstance(storage, StorageRef):
        return odd_tensor("a tensor without a storage")
    return tensor_ref(storage, storage.dtype or "uint8", first, shape, strides, metadata)


def rebuild_tensor_v3(storage, first, shape, strides, requires_grad, hooks, dtype, metadata=None):
    if not isinstance(storage, StorageRef) or not is_dtype(dtype):
        return odd_tensor("a tensor without a storage or a dtype of torch")
    return tensor_ref(storage, dtype.name.removeprefix("torch."), first, shape, strides, metadata)


def is_dtype(value) -> bool:
    return isinstance(value, Global) and value.name.startswith("torch.")


def rebuild_on_device(data, dtype, device, requires_grad):
    """A tensor that was on the CPU only while it was saved."""
    if isinstance(data, TensorRef) and is_dtype(dtype) and dtype.name == f"torch.{data.dtype}":
        return data
    return odd_tensor("a tensor of another device and dtype")


def rebuild_wrapper(kind=None, *_):
    return odd_tensor(f"a {getattr(kind, 'name', 'tensor')}"[:80])


def tensor_ref(storage, dtype, first, shape, strides, metadata):
    shape, strides, (first,) = (
        integers(shape, "shape"),
        integers(strides, "stride"),
        integers((first,), "offset"),
    )
    if len(shape) != len(strides):
        raise PickleError("a tensor whose shape and strides differ in length")
    if storage.meta:
        return odd_tensor("a tensor of the meta device, which has no values")
    bits = dict(metadata) if isinstance(metadata, dict) else {"?": metadata} if metadata else {}
    neg, conj = bits.pop("neg", False), bits.pop("conj", False)
    good = not bits and neg in (True, False) and (not conj or (conj is True and dtype.startswith("complex")))
    if metadata and not (good and (neg or conj) and dtype in SIGNED):
        return odd_tensor("a tensor with metadata of its own")
    return TensorRef(storage, dtype, first, shape, strides, bool(neg), bool(conj))


def is_key(key) -> bool:
    """True for a key whose entry is kept. Nobody can choose texts whose hashes meet, but large numbers."""
    return isinstance(key, (str, bytes, type(None))) or (isinstance(key, int) and -MAX_INT < key < MAX_INT)


def key_cost(key) -> int:
    """Operations that hashing and comparing a key count: a long one takes as long as many short ones."""
    return len(key) >> 6 if isinstance(key, (str, bytes)) else 0


def put(table: dict, key, value) -> None:
    """Set an entry of a table; under a key that is not kept, only what may hold tensors is."""
    if is_key(key):
        table[key] = value
    elif isinstance(value, CARRIERS):
        table[OddKey(key)] = value


def make_dict(*args):
    made = {}
    if len(args) == 1 and isinstance(args[0], dict):
        return dict(args[0])
    if args and not isinstance(args[-1], (list, tuple)):
        return Stub("collections.OrderedDict", args)
    for pair in args[-1] if args else ():
        if isinstance(pair, (list, tuple)) and len(pair) == 2:
            put(made, *pair)
    return made


def make_default(factory=None, *args):
    return make_dict(*args)


def of_kind(kind: str) -> Callable[..., TensorRef]:
    return lambda *_: odd_tensor(kind)


HANDLERS = {
    "collections.OrderedDict": make_dict,
    "collections.Counter": make_dict,
    "collections.defaultdict": make_default,
    "torch.Size": lambda sizes=(), *_: integers(sizes, "size"),
    "torch._utils._rebuild_tensor": rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch.nn.parameter.Parameter": lambda data=None, *_: data,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": rebuild_on_device,
    "torch._utils._rebuild_device_tensor_from_numpy": of_kind("a tensor kept as a NumPy array"),
    "torch._utils._rebuild_xla_tensor": of_kind("a tensor kept as a NumPy array"),
    "torch._utils._rebuild_sparse_tensor": of_kind("a sparse tensor"),
    "torch._utils._rebuild_sparse_csr_tensor": of_kind("a sparse tensor"),
    "torch._utils._rebuild_qtensor": of_kind("a quantised tensor"),
    "torch._utils._rebuild_nested_tensor": of_kind("a nested tensor"),
    "torch._utils._rebuild_meta_tensor_no_storage": of_kind("a tensor of the meta device, without values"),
    "torch._utils._rebuild_wrapper_subclass": rebuild_wrapper,
    "torch.nn.parameter.UninitializedParameter": of_kind("a parameter without values"),
    "torch.nn.parameter.UninitializedBuffer": of_kind("a buffer without values"),
}
# Calls wrapped in another: followed by `call`.
FROM_TYPE = {
    f"torch.{module}._rebuild_from_type{suffix}" for module in ("_tensor", "tensor") for suffix in ("", "_v2")
}
WITH_STATE = FROM_TYPE | {"torch._utils._rebuild_parameter_with_state"}
SIGNED = {"complex64", "complex128", "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16",
          "int8"}  # fmt: skip
# Names of calls that make an array of NumPy.
ARRAYS = {
    f"numpy.{core}.{call}" for core in ("core", "_core")
    for call in ("multiarray._reconstruct", "numeric._frombuffer")
}  # fmt: skip
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
