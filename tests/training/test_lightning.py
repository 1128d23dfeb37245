"""The training loop on a toy network: checkpoints, signals, running mean, learning rates, errors of data."""

import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch

from edg.core.dist import World
from edg.core.errors import BadFileError, MachineError, UsageError
from edg.data.batches import TensorTable
from edg.training import callbacks
from edg.training.callbacks import checkpoint_path, checkpoints, last_checkpoint, set_aside_damaged
from edg.training.config import OptimizerConfig
from edg.training.lightning import TrainingModule, _strategy, fit, lr_factor, read_log

CONFIG = OptimizerConfig(steps=6, batch=2, lr=0.1, ema=0.5, save_every=3, log_every=1, logger="none")


class Line(TrainingModule):
    """y = a x + b, with a fixed scale that is not trained."""

    def __init__(self, config):
        super().__init__(config)
        torch.manual_seed(0)
        self.model = torch.nn.Linear(3, 1)
        self.scale = torch.nn.Parameter(torch.ones(()), requires_grad=False)

    def trainable(self):
        return dict(self.model.named_parameters())

    def training_step(self, batch, _index):
        losses = (self.scale * self.model(batch["x"])[:, 0] - batch["y"]) ** 2
        return {"loss": losses.mean(), "losses": losses.detach()}


def table(count=8):
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(1))
    return TensorTable({"x": x, "y": x @ torch.tensor([1.0, -2.0, 0.5]) + 3})


def weights(module):
    return {name: p.detach().clone() for name, p in module.trainable().items()}


def train(folder, config=CONFIG, **more):
    module = Line(config)
    fit(module, table(), folder, 0, **more)
    return weights(module)


def test_it_learns_and_keeps_a_mean(tmp_path):
    module = Line(replace(CONFIG, steps=60))
    log = fit(module, table(), tmp_path, seed=0)
    assert [line["step"] for line in log] == list(range(1, 61)) and log == read_log(tmp_path / "log.jsonl")
    assert log[-1]["loss"] < 0.1 * log[0]["loss"] and log[-1]["lr"] == 0.1
    assert all(torch.equal(module.average[name], p) for name, p in module.trainable().items())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_gives_the_same_weights(tmp_path, accumulate):
    config = replace(CONFIG, accumulate=accumulate, batch=2 // accumulate)
    whole = train(tmp_path / "whole", config)
    train(tmp_path / "parts", replace(config, steps=3))
    parts = train(tmp_path / "parts", config)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("change", [{}, {"accumulate": 2, "batch": 1}, {"workers": 1}, {"warmup": 5}])
def test_a_finished_run_goes_on_as_a_longer_one(tmp_path, change):
    """From its end, which is a checkpoint: weights, running mean and log are those of 9 steps at once."""
    config = replace(CONFIG, optimizer="adamw", save_every=100, **change)
    whole, longer = train(tmp_path / "whole", replace(config, steps=9)), tmp_path / "longer"
    short = train(longer, replace(config, steps=4))
    assert not torch.equal(short["weight"], whole["weight"])
    parts = train(longer, replace(config, steps=9))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    logs = [read_log(folder / "log.jsonl") for folder in (tmp_path / "whole", longer)]
    ours, theirs = ([(line["step"], line["loss"], line["lr"]) for line in log] for log in logs)
    assert ours == theirs and len(ours) == 9


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_rate_of_a_longer_run_is_that_of_its_schedule_from_the_first_step_on(tmp_path, schedule):
    short = replace(CONFIG, steps=4, schedule=schedule)
    train(tmp_path, short)
    train(tmp_path, longer := replace(short, steps=8))
    rates = [line["lr"] for line in read_log(tmp_path / "log.jsonl")]
    assert rates[:4] == pytest.approx([0.1 * lr_factor(step, short) for step in range(4)])
    assert rates[4:] == pytest.approx([0.1 * lr_factor(step, longer) for step in range(4, 8)])


class Killed(BaseException):
    """The end between two instructions."""


@pytest.mark.parametrize("keep", [1, 2])
def test_as_many_checkpoints_are_kept_after_a_kill(tmp_path, monkeypatch, keep):
    """Killed after a checkpoint was written, before the oldest was removed: the next start removes it."""

    def kill(path):
        raise Killed

    config = replace(CONFIG, steps=5, save_every=1, keep=keep)
    whole = train(tmp_path / "whole", config)
    for _ in range(2):
        monkeypatch.setattr(callbacks, "remove", kill)
        with pytest.raises(Killed):
            train(tmp_path / "run", config)
        monkeypatch.undo()
    assert len(checkpoints(tmp_path / "run")) == keep + 1
    found = []

    def look(module, step):
        found.append(len(checkpoints(tmp_path / "run")))
        return []

    again = train(tmp_path / "run", config, sample=look, sample_every=1)
    assert set(found) == {keep} and len(checkpoints(tmp_path / "run")) == keep
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize("damage", ["empty", "cut", "changed"])
def test_damaged_checkpoints_are_set_aside(tmp_path, damage):
    for step in (2, 4, 6):
        torch.save({"weights": torch.ones(1000)}, checkpoint_path(tmp_path, step))
    data = bytearray(checkpoint_path(tmp_path, 6).read_bytes())
    data[len(data) // 2] ^= 1
    spoilt = {"empty": b"", "cut": data[: len(data) // 2], "changed": data}[damage]
    for step in (4, 6):
        checkpoint_path(tmp_path, step).write_bytes(spoilt)
    set_aside_damaged(tmp_path)
    assert checkpoints(tmp_path) == [checkpoint_path(tmp_path, 2)]
    for step in (4, 6):
        assert (tmp_path / f"step_0000000{step}.ckpt.damaged").read_bytes() == spoilt


def test_a_run_continues_from_the_checkpoint_before_a_damaged_one(tmp_path):
    config = replace(CONFIG, steps=2, save_every=1)
    whole = train(tmp_path, config)
    last_checkpoint(tmp_path).write_bytes(b"torn")
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 2, "lo')
    again = train(tmp_path, config)
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == [1, 2]
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_checkpoints_are_few_and_hold_trainable_parameters(tmp_path):
    train(tmp_path, replace(CONFIG, steps=12, keep=2))
    assert sorted(p.name for p in tmp_path.glob("*.ckpt")) == ["step_00000009.ckpt", "step_00000012.ckpt"]
    saved = torch.load(last_checkpoint(tmp_path), weights_only=True)
    assert set(saved["state_dict"]) == {"model.weight", "model.bias"}
    assert set(saved["average"]) == {"weight", "bias"}


def test_checkpoints_that_signals_ask_for_are_among_the_few(tmp_path):
    """At every moment, and at the end."""
    seen = []

    def ask(module, step):
        seen.append([path.name for path in checkpoints(tmp_path)])
        if step < 4:
            os.kill(os.getpid(), signal.SIGUSR1)
        return []

    train(tmp_path, replace(CONFIG, save_every=5, keep=1), sample=ask, sample_every=1)
    names = [f"step_0000000{step}.ckpt" for step in range(1, 7)]
    assert seen == [[], [names[0]], [names[1]], [names[2]], [names[2]], [names[4]]]
    assert [path.name for path in checkpoints(tmp_path)] == [names[5]], "the end is kept, too"


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_handled_after_the_step(tmp_path, number, code):
    def handler(number, frame):
        raise RuntimeError("out of a handler, anywhere")

    before = signal.signal(number, handler)
    try:
        ask = lambda module, step: step == 2 and os.kill(os.getpid(), number) or []  # noqa: E731
        with pytest.raises(SystemExit) as left:
            train(tmp_path, sample=ask, sample_every=1)
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)
    assert left.value.code == code
    assert [path.name for path in checkpoints(tmp_path)] == ["step_00000002.ckpt"]


def test_a_folder_that_is_removed_ends_the_run(tmp_path):
    folder = tmp_path / "run"

    def remove(module, step):
        shutil.rmtree(folder)
        return []

    with pytest.raises(MachineError):
        train(folder, replace(CONFIG, log_every=100, save_every=1), sample=remove, sample_every=2)
    assert not folder.exists()


def test_the_running_mean_comes_and_goes(tmp_path):
    module = Line(replace(CONFIG, steps=3))
    fit(module, table(), tmp_path, seed=0)
    p = module.model.weight
    with torch.no_grad():
        p.add_(1)
    trained = p.detach().clone()
    with module.averaged():
        assert torch.equal(p, module.average["weight"]) and not module.training
    assert torch.equal(p, trained) and module.training


def test_groups_have_learning_rates_of_their_own():
    class Two(Line):
        def learning_rates(self):
            return [({"weight": self.model.weight}, 1.0), ({"bias": self.model.bias}, 5.0)]

    one, two = Line(CONFIG), Two(CONFIG)
    for module, rates, decays in ((one, [0.1, 0.1], [0, 0.01]), (two, [0.1, 0.5], [0.01, 0])):
        groups = module.configure_optimizers()["optimizer"].param_groups
        assert [group["initial_lr"] for group in groups] == pytest.approx(rates)
        assert [group["weight_decay"] for group in groups] == decays


def test_the_learning_rate_rises_and_falls():
    config = OptimizerConfig(steps=100, batch=1, lr=1.0, warmup=10, schedule="cosine", final_lr=0.1)
    assert lr_factor(0, config) == 0.1 and lr_factor(9, config) == 1.0 and lr_factor(10, config) == 1.0
    assert lr_factor(55, config) == pytest.approx(0.55) and lr_factor(100, config) == pytest.approx(0.1)
    assert lr_factor(55, replace(config, schedule="linear")) == pytest.approx(0.55)
    assert lr_factor(99, replace(config, schedule="constant")) == 1.0


def test_strategies_reach_lightning_and_gpus_are_demanded():
    two = World(0, 2)
    assert _strategy(CONFIG, World(), "cpu") == "auto"
    assert _strategy(CONFIG, two, "cpu")._process_group_backend == "gloo"
    assert _strategy(CONFIG, two, "cuda")._process_group_backend == "nccl"
    assert _strategy(replace(CONFIG, strategy="fsdp"), two, "cuda") == "fsdp"
    assert _strategy(replace(CONFIG, strategy="deepspeed"), two, "cuda") == "deepspeed_stage_2"
    with pytest.raises(UsageError) as error:
        _strategy(replace(CONFIG, strategy="fsdp"), two, "cpu")
    assert "train.strategy=fsdp" in error.value.given


def test_no_sample_is_an_error_not_an_endless_run(tmp_path):
    with pytest.raises(UsageError):
        fit(Line(CONFIG), [], tmp_path, seed=0)


class Broken(TensorTable):
    def __getitem__(self, key):
        raise BadFileError("no video can be used", fix="look at the list")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_data_is_raised_as_it_is_wherever_it_is_read(tmp_path, workers):
    with pytest.raises(BadFileError) as error:
        fit(Line(replace(CONFIG, workers=workers)), Broken(table().columns), tmp_path, seed=0)
    assert (error.value.given, error.value.fix) == ("no video can be used", "look at the list")


@pytest.mark.parametrize(
    "name, value",
    [("steps", 0), ("batch", 0), ("lr", 0.0), ("ema", 1.0), ("betas", (2.0, 3.0)), ("final_lr", -0.1)],
)
def test_settings_are_bounded(name, value):
    with pytest.raises(UsageError) as error:
        replace(CONFIG, **{name: value})
    assert f"train.{name}" in error.value.given
