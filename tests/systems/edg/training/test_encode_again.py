"""`edg encode` and `edg train` a second time: what is there counts while its content is what it was."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from edg.cli.main import main
from edg.core.dist import World
from edg.core.errors import BadFileError
from edg.core.video import write_video
from edg.data.clips import SkippedVideos
from edg.runner import train
from edg.systems.edg.training import encode as encode_module
from edg.systems.edg.training import records, run
from edg.systems.edg.training.latent_cache import CachedClips
from edg.weights.store import open_weights
from edg.weights.writers import write_safetensors

pytestmark = pytest.mark.slow

BASE = Path(__file__).parents[4] / "edg/sprites/weights/base.safetensors"
COUNT = 5


def film(path, level, frames=8):
    """A grey film; of another level it is another one, of the same size on the disk or nearly."""
    write_video(path, np.full((frames, 32, 32, 3), level, np.uint8))


def encode(folder, out="cache"):
    where = ["--data", folder / "videos", "--out", folder / out, "--weights", BASE, "--spec", "sprites"]
    more = ["--frames", "8", "--stride", "1", "--shard", "2", "--device", "cpu", "--dtype", "float32"]
    return main(["encode", *map(str, [*where, *more])])


@pytest.fixture(autouse=True, scope="module")
def one_model():
    """The networks are loaded once."""
    kept, load = {}, encode_module.load_encoders

    def load_once(*args, **more):
        if not kept:
            kept["model"] = load(*args, **more)
        return kept["model"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode_module, "load_encoders", load_once)
        yield


@pytest.fixture
def again(tmp_path):
    """videos/ and cache/, of 5 videos in 3 shards."""
    for n in range(COUNT):
        film(tmp_path / "videos" / f"{n}.mp4", 40 * n)
        (tmp_path / "videos" / f"{n}.txt").write_text(f"film {n}")
    assert encode(tmp_path) == 0
    return tmp_path


def shards(folder, out="cache"):
    return {path.name: path.read_bytes() for path in sorted((folder / out).glob("*.safetensors"))}


def states(folder):
    return {path.name: path.stat().st_mtime_ns for path in sorted((folder / "cache").glob("*.safetensors"))}


def same_as_fresh(folder):
    """What is in the cache is what encoding everything now would give."""
    assert encode(folder, "fresh") == 0
    found = shards(folder) == shards(folder, "fresh")
    shutil.rmtree(folder / "fresh")
    return found


def test_what_did_not_change_is_not_encoded_again(again):
    note = json.loads((again / "cache/clips-00000.json").read_text())
    assert [Path(clip["path"]).name for clip in note["clips"]] == ["0.mp4", "1.mp4"]
    assert {"size", "mtime_ns", "ctime_ns", "sha256"} <= note["clips"][0].keys()
    before = states(again)
    os.utime(again / "videos/0.mp4", (1, 1))  # touched, not changed
    (again / "videos/4.mp4").chmod(0o600)
    assert encode(again) == 0 and states(again) == before
    assert CachedClips(again / "cache").without_hashes() == 0


@pytest.mark.parametrize("keep_time", [False, True])
def test_a_replaced_video_is_encoded_again(again, keep_time):
    before, stat = states(again), (again / "videos/3.mp4").stat()
    film(again / "videos/3.mp4", 7)
    if keep_time:
        os.utime(again / "videos/3.mp4", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert encode(again) == 0
    assert [name for name, time in states(again).items() if time != before[name]] == [
        "clips-00001.safetensors"
    ]
    assert same_as_fresh(again)


def test_a_mended_video_takes_its_place(again):
    whole = (again / "videos/2.mp4").read_bytes()
    (again / "videos/2.mp4").write_bytes(b"no film")
    assert encode(again) == 0
    stranger = CachedClips(again / "cache")[2]["path"]
    assert not stranger.endswith("2.mp4") and SkippedVideos(again / "cache/skipped.jsonl").entries()
    (again / "videos/2.mp4").write_bytes(whole)
    assert encode(again) == 0
    assert CachedClips(again / "cache")[2]["path"].endswith("2.mp4") and same_as_fresh(again)
    assert not SkippedVideos(again / "cache/skipped.jsonl").entries()


def damaged(path, how):
    data, stat = bytearray(path.read_bytes()), path.stat()
    if how == "half":
        data = data[: len(data) // 2]
    elif how == "text":
        at = data.index(b"film ")
        data[at] ^= 1
    else:
        data[-100] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def as_earlier(shard):
    """A shard as an earlier version wrote it: without hashes, and without a word on its index."""
    stat, weights = shard.stat(), open_weights(shard)
    write_safetensors(shard, {name: weights[name] for name in weights}, {"texts": weights.metadata["texts"]})
    os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    shard.with_suffix(".json").unlink()


@pytest.mark.parametrize(  # an earlier version left no hashes: there only the shape can be seen
    ("how", "old"), [("half", False), ("text", False), ("bit", False), ("half", True)]
)
def test_a_damaged_shard_is_not_used_and_mended(again, how, old):
    before, shard = shards(again), again / "cache/clips-00001.safetensors"
    if old:
        as_earlier(shard)
    clips = CachedClips(again / "cache")
    damaged(shard, how)
    with pytest.raises(BadFileError):
        CachedClips(again / "cache")
    with pytest.raises(BadFileError):  # opened before it was damaged
        _ = clips[2]
    assert encode(again) == 0 and shards(again) == before


def test_a_cache_of_an_earlier_version_goes_on(again, capsys):
    for shard in (again / "cache").glob("*.safetensors"):
        as_earlier(shard)
    before = states(again)
    assert CachedClips(again / "cache").without_hashes() == 3
    assert CachedClips(again / "cache")[4]["caption"] == "film 4"
    assert encode(again) == 0 and states(again) == before
    assert CachedClips(again / "cache").without_hashes() == 0
    for note in (again / "cache").glob("clips-*.json"):
        note.unlink()
    film(again / "videos/0.mp4", 9)  # younger than its shard
    assert encode(again) == 0 == encode(again, "fresh")
    found, fresh = CachedClips(again / "cache"), CachedClips(again / "fresh")
    assert all(torch.equal(found.moments(n), fresh.moments(n)) for n in range(COUNT))


@pytest.mark.parametrize("how", ["no note", "broken note", "places", "index"])
def test_a_shard_is_of_its_index_and_place(again, how):
    folder, names = again / "cache", ("clips-00000", "clips-00001")
    before = shards(again)
    if how in ("no note", "broken note"):  # of what the videos were when they were read
        note = folder / "clips-00000.json"
        note.write_text("{") if how == "broken note" else note.unlink()
    elif how == "places":
        for suffix in (".safetensors", ".json"):
            first, second = (folder / (name + suffix) for name in names)
            first.rename(folder / "aside")
            second.rename(first)
            (folder / "aside").rename(second)
    else:
        index = json.loads((folder / "index.json").read_text())
        (folder / "index.json").write_text(json.dumps(index | {"seed": 1}))
    with pytest.raises(BadFileError):
        CachedClips(folder)
    if how == "index":
        (folder / "index.json").unlink()
    assert encode(again) == 0 and shards(again) == before


def test_shards_of_an_earlier_version_need_their_index(again):
    for shard in (again / "cache").glob("*.safetensors"):
        as_earlier(shard)
    (again / "cache/index.json").unlink()
    before = states(again)
    assert encode(again) == 2 and states(again) == before and not (again / "cache/index.json").exists()


def test_a_video_that_is_gone_stays_as_it_was_encoded(again):
    before = shards(again)
    clips = CachedClips(again / "cache")
    (again / "videos/0.mp4").unlink()
    note = json.loads((again / "cache/clips-00000.json").read_text())
    dataset = type("Data", (), {"videos": [type("V", (), {"path": clip["path"]}) for clip in note["clips"]]})
    assert (
        encode_module.outdated_reason(again / "cache", clips.index, dataset, 0, note) == ""
        and shards(again) == before
    )


# ---- training ----------------------------------------------------------------------------------------------


def run_of(folder, **data):
    settings = {"spec": "sprites", "seed": 1, "init": str(BASE), "out": str(folder / "out"), "data": data}
    settings["train"] = {"steps": 3, "batch": 1, "lr": 1e-3}
    (folder / "run.yaml").write_text(json.dumps(settings))
    return train.read_runs(folder / "run.yaml", [])[0]


@pytest.mark.parametrize("kind", ["videos", "cache"])
def test_data_that_changed_is_noted(again, kind):
    data = {"kind": kind, "root": str(again / "videos"), "frames": 8}
    config = run_of(again, **(data if kind == "videos" else {"kind": kind, "path": str(again / "cache")}))
    config.folder.mkdir(parents=True)
    first = records.record_settings(config, World(), train.open_data(config))
    records.write_result(config, {}, None, first, {})
    assert open_weights(config.result).provenance["training"][records.DATA] == first[records.DATA]
    assert records.is_finished(config, World()) and records.data_change(config, train.open_data(config)) == ""
    (config.folder / "step_00000002.ckpt").write_bytes(b"")
    assert records.FORMER not in records.record_settings(config, World(), train.open_data(config))

    film(again / "videos/1.mp4", 77, frames=9)
    assert encode(again) == 0
    assert records.is_finished(config, World()) and records.data_change(config, train.open_data(config))
    assert train._data_change(config, run)
    record = records.record_settings(config, World(), train.open_data(config))
    assert record[records.FORMER] == [{"until": "step_00000002.ckpt", **first[records.DATA]}]
    assert record[records.DATA] != first[records.DATA]
    again = records.record_settings(config, World(), train.open_data(config))  # noted once, and kept
    assert again[records.FORMER] == record[records.FORMER]


def test_a_result_of_an_earlier_version_is_finished(again):
    config = run_of(again, kind="videos", root=str(again / "videos"), frames=8)
    record = {k: v for k, v in records.settings_record(config, World()).items() if k != records.DATA}
    records.write_result(config, {}, None, record, {})
    assert records.is_finished(config, World()) and records.data_change(config, train.open_data(config)) == ""


def test_times_alone_are_told_apart(again):
    config = run_of(again, kind="videos", root=str(again / "videos"), frames=8)
    before = train.open_data(config).fingerprint()
    os.utime(again / "videos/0.mp4", (1, 1))
    after = train.open_data(config).fingerprint()
    assert after["content"] == before["content"] and after["times"] != before["times"]
