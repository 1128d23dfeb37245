"""Several tables in one file: the raw weights are read whatever the order, the others by name; and of the
table that is read no tensor is left out."""

import collections
import io
import pickle

import numpy
import pytest
import torch

from edg.cli.main import main
from edg.core.errors import BadFileError, UsageError
from edg.weights.store import open_weights

WEIGHT, BIAS = "model.diffusion_model.a.weight", "model.diffusion_model.a.bias"
RAW, AVERAGE, OTHER = (dict.fromkeys((WEIGHT, BIAS), torch.full((4,), value)) for value in (1.0, 2.0, 3.0))
SCALARS = {"loss": torch.tensor(3.0)}
ADAM = {"state": {0: {"step": torch.tensor(4.0), "exp_avg": torch.zeros(4)}}, "param_groups": [{"lr": 1.0}]}


@pytest.fixture
def opened(tmp_path):
    """opened(object, **how): what torch.save wrote, as we open it."""

    def save_and_open(top, **how):
        torch.save(top, tmp_path / "x.pt")
        return open_weights(tmp_path / "x.pt", **how)

    return save_and_open


def first(weights):
    return weights[WEIGHT][0].item()


def reversed_order(top):
    return dict(reversed(list(top.items()))) if isinstance(top, dict) else top


RAW_IS_READ = [
    {"ema_state_dict": AVERAGE, "model_state_dict": RAW},
    {"ema": AVERAGE, "model": RAW},
    {"params_ema": AVERAGE, "params": RAW},
    {"model_ema": AVERAGE, "net": RAW},
    {"state_dict_ema": AVERAGE, "state_dict": RAW},
    {"EMAWeights": AVERAGE, "weights": RAW},
    {"averaged_model": AVERAGE, "swa": AVERAGE, "something": RAW},
    {"teacher": AVERAGE, "student": RAW},
    {"state_dict": RAW, "callbacks": {"EMA{'decay': 0.99}": {"ema_state_dict": AVERAGE}}},
    {"state_dict": RAW, "callbacks": {"EMACallback": {"shadow_params": [t for t in AVERAGE.values()]}}},
    {"state_dict": RAW, "optimizer_states": [ADAM], "lr_schedulers": [{"last": torch.tensor(1)}]},
    {"model": RAW, "optimizer": ADAM, "ema": AVERAGE, "scaler": {"scale": torch.tensor(2.0)}},
    {"checkpoint": {"model": RAW, "ema": AVERAGE}, "step": torch.tensor(7)},
    {"checkpoint": {"model": {"state_dict": RAW}, "optimizer": {"state_dict": ADAM}}},
    {"state_dict": RAW, "hyper_parameters": {"mean": torch.zeros(3)}, "rng_state": torch.zeros(9)},
    {"best": {"loss": torch.tensor(1.0)}, "network": RAW},
    {"random": torch.zeros(625), "state_dict": RAW},
    {**RAW, "ema": AVERAGE, "optimizer": ADAM},
    {"step": torch.tensor(3), "epoch": torch.tensor(1), "inner": RAW},
    {"model": {"weights": RAW, "ema_weights": AVERAGE}},
    {"state": {"model": RAW}, "schema": SCALARS},
]  # fmt: skip


@pytest.mark.parametrize("top", RAW_IS_READ, ids=lambda top: "-".join(map(str, top))[:50])
@pytest.mark.parametrize("order", [dict, reversed_order])
def test_raw_weights_are_read(opened, top, order):
    weights = opened(order(top))
    assert {name for name in weights if name in RAW} == set(RAW) and first(weights) == 1.0
    assert set(weights) == set(RAW)


def test_the_others_are_in_a_note_and_open_by_name(opened, tmp_path, capsys):
    top = {"ema_state_dict": AVERAGE, "deep": {"model": RAW, "swa": OTHER}, "optimizer": ADAM}
    [note] = opened(top).notes
    assert "'ema_state_dict'" in note and "'deep.swa'" in note and "optimizer" not in note
    for name, value in (("deep.model", 1.0), ("model", 1.0), ("ema_state_dict", 2.0), ("swa", 3.0)):
        assert first(opened(top, table=name)) == value
    path = str(tmp_path / "x.pt")
    assert main(["info", path]) == 0 and "ema_state_dict" in capsys.readouterr().out
    assert main(["info", path, "--table", "swa", "--names"]) == 0 and BIAS in capsys.readouterr().out
    for table, value in (("", 1.0), ("deep.swa", 3.0)):
        out = tmp_path / f"{value}.safetensors"
        assert main(["export", path, str(out), "--quiet", *(["--table", table] if table else [])]) == 0
        assert "ema_state_dict" in capsys.readouterr().err  # what is not in the file
        assert first(open_weights(out)) == value
    for command in (["info", path], ["export", path, str(tmp_path / "no.pt")]):
        assert main([*command, "--table", "emma"]) == 2
    assert not (tmp_path / "no.pt").exists()


def test_the_tables_of_a_merge(opened, tmp_path, monkeypatch):
    """Of every input its own; the record has them, and a file of changes finds its base's table again."""
    opened({"model": RAW, "ema": AVERAGE})
    path, other = str(tmp_path / "x.pt"), str(tmp_path / "y.pt")
    torch.save({"model": OTHER, "ema": dict.fromkeys(OTHER, torch.full((4,), 5.0))}, other)

    def merged(*flags, full=True):
        out = tmp_path / "out"
        argv = ["merge", "average", "--base", path, "--tuned", other, "--out", str(out), "--quiet", *flags]
        assert main([*argv, *["--full"] * full]) == 0
        return open_weights(out / "merged.safetensors")

    for flags, value in (
        ([], 2.0),  # (1 + 3) / 2
        (["--table", "ema"], 3.5),  # (2 + 5) / 2
        (["--table", "base=ema"], 2.5),
        (["--table", "ema", "--table", "base=model"], 3.0),
    ):
        made = merged(*flags)
        assert first(made) == value
        assert bool(made.provenance["recipe"].get("tables")) == bool(flags)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "inputs: {base: '', tuned: ''}\ntables: {tuned: ema}\n"
        "outputs: {merged: [{op: linear, weights: [1, 1]}]}"
    )
    argv = ["merge", str(recipe), "--base", path, "--tuned", other, "--out", str(tmp_path / "out"), "--quiet"]
    assert main([*argv, "--full"]) == 0 and first(open_weights(tmp_path / "out/merged.safetensors")) == 6.0
    for wrong in (["--table", "base="], ["--table", "tuned=a", "--table", "tuned=b"], ["--table", "nothing"]):
        assert main([*argv, *wrong]) == 2
    table = {WEIGHT: torch.full((4,), 9.0), BIAS: AVERAGE[BIAS]}
    torch.save({"model": RAW, "ema": table}, other)
    changes = merged("--table", "ema", full=False)
    assert changes.provenance["stored"] == 1 and changes[BIAS][0] == 2.0 and first(changes) == 5.5


def test_a_table_of_a_file_that_has_but_one(opened, tmp_path):
    assert first(opened({"state_dict": RAW}, table="state_dict")) == 1.0
    assert first(opened(RAW, table=".")) == 1.0
    opened({"model": RAW})
    main(["export", str(tmp_path / "x.pt"), str(tmp_path / "y.safetensors"), "--quiet"])
    for how in ({"table": "model"}, {"table": "."}):
        with pytest.raises(UsageError):
            open_weights(tmp_path / "y.safetensors", **how)


@pytest.mark.parametrize(
    "top, name, value",
    [
        ({"encoder": RAW, "decoder": OTHER}, "decoder", 3.0),
        ({"generator": RAW, "discriminator": {"d": torch.ones(4)}, "g_ema": AVERAGE}, "generator", 1.0),
        ({"models": [RAW, OTHER]}, "models.1", 3.0),
        ({"ema_0.99": RAW, "ema_0.999": AVERAGE}, "ema_0.999", 2.0),
        ({"a": {"state_dict": RAW}, "b": {"state_dict": OTHER}}, "b.state_dict", 3.0),
        ([RAW, OTHER], "1", 3.0),
        ((RAW, {"lr": 1}), "0", 1.0),
        ({"w": torch.ones(4), "inner": RAW}, "inner", 1.0),
        ({"w": torch.ones(40), "inner": RAW}, "inner", 1.0),
        ({"x": {**RAW, "sub": OTHER}}, "sub", 3.0),
    ],
    ids=lambda value: str(value)[:30],
)
@pytest.mark.parametrize("order", [dict, reversed_order])
def test_where_it_is_not_clear_the_tables_are_named(opened, top, name, value, order):
    top = order(top) if isinstance(top, dict) else top
    with pytest.raises(BadFileError) as caught:
        opened(top)
    assert name.split(".")[-1] in str(caught.value) and "--table" in str(caught.value)
    assert first(opened(top, table=name)) == value


def test_averages_alone_are_read_and_noted(opened):
    weights = opened({"ema": AVERAGE, "step": 3})
    assert first(weights) == 2.0 and any("averaged" in note for note in weights.notes)


@pytest.mark.parametrize("deep", [1, 2, 5])
def test_tables_at_any_depth_are_found(opened, deep):
    top = RAW
    for level in range(deep):
        top = {f"level{level}": top, "version": 1}
    assert first(opened(top)) == 1.0


class Wrapper(torch.Tensor):
    pass


class Table(dict):
    pass


def wrapped(**attributes):
    tensor = torch.arange(3.0).as_subclass(Wrapper)
    tensor.__dict__.update(attributes)
    return tensor


ONE = torch.ones(1)
LEFT_OUT = {
    "coo": torch.eye(3).to_sparse(),
    "csr": torch.eye(3).to_sparse_csr(),
    "csc": torch.eye(3).to_sparse_csc(),
    "bsr": torch.eye(4).to_sparse_bsr((2, 2)),
    "per tensor": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "per channel": torch.quantize_per_channel(torch.ones(1, 2), ONE, torch.zeros(1), 0, torch.quint8),
    "qint32": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint32),
    "meta": torch.empty(3, device="meta"),
    "without values": torch.nn.parameter.UninitializedParameter(),
    "buffer without values": torch.nn.parameter.UninitializedBuffer(),
    "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "jagged": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    "tensors in attributes": wrapped(scale=torch.ones(1)),
    "complex32": torch.zeros(2, dtype=torch.complex32),
    "bits": torch.zeros(4, dtype=torch.uint8).view(torch.bits8),
    "array": numpy.ones(3),
    "list": [torch.ones(1)],
    "dict": {"x": torch.ones(1)},
    "ordered": collections.OrderedDict(x=torch.ones(1)),
    "table of a class": Table(x=torch.ones(1)),
    "object": torch.nn.Linear(2, 2),
    "set": {torch.ones(1)},
    "negative bit of a uint8": torch._neg_view(torch.ones(2, dtype=torch.uint8)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "kind, zipped",
    [*((kind, True) for kind in LEFT_OUT), *((kind, False) for kind in LEFT_OUT if kind != "object")],
)
@pytest.mark.parametrize("place", ["state_dict", "top"])
def test_no_tensor_of_the_table_is_left_out(tmp_path, kind, zipped, place, capsys):
    state = {**RAW, "layer.odd": LEFT_OUT[kind]}
    path = tmp_path / "x.ckpt"
    torch.save(state if place == "top" else {place: state}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(BadFileError) as caught:
        open_weights(path)
    assert "layer.odd" in caught.value.given
    for out in ("y.pt", "y.safetensors"):
        assert main(["export", str(path), str(tmp_path / out), "--quiet"]) == 3
    assert main(["info", str(path)]) == 3
    assert [item.name for item in tmp_path.iterdir()] == ["x.ckpt"]


@pytest.mark.parametrize("key", [5, None, b"a", 2.5, True, (1, "a"), 1 << 200])
@pytest.mark.parametrize("beside", [{}, RAW])
@pytest.mark.parametrize("place", ["state_dict", "top"])
def test_keys_that_are_no_text(opened, key, beside, place):
    table = {**beside, key: torch.ones(3)}
    with pytest.raises(BadFileError):
        opened(table if place == "top" else {place: table})


def test_what_is_no_tensor_is_ignored(opened):
    odd = {
        "n": 3,
        "s": "x",
        "none": None,
        "empty": {},
        "buffer": io.BytesIO(b"x"),
        "scalar": numpy.float32(3),
    }
    weights = opened({"state_dict": {**RAW, **odd, 7: "x"}})
    assert set(weights) == set(RAW) and weights.metadata["n"] == "3"
    assert any(f"{len(odd)} entries that are not tensors" in note for note in weights.notes)


def test_other_tables_may_hold_what_is_not_read(opened):
    """Only the table that is read must be whole."""
    assert set(opened({"state_dict": RAW, "ema": {"q": LEFT_OUT["coo"], 5: torch.ones(1)}})) == set(RAW)


VALUES = torch.randn(6, dtype=torch.complex128)
BITS = {
    "negative": VALUES.conj().imag,
    "negative view": VALUES.conj().imag[1:5:2],
    "conjugate": VALUES.to(torch.complex64).conj(),
    "conjugate transposed": torch.randn(3, 2, dtype=torch.complex64).mH,
    "both": torch._neg_view(VALUES.conj()),
    "negative integers": torch._neg_view(torch.arange(5)),
    "negative half": torch._neg_view(torch.arange(5).half()),
    "negative expanded": torch._neg_view(torch.ones(1)).expand(4),
    "plain attributes": wrapped(note="x"),
    "parameter": torch.nn.Parameter(torch.arange(3.0)),
    "empty with an offset": torch.empty(3, 0)[1:],
    "float8": torch.arange(4.0).to(torch.float8_e4m3fn),
    "uint64": torch.tensor([1, 1 << 63], dtype=torch.uint64),
}


def values_of(tensor):
    tensor = tensor.detach().resolve_conj().resolve_neg()
    return tensor.float() if "float8" in str(tensor.dtype) else tensor


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", BITS)
def test_lazy_bits_and_odd_layouts_equal_torch_load(tmp_path, kind, zipped):
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": {"x": BITS[kind]}}, path, _use_new_zipfile_serialization=zipped)
    truth = values_of(torch.Tensor.as_subclass(BITS[kind], torch.Tensor))
    assert main(["export", str(path), str(tmp_path / "y.pt"), "--quiet"]) == 0
    for weights in (open_weights(path), open_weights(tmp_path / "y.pt")):
        assert torch.equal(values_of(weights["x"]), truth) and weights.info("x").shape == tuple(truth.shape)
        flat = torch.empty(truth.numel(), dtype=BITS[kind].dtype)
        for start in range(0, truth.numel(), 2):
            weights.read_into("x", start, flat[start : start + 2])
        assert torch.equal(values_of(flat), truth.reshape(-1))
        if truth.numel() and not truth.is_complex() and truth.dtype != torch.uint64:
            assert weights.last("x") == truth.reshape(-1)[-1]
    assert torch.equal(values_of(torch.load(tmp_path / "y.pt")["state_dict"]["x"]), truth)


def test_one_storage_under_two_dtypes(tmp_path):
    """torch goes by the first of two descriptions of a storage."""
    path = tmp_path / "x.pt"
    torch.save({"a": torch.ones(4), "b": torch.ones(4, dtype=torch.int32)}, path)

    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            return item.id if isinstance(item, Storage) else None

    class Storage:
        def __init__(self, kind):
            self.id = ("storage", kind, "0", "cpu", 4)

    class Tensor:
        def __init__(self, kind):
            self.kind = kind

        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Storage(self.kind), 0, (4,), (1,), False, {})

    import zipfile

    def write(*kinds):
        stream = io.BytesIO()
        Pickler(stream, 2).dump({f"t{i}": Tensor(kind) for i, kind in enumerate(kinds)})
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", stream.getvalue())
            archive.writestr("x/data/0", bytes(range(16)))

    write(torch.FloatStorage, torch.FloatStorage)
    assert len(open_weights(path)) == 2
    write(torch.FloatStorage, torch.IntStorage)
    with pytest.raises(BadFileError):
        open_weights(path)
