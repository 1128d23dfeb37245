"""The trainer on a tiny spec: it learns, resumes, keeps a running mean; the adapter starts as the
identity."""

from dataclasses import replace

import pytest
import torch

from edg.sprites.data import clip_tensors, latent_weight, psnr_on_shape, stills
from edg.sprites.world import FPS, clips
from edg.systems.edg import adapter, load
from edg.systems.edg.objective import Objective
from edg.systems.edg.presets import SPRITES
from edg.systems.edg.train import (
    DenoiserTraining,
    Endless,
    Plan,
    VaeTraining,
    fit,
    rate,
)
from edg.systems.edg.vae import AutoencoderKL

TINY = replace(SPRITES, unet=replace(SPRITES.unet, channel_mult=(1,), attention_resolutions=(1,)))
PLAN = Plan(steps=12, batch=4, lr=2e-3, warmup=2, ema=0.5, save_every=6, log_every=3)


def table(count=4, told=False, split="base"):
    """Clips with random numbers for latents: what is tested is the training, not the autoencoder."""
    drawn = clip_tensors(list(clips(split, 0, count)), told)
    generator = torch.Generator().manual_seed(0)
    return {
        "latents": torch.randn(count, 4, 1, 8, 8, generator=generator).repeat(1, 1, 8, 1, 1),
        "text": torch.randn(count, TINY.unet.text_tokens, 64, generator=generator),
        "image": torch.randn(count, 17, 64, generator=generator),
        "fps": torch.full((count,), FPS),
        "weight": latent_weight(drawn["cover"], 4, 4.0),
    }


def test_the_denoiser_learns_resumes_and_keeps_a_mean(tmp_path):
    torch.manual_seed(0)
    model = load.build(TINY, "cpu")
    frozen = {
        n: t.clone()
        for n, t in model.state_dict().items()
        if n.startswith(("first_stage", "cond_stage", "embedder"))
    }
    module = DenoiserTraining(model, PLAN)
    log = fit(module, Endless(table(), 4, 0), tmp_path, "cpu")
    assert [entry["step"] for entry in log] == [3, 6, 9, 12]
    assert log[-1]["loss"] < log[0]["loss"]
    assert all(torch.equal(model.state_dict()[n], t) for n, t in frozen.items())
    again = DenoiserTraining(load.build(TINY, "cpu"), replace(PLAN, steps=15))
    log = fit(again, Endless(table(), 4, 0), tmp_path, "cpu")
    assert [entry["step"] for entry in log] == [3, 6, 9, 12, 15], "it went on from the last checkpoint"
    assert set(again.average) == set(again.trainable())


def test_a_resumed_run_is_the_run(tmp_path):
    steady = replace(PLAN, warmup=0, final_lr=1.0, save_every=3)

    def run(folder, steps):
        torch.manual_seed(0)
        module = DenoiserTraining(load.build(TINY, "cpu"), replace(steady, steps=steps))
        fit(module, Endless(table(), 4, 0), tmp_path / folder, "cpu")
        return module.trainable()

    whole = run("whole", 6)
    run("parts", 3)
    parts = run("parts", 6)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_the_autoencoder_learns(tmp_path):
    torch.manual_seed(0)
    vae = AutoencoderKL(replace(SPRITES.vae, ch_mult=(1, 1, 1)))
    log = fit(
        VaeTraining(vae, replace(PLAN, ema=0.0, steps=15)), Endless(stills(0, 16, 4.0), 8, 0), tmp_path, "cpu"
    )
    assert log[-1]["loss"] < 0.7 * log[0]["loss"]


def test_the_adapter_starts_as_the_identity_and_can_learn():
    torch.manual_seed(0)
    base = load.build(TINY, "cpu")
    with torch.no_grad():  # residual branches start at zero; let them speak
        for p in base.unet.parameters():
            p.copy_(torch.randn(p.shape) / max(p[0].numel(), 1) ** 0.5 if p.ndim > 1 else p)
    tuned = load.load_model(TINY.with_adapter(), {n: t for n, t in base.state_dict().items()})
    adapter.begin(tuned, torch.Generator().manual_seed(0))
    data = table(2)
    context = torch.cat([data["text"], base.image_proj_model(data["image"])], dim=1)
    given = (data["latents"], torch.tensor([10, 900]), context, data["latents"], data["fps"])
    with torch.no_grad():
        expected = base.predict(*given)
        assert torch.allclose(
            tuned.predict(*given, tuned.temporal_context(data["text"])), expected, atol=1e-5
        )
    module = DenoiserTraining(tuned, PLAN)
    names = set(module.trainable())
    assert "queries" in names and any(n.startswith("qformer.") for n in names)
    assert (
        sum(".cc_projection." in n for n in names) == 2 * sum(".cc_projection.weight" in n for n in names) > 0
    )
    module.training_step(data, 0).backward()
    assert all(
        p.grad is not None and p.grad.abs().max() > 0 for n, p in module.trainable().items() if "cc_proj" in n
    )


def test_raw_batches_train_as_well():
    torch.manual_seed(0)
    module = DenoiserTraining(load.build(TINY, "cpu"), PLAN, Objective(random_frame=True, min_snr=5.0))
    drawn = clip_tensors(list(clips("tuned", 0, 2)), told=True)
    loss = module.training_step(
        {"frames": drawn["frames"], "caption": drawn["caption"], "fps": torch.tensor([8, 8])}, 0
    )
    assert torch.isfinite(loss) and loss.requires_grad


def test_the_loss_of_a_perfect_network_is_zero(monkeypatch):
    model = load.build(TINY, "cpu")
    module = DenoiserTraining(model, PLAN)
    data = {n: v for n, v in table(3).items() if n != "weight"}

    def perfect(x, t, context, concat, fs, temporal_context=None):
        a = model.schedule.alphas_cumprod[t].double().view(-1, 1, 1, 1, 1)
        eps = (x.double() - a.sqrt() * data["latents"]) / (1 - a).sqrt()
        return (a.sqrt() * eps - (1 - a).sqrt() * data["latents"]).float()  # Salimans and Ho 2022, appendix D

    monkeypatch.setattr(model, "predict", perfect)
    assert float(module.training_step(data, 0)) == pytest.approx(0.0, abs=1e-6)


def test_the_rate_rises_and_falls():
    plan = Plan(steps=100, batch=1, lr=1.0, warmup=10, final_lr=0.1)
    assert rate(0, plan) == 0.1 and rate(9, plan) == 1.0 and rate(10, plan) == 1.0
    assert rate(55, plan) == pytest.approx(0.55) and rate(100, plan) == pytest.approx(0.1)


def test_psnr_is_measured_on_the_shape_alone():
    frames, cover = torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4)
    cover[:, :2] = 1.0
    wrong = frames.clone()
    wrong[:, :, 2:] = 1.0  # the background is all wrong
    wrong[:, :, :2] = 0.02  # the shape by 0.01 of the peak
    assert psnr_on_shape(wrong, frames, cover) == pytest.approx(40.0, abs=1e-3)
