"""Examine a folder of results: files that are complete, torn, or left over by a killed run. And a command
that can be killed with all that it has started. For torture.py and soak.py, which call it.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edg.core.errors import EdgError

ROOT = Path(__file__).resolve().parents[1]
LEFTOVER, LOCK = "edg-tmp", ".edg.lock"
EDG = (sys.executable, "-m", "edg")


# ---- files -------------------------------------------------------------------------------------------------


@dataclass
class State:
    """A folder at one moment. whole: sha256 by path; torn: the reason by path; leftovers: temporary files."""

    whole: dict[str, str] = field(default_factory=dict)
    torn: dict[str, str] = field(default_factory=dict)
    leftovers: list[str] = field(default_factory=list)


def examine(folder: Path) -> State:
    """Open every file below `folder` completely."""
    state = State()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != LOCK):
        name = str(path.relative_to(folder))
        if LEFTOVER in name:
            state.leftovers.append(name)
            continue
        try:
            open_completely(path)
        except (EdgError, OSError, ValueError, zipfile.BadZipFile) as error:
            state.torn[name] = str(error)
        else:
            state.whole[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return state


def open_completely(path: Path) -> None:
    """Read all of a file as what its name says. Raises EdgError, OSError, ValueError or BadZipFile."""
    if path.suffix == ".mp4":
        from edg.core.video import read_frames

        read_frames(path)
    elif path.suffix in (".pt", ".ckpt"):
        with zipfile.ZipFile(path) as archive:
            if (record := archive.testzip()) is not None:
                raise ValueError(f"checksum of {record}")
    elif path.suffix == ".safetensors":
        from edg.networks import open_weights

        weights = open_weights(path, check_base=False)
        for name in weights:
            weights[name]
    elif path.suffix == ".png":
        from edg.core.video import read_image

        read_image(path)
    elif path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))


def essence(path: Path) -> str:
    """sha256 of a file; of a clip's record, without time, place and speed of the run."""
    data = path.read_bytes()
    if path.suffix == ".json" and isinstance(record := json.loads(data), dict) and "settings_hash" in record:
        data = json.dumps([record[key] for key in ("status", "settings", "files")]).encode()
    return hashlib.sha256(data).hexdigest()


# ---- processes ---------------------------------------------------------------------------------------------


def start(command: Sequence[str], log: Path, largest_file: int | None = None) -> subprocess.Popen:
    """Start a command in a group of its own, which ends with this process; what it says is appended to `log`.
    largest_file: bytes, beyond which every write fails as on a full disk (RLIMIT_FSIZE)."""
    import resource

    def limit() -> None:
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    tied = [sys.executable, "-m", "edg.core.process", str(os.getpid()), *command]
    with log.open("ab") as out:
        return subprocess.Popen(
            tied, cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True,
            preexec_fn=limit if largest_file is not None else None,
        )  # fmt: skip


def leave_on_sigterm() -> None:
    """SIGTERM as an exception, so that temporary folders are removed on the way out."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


NURSERY = """
import contextlib, importlib, json, os, signal, sys
import edg.cli.main, torch
for line in sys.stdin:
    argv, log = json.loads(line)
    known = log + ".modules"
    for name in open(known).read().split() if os.path.exists(known) else ():
        with contextlib.suppress(Exception):
            name in sys.modules or importlib.import_module(name)
    if not (pid := os.fork()):
        os.setsid()
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), 2), os.dup2(2, 1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            edg.cli.main.entry(argv)
        finally:
            if not os.path.exists(known):
                open(known, "w").write("\\n".join(sys.modules))
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Nursery:
    """`edg` many times without the seconds of its imports: a process forks each run that has done, by the
    second one, those of the first."""

    def __init__(self) -> None:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edg.core.process", str(os.getpid()), sys.executable, "-c", NURSERY],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
        )  # fmt: skip

    def start(self, argv: Sequence[str], log: Path) -> int:
        """The id of a new run; one after the other."""
        self.process.stdin.write((json.dumps([list(argv), str(log)]) + "\n").encode())
        return int(self.process.stdout.readline())

    def ended(self, seconds: float) -> int | None:
        """The run's exit code, None where it has not ended after so many seconds."""
        ready = select.select([self.process.stdout], [], [], max(seconds, 0))[0]
        return int(self.process.stdout.readline()) if ready else None

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)


def kill(process: subprocess.Popen, number: int = signal.SIGKILL) -> int:
    """Send the command's whole group a signal and wait for its end; returns its exit code. One that has ended
    gets none: its number may be another's by now."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
    return process.wait(120)


def run(command: Sequence[str], log: Path, **how: Any) -> int:
    """Run a command to its end; returns its exit code."""
    return start(command, log, **how).wait()


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid` (Linux)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            found += [int(stat.parent.name)] if parent == pid else []
    return found


# ---- inputs ------------------------------------------------------------------------------------------------


def write_prompts(folder: Path, count: int) -> list[Path]:
    """A prompt folder: `count` copies of the embedded pictures, 0000.png, ..., and prompts.txt with a line
    for each."""
    import shutil

    source = ROOT / "prompts" / "sprites"
    pictures = sorted(source.glob("*.png"))
    lines = (source / "prompts.txt").read_text(encoding="utf-8").splitlines()
    folder.mkdir(parents=True, exist_ok=True)
    images = [folder / f"{index:04d}.png" for index in range(count)]
    for index, image in enumerate(images):
        shutil.copyfile(pictures[index % len(pictures)], image)
    chosen = [lines[index % len(lines)] for index in range(count)]
    (folder / "prompts.txt").write_text("\n".join(chosen) + "\n", encoding="utf-8")
    return images


def write_pair(inputs: Path, megabytes: int) -> None:
    """base.pt and tuned.pt of about so many MB, a tensor each MB."""
    import torch

    from edg.weights.writers import write_pt

    inputs.mkdir(parents=True)
    draw = torch.Generator().manual_seed(0)
    base = {
        f"model.diffusion_model.{i:03d}.weight": torch.randn(512, 512, generator=draw)
        for i in range(megabytes)
    }
    write_pt(inputs / "base.pt", base)
    write_pt(inputs / "tuned.pt", {name: tensor + 0.1 * tensor.flip(0) for name, tensor in base.items()})


def write_training(inputs: Path, steps: int) -> None:
    """tiny.yaml: a training run of so many steps on eight clips."""
    inputs.mkdir(parents=True)
    (inputs / "tiny.yaml").write_text(
        f"""name: tiny
spec: sprites
seed: 1
init: {ROOT}/edg/sprites/weights/base.safetensors
data: {{kind: sprites, split: tuned, count: 8}}
trainable: [temporal]
train: {{steps: {steps}, batch: 1, lr: 1.0e-4, ema: 0.9, save_every: 2, log_every: 1, logger: none}}
"""
    )


def write_videos(inputs: Path, count: int) -> None:
    """So many clips of the sprites with their captions."""
    import numpy as np

    from edg.core.video import write_video
    from edg.sprites.data import clip_tensors
    from edg.sprites.world import clips

    inputs.mkdir(parents=True)
    drawn = clip_tensors(list(clips("tuned", 0, count)), "tuned")
    for index, (frames, caption) in enumerate(zip(drawn["frames"], drawn["caption"], strict=True)):
        pixels = ((frames.permute(1, 2, 3, 0).numpy() + 1) * 127.5).round().astype(np.uint8)
        write_video(inputs / f"{index:03d}.mp4", pixels)
        (inputs / f"{index:03d}.txt").write_text(caption)


def write_result(path: str | None, value: Any) -> None:
    """The figures as a line of JSON, on standard output and where asked in a file."""
    print(json.dumps(value))
    if path:
        Path(path).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
