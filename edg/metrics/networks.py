"""Networks that a user gives as files. A TorchScript file is code that runs with the user's rights, so it is
opened only if its SHA-256 was named beforehand; a RAFT file is tensors only (raft.py)."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from edg.core.errors import BadFileError, UsageError, require
from edg.core.hashing import sha256_file

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Input:
    """Input of a network: frames resized to size x size px (antialiased bilinear), then (x - mean) / std
    per channel with x in 0..1. clips: one call takes (1, 3, T, S, S) and gives one feature; else (T, 3,
    S, S) gives a feature for each frame. options: keyword arguments of the call."""

    size: int = 224
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    clips: bool = True
    options: tuple[tuple[str, Any], ...] = ()


DINO = Input(224, *IMAGENET, clips=False)


class Network:
    """A TorchScript network: frames -> features."""

    def __init__(self, path: str | Path, trusted: Collection[str], fed: Input, device: Any = "cpu"):
        """trusted: sha256 of files that may run. Raises UsageError when this file's is not among them,
        BadFileError when it is no TorchScript."""
        import torch

        self.path, self.fed, self.device = Path(path), fed, device
        try:
            program = self.path.read_bytes()  # once: what is hashed is what runs
        except OSError as error:
            raise BadFileError(f"cannot read {path}: {error.strerror}") from error
        self.sha256 = hashlib.sha256(program).hexdigest()
        known = {name.lower() for name in trusted}
        fix = "if you trust its author, give --trust-sha256 with that value"
        require(self.sha256 in known, f"{path} is a program, with sha256 {self.sha256}", fix=fix)
        try:
            self.module = torch.jit.load(io.BytesIO(program), map_location=device).eval()
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise BadFileError(f"cannot open {path}: {reason}", expected="a TorchScript file") from error

    def __call__(self, frames: UInt8[np.ndarray, "t h w 3"]) -> Float[np.ndarray, "n d"]:
        """(1, D) where a clip has one feature, else (T, D); float64. Raises UsageError when the network does
        not take this input or gives no such features."""
        import torch

        x = self._prepared(frames)
        if self.fed.clips:
            x = x.transpose(0, 1)[None]
        try:
            with torch.inference_mode():
                found = self.module(x, **dict(self.fed.options))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UsageError(f"{self.path.name} fails on input {tuple(x.shape)}: {reason}") from error
        count = 1 if self.fed.clips else len(frames)
        if not isinstance(found, torch.Tensor) or found.shape[0] != count:
            got = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise UsageError(f"{self.path.name} gives {got}", expected=f"a tensor of {count} rows")
        return found.reshape(count, -1).double().cpu().numpy()

    def _prepared(self, frames: UInt8[np.ndarray, "t h w 3"]) -> Any:
        import torch
        import torch.nn.functional as F

        x = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).to(self.device).float() / 255
        x = F.interpolate(x, (self.fed.size,) * 2, mode="bilinear", align_corners=False, antialias=True)
        mean, std = (x.new_tensor(values).view(1, 3, 1, 1) for values in (self.fed.mean, self.fed.std))
        return (x - mean) / std

    @property
    def protocol(self) -> dict[str, Any]:
        """For the record of a result."""
        return {
            "file": str(self.path),
            "sha256": self.sha256,
            **asdict(self.fed),
            "options": dict(self.fed.options),
        }


def checked_sha256(path: str | Path, expected: Mapping[str, str], name: str) -> str:
    """The file's sha256. Raises BadFileError when another one is expected of `name`."""
    found = sha256_file(path)
    if expected.get(name, found).lower() != found:
        raise BadFileError(f"{path} has sha256 {found}", expected=expected[name], fix="it is another file")
    return found
