"""A system of a few lines, for tests of everything that serves any system: squares that move to the right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from edg.core.errors import require
from edg.core.options import option
from edg.systems.base import Inputs, RemoteFile, Result, Selection, System


@dataclass(frozen=True)
class Options:
    """Options of a clip."""

    speed: float = option(1.0, "pixels per frame", low=0, high=9)
    colour: int = option(200, "brightness of the square", low=1, high=255, since=2)


@dataclass(frozen=True)
class Spec:
    """The one model."""

    name: str = "toy-16"
    height: int = 16
    width: int = 16
    frames: int = 4
    fps: float = 8

    def check_size(self, height, width):
        require(height % 4 == width % 4 == 0, f"--height {height}", "multiples of 4")

    def check_frames(self, frames):
        require(frames % 2 == 0, f"--video_length {frames}", "an even number")


SPECS = {"toy-16": Spec()}
FILES = {"toy-weights": RemoteFile("nobody/toy", "toy.safetensors", "toy")}


def select(spec, weights, given):
    return Selection(spec or SPECS["toy-16"], dict(weights.files), Options(**given), lambda note: {})


def load(spec, parameters, placement):
    return placement


def generate(model, requests, observer):
    for number, request in enumerate(requests):
        frames = np.zeros((request.frames, request.height, request.width, 3), np.uint8)
        for t, frame in enumerate(frames):
            left = round(t * request.options.speed) % request.width
            frame[4:8, left : left + 4] = request.options.colour
        observer.step("draw", number + 1, len(requests), request, (number + 1) / len(requests))
        artifacts = {"path": torch.arange(request.frames)} if request.options.colour == 9 else {}
        yield Result(request, frames, artifacts=artifacts)


def identify(weights):
    return ("toy-16", "a tensor called toy") if "toy" in weights else (None, "no tensor called toy")


def system(**changes):
    parts = dict(specs="SPECS", options="Options", select="select", load="load", generate="generate")
    places = {part: f"toy_system:{name}" for part, name in parts.items()}
    more = {"identify": "toy_system:identify", "files": "toy_system:FILES"}
    return System(
        "toy", "squares that move", changes.pop("inputs", Inputs(image="no")), **places, **more, **changes
    )


SYSTEM = system()
FROM_VIDEO = system(inputs=Inputs(image="no", video="required"))
FROM_BOTH = system(inputs=Inputs(image="required", video="optional"))
