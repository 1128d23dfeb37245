"""Group `io`: reading an image for the network, writing frames."""

from __future__ import annotations

import torch

from edg.core.video import fit_image, to_uint8
from edg.verify.cases import Case


def io(case: Case) -> dict[str, torch.Tensor]:
    """frame_{i}: image_{i} fitted to the target size; frames_uint8 and its loop: the video as it is saved."""
    height, width = case.config["target"]
    names = [name for name in case.input_names if name.startswith("image_")]
    out = {}
    for name in names:
        image = case.input(name).cpu().numpy()
        out[name.replace("image_", "frame_")] = fit_image(image, height, width)
    video = case.input("video")[0]
    out["frames_uint8"] = torch.from_numpy(to_uint8(video))
    out["frames_uint8_loop"] = torch.from_numpy(to_uint8(video, loop=True).copy())
    return out
