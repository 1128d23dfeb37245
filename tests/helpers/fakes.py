"""A system that needs no network: its frames follow from the request alone."""

from __future__ import annotations

import numpy as np

from edg.core.seeding import generator
from edg.core.video import write_image
from edg.runner.clip_folder import ClipFolder
from edg.runner.sample import make_clips
from edg.systems.base import Request, Result


class FakeSystem:
    """fail: ids that come back without frames. log: the ids of each call."""

    def __init__(self, fail=(), boom_after=None):
        self.fail, self.boom_after, self.log = set(fail), boom_after, []

    def generate(self, model, requests, observer=None):
        self.log.append([request.id for request in requests])
        for request in requests:
            if self.boom_after is not None and self.boom_after <= 0:
                raise KeyboardInterrupt
            if self.boom_after is not None:
                self.boom_after -= 1
            if request.id in self.fail:
                yield Result(request, None, "the latent is not finite")
                continue
            import torch

            shape = (request.frames, request.height, request.width, 3)
            pixels = torch.randint(
                0, 256, shape, generator=generator(request.seed, request.id), dtype=torch.uint8
            )
            yield Result(request, pixels.numpy())


def job(folder, count=3, **changes) -> ClipFolder:
    """A run of `count` clips of 4 frames of 16x16, its images drawn in `folder`."""
    requests = []
    for i in range(count):
        image = folder / f"in/{i}.png"
        if not image.exists():
            write_image(image, np.full((8, 8, 3), i, np.uint8))
        seed = changes.get("seed", 1)
        requests.append(Request(f"{i:04d}-x_sample0", f"prompt {i}", seed, 4, 16, 16, None, image))
    others = {key: value for key, value in changes.items() if key != "seed"}
    return ClipFolder(requests, folder / "out", {"options": {"eta": 1.0}}, **others)


def run(folder, system, load, world=None):
    """`make_clips` with a fake system."""
    return make_clips(folder, system.generate, load, world)
