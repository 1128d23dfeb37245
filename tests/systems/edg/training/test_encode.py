"""The latent cache, `edg encode` and `edg analytic-init`, with the sprites model and made-up clips."""

import json
import pickle
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from edg.cli.main import main
from edg.core.dist import World
from edg.core.errors import BadFileError, UsageError
from edg.core.seeding import generator
from edg.core.video import write_video
from edg.data.batches import KeyedDataset, ResumableBatchSampler, collate
from edg.data.clips import CaptionedVideo, SkippedVideos
from edg.networks.latent_video.load import build, load_model
from edg.networks.latent_video.presets import SPRITES
from edg.systems.edg.clip_state import read_initial_noise
from edg.systems.edg.training import analytic_init, encode, latent_cache
from edg.systems.edg.training import run as training
from edg.systems.edg.training.encode_flags import stride_range
from edg.systems.edg.training.latent_cache import CachedClips
from edg.systems.edg.training.records import relevant_settings
from edg.weights.writers import write_safetensors

SIZE, T = 5, 8


@dataclass(frozen=True)
class Video:
    path: str
    caption: str


@dataclass(frozen=True)
class Clips:
    height: int = 32
    width: int = 32
    frames: int = T
    stride: tuple[int, int] = (1, 6)


class Fake:
    """What ClipDataset gives, without videos. asked: the keys so far."""

    def __init__(self, size=SIZE):
        self.videos = [Video(f"{i}.mp4", f"shape {i} moves") for i in range(size)]
        self.asked = []

    def __len__(self):
        return len(self.videos)

    def __getitem__(self, key):
        epoch, index = key
        self.asked.append(key)
        frames = torch.rand((3, T, 32, 32), generator=generator(3, epoch, index)) * 2 - 1
        video = self.videos[index]
        numbers = {"fps": 8 + index, "fps_true": 24 / (index + 1), "stride": index + 1, "start": epoch}
        return {"frames": frames, "caption": video.caption, "path": video.path, **numbers}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A complete parameter set of the sprites model, drawn at random."""
    torch.manual_seed(4)
    state = build(SPRITES, "cpu").state_dict()
    path = tmp_path_factory.mktemp("weights") / "base.safetensors"
    write_safetensors(path, {name: value for name, value in state.items() if "cc_projection" not in name})
    return path


@pytest.fixture(scope="module")
def model(weights):
    from edg.weights.store import open_weights

    return load_model(SPRITES, open_weights(weights))


@pytest.fixture
def fake(monkeypatch):
    data = Fake()
    monkeypatch.setattr(encode, "open_dataset", lambda *_: (data, Clips()))
    monkeypatch.setattr(analytic_init, "open_dataset", lambda *_: (data, Clips()))
    return data


def run(name, weights, out, *more):
    argv = [name, "--spec", "sprites", "--data", "videos", "--out", out, "--device", "cpu"]
    return main([str(arg) for arg in [*argv, *(["--weights", weights] if weights else []), *more]])


# ---- cache -------------------------------------------------------------------------------------------------


def test_the_cache_holds_what_the_networks_say(tmp_path, weights, model, fake):
    assert run("encode", weights, tmp_path / "c", "--dtype", "float32", "--shard", "2", "--passes", "2") == 0
    clips = CachedClips(tmp_path / "c")
    assert len(clips) == SIZE and clips.index.count == 2 * SIZE and clips.index.shards == 5
    for epoch, index in ((0, 0), (1, 4), (0, 3), (3, 4)):  # epoch 3 reads pass 1 again
        item, source = clips[epoch, index], fake[epoch % 2, index]
        for name in ("caption", "path", "fps", "stride", "start"):
            assert item[name] == source[name] and type(item[name]) is type(source[name]), name
        assert item["fps_true"] == pytest.approx(source["fps_true"])
        posterior = model.encode_frames(source["frames"].transpose(0, 1))
        mean, logvar = item["moments"].transpose(0, 1).chunk(2, dim=1)
        assert torch.equal(mean, posterior.mean) and torch.equal(logvar, posterior.logvar)
        assert torch.equal(item["text"], model.encode_text([source["caption"]])[0])
        assert torch.allclose(item["image"], model.embedder(source["frames"][None, :, 0])[0], atol=1e-6)
    assert "frames" not in clips[0] and clips[2]["caption"] == "shape 2 moves"
    with pytest.raises(IndexError):
        clips[SIZE]


def test_sixteen_bits_and_every_frame(tmp_path, weights, model, fake):
    assert run("encode", weights, tmp_path / "c", "--every-frame", "--chunk", "3") == 0
    item, source = CachedClips(tmp_path / "c")[1], fake[0, 1]
    images = model.embedder(source["frames"].transpose(0, 1))
    assert "image" not in item and item["images"].shape == images.shape == (T, *images.shape[1:])
    assert item["images"].dtype == torch.float32 and torch.allclose(item["images"], images, atol=5e-3)
    assert item["fps_true"] == pytest.approx(12.0)


@pytest.mark.slow
def test_a_stopped_run_continues(tmp_path, weights, fake):
    flags = ("--shard", "2", "--passes", "1")
    assert run("encode", weights, tmp_path / "a", *flags) == 0
    assert run("encode", weights, tmp_path / "b", *flags) == 0
    (tmp_path / "b" / "clips-00001.safetensors").unlink()
    with pytest.raises(BadFileError):
        CachedClips(tmp_path / "b")
    fake.asked.clear()
    assert run("encode", weights, tmp_path / "b", *flags) == 0
    assert fake.asked == [(0, 2), (0, 3)]
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    fake.asked.clear()
    assert run("encode", weights, tmp_path / "b", *flags) == 0 and not fake.asked


class Alone(World):
    """A rank that meets nobody: the other runs after it."""

    def first(self, function):
        return function()

    def gather(self, value):
        return [value]


def test_two_processes_write_what_one_does(tmp_path, weights, fake, monkeypatch):
    assert run("encode", weights, tmp_path / "one", "--shard", "2") == 0
    for rank in (1, 0):
        monkeypatch.setattr(encode, "world", lambda _, rank=rank: nullcontext(Alone(rank, 2, rank)))
        assert run("encode", weights, tmp_path / "two", "--shard", "2") == 0
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_other_settings_are_another_cache(tmp_path, weights, fake, capsys):
    assert run("encode", weights, tmp_path / "c") == 0
    assert run("encode", weights, tmp_path / "c", "--seed", "1", "--dtype", "bf16") == 2
    error = capsys.readouterr().err
    assert "seed" in error and "dtype" in error
    fake.videos[0] = Video("0.mp4", "another caption")
    assert run("encode", weights, tmp_path / "c") == 2
    assert "videos" in capsys.readouterr().err


def test_the_cache_knows_its_encoders(tmp_path, weights, fake):
    from edg.weights.store import open_weights

    assert run("encode", weights, tmp_path / "c") == 0
    clips, state = CachedClips(tmp_path / "c"), dict(open_weights(weights))
    clips.check(SPRITES, state)
    clips.check(SPRITES.with_adapter(), state | {"model.diffusion_model.out.2.bias": torch.ones(4)})
    name = "first_stage_model.quant_conv.bias"
    with pytest.raises(UsageError):
        clips.check(SPRITES, state | {name: state[name] + 1})


def test_readers_in_other_processes_and_batches(tmp_path, weights, fake):
    assert run("encode", weights, tmp_path / "c", "--shard", "2") == 0
    clips = CachedClips(tmp_path / "c")
    first = clips[0]
    again = pickle.loads(pickle.dumps(clips))
    assert torch.equal(again[0]["moments"], first["moments"])
    keys = next(iter(ResumableBatchSampler(batch=3, ranks=1, rank=0, accumulate=1, size=len(clips), seed=0)))
    batch = collate([KeyedDataset(clips)[key] for key in keys], seed=0)
    assert batch["moments"].shape == (3, 8, T, 8, 8) and batch["fps"].tolist() == [8 + k.index for k in keys]
    assert batch["caption"] == [f"shape {k.index} moves" for k in keys] and batch["draw"].shape == (3,)


def test_damaged_caches_are_refused(tmp_path, weights, fake):
    with pytest.raises(BadFileError):
        CachedClips(tmp_path)
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(BadFileError):
        CachedClips(tmp_path)
    assert run("encode", weights, tmp_path / "c", "--shard", "4") == 0
    folder = tmp_path / "c"
    (folder / "clips-00001.safetensors").write_bytes((folder / "clips-00000.safetensors").read_bytes())
    with pytest.raises(BadFileError):
        CachedClips(folder)
    (folder / "clips-00001.json").unlink()  # as an earlier version left it
    with pytest.raises(BadFileError):
        CachedClips(folder)
    (folder / "clips-00000.safetensors").write_bytes(b"torn")
    with pytest.raises(BadFileError):
        _ = CachedClips(folder)[0]


def test_values_that_16_bits_cannot_hold_are_refused(tmp_path):
    index = latent_cache.CacheIndex("s", {}, {}, "v", 1, 1, 0, False, "float16", 1)
    with pytest.raises(BadFileError) as error:
        latent_cache.write_shard(tmp_path, index, 0, [{"moments": torch.full((2, 2), 1e5), "path": "a.mp4"}])
    assert all(word in error.value.given for word in ("moments", "a.mp4", "float16"))
    assert not list(tmp_path.iterdir())


# ---- Analytic-Init -----------------------------------------------------------------------------------------


def test_the_file_is_the_published_one(tmp_path, weights, model, fake):
    out = tmp_path / "initial_noise.pt"
    assert run("analytic-init", weights, out) == 0
    table = torch.load(out, weights_only=True)
    assert set(table) == {"Expectation_X0", "Tr_Cov_d", "edg"}
    latents, variances = [], []
    for index in range(SIZE):
        posterior = model.encode_frames(fake[0, index]["frames"].transpose(0, 1))
        latents.append(posterior.mean.transpose(0, 1).double())
        variances.append(posterior.logvar.double().exp())
    z = torch.stack(latents)
    expectation, spread = read_initial_noise(out, (1, 4, T, 8, 8))
    assert torch.allclose(expectation, z.mean(0, keepdim=True).float(), atol=1e-6)
    assert spread.shape == () and torch.equal(spread, table["Tr_Cov_d"])
    trace = float(z.var(0).mean() + torch.stack(variances).mean())
    assert float(spread) == pytest.approx(trace, rel=1e-5)
    record = json.loads(table["edg"])
    assert record["count"] == SIZE and record["spec"] == "sprites" and record["clips"]["stride"] == [1, 6]


def test_every_video_once_before_any_twice(tmp_path, weights, fake):
    keys = analytic_init.draw_keys(5, 12, seed=1)
    assert sorted(keys[:5]) == [(0, i) for i in range(5)] and sorted(keys[5:10]) == [(1, i) for i in range(5)]
    assert len(keys) == 12 and keys != analytic_init.draw_keys(5, 12, seed=2)
    assert run("analytic-init", weights, tmp_path / "x.pt", "--count", "3", "--seed", "1") == 0
    assert fake.asked == keys[:3]


def test_from_a_cache_without_weights(tmp_path, weights, fake):
    assert run("encode", weights, tmp_path / "c", "--dtype", "float32", "--shard", "2") == 0
    assert run("analytic-init", weights, tmp_path / "a.pt") == 0
    assert run("analytic-init", None, tmp_path / "b.pt", "--data", tmp_path / "c") == 0
    a, b = (torch.load(tmp_path / name, weights_only=True) for name in ("a.pt", "b.pt"))
    assert torch.allclose(a["Expectation_X0"], b["Expectation_X0"], atol=1e-6)
    assert float(a["Tr_Cov_d"]) == pytest.approx(float(b["Tr_Cov_d"]), rel=1e-6)


def test_the_scale_factor_is_in_it():
    logvar = torch.full((3, 2, 1, 2, 2), -1.0)
    z = torch.randn(3, 2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    stream = [torch.cat(pair) for pair in zip(z, logvar, strict=True)]
    one, scaled = analytic_init.accumulate(stream, 1.0), analytic_init.accumulate(stream, 0.18215)
    assert torch.allclose(scaled.expectation, 0.18215 * one.expectation)
    assert scaled.trace_cov_per_dim == pytest.approx(0.18215**2 * one.trace_cov_per_dim)


def test_mistakes(tmp_path, weights, fake, capsys, monkeypatch):
    out = tmp_path / "x.pt"
    assert run("encode", weights, tmp_path / "c") == 0
    cached = ("--data", tmp_path / "c")
    for argv, flag in (
        ((None, out), "--weights"),
        ((weights, out, "--count", "1"), "--count"),
        ((None, out, *cached, "--count", "9"), "--count 9"),
        ((None, out, *cached, "--height", "64"), "--height 64"),
        ((None, out, *cached, "--spec", "dynamicrafter-512"), "--spec sprites"),
    ):
        assert run("analytic-init", *argv) == 2
        assert flag in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert run("analytic-init", weights, out) == 2
    assert not out.exists()


# ---- real videos -------------------------------------------------------------------------------------------


def test_a_folder_of_videos(tmp_path, weights, capsys):
    """mp4 files with captions, one of them torn: encoded, listed, estimated."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for i in range(3):
        frames = np.full((20, 40, 64, 3), 60 * i + 40, np.uint8)
        write_video(folder / f"{i}.mp4", frames, fps=12)
        (folder / f"{i}.txt").write_text(f"grey {i}")
    (folder / "3.mp4").write_bytes((folder / "0.mp4").read_bytes()[:200])
    flags = ("--data", folder, "--stride", "2")
    assert run("encode", weights, tmp_path / "c", *flags, "--dtype", "float32") == 0
    assert str(tmp_path / "c" / "skipped.jsonl") in capsys.readouterr().err
    skipped = SkippedVideos(tmp_path / "c" / "skipped.jsonl").entries()
    assert [Path(path).name for path in skipped] == ["3.mp4"]
    clips = CachedClips(tmp_path / "c")
    assert [clips[i]["caption"] for i in range(3)] == ["grey 0", "grey 1", "grey 2"] and len(clips) == 4
    assert clips[3]["caption"].startswith("grey") and clips[0]["fps"] == 6 and clips[0]["stride"] == 2
    again = CachedClips(tmp_path / "c").index
    assert run("encode", weights, tmp_path / "c", *flags, "--dtype", "float32", "--workers", "1") == 0
    assert CachedClips(tmp_path / "c").index == again
    assert run("analytic-init", weights, tmp_path / "x.pt", *flags, "--workers", "1") == 0
    expectation, _ = read_initial_noise(tmp_path / "x.pt", (1, 4, T, 8, 8))
    assert torch.isfinite(expectation).all() and (tmp_path / "x.skipped.jsonl").is_file()


@pytest.mark.slow
def test_captions_that_are_not_there_or_too_long(tmp_path, weights, capsys):
    """Counted before anything is encoded; --require_captions ends with 3 and leaves no cache."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in "abc":
        write_video(folder / f"{name}.mp4", np.full((20, 40, 64, 3), 90, np.uint8), fps=12)
    (folder / "a.TXT").write_text("a white bar moves right")
    (folder / "b.caption").write_text("a white bar moves right and then away")
    flags = ("--data", folder, "--stride", "2")
    assert run("encode", weights, tmp_path / "c", *flags, "--require_captions") == 3
    assert not (tmp_path / "c").exists() and "c.mp4" in capsys.readouterr().err
    assert run("encode", weights, tmp_path / "c", *flags) == 0
    without, cut = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert "1 of 3" in without and "c.mp4" in without
    assert "1 of 2 captions" in cut and "then away" in cut
    clips = CachedClips(tmp_path / "c")
    assert [(v.path.name, v.caption) for v in clips.videos] == [
        ("a.mp4", "a white bar moves right"),
        ("b.mp4", "a white bar moves right and then away"),
        ("c.mp4", ""),
    ]
    assert run("analytic-init", None, tmp_path / "x.pt", "--data", tmp_path / "c") == 0
    assert "warning: 1 of 3" in capsys.readouterr().err
    assert run("analytic-init", weights, tmp_path / "x.pt", *flags) == 0
    assert "warning: 1 of 3" in capsys.readouterr().err
    (folder / "c.mp4.txt").write_text("a bar")
    assert run("encode", weights, tmp_path / "all", *flags, "--require_captions") == 0
    train = tmp_path / "train.yaml"
    values = {"spec": "sprites", "seed": 0, "out": str(tmp_path / "out"), "init": str(weights)}
    values |= {"train": {"steps": 1, "batch": 1, "lr": 0.1}}
    for data in ({"kind": "cache", "path": str(tmp_path / "c")}, {"kind": "videos", "root": str(folder)}):
        (folder / "c.mp4.txt").unlink(missing_ok=True)
        train.write_text(json.dumps(values | {"data": data | {"require_captions": True}}))
        assert main(["train", str(train), "--device", "cpu"]) == 3
        assert "1 of 3" in capsys.readouterr().err


def test_a_run_warns_of_missing_captions(tmp_path, monkeypatch, capsys):
    """Before it is trained; requiring captions makes no other run of it."""
    videos = [
        CaptionedVideo(tmp_path / "a.mp4", "a bar moves right and then away"),
        CaptionedVideo(tmp_path / "b.mp4", ""),
    ]
    monkeypatch.setattr(training, "record_settings", lambda *_: {})
    monkeypatch.setattr(training, "train_denoiser", lambda *_: ({}, None, {}))
    monkeypatch.setattr(training, "write_result", lambda *_: None)
    config = SimpleNamespace(name="r", kind="denoiser", spec="sprites", result=tmp_path / "r.safetensors")
    data = Fake(2)
    data.videos = videos
    training.run_training(config, data, World(), "cpu")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("warning: r: ") for line in lines)
    assert "1 of 2" in lines[0] and "'away'" in lines[1] and "a.mp4" in lines[2]
    plain, asked = ({"data": {"root": "x", **more}} for more in ({}, {"require_captions": True}))
    assert relevant_settings(plain) == relevant_settings(asked)


def test_stride_flags():
    assert stride_range("2") == (2, 2) and stride_range("1:6") == stride_range("1,6") == (1, 6)
    for text in ("", "0", "6:1", "a", "1:2:3", "-1"):
        with pytest.raises(UsageError) as error:
            stride_range(text)
        assert error.value.given == f"--stride {text}"


def test_an_error_in_a_reader_process_is_raised_as_it_is(fake, monkeypatch):
    monkeypatch.setattr(Fake, "__getitem__", broken)
    with pytest.raises(BadFileError) as error:
        list(encode.read_samples(fake, [(0, 0)], workers=1))
    assert error.value.given == "nothing can be used"


def broken(self, key):
    raise BadFileError("nothing can be used")
