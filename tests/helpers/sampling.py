"""`edg sample` without its network: a system whose clips are the picture as a network would be given it."""

from __future__ import annotations

import hashlib
import json
from collections import namedtuple

import numpy as np

from edg.core.video import fit_image, read_image
from edg.runner.prepare import Job
from edg.sprites import WEIGHTS
from edg.systems.base import Result

RED = (200, 30, 40)
Sampled = namedtuple("Sampled", "code err out")  # exit code, stderr, the folder of the clips


def still(model, requests, observer=None):
    for request in requests:
        options = request.options
        picture = fit_image(
            read_image(request.image), request.height, request.width, options.crop, options.pad
        )
        pixels = ((picture.permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8)
        yield Result(request, np.stack([pixels] * request.frames))


def noise(model, requests, observer=None):
    """Frames of noise that follow from the picture, the seed and the id: larger files than stills."""
    for request in requests:
        picture = np.frombuffer(hashlib.sha256(request.contents["image"]).digest(), np.uint32)
        random = np.random.default_rng([*picture, request.seed, *request.id.encode()])
        shape = (request.frames, request.height, request.width, 3)
        yield Result(request, random.integers(0, 256, shape, np.uint8))


def without_network(monkeypatch, generate=still):
    """Let edg sample make its clips by `generate`, with all of its flags, checks, files and records."""
    monkeypatch.setattr(Job, "load", lambda *args: "network")
    monkeypatch.setattr("edg.systems.edg.generate.generate", generate)


def sampler(command, monkeypatch):
    """sample(folder, *flags) -> Sampled: the command line, all of it but the network."""
    without_network(monkeypatch)

    def sample(folder, *flags):
        out = folder.parent / f"{folder.name}-out"
        sets = ["--config", "sprites", "--sets", f"base={WEIGHTS / 'base.safetensors'}"]
        code, err = command(
            ["sample", *sets, "--prompt_dir", folder, "--savedir", out, "--device", "cpu", *flags]
        )
        return Sampled(code, err, out / "1000")

    return sample


def save(path, image, **options):
    """A Pillow image as a file; its format by `options`, else by the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def records(out):
    """Clip id -> record."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*.json"))}
