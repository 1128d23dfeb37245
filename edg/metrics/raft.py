"""Flow by RAFT (Teed and Deng 2020), from a file of weights: torchvision's model, and its file or the
original `raft-things.pth`, whose tensors have other names. Read as tensors only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from edg.core.errors import BadFileError, MachineError, UsageError
from edg.metrics.motion import Flow, Frames

ITERATIONS = 20  # VBench's
EXPECTED = "raft-things.pth or torchvision's raft_large"
LEAST = 128  # px; below this the coarsest correlations vanish

# The original's names -> torchvision's, one pattern after the other.
RENAMED = (
    (r"^module\.", ""),
    (r"^fnet\.", "feature_encoder."),
    (r"^cnet\.", "context_encoder."),
    (r"^((?:feature|context)_encoder)\.conv1\.", r"\1.convnormrelu.0."),
    (r"^((?:feature|context)_encoder)\.norm1\.", r"\1.convnormrelu.1."),
    (r"^((?:feature|context)_encoder)\.conv2\.", r"\1.conv."),
    (r"(layer\d\.\d)\.conv(\d)\.", r"\1.convnormrelu\2.0."),
    (r"(layer\d\.\d)\.norm([12])\.", r"\1.convnormrelu\2.1."),
    (r"^update_block\.encoder\.conv([cf])(\d)\.", r"update_block.motion_encoder.conv\1\2.0."),
    (r"motion_encoder\.convc(\d)", r"motion_encoder.convcorr\1"),
    (r"motion_encoder\.convf(\d)", r"motion_encoder.convflow\1"),
    (r"^update_block\.encoder\.conv\.", "update_block.motion_encoder.conv.0."),
    (r"^update_block\.gru\.conv([zrq])([12])\.", r"update_block.recurrent_block.convgru\2.conv\1."),
    (r"^update_block\.mask\.0\.", "mask_predictor.convrelu.0."),
    (r"^update_block\.mask\.2\.", "mask_predictor.conv."),
)


def torchvision_name(name: str) -> str:
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


class Raft:
    """frames -> flow as in motion.py; `padded` is the flow of pictures padded to multiples of 8, which VBench
    measures."""

    def __init__(self, path: str | Path, device: Any = "cpu", iterations: int = ITERATIONS):
        """Raises BadFileError when the file does not hold RAFT's large model, MachineError without
        torchvision."""
        self.device, self.iterations = device, iterations
        self.network = _empty()
        try:
            self.network.load_state_dict(_tensors(path))
        except (RuntimeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise BadFileError(f"{path} is not RAFT's large model: {reason}", expected=EXPECTED) from error
        self.network.to(device).eval()

    def __call__(self, frames: Frames) -> Flow:
        height, width = frames.shape[1:3]
        top, left = (-height % 8) // 2, (-width % 8) // 2
        return self.padded(frames)[:, top : top + height, left : left + width]

    def padded(self, frames: Frames) -> Flow:
        """(T-1, H', W', 2), H' and W' the next multiples of 8; edges are repeated on both sides. Raises
        UsageError for pictures below 128 px and for one frame."""
        import torch
        import torch.nn.functional as F

        _, height, width, _ = frames.shape
        more, wider = -height % 8, -width % 8
        if min(height + more, width + wider) < LEAST or len(frames) < 2:
            raise UsageError(
                f"RAFT on {len(frames)} frames of {width}x{height}",
                expected=f"at least 2 frames, and {LEAST} px on each side",
            )
        pads = (wider // 2, wider - wider // 2, more // 2, more - more // 2)
        with torch.inference_mode():
            x = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).to(self.device).float()
            x = F.pad(x / 127.5 - 1, pads, mode="replicate")
            pairs = zip(x[:-1].split(1), x[1:].split(1), strict=True)
            found = [self.network(one, next_, num_flow_updates=self.iterations)[-1] for one, next_ in pairs]
        return torch.cat(found).permute(0, 2, 3, 1).float().cpu().numpy()


def _empty() -> Any:
    try:
        from torchvision.models.optical_flow import raft_large
    except (ImportError, RuntimeError) as error:
        raise MachineError(
            f"torchvision cannot be imported ({error})", fix="pip install torchvision"
        ) from error
    return raft_large(weights=None, progress=False)


def _tensors(path: str | Path) -> dict[str, Any]:
    """The tensors by torchvision's names. The original holds the shortcut's norm twice, as norm3 and in
    `downsample`."""
    import torch

    try:
        stored = torch.load(str(path), map_location="cpu", weights_only=True)
        return {torchvision_name(name): tensor for name, tensor in stored.items() if ".norm3." not in name}
    except Exception as error:  # unpickling a broken file raises nearly every kind
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadFileError(f"cannot read {path}: {reason}", expected=EXPECTED) from error
