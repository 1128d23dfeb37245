"""`edg doctor`: what this machine can run, and why not."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

from edg.core.device import memory
from edg.core.errors import EdgError, MachineError
from edg.runner.fetch import free_bytes, present
from edg.runner.flags import checkpoints

GB = 1e9
PACKAGES = (
    "torch", "torchvision", "numpy", "einops", "jaxtyping", "open_clip_torch", "omegaconf", "safetensors",
    "pytorch-lightning", "huggingface_hub", "pillow", "av", "imageio", "decord",
)  # fmt: skip
TORCHVISION_FIX = (
    "torch and torchvision come from different builds; take both from one index: "
    "pip uninstall -y torch torchvision && pip install torch torchvision"
)


@dataclass(frozen=True)
class Need:
    """What a model asks of the machine in bytes: one parameter set in fp32, and the work beside it."""

    name: str
    size: str
    weights: float
    work: float
    file: str


# Weights: 4 bytes for each parameter of the published files. Work: activations of the network, guided, and
# of the decoder (frame by frame), estimated for fp32; both halve in 16 bits.
NEEDS = (
    Need("sprites", "32x32", 0.1 * GB, 0.5 * GB, ""),
    Need("dynamicrafter-256", "256x256", 10.44 * GB, 4 * GB, "dynamicrafter-256"),
    Need("dynamicrafter-512", "320x512", 10.44 * GB, 8 * GB, "dynamicrafter-512"),
    Need("dynamicrafter-1024", "576x1024", 10.44 * GB, 26 * GB, "dynamicrafter-1024"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--savedir", default="output", help="where results would go (output)")


def doctor(args: argparse.Namespace) -> int:
    """Print the report; 0 when at least the embedded model can run, else MachineError."""
    problems = []
    for title, lines in (
        ("software", software(problems)),
        ("machine", machine()),
        ("disk", disk(Path(args.savedir), problems)),
        ("checkpoints", checkpoint_files()),
        ("models", models()),
    ):
        print(title)
        for line in lines:
            print(f"  {line}", flush=True)
    if problems:
        raise MachineError(f"{len(problems)} problem(s): {problems[0]}")
    return 0


# ---- software ----------------------------------------------------------------------------------------------


def software(problems: list[str]) -> Iterator[str]:
    import edg

    system = f"{platform.system()} {platform.machine()}"
    yield f"edg {edg.__version__}, Python {platform.python_version()} on {system}"
    for name in PACKAGES:
        try:
            yield f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            yield f"{name}: not installed{_consequence(name, problems)}"
    for check in (check_torchvision, check_video):
        trouble = check()
        if trouble:
            problems.append(trouble)
        yield f"{check.__name__.removeprefix('check_')}: {trouble or 'works'}"


def _consequence(name: str, problems: list[str]) -> str:
    if name == "decord":
        return " (PyAV reads training clips instead)"
    if name in ("imageio", "huggingface_hub", "pytorch-lightning"):
        return " (needed by some commands: pip install -r requirements.txt)"
    problems.append(f"{name} is not installed; pip install -r requirements.txt")
    return " (needed: pip install -r requirements.txt)"


def check_torchvision() -> str:
    """ "" when torchvision fits torch (open_clip needs it), else what to do."""
    try:
        import_module("torchvision")
    except RuntimeError as error:
        return TORCHVISION_FIX if "nms" in str(error) else str(error).splitlines()[0]
    except (ImportError, OSError) as error:
        return f"{error}; pip install torch torchvision"
    return ""


def check_video() -> str:
    """ "" when a video can be written and read back, else why not."""
    import tempfile

    try:
        import numpy as np

        from edg.core.video import read_frames, write_video

        with tempfile.TemporaryDirectory() as folder:
            write_video(Path(folder) / "x.mp4", np.full((2, 16, 16, 3), 128, np.uint8))
            assert len(read_frames(Path(folder) / "x.mp4")) == 2
    except (ImportError, EdgError, OSError, AssertionError) as error:
        return f"no H.264 video can be written ({error}); pip install -U av"
    return ""


# ---- machine -----------------------------------------------------------------------------------------------


def machine() -> Iterator[str]:
    total, free = memory()
    yield f"{os.cpu_count()} CPU cores, {total / GB:.1f} GB memory, {free / GB:.1f} GB of it free"
    gpus = list(cuda_devices())
    if not gpus:
        yield "no CUDA device: everything runs on the CPU, slowly at published sizes"
    for name, size, unused in gpus:
        yield f"{name}, {size / GB:.1f} GB memory, {unused / GB:.1f} GB of it free"


def cuda_devices() -> Iterator[tuple[str, int, int]]:
    """(name, total bytes, free bytes) of each CUDA device."""
    try:
        import torch
    except (ImportError, OSError):
        return
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        yield torch.cuda.get_device_name(index), total, free


def disk(savedir: Path, problems: list[str]) -> Iterator[str]:
    from edg.core.records import ensure_writable

    for name, folder in (("CKPT_PATH", checkpoints()), ("results", savedir)):
        existed = folder.exists()
        state = "can be written"
        try:
            ensure_writable(folder)
            if not existed:
                folder.rmdir()
        except MachineError as error:
            state = str(error)
            problems.append(state)
        yield f"{name} {folder}: {free_bytes(folder) / GB:.1f} GB free, {state}"


# ---- checkpoints and models --------------------------------------------------------------------------------


def checkpoint_files() -> Iterator[str]:
    """Every published file under CKPT_PATH, opened (not read) to see whether it is whole and what it is."""
    found = present()
    if not found:
        yield f"none of the published files under {checkpoints()} (edg fetch); the embedded sprites need none"
    for name, path in found.items():
        yield f"{name}: {path}, {path.stat().st_size / GB:.2f} GB, {_sniffed(path)}"


def _sniffed(path: Path) -> str:
    try:
        from edg import systems
        from edg.weights.store import open_weights

        weights = open_weights(path)
    except (ImportError, RuntimeError) as error:
        return f"not looked at ({error})"
    except EdgError as error:
        return f"NOT READABLE: {error}"
    if "Expectation_X0" in weights:
        return "an initial noise for Analytic-Init"
    name, why = systems.get().identify(weights)
    return f"{len(weights)} tensors, {name or 'unknown model'} by {why}"


def models() -> Iterator[str]:
    """For each model whether it can run here: memory for one network (sets are swapped), and its file."""
    gpus = list(cuda_devices())
    gpu = max((free for _, _, free in gpus), default=0)
    _, ram = memory()
    have = present()
    for need in NEEDS:
        on_gpu, on_cpu = (need.weights + need.work) / 2, need.weights + need.work
        verdict = _verdict(on_gpu, gpu, on_cpu, ram)
        if need.file and need.file not in have:
            verdict += f"; its file is missing (edg fetch {need.file})"
        yield f"{need.name} at {need.size}: {verdict}"


def _verdict(on_gpu: float, gpu: float, on_cpu: float, ram: float) -> str:
    asks = f"about {on_gpu / GB:.1f} GB of GPU memory in fp16 or {on_cpu / GB:.1f} GB on the CPU in fp32"
    if gpu >= on_gpu:
        return f"runs on the GPU ({asks})"
    if ram >= on_cpu:
        return f"runs on the CPU ({asks})"
    return f"cannot run: needs {asks}; free are {gpu / GB:.1f} and {ram / GB:.1f} GB"
