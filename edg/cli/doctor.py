"""`edg doctor`: what this machine can run, and why not."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterator, Sequence
from importlib import import_module, metadata
from pathlib import Path

from edg import systems
from edg.cli.fetch import free_bytes, present, published
from edg.cli.memory import report_lines
from edg.cli.sample import add_sample_arguments, config_of
from edg.core.arguments import Parser, as_path
from edg.core.device import dtype_for, memory, multiplies
from edg.core.errors import EdgError, MachineError
from edg.core.files import checkpoints
from edg.runner.config import SampleConfig
from edg.runner.memory_report import cuda_devices
from edg.systems.base import Spec

GB = 1e9
PACKAGES = (
    "torch", "torchvision", "numpy", "einops", "jaxtyping", "open_clip_torch", "omegaconf", "safetensors",
    "pytorch-lightning", "huggingface_hub", "tqdm", "pillow", "av", "opencv-python-headless", "decord",
)  # fmt: skip
TORCHVISION_FIX = (
    "torch and torchvision come from different builds; install both from one index: "
    "pip uninstall -y torch torchvision && pip install torch torchvision"
)


def add_arguments(parser: Parser, argv: Sequence[str] = ()) -> None:
    parser.add_argument(
        "--plan",
        type=as_path,
        nargs="*",
        metavar="NAME|YAML",
        help="estimate the memory of `edg sample` with these models (all) and the flags below",
    )
    add_sample_arguments(parser, argv)


def doctor(args: argparse.Namespace) -> int:
    """Print the report; 0 when at least the embedded model can run, else MachineError. With --plan, print
    memory and operations."""
    if args.plan is not None:
        return plans(args)
    problems, config = [], config_of(args)
    for title, lines in (
        ("software", software(problems)),
        ("machine", machine()),
        ("disk", disk(Path(config.output.savedir), problems)),
        ("checkpoints", checkpoint_files()),
        ("models", models(config)),
    ):
        print(title)
        for line in lines:
            print(f"  {line}", flush=True)
    if problems:
        raise MachineError(f"{len(problems)} problem(s): {problems[0]}")
    return 0


def plans(args: argparse.Namespace) -> int:
    """Print the memory estimate of each model as the flags say, and with --low-memory."""
    config = config_of(args)
    named = [config.model.config] if config.model.config else [spec.name for spec in planned()]
    for name in args.plan or named:
        for low_memory in sorted({config.placement.low_memory, True}):
            for line in report_lines(config.changed(config=name, low_memory=low_memory)):
                print(line, flush=True)
    return 0


def planned() -> list[Spec]:
    """The models of systems that estimate their memory, smallest first."""
    specs = (s.known_specs.values() for s in systems.all_systems() if s.plan_options is not None)
    return sorted((spec for known in specs for spec in known), key=lambda spec: spec.height * spec.width)


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
        return " (PyAV is used to read training clips)"
    if name in ("opencv-python-headless", "huggingface_hub", "pytorch-lightning"):
        return " (required by some commands: pip install -r requirements.txt)"
    problems.append(f"{name} is not installed; pip install -r requirements.txt")
    return " (required: pip install -r requirements.txt)"


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
    if multiplies(dtype_for("bf16", "cpu")):
        yield "the CPU has bfloat16 matrix products: `edg sample --dtype bf16` can be faster than fp32"
    gpus = list(cuda_devices())
    if not gpus:
        yield "no CUDA device: everything runs on the CPU, which is slow at the published sizes"
    for name, size, unused in gpus:
        yield f"{name}, {size / GB:.1f} GB memory, {unused / GB:.1f} GB of it free"


def disk(savedir: Path, problems: list[str]) -> Iterator[str]:
    from edg.core.files import ensure_writable

    for name, folder in (("CKPT_PATH", checkpoints()), ("results", savedir)):
        existed = folder.exists()
        state = "writable"
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
        folder, embedded = checkpoints(), systems.DEFAULT_MODEL
        yield f"no published files under {folder} (see edg fetch); the embedded model {embedded} needs none"
    for name, path in found.items():
        yield f"{name}: {path}, {path.stat().st_size / GB:.2f} GB, {_sniffed(path)}"


def _sniffed(path: Path) -> str:
    try:
        from edg.networks import open_weights

        weights = open_weights(path)
    except (ImportError, RuntimeError) as error:
        return f"not opened ({error})"
    except EdgError as error:
        return f"NOT READABLE: {error}"
    if "Expectation_X0" in weights:
        return "an initial noise for Analytic-Init"
    _, name, why = systems.identify(weights)
    return f"{len(weights)} tensors, " + (f"{name}, identified by {why}" if name else f"unknown model: {why}")


def models(config: SampleConfig) -> Iterator[str]:
    """The models: those that come with the package with an estimate, which takes seconds for the others: how
    to ask for it, and whether their files are here."""
    have, remote = present(), set(published())
    for spec in planned():
        name, title = spec.name, f"{spec.name} at {spec.height}x{spec.width}"
        if name not in remote:
            try:
                *_, fits = report_lines(config.changed(config=name))
            except (ImportError, OSError, RuntimeError) as error:
                fits = f"not estimated ({error})"
            yield f"{title}: {fits.strip()}"
        else:
            lacks = "" if name in have else f"; its file is missing (get it with edg fetch {name})"
            yield f"{title}: edg doctor --plan --config {name} estimates its memory{lacks}"
