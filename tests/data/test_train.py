"""`edg train` on a csv of 40 encoded videos, two of them bad: it ends, and names the two."""

import json
from pathlib import Path

import av
import pytest
import torch
import yaml

from edg.cli.main import main
from edg.data.clips import SkippedVideos, read_csv
from edg.networks.latent_video.load import load_model
from edg.networks.latent_video.models import load_spec
from edg.weights.store import open_weights

pytestmark = pytest.mark.slow

BASE = Path(__file__).parents[2] / "edg/sprites/weights/base.safetensors"


def looks(path):
    """(codec, (W, H), frames per second, turn in degrees), as FFmpeg tells them."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        turn = next(container.decode(stream)).rotation % 360
        return stream.codec.canonical_name, (stream.width, stream.height), stream.average_rate, turn


def test_the_forty_are_of_many_kinds(library):
    paths = {video.path for video in read_csv(library.real)}
    codecs, sizes, rates, turns = (set(kinds) for kinds in zip(*map(looks, paths), strict=True))
    assert len(paths) == 40
    assert codecs == {"h264", "mpeg4", "vp9", "hevc", "mpeg2video", "av1"}
    assert len(sizes) == 6 and len(rates) == 6 and turns == {0, 90, 180, 270}


def test_forty_videos_train_without_stopping(library, tmp_path):
    run = {
        "name": "forty",
        "spec": "sprites",
        "out": str(tmp_path),
        "seed": 1,
        "init": str(BASE),
        "adapter": "identity",
        "trainable": ["adapter"],
        "data": {"kind": "videos", "csv": str(library.real), "frames": 8, "height": 32, "width": 32},
        "train": {"steps": 20, "batch": 4, "lr": 1e-3, "log_every": 1, "workers": 2, "logger": "none"},
    }  # 80 samples: every video twice
    config = tmp_path / "forty.yaml"
    config.write_text(yaml.safe_dump(run))
    assert main(["train", str(config), "--device", "cpu", "--threads", "1"]) == 0

    log = [json.loads(line) for line in (tmp_path / "forty/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(1, 21))
    skipped = SkippedVideos(tmp_path / "forty/skipped.jsonl").entries()
    assert {Path(path).stem for path in skipped} == {"half", "short"}
    assert "cut short" in skipped[str(library.root / "half.mp4")]
    assert "too short" in skipped[str(library.root / "short.mp4")]

    result, base = open_weights(tmp_path / "forty.safetensors"), open_weights(BASE)
    load_model(load_spec("sprites").with_adapter(), result)
    assert all(torch.equal(result[name], base[name]) for name in base)
    projections = [result[name] for name in result if name.endswith("cc_projection.weight")]
    assert projections and all(p[:, len(p) :].any() for p in projections), "the text is heard: it learned"
    assert result.provenance["training"]["samples_in_data"] == 40
