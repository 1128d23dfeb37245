"""Kill a command again and again, at any moment, and look whether anything is torn or lost.

    python scripts/torture.py merge --kills 50           # sample, train; 3 to 10 minutes on two cores
    python scripts/torture.py sample --kills 50 --json torture.json

A run is started, killed with all its processes (SIGKILL) after a random time, and every file that it has
left is opened completely; then the same command again. A run that gets to its end is compared, byte for
byte, with one that nobody disturbed, and the folder is emptied for the next round. Every second delay is
drawn over the whole duration of an undisturbed run, the others from its first sign of work on, as much of
a short run is imports. Exit code 1 when anything is torn, lost, left over or different.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from examine import (  # noqa: E402
    EDG,
    State,
    essence,
    examine,
    kill,
    leave_on_sigterm,
    start,
    write_pair,
    write_prompts,
    write_result,
    write_training,
)


@dataclass(frozen=True)
class Work:
    """What is tortured. prepare(folder of inputs, size); command(folder of inputs, folder of results);
    finished: endings of the files that must never go or change once they are there."""

    prepare: Callable[[Path, int], object]
    command: Callable[[Path, Path], list[str]]
    finished: tuple[str, ...]
    size: int


def merge_command(inputs: Path, out: Path) -> list[str]:
    files = ["--base", f"{inputs}/base.pt", "--tuned", f"{inputs}/tuned.pt", "--out", str(out)]
    return [*EDG, "merge", "edg", *files, "--full", "--format", "pt", "--quiet"]


def sample_command(inputs: Path, out: Path) -> list[str]:
    how = "--config sprites --recipe edg --ddim_steps 4 --chunk 2 --threads 1 --device cpu"
    return [*EDG, "sample", *how.split(), "--prompt_dir", str(inputs), "--savedir", str(out)]


def train_command(inputs: Path, out: Path) -> list[str]:
    return [*EDG, "train", f"{inputs}/tiny.yaml", f"out={out}", "--threads", "1", "--device", "cpu"]


WORKS = {
    "merge": Work(write_pair, merge_command, (".pt", ".json"), 128),
    "sample": Work(write_prompts, sample_command, (".mp4", ".json"), 16),
    "train": Work(write_training, train_command, (".safetensors",), 12),
}


@dataclass
class Tally:
    """kills: that hit a run. in_writing: those that left a temporary file behind. rounds: runs that got to
    their end in spite of it; files_checked: opened completely, after every kill; the rest must be 0."""

    kills: int = 0
    in_writing: int = 0
    rounds: int = 0
    files_checked: int = 0
    torn: int = 0
    lost: int = 0
    leftovers: int = 0
    different: int = 0

    @property
    def bad(self) -> int:
        return self.torn + self.lost + self.leftovers + self.different


class Torture:
    """One kind of work in one folder."""

    def __init__(self, work: Work, folder: Path, size: int):
        self.work, self.inputs, self.out, self.log = work, folder / "in", folder / "out", folder / "log"
        work.prepare(self.inputs, size)
        self.command = work.command(self.inputs, self.out)
        self.tally, self.known = Tally(), {}

    def undisturbed(self) -> tuple[float, float]:
        """Run once in peace; returns when it began to write and when it ended, in seconds from the start."""
        self.out.mkdir(parents=True)
        began, first, process = time.monotonic(), None, start(self.command, self.log)
        while process.poll() is None:
            if first is None and any(self.out.rglob("*")):
                first = time.monotonic() - began
            time.sleep(0.01)
        if process.returncode:
            raise SystemExit(
                f"the undisturbed run ended with {process.returncode}:\n{self.log.read_text()[-3000:]}"
            )
        duration = time.monotonic() - began
        self.expected = self._result(examine(self.out))
        self._empty()
        return first or 0.0, duration

    def round(self, delay: float | None) -> bool:
        """Start the command, kill it after `delay` seconds (None: never), look; True when it was killed."""
        process, end = start(self.command, self.log), time.monotonic() + (delay or 0.0)
        while process.poll() is None and (delay is None or time.monotonic() < end):
            time.sleep(0.005)
        code = kill(process)
        killed = code == -signal.SIGKILL
        if not killed and code:
            raise SystemExit(f"a run that was let alone ended with {code}:\n{self.log.read_text()[-3000:]}")
        self._look(killed)
        return killed

    def _look(self, killed: bool) -> None:
        tally, state = self.tally, examine(self.out)
        tally.kills += killed
        tally.in_writing += killed and bool(state.leftovers)
        tally.files_checked += len(state.whole) + len(state.torn)
        for name, reason in state.torn.items():
            tally.torn += 1
            print(f"torn: {name}: {reason}")
        for name, digest in self.known.items():
            if state.whole.get(name) != digest:
                tally.lost += 1
                print(f"lost: {name}")
        self.known = {name: sha for name, sha in state.whole.items() if name.endswith(self.work.finished)}
        if not killed:
            self._compare(state)

    def _compare(self, state: State) -> None:
        """What is there at the end is what an undisturbed run leaves, and nothing else."""
        tally, found = self.tally, self._result(state)
        tally.rounds += 1
        for name in state.leftovers:
            tally.leftovers += 1
            print(f"left over: {name}")
        for name in sorted(found.keys() | self.expected.keys()):
            if found.get(name) != self.expected.get(name):
                tally.different += 1
                print(f"different: {name}")
        self._empty()

    def _result(self, state: State) -> dict[str, str]:
        names = [name for name in state.whole if name.endswith((*self.work.finished, ".png"))]
        return {name: essence(self.out / name) for name in names}

    def _empty(self) -> None:
        shutil.rmtree(self.out)
        self.out.mkdir()
        self.known = {}


def torture(name: str, kills: int, seed: int, size: int | None = None) -> dict:
    """Kill `name` so many times and let it end; returns the figures."""
    with tempfile.TemporaryDirectory(prefix="edg-torture-") as folder:
        subject, draw = Torture(WORKS[name], Path(folder), size or WORKS[name].size), random.Random(seed)
        first, duration = subject.undisturbed()
        print(f"{name}: an undisturbed run takes {duration:.1f} s, its first file comes after {first:.1f} s")
        began = time.monotonic()
        while subject.tally.kills < kills:
            subject.round(draw.uniform(first if subject.tally.kills % 2 else 0.0, duration))
        subject.round(None)
        seconds = time.monotonic() - began
    return {"what": name, **asdict(subject.tally), "seed": seed, "seconds": round(seconds, 1)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=WORKS)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--size", type=int, help="MB of a checkpoint, clips, or steps of training")
    parser.add_argument("--json", metavar="FILE", help="the figures, also into a file")
    args = parser.parse_args(argv)
    found = torture(args.what, args.kills, args.seed, args.size)
    for key, value in found.items():
        print(f"{key:<14} {value}")
    write_result(args.json, found)
    return int(any(found[key] for key in ("torn", "lost", "leftovers", "different")))


if __name__ == "__main__":
    leave_on_sigterm()
    sys.exit(main())
