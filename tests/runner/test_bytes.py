"""What was decoded is what is hashed: the files of a clip may be replaced at any moment."""

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeSystem, job, run
from PIL import Image

from edg.core.errors import BadFileError, UsageError
from edg.core.video import picture_notes, read_image, write_image
from edg.runner.clip_folder import with_contents
from edg.runner.outputs import ClipFile
from edg.systems.base import Request
from edg.systems.edg.clip_state import read_initial_noise, read_pixels
from edg.systems.edg.options import SamplingOptions


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", ["replaced", "rewritten", "removed"])
def test_the_record_tells_the_image_that_the_frames_are_of(tmp_path, kind):
    todo = job(tmp_path, count=1)
    image, decoded = todo.requests[0].image, []
    former = sha256(image)

    class Swapping(FakeSystem):
        def generate(self, model, requests, observer=None):
            decoded.extend(hashlib.sha256(request.contents["image"]).hexdigest() for request in requests)
            write_image(tmp_path / "new.png", np.full((8, 8, 3), 200, np.uint8))
            if kind == "replaced":
                (tmp_path / "new.png").replace(image)
            elif kind == "rewritten":
                image.write_bytes((tmp_path / "new.png").read_bytes())
            else:
                image.unlink()
            yield from super().generate(model, requests, observer)

    run(todo, Swapping(), lambda: None)
    record = json.loads(todo.record(todo.requests[0]).read_text())
    assert record["status"] == "done" and decoded == [former] == [record["settings"]["image_sha256"]]
    if kind != "removed":
        with pytest.raises(UsageError):  # the same command does not call it finished
            run(todo, FakeSystem(), lambda: None)
        write_image(image, np.full((8, 8, 3), 0, np.uint8))
        assert sha256(image) == former and run(todo, FakeSystem(), lambda: None).skipped == 1


def test_the_bytes_are_decoded_whatever_lies_there(tmp_path):
    path = tmp_path / "a.png"
    write_image(path, np.full((32, 32, 3), 10, np.uint8))
    request = Request("a", "", 0, 8, 32, 32, SamplingOptions(), path, last_image=path)
    assert with_contents(request) == request  # what was read is no part of what is asked for
    read = with_contents(request)
    write_image(path, np.full((32, 32, 3), 250, np.uint8))
    assert (read_image(path, read.contents["image"]) == 10).all() and (read_image(path) == 250).all()
    assert (read_pixels("last_image", read) < 0).all()
    assert (read_pixels("last_image", request) > 0).all()
    frames = [Image.new("RGB", (8, 8), (80 * n, 0, 0)) for n in range(3)]
    frames[0].save(data := io.BytesIO(), "GIF", save_all=True, append_images=frames[1:])
    assert picture_notes(path, data.getvalue()) and not picture_notes(path)


def test_a_picture_is_read_once_for_its_score(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    write_image(path, np.full((8, 8, 3), 10, np.uint8))
    record = {"image": str(path), "settings": {"image_sha256": sha256(path)}}
    clip = ClipFile(tmp_path / "a.mp4", record)
    assert (clip.image(8, 8) == 10).all()
    write_image(path, np.full((8, 8, 3), 11, np.uint8))
    with pytest.raises(BadFileError):
        clip.image(8, 8)


def test_an_initial_noise_is_the_one_that_the_record_tells(tmp_path):
    import torch

    path = tmp_path / "noise.pt"
    torch.save({"Expectation_X0": torch.ones(1, 4, 2, 2, 2), "Tr_Cov_d": torch.tensor(0.5)}, path)
    shape, told = (1, 4, 2, 2, 2), sha256(path)
    assert (read_initial_noise(path, shape, told)[0] == 1).all()
    torch.save({"Expectation_X0": torch.zeros(1, 4, 2, 2, 2), "Tr_Cov_d": torch.tensor(0.5)}, path)
    with pytest.raises(BadFileError):
        read_initial_noise(path, shape, told)


def test_a_film_that_changes_while_it_is_scored_has_no_scores(tmp_path, monkeypatch):
    from edg.core.video import write_video
    from edg.metrics.catalogue import FeatureExtractors
    from edg.runner import score

    path, film = tmp_path / "a.mp4", np.zeros((4, 32, 32, 3), np.uint8)
    write_video(path, film)
    read = score.load_clip

    def swapped(*args):
        write_video(path, film + 99)
        return read(*args)

    clean = score.measure(ClipFile(path), ["temporal_flickering"], FeatureExtractors(), None)
    assert not clean.failed and clean.sha256 == sha256(path)
    monkeypatch.setattr(score, "load_clip", swapped)
    assert score.measure(ClipFile(path), ["temporal_flickering"], FeatureExtractors(), None).failed


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".x", "a\0b", "x" * 201])
def test_what_a_clip_is_called_is_the_name_of_a_file(tmp_path, name):
    todo = job(tmp_path, count=1)
    todo = replace(todo, requests=[replace(todo.requests[0], id=name)])
    with pytest.raises(UsageError):
        run(todo, FakeSystem(), lambda: None)
    assert not (tmp_path / "x.mp4").exists() and not list((tmp_path / "out").glob("[!.]*"))


@pytest.mark.parametrize("kind", ["rewritten", "replaced"])
@pytest.mark.parametrize("loader", ["load_model", "assign", "load_encoders"])
def test_a_model_is_of_the_weights_that_were_hashed(tmp_path, kind, loader):
    """Hashed when they are opened, read later: then the file may have been written over, in its place."""
    import torch

    from edg.networks.latent_video import load
    from edg.networks.latent_video.models import load_spec
    from edg.systems.edg.training import encode
    from edg.weights.store import open_weights

    path, spec = tmp_path / "w.safetensors", load_spec("sprites")
    data = (Path(__file__).parents[2] / "edg/sprites/weights/base.safetensors").read_bytes()
    path.write_bytes(data)
    weights = open_weights(path)
    other = data[:-4] + bytes(4)
    if kind == "replaced":  # by another file: what was opened is there as long as it is open
        (tmp_path / "new").write_bytes(other)
        (tmp_path / "new").rename(path)
    else:
        path.write_bytes(other)
    calls = {
        "load_model": lambda: load.load_model(spec, weights),
        "assign": lambda: load.assign(load.load_model(spec, former), weights),
        "load_encoders": lambda: encode.load_encoders(spec, weights),
    }
    (tmp_path / "copy.safetensors").write_bytes(data)
    former = open_weights(tmp_path / "copy.safetensors")
    if kind == "rewritten":
        with pytest.raises(BadFileError):
            calls[loader]()
        return
    calls[loader]()
    name = max(weights, key=lambda name: weights.tensors[name].where[1])
    assert torch.equal(weights[name], former[name])
