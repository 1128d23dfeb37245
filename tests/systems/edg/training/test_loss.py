"""The training objective: whose random numbers, which conditions, what weight; and memory against time."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from edg.core.errors import UsageError
from edg.diffusion.schedule import make_schedule
from edg.networks.latent_video.adapter import begin
from edg.networks.latent_video.load import build, load_model
from edg.networks.latent_video.presets import DYNAMICRAFTER_512, DYNAMICRAFTER_1024, SPRITES
from edg.systems.edg.training.loss import (
    Constants,
    Draws,
    Drops,
    Objective,
    TimeNoise,
    denoising_loss,
    latents,
    shifted,
    snr_weight,
)
from edg.verify.rules import fill

TINY = replace(SPRITES, unet=replace(SPRITES.unet, channel_mult=(1,), attention_resolutions=(1,)))
SILENT = Drops(0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def model():
    return fill(build(TINY, "cpu"), 3).requires_grad_(False)


def batch(count=3, seed=0):
    random = torch.Generator().manual_seed(seed)
    return {
        "latents": torch.randn(count, 4, 8, 4, 4, generator=random),
        "text": torch.randn(count, 8, 64, generator=random),
        "image": torch.randn(count, 17, 64, generator=random),
        "fps": torch.full((count,), 8),
        "draw": torch.tensor([2**62 + 11, 22, 33][:count]),
        "batch_draw": torch.full((count,), 7),
    }


class Recorder:
    """Takes the place of model.predict and records its arguments."""

    def __init__(self, model, monkeypatch, answer=None):
        self.calls = []
        monkeypatch.setattr(model, "predict", self)
        self.answer = answer

    def __call__(self, x, t, context, concat, fs, temporal):
        self.calls.append({"x": x, "t": t, "context": context, "concat": concat, "fs": fs})
        return torch.zeros_like(x) if self.answer is None else self.answer(x, t)


def test_a_sample_s_numbers_are_its_own(model):
    """Alone, in another order or among others, on any rank: the same timestep and the same loss."""
    data, objective = batch(), Objective(offset_noise=0.1, min_snr=5.0, time_noise=TimeNoise(clip="tokens"))
    constants = Constants.of(model)
    loss, t = denoising_loss(model, data, objective, constants)
    turned = {name: value.flip(0) for name, value in data.items()}
    again, t_again = denoising_loss(model, turned, objective, constants)
    assert torch.equal(t_again.flip(0), t)
    torch.testing.assert_close(again.flip(0), loss, rtol=1e-5, atol=1e-6)
    alone, t_alone = denoising_loss(model, {n: v[1:2] for n, v in data.items()}, objective, constants)
    assert torch.equal(t_alone, t[1:2])
    torch.testing.assert_close(alone, loss[1:2], rtol=1e-5, atol=1e-6)
    twice, _ = denoising_loss(model, data, objective, constants)
    assert torch.equal(twice, loss)
    other, t_other = denoising_loss(model, {**data, "draw": data["draw"] + 1}, objective, constants)
    assert not torch.equal(other, loss) and not torch.equal(t_other, t)


def test_without_seeds_torch_s_own_generator_gives_them(model):
    data = {name: value for name, value in batch().items() if "draw" not in name}
    constants, losses = Constants.of(model), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(denoising_loss(model, data, Objective(), constants)[0])
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])


def test_moments_and_frames_give_the_same_latents(model):
    frames = torch.rand(2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    draws = Draws((5, 6), 7)
    raw = latents(model, {"frames": frames}, draws)
    flat = frames.transpose(1, 2).flatten(0, 1)
    with torch.no_grad():
        moments = torch.stack([model.first_stage_model.moments(x[None])[0] for x in flat])
    moments = moments.unflatten(0, (2, 8)).transpose(1, 2)
    torch.testing.assert_close(latents(model, {"moments": moments}, draws), raw)
    mean = moments.chunk(2, 1)[0] * TINY.scale_factor
    spread = (raw - mean) / (0.5 * moments.chunk(2, 1)[1]).exp() / TINY.scale_factor
    assert spread.std() == pytest.approx(1.0, abs=0.1), "a draw from the posterior, not its mean"
    with pytest.raises(UsageError):
        latents(model, {"caption": ["x"]}, draws)


def test_one_random_frame_for_the_whole_batch(model, monkeypatch):
    recorder, data = Recorder(model, monkeypatch), batch()
    data["images"] = torch.randn(3, 8, 17, 64)
    del data["image"]
    constants, objective, seen = Constants.of(model), Objective(drops=SILENT, random_frame=True), set()
    for step in range(30):
        data["batch_draw"] = torch.full((3,), step)
        denoising_loss(model, data, objective, constants)
        call = recorder.calls[-1]
        (frame,) = [f for f in range(8) if torch.equal(call["concat"][:, :, 0], data["latents"][:, :, f])]
        assert torch.equal(call["concat"], data["latents"][:, :, frame : frame + 1].expand(-1, -1, 8, -1, -1))
        assert torch.equal(call["context"][:, 8:], model.image_proj_model(data["images"][:, frame]))
        seen.add(frame)
    assert len(seen) > 5
    with pytest.raises(UsageError):
        for step in range(5):
            denoising_loss(model, {**batch(), "batch_draw": torch.full((3,), step)}, objective, constants)


def test_conditions_are_dropped_in_their_shares():
    r = Draws(tuple(range(20_000)), 0).uniform("drop")
    text, image = Drops(0.1, 0.2, 0.3).masks(r)
    shares = [(text & ~image).float().mean(), (text & image).float().mean(), (image & ~text).float().mean()]
    assert [float(s) for s in shares] == pytest.approx([0.1, 0.2, 0.3], abs=0.02)


@pytest.mark.parametrize(
    "drops, text, image", [((1, 0, 0), 1, 0), ((0, 1, 0), 1, 1), ((0, 0, 1), 0, 1), ((0, 0, 0), 0, 0)]
)
def test_what_is_dropped_is_the_null_condition(model, monkeypatch, drops, text, image):
    recorder, data = Recorder(model, monkeypatch), batch()
    denoising_loss(model, data, Objective(drops=Drops(*drops)), Constants.of(model))
    context = recorder.calls[0]["context"]
    empty = model.encode_text([""]).expand(3, -1, -1)
    zero = model.encode_image(torch.zeros(1, 3, 32, 32)).expand(3, -1, -1)
    torch.testing.assert_close(context[:, :8], empty if text else data["text"])
    torch.testing.assert_close(context[:, 8:], zero if image else model.image_proj_model(data["image"]))
    assert torch.equal(recorder.calls[0]["concat"][:, :, 3], data["latents"][:, :, 0]), "never dropped"


@pytest.mark.parametrize("kind, published", [("v", DYNAMICRAFTER_1024), ("eps", DYNAMICRAFTER_512)])
def test_a_perfect_network_has_no_loss(monkeypatch, kind, published):
    """With the dynamic rescale (0.3 and 0.7) and zero terminal SNR, by the formulas of Salimans and Ho."""
    schedule = replace(published.schedule, zero_terminal_snr=kind == "v")
    spec = replace(TINY, schedule=schedule, parameterization=kind)
    model, data = fill(build(spec, "cpu"), 3), batch()

    def perfect(x, t):
        a = model.schedule.alphas_cumprod[t].double().view(-1, 1, 1, 1, 1)
        ramp = np.interp(t.numpy(), [0, 399], [1.0, schedule.base_scale])
        x0 = data["latents"].double() * torch.from_numpy(ramp).view(-1, 1, 1, 1, 1)
        eps = (x.double() - a.sqrt() * x0) / (1 - a).sqrt()
        return (a.sqrt() * eps - (1 - a).sqrt() * x0 if kind == "v" else eps).float()

    Recorder(model, monkeypatch, perfect)
    for draw in range(5):
        data["draw"] = torch.arange(3) + 10 * draw
        loss, _ = denoising_loss(model, data, Objective(time_noise=TimeNoise()), Constants.of(model))
        assert float(loss.detach().max()) < 1e-5


def test_offset_noise_is_one_number_per_channel_and_frame(model, monkeypatch):
    recorder, data, constants = Recorder(model, monkeypatch), batch(), Constants.of(model)
    for strength in (0.0, 0.5):
        denoising_loss(model, data, Objective(offset_noise=strength), constants)
    plain, offset = recorder.calls
    sigma = constants.schedule.sqrt_one_minus_alphas_cumprod[plain["t"]].view(-1, 1, 1, 1, 1)
    added = (offset["x"] - plain["x"]) / sigma
    torch.testing.assert_close(added, added[..., :1, :1].expand_as(added), atol=1e-4, rtol=1e-4)
    assert added[..., 0, 0].std() == pytest.approx(0.5, abs=0.15)


def test_weight_is_of_every_value(model, monkeypatch):
    Recorder(model, monkeypatch)
    data, constants = batch(), Constants.of(model)
    loss, _ = denoising_loss(model, data, Objective(), constants)
    weight = torch.full((3, 1, 8, 4, 4), 2.0)
    double, _ = denoising_loss(model, {**data, "weight": weight}, Objective(), constants)
    torch.testing.assert_close(double, 2 * loss)


def test_time_noise_has_the_published_medians():
    """The fact sheet's figures for a = 5, beta_m = 100, computed from the formula elsewhere."""
    normal = torch.randn(200_001, generator=torch.Generator().manual_seed(0))
    medians = {0.1: 26.9, 0.5: 28.1, 0.75: 37.2, 0.9: 54.5, 0.95: 63.4, 1.0: 73.1}
    for u, median in medians.items():
        level = TimeNoise().level(torch.full_like(normal, u), normal)
        assert float(level.median()) == pytest.approx(median, abs=0.25)
        assert float(level.min()) > 0 and float(level.max()) < 100


def test_time_noise_buries_the_image_s_latent(model, monkeypatch):
    recorder, data, constants = Recorder(model, monkeypatch), batch(), Constants.of(model)
    clean = data["latents"][:, :, :1].expand(-1, -1, 8, -1, -1)
    for per in ("element", "sample"):
        denoising_loss(model, data, Objective(time_noise=TimeNoise(per=per, clip="none")), constants)
        call = recorder.calls[-1]
        noise = call["concat"] - clean
        level = TimeNoise().level(call["t"] / 1000, Draws.of(data).normal("time noise level"))
        if per == "element":
            assert noise.std(dim=(1, 2, 3, 4)) == pytest.approx(level, rel=0.15)
        else:
            assert noise.std(dim=(1, 2, 3, 4)).max() < 1e-4, "one number for the whole latent"


def test_time_noise_on_the_image_tokens(model, monkeypatch):
    recorder, data, constants = Recorder(model, monkeypatch), batch(), Constants.of(model)
    own = model.image_proj_model(data["image"])

    def tokens(**options):
        denoising_loss(model, data, Objective(drops=SILENT, time_noise=TimeNoise(**options)), constants)
        return recorder.calls[-1]["context"][:, 8:]

    assert torch.equal(tokens(clip="none"), own)
    assert (tokens(clip="tokens") - own).std() > 5
    replaced = tokens(clip="replace", clip_prob=1.0)
    assert replaced.std() == pytest.approx(1.0, abs=0.1) and abs(float(replaced.mean())) < 0.1
    assert torch.equal(tokens(clip="replace", clip_prob=0.0), own)
    kept = 0
    for step in range(200):
        data["batch_draw"] = torch.full((3,), step)
        same = [torch.equal(a, b) for a, b in zip(tokens(), own, strict=True)]
        assert len(set(same)) == 1, "the whole batch or nothing of it"
        kept += same[0]
    assert 2 <= kept <= 22, "5 % of 200"


def test_min_snr_weights():
    """Hang et al. 2023 by hand: SNR 10 and 0.5 with gamma 5."""
    schedule = make_schedule(SPRITES.schedule)
    a = schedule.alphas_cumprod.double()
    snr = a / (1 - a)
    t = torch.tensor([int((snr - 10).abs().argmin()), int((snr - 0.5).abs().argmin()), 999])
    v = snr_weight(schedule, t, 5.0, "v")
    assert v.tolist() == pytest.approx([5 / 11, 0.5 / 1.5, 0.0], rel=0.02)
    eps = snr_weight(schedule, t[:2], 5.0, "eps")
    assert eps.tolist() == pytest.approx([0.5, 1.0], rel=0.02)
    assert snr_weight(schedule, t, None, "v").tolist() == [1, 1, 1]


def test_timesteps_are_uniform_or_shifted():
    u = torch.rand(50_000, generator=torch.Generator().manual_seed(0))
    assert torch.bincount(shifted(u, 10), minlength=10).float().div(50_000).sub(0.1).abs().max() < 0.01
    assert float(shifted(u, 1000, 3.0).float().median()) == pytest.approx(750, abs=6)
    assert int(shifted(torch.tensor([0.99999994]), 1000, 3.0)) == 999


@pytest.mark.parametrize(
    "make",
    [
        lambda: Drops(0.5, 0.5, 0.5),
        lambda: Drops(-0.1, 0, 0),
        lambda: Objective(min_snr=0.0),
        lambda: Objective(timestep_shift=0.0),
        lambda: TimeNoise(per="frame"),
        lambda: TimeNoise(clip="drop"),
        lambda: TimeNoise(clip_prob=2.0),
    ],
)
def test_impossible_settings_are_refused(make):
    with pytest.raises(UsageError):
        make()


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.slow
def test_checkpointing_gives_the_same_gradients_for_less_memory(precision):
    spec = replace(TINY, unet=replace(TINY.unet, dropout=0.1)).with_adapter()
    model, data = fill(build(spec, "cpu"), 3).train(), batch(2)
    constants, kept = Constants.of(model), []

    def gradients(checkpointing):
        model.unet.checkpointing = checkpointing
        model.zero_grad()
        torch.manual_seed(0)  # dropout
        saved = set()

        def note(tensor):
            saved.add((tensor.data_ptr(), tensor.nbytes))
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
        with torch.autocast("cpu", precision, enabled=precision is not None), hooks:
            loss, _ = denoising_loss(model, data, Objective(), constants)
        kept.append(sum(size for _, size in saved))
        loss.mean().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    plain, again = gradients(False), gradients(True)
    assert plain.keys() == again.keys() and len(plain) > 100
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    assert kept[1] < 0.5 * kept[0]
    model.eval()
    gradients(True)
    assert kept[2] > 0.8 * kept[0], "outside of training nothing is computed twice"


@pytest.mark.parametrize("use_linear", [True, False])
@pytest.mark.slow
def test_the_identity_start_is_the_base_model_to_the_last_bit(use_linear):
    """Every product that cc_projection adds to x is 1 x or 0, so that no order of summation rounds."""
    spec = replace(TINY, unet=replace(TINY.unet, use_linear=use_linear))
    base = fill(build(spec, "cpu"), 3)
    tuned = load_model(spec.with_adapter(), base.state_dict()).requires_grad_(True)
    begin(tuned, torch.Generator().manual_seed(0))
    data, constants = batch(), Constants.of(base)
    for precision in (None, torch.bfloat16):
        with torch.autocast("cpu", precision, enabled=precision is not None):
            losses = [denoising_loss(model, data, Objective(), constants)[0] for model in (base, tuned)]
        assert torch.equal(*losses)
    half = [load_model(m.spec, m.state_dict(), dtype=torch.bfloat16) for m in (base, tuned)]
    given = (
        data["latents"],
        torch.tensor([1, 500, 999]),
        torch.randn(3, 40, 64),
        data["latents"],
        data["fps"],
    )
    for pair in ((base, tuned), half):
        with torch.no_grad():
            expected = pair[0].predict(*given)
            assert expected.abs().max() > 0.1
            assert torch.equal(pair[1].predict(*given, pair[1].temporal_context(data["text"])), expected)
