"""Training on a tiny spec: it learns, resumes to the bit, also after a signal, and ranks see the same
samples; the adapter starts as the identity."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edg.data.batches import Key, KeyedDataset, TensorTable, collate
from edg.networks.latent_video import adapter, load
from edg.networks.latent_video.presets import SPRITES
from edg.networks.latent_video.vae import AutoencoderKL
from edg.sprites.data import clip_tensors, latent_weight, psnr_on_shape, stills
from edg.sprites.world import FPS, clips
from edg.systems.edg.training import trainable
from edg.systems.edg.training.config import TextOptimizerConfig
from edg.systems.edg.training.loss import Objective
from edg.systems.edg.training.modules import DenoiserTraining, VaeTraining
from edg.training.callbacks import last_checkpoint
from edg.training.lightning import fit

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TINY = replace(SPRITES, unet=replace(SPRITES.unet, channel_mult=(1,), attention_resolutions=(1,)))
CONFIG = TextOptimizerConfig(
    steps=12, batch=4, lr=2e-3, warmup=2, schedule="cosine", final_lr=0.05, ema=0.5, save_every=6,
    log_every=3, logger="none",
)  # fmt: skip


def table(count=4, split="base"):
    """Clips with random numbers for latents: what is tested is the training, not the autoencoder."""
    drawn = clip_tensors(list(clips(split, 0, count)), split)
    generator = torch.Generator().manual_seed(0)
    return TensorTable(
        {
            "latents": torch.randn(count, 4, 1, 8, 8, generator=generator).repeat(1, 1, 8, 1, 1),
            "text": torch.randn(count, TINY.unet.text_tokens, 64, generator=generator),
            "image": torch.randn(count, 17, 64, generator=generator),
            "fps": torch.full((count,), FPS),
            "weight": latent_weight(drawn["cover"], 4, 4.0),
        }
    )


def training(config=CONFIG, spec=TINY, objective=None):
    torch.manual_seed(0)
    model = load.build(spec, "cpu")
    return DenoiserTraining(model, config, objective or Objective(), trainable.choose(model, ("all",)))


def batch_of(data):
    return collate([KeyedDataset(data)[Key(0, i, 0, i)] for i in range(len(data))], seed=0)


def test_the_denoiser_learns_resumes_and_keeps_a_mean(tmp_path):
    module = training()
    frozen = {
        n: t.clone()
        for n, t in module.model.state_dict().items()
        if n.startswith(("first_stage", "cond_stage", "embedder"))
    }
    log = fit(module, table(), tmp_path, seed=0)
    assert [entry["step"] for entry in log] == [3, 6, 9, 12]
    assert log[-1]["loss"] < log[0]["loss"]
    assert all(torch.equal(module.model.state_dict()[n], t) for n, t in frozen.items())
    again = training(replace(CONFIG, steps=15))
    log = fit(again, table(), tmp_path, seed=0)
    assert [entry["step"] for entry in log] == [3, 6, 9, 12, 15], "it went on from the last checkpoint"
    assert set(again.average) == set(again.trainable())


def test_the_log_says_what_one_asks_of_a_run(tmp_path):
    line = fit(training(replace(CONFIG, steps=3, accumulate=2, batch=2)), table(), tmp_path, seed=0)[-1]
    assert {"loss", "grad_norm", "lr", "samples_per_second", "memory_gb", "seconds"} <= set(line)
    bands = [line[name] for name in line if name.startswith("loss_t")]
    assert bands and min(bands) <= line["loss"] <= max(bands)


def test_a_resumed_run_is_the_run(tmp_path):
    steady = replace(CONFIG, warmup=0, schedule="constant", save_every=3)

    def run(folder, steps):
        module = training(replace(steady, steps=steps))
        fit(module, table(), tmp_path / folder, seed=0)
        return module.trainable()

    whole = run("whole", 6)
    run("parts", 3)
    parts = run("parts", 6)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


SCRIPT = """
import os, sys
sys.path.insert(0, "tests/sprites")
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
from edg.core.dist import world
from edg.training.lightning import fit
from test_train import CONFIG, table, training
config = replace(CONFIG, ema=0.0, warmup=0, schedule="constant", log_every=1, save_every=4)
config = replace(config, **eval(sys.argv[2]))
with world("cpu") as here:
    module = training(config)
    fit(module, table(8), Path(sys.argv[1]), 0, here)
    if here.is_first:
        end = {n: p.detach().clone() for n, p in module.trainable().items()}
        torch.save(end, Path(sys.argv[1]) / "end.pt")
"""


def start(folder, ranks=1, **config):
    launch = [sys.executable]
    if ranks > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "run.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    return subprocess.Popen(
        [*launch, str(script), str(folder), repr(config)],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process, seconds=300):
    """(code, standard error) of the process; of one that hangs, where it hangs."""
    try:
        error = process.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        pytest.fail(f"no end after {seconds} s:\n{process.communicate(timeout=60)[1][-5000:]}")
    return process.returncode, error[-2000:]


def finish(folder, **how):
    code, error = ended(start(folder, **how))
    assert code == 0, error
    return torch.load(folder / "end.pt"), [
        json.loads(x) for x in (folder / "log.jsonl").read_text().splitlines()
    ]


@pytest.mark.parametrize("optimizer, lr, far", [("sgd", 0.05, 0.0), ("adamw", 2e-3, 0.01)])
def test_two_ranks_are_one_rank_with_twice_the_batch(tmp_path, optimizer, lr, far):
    """far: the share of the weights that may differ by more than 1e-5. AdamW divides by the gradient's size:
    where the gradient is rounding alone, as that of a bias before a norm, it steps by up to lr all the same.
    """
    config = {"steps": 20, "optimizer": optimizer, "lr": lr}
    one, log_one = finish(tmp_path / "one", batch=4, **config)
    two, log_two = finish(tmp_path / "two", ranks=2, batch=2, **config)
    assert [x["step"] for x in log_one] == [x["step"] for x in log_two] == list(range(1, 21))
    losses = [(a["loss"], b["loss"]) for a, b in zip(log_one, log_two, strict=True)]
    apart = torch.cat([(one[n] - two[n]).abs().flatten() for n in one])
    beyond = int((apart > 1e-5).sum())
    print(
        f"\n{optimizer}, lr {lr}: losses differ by at most {max(abs(a - b) / a for a, b in losses):.1e} of "
        f"themselves, weights by {float(apart.max()):.1e}, {beyond} of {len(apart)} by more than 1e-5"
    )
    for a, b in losses:
        assert b == pytest.approx(a, rel=1e-5, abs=1.1e-6), "the log rounds to 1e-6"
    assert beyond <= far * len(apart)


def wait_for(folder, step, process):
    log, deadline = folder / "log.jsonl", time.monotonic() + 300
    while process.poll() is None and not (log.exists() and f'"step": {step},' in log.read_text()):
        if time.monotonic() > deadline:
            ended(process, 0)
        time.sleep(0.001)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_was_ended_goes_on_to_the_same_weights(tmp_path, number):
    whole, _ = finish(tmp_path / "whole", steps=14, batch=2)
    process = start(tmp_path / "cut", steps=14, batch=2)
    wait_for(tmp_path / "cut", 6, process)
    process.send_signal(number)
    code, error = ended(process)
    assert code == (143 if number == signal.SIGTERM else -9), error
    last = last_checkpoint(tmp_path / "cut")
    if number == signal.SIGTERM:
        assert int(last.stem.split("_")[1]) >= 6, "SIGTERM leaves a checkpoint of the step it came in"
    cut, log = finish(tmp_path / "cut", steps=14, batch=2)
    assert [x["step"] for x in log] == list(range(1, 15))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_the_autoencoder_learns(tmp_path):
    torch.manual_seed(0)
    vae = AutoencoderKL(replace(SPRITES.vae, ch_mult=(1, 1, 1)))
    config = replace(CONFIG, ema=0.0, steps=15, batch=8)
    log = fit(VaeTraining(vae, config), TensorTable(stills(0, 16, 4.0)), tmp_path, seed=0)
    assert log[-1]["loss"] < 0.7 * log[0]["loss"]


def test_the_adapter_starts_as_the_identity_and_can_learn():
    torch.manual_seed(0)
    base = load.build(TINY, "cpu")
    with torch.no_grad():  # residual branches start at zero; let them speak
        for p in base.unet.parameters():
            p.copy_(torch.randn(p.shape) / max(p[0].numel(), 1) ** 0.5 if p.ndim > 1 else p)
    tuned = load.load_model(TINY.with_adapter(), {n: t for n, t in base.state_dict().items()})
    adapter.begin(tuned, torch.Generator().manual_seed(0))
    data = batch_of(table(2))
    context = torch.cat([data["text"], base.image_proj_model(data["image"])], dim=1)
    given = (data["latents"], torch.tensor([10, 900]), context, data["latents"], data["fps"])
    with torch.no_grad():
        expected = base.predict(*given)
        assert torch.allclose(
            tuned.predict(*given, tuned.temporal_context(data["text"])), expected, atol=1e-5
        )
    module = DenoiserTraining(tuned, CONFIG, Objective(), trainable.choose(tuned, ("all",)))
    names = set(module.trainable())
    assert "queries" in names and any(n.startswith("qformer.") for n in names)
    assert (
        sum(".cc_projection." in n for n in names) == 2 * sum(".cc_projection.weight" in n for n in names) > 0
    )
    module.training_step(data, 0)["loss"].backward()
    assert all(
        p.grad is not None and p.grad.abs().max() > 0 for n, p in module.trainable().items() if "cc_proj" in n
    )


def test_raw_batches_train_as_well():
    module = training(objective=Objective(random_frame=True, min_snr=5.0))
    drawn = clip_tensors(list(clips("tuned", 0, 2)), "tuned")
    data = TensorTable({"frames": drawn["frames"], "caption": drawn["caption"], "fps": torch.tensor([8, 8])})
    loss = module.training_step(batch_of(data), 0)["loss"]
    assert torch.isfinite(loss) and loss.requires_grad


def test_psnr_is_measured_on_the_shape_alone():
    frames, cover = torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4)
    cover[:, :2] = 1.0
    wrong = frames.clone()
    wrong[:, :, 2:] = 1.0  # the background is all wrong
    wrong[:, :, :2] = 0.02  # the shape by 0.01 of the peak
    assert psnr_on_shape(wrong, frames, cover) == pytest.approx(40.0, abs=1e-3)
