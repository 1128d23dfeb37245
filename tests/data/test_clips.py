"""Clips of 40 real videos, seven of them bad: never fatal, all named, and the same whoever reads them."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from edg.core.errors import BadFileError, UsageError
from edg.data.batches import Key, KeyedDataset, ResumableBatchSampler, collate
from edg.data.clips import CaptionedVideo, ClipDataset, ClipSettings, SkippedVideos, read_csv

CLIP = ClipSettings(frames=8, height=32, width=40)
SEED = 5


@pytest.fixture
def videos(library):
    return read_csv(library.csv)


def same(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(v, b[k]) if isinstance(v, torch.Tensor) else v == b[k] for k, v in a.items()
    )


def test_forty_videos_are_read_without_stopping(library, videos, tmp_path):
    """A csv of 40 videos through workers, two epochs: every batch is full, the bad ones are named."""
    assert len(videos) == 40
    skipped = SkippedVideos(tmp_path / "logs" / "skipped.jsonl")
    dataset = ClipDataset(videos, CLIP, SEED, skipped)
    order = iter(ResumableBatchSampler(batch=4, ranks=1, rank=0, accumulate=1, size=40, seed=SEED))
    loader = DataLoader(
        KeyedDataset(dataset),
        batch_sampler=[next(order) for _ in range(20)],
        collate_fn=partial(collate, seed=SEED),
        num_workers=2,
    )
    seen = []
    for batch in loader:
        assert batch["frames"].shape == (4, 3, 8, 32, 40) and batch["frames"].dtype == torch.float32
        assert batch["frames"].abs().max() <= 1 and batch["fps"].shape == batch["draw"].shape == (4,)
        assert (batch["frames"].std(dim=(1, 2, 3, 4)) > 0.1).all()
        assert all(
            text == f'a, "{Path(path).stem}"'
            for text, path in zip(batch["caption"], batch["path"], strict=True)
        )
        seen += batch["path"]
    assert {Path(path).stem for path in seen} == set(library.names) - set(library.bad)
    reasons = {Path(path).stem: reason for path, reason in skipped.entries().items()}
    assert reasons.keys() == library.bad.keys()
    for name, reason in library.bad.items():
        assert any(part in reasons[name] for part in reason.split("|")), (name, reasons[name])


def test_a_clip_is_a_function_of_seed_epoch_and_index(videos):
    first, again = ClipDataset(videos, CLIP, SEED), ClipDataset(videos, CLIP, SEED)
    for index in reversed(range(len(videos))):  # bad ones, their replacements, any order
        again[1, index]
    for index in (0, 6, 34, 39):
        assert same(first[1, index], again[1, index])
    assert same(first[1, 3], first[Key(1, 3, 77, 2)])
    told = [
        tuple(ClipDataset(videos, CLIP, seed)[epoch, 11][k] for k in ("stride", "start"))
        for seed in (1, 2)
        for epoch in range(4)
    ]
    assert len(set(told)) > 3


def test_what_is_told_fits_what_is_shown(videos):
    """The grey quarter counts frames, 4 levels each, so a clip shows its own start and stride."""
    dataset = ClipDataset(videos, CLIP, SEED)
    checked = 0
    for index in range(30):
        item = dataset[0, index]
        grey = (item["frames"][:, :, -6:-2, -6:-2].mean(dim=(0, 2, 3)) + 1) * 127.5 / 4
        expected = item["start"] + item["stride"] * torch.arange(8)
        assert torch.equal(grey.round().long(), expected), (item["path"], grey, expected)
        assert (
            item["fps"] == max(1, int(item["fps_true"] + 1e-6)) and item["caption"] == videos[index].caption
        )
        checked += item["stride"] > 1
    assert checked > 10


def test_an_item_feeds_collate(videos):
    data = KeyedDataset(ClipDataset(videos, CLIP, SEED))
    batch = collate([data[Key(0, i, 0, i)] for i in range(2)], seed=SEED)
    assert batch["frames"].shape == (2, 3, 8, 32, 40) and batch["fps"].dtype == torch.int64
    assert batch["reader"][0] in ("decord", "pyav")


def test_flip_mirrors_half_of_the_clips(library):
    videos = [CaptionedVideo(library.root / "v00.mp4", "")]
    plain = ClipDataset(videos, CLIP, SEED)
    mirrored = ClipDataset(videos, ClipSettings(8, 32, 40, flip=True), SEED)
    flips = 0
    for epoch in range(20):
        a, b = plain[epoch, 0]["frames"], mirrored[epoch, 0]["frames"]
        flips += torch.equal(b, a.flip(-1))
        assert torch.equal(a, b) or torch.equal(b, a.flip(-1))
    assert 4 <= flips <= 16


def test_nothing_but_bad_videos(library):
    bad = [CaptionedVideo(library.root / f"{name}.mp4", "") for name in library.bad]
    dataset = ClipDataset(bad, CLIP, SEED, tries=10)
    with pytest.raises(BadFileError) as error:
        dataset[0, 0]
    assert "cut-off.mp4" in error.value.given
    assert 2 <= len(dataset.skipped.entries()) <= 7
    with pytest.raises(UsageError):
        ClipDataset([], CLIP, SEED)


def test_a_video_with_trouble_is_replaced_and_listed(library, tmp_path):
    lost = CaptionedVideo(tmp_path / "list.csv, line 3", "", "names no video")
    videos = [CaptionedVideo(library.root / "v00.mp4", "seen"), lost]
    skipped = SkippedVideos(tmp_path / "skipped.jsonl")
    assert ClipDataset(videos, CLIP, SEED, skipped)[0, 1]["caption"] == "seen"
    assert skipped.entries() == {str(lost.path): "names no video"}


def test_a_bad_video_is_opened_once(library, monkeypatch):
    dataset = ClipDataset([CaptionedVideo(library.root / n, "") for n in ("v00.mp4", "text.mp4")], CLIP, SEED)
    first = dataset[0, 1]
    monkeypatch.setattr("edg.data.clips.read_frames_at", _only("v00.mp4"))
    assert same(dataset[0, 1], first)


def _only(name):
    from edg.data.readers import read_frames_at

    def read(path, choose, backend):
        assert path.name == name
        return read_frames_at(path, choose, "auto")

    return read


def test_skipped_is_shared_and_survives(tmp_path):
    file = tmp_path / "skipped.jsonl"
    one, other = SkippedVideos(file), SkippedVideos(file)
    one.add("a.mp4", "torn")
    other.add("a.mp4", "torn")
    other.add("b.mp4", "short")
    with file.open("a") as half:
        half.write('{"path": "c.m')
    assert one.entries() == {"a.mp4": "torn", "b.mp4": "short"} == SkippedVideos(file).entries()
    assert "b.mp4" not in one and "b.mp4" in other
    assert [json.loads(line)["path"] for line in file.read_text().splitlines()[:2]] == ["a.mp4", "b.mp4"]
    one.add("d.mp4", "empty")
    assert set(SkippedVideos(file).entries()) == {"a.mp4", "b.mp4", "d.mp4"}


@pytest.mark.parametrize("batch, ranks, accumulate", [(2, 2, 3), (1, 3, 2), (4, 1, 2), (2, 4, 1)])
def test_ranks_and_accumulation_together_see_what_one_large_batch_sees(batch, ranks, accumulate):
    """Every position of the global batch once, and the same samples for it, whoever takes which share."""
    whole = iter(ResumableBatchSampler(batch * ranks * accumulate, 1, 0, 1, size=100, seed=5))
    shares = [
        iter(ResumableBatchSampler(batch, ranks, rank, accumulate, size=100, seed=5)) for rank in range(ranks)
    ]
    for step in range(3):
        taken = [next(share) for _ in range(accumulate) for share in shares]
        assert all(len(part) == batch for part in taken)
        assert [key for part in taken for key in part] == next(whole)
        assert {key.step for part in taken for key in part} == {step}
