"""Kill a command again and again, at any moment, and check that no file is torn or lost.

    python scripts/torture.py merge --kills 50           # sample, train; 3 to 10 minutes on two cores
    python scripts/torture.py sample --kills 50 --json torture.json
    python scripts/torture.py merge --signals 200        # sample, encode, train; 5 to 20 minutes

A run is started, killed with all its processes (SIGKILL) after a random time, and every file that it has
left is opened completely; then the same command again. A run that gets to its end is compared, byte for
byte, with one that nobody disturbed, and the folder is emptied for the next round. Every second delay is
drawn over the whole duration of an undisturbed run, the others from its first sign of work on, as much of
a short run is imports. Exit code 1 when anything is torn, lost, left over or different.

With --signals the runs get SIGTERM or SIGINT (every eighth one both), and have to end by themselves, with the
signal's exit code; one that has not after 40 seconds hangs. They are forked from a process that has imported
all, so every moment drawn is one of work. Exit code 1 also for a hang or another exit code.
"""

from __future__ import annotations

import argparse
import os
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
    ROOT,
    Nursery,
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
    write_videos,
)


@dataclass(frozen=True)
class Work:
    """A kind of work to interrupt.

    prepare: called with (folder of inputs, size).
    command: called with (folder of inputs, folder of results).
    finished: endings of the files that must never go or change once they are there.
    """

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


def encode_command(inputs: Path, out: Path) -> list[str]:
    weights = ROOT / "edg/sprites/weights/base.safetensors"
    how = f"--spec sprites --weights {weights} --shard 4 --passes 4 --workers 1 --device cpu"
    return [*EDG, "encode", "--data", str(inputs), "--out", str(out), *how.split()]


WORKS = {
    "merge": Work(write_pair, merge_command, (".pt", ".json"), 128),
    "sample": Work(write_prompts, sample_command, (".mp4", ".json"), 16),
    "encode": Work(write_videos, encode_command, (".safetensors", "index.json"), 16),
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
            raise SystemExit(f"an undisturbed run ended with {code}:\n{self.log.read_text()[-3000:]}")
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
        """Check that the files at the end are those of an undisturbed run, and no others."""
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


HANGS = 40  # seconds without an end after a signal


@dataclass
class Answers:
    """signals: sent to a run at work. ended: runs that did by it, rounds: at their own end; slowest and mean
    seconds from signal to end. The rest must be 0. forced: ended from outside (edg/core/process.py), which
    leaves temporary files to the next start."""

    signals: int = 0
    ended: int = 0
    rounds: int = 0
    slowest: float = 0.0
    mean: float = 0.0
    hung: int = 0
    forced: int = 0
    other_codes: int = 0
    torn: int = 0
    leftovers: int = 0
    too_many_checkpoints: int = 0

    @property
    def bad(self) -> int:
        return self.hung + self.other_codes + self.torn + self.leftovers + self.too_many_checkpoints


class Signals:
    """One kind of work in one folder, stopped and begun again, forked from `nursery`."""

    def __init__(self, work: Work, folder: Path, size: int, nursery: Nursery):
        self.inputs, self.out, self.log, self.nursery = folder / "in", folder / "out", folder / "log", nursery
        work.prepare(self.inputs, size)
        self.argv = work.command(self.inputs, self.out)[len(EDG) :]
        self.answers, self.spent = Answers(), []

    def undisturbed(self) -> float:
        """Run twice in peace, the first time for the imports; returns the seconds of the second."""
        for _ in range(2):
            began = time.monotonic()
            self.nursery.start(self.argv, self.log)
            if code := self.nursery.ended(600):
                raise SystemExit(f"the undisturbed run ended with {code}:\n{self.log.read_text()[-3000:]}")
            shutil.rmtree(self.out)
        self.duration = time.monotonic() - began
        return self.duration

    def round(self, share: float, number: int, second: float | None) -> None:
        """Start, send the signal after a share of the duration and another one `second` seconds later, wait,
        look. Runs that end before it give the new duration."""
        self.log.write_text("")
        started, delay = time.monotonic(), share * self.duration
        pid = self.nursery.start(self.argv, self.log)
        code = self.nursery.ended(delay)
        if code is not None:
            self.duration = (self.duration + time.monotonic() - started) / 2
        if code is None:
            self.answers.signals += 1
            os.kill(pid, number)
            began = time.monotonic()
            if second is not None and (code := self.nursery.ended(second)) is None:
                os.kill(pid, signal.SIGTERM + signal.SIGINT - number)
            if code is None and (code := self.nursery.ended(HANGS)) is None:
                self.answers.hung += 1
                print(f"hung: {number} after {delay:.2f} s\n{self.log.read_text()[-2000:]}")
                os.killpg(pid, signal.SIGKILL)
                code = self.nursery.ended(60)
            self.spent.append(time.monotonic() - began)
        self._look(code, [number] if second is None else [number, signal.SIGTERM + signal.SIGINT - number])

    def _look(self, code: int | None, numbers: list[int]) -> None:
        answers, text = self.answers, self.log.read_text(errors="replace")
        forced = "did not answer" in text
        answers.forced += forced
        if code == 0:
            answers.rounds += 1
        elif code in {sign for number in numbers for sign in (128 + number, -number)}:
            answers.ended += 1  # below 0: before the command had begun, or after its end
        elif code != -signal.SIGKILL:
            answers.other_codes += 1
            print(f"ended with {code} after {numbers}:\n{text[-2000:]}")
        state = examine(self.out) if self.out.exists() else State()
        for name, reason in state.torn.items():
            answers.torn += 1
            print(f"torn: {name}: {reason}")
        if state.leftovers and not forced and code != -numbers[0]:
            answers.leftovers += len(state.leftovers)
            print(f"left over: {', '.join(state.leftovers)}")
        answers.too_many_checkpoints += len([name for name in state.whole if name.endswith(".ckpt")]) > 2
        if code == 0:
            shutil.rmtree(self.out)


def signals(name: str, count: int, seed: int, size: int | None = None) -> dict:
    """Stop `name` by so many signals; returns the figures."""
    draw, nursery, began = random.Random(seed), Nursery(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="edg-torture-") as folder:
        subject = Signals(WORKS[name], Path(folder), size or WORKS[name].size, nursery)
        duration = subject.undisturbed()
        print(f"{name}: an undisturbed run takes {duration:.1f} s without imports")
        answers = subject.answers
        while answers.signals < count:
            second = draw.uniform(0, 2.5) if answers.signals % 8 == 7 else None
            subject.round(draw.uniform(0, 1), draw.choice([signal.SIGTERM, signal.SIGINT]), second)
        answers.slowest, answers.mean = max(subject.spent), sum(subject.spent) / len(subject.spent)
        nursery.close()
    seconds = round(time.monotonic() - began, 1)
    return {"what": name, **asdict(answers), "bad": answers.bad, "seed": seed, "seconds": seconds}


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
    parser.add_argument("--signals", type=int, metavar="N", help="send N times SIGTERM or SIGINT instead")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (0)")
    parser.add_argument("--size", type=int, help="MB of a checkpoint, clips, or steps of training")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to this file")
    args = parser.parse_args(argv)
    if args.signals:
        found = signals(args.what, args.signals, args.seed, args.size)
    else:
        found = torture(args.what, args.kills, args.seed, args.size)
    for key, value in found.items():
        print(f"{key:<14} {value}")
    write_result(args.json, found)
    return int(any(found.get(key) for key in ("bad", "torn", "lost", "leftovers", "different")))


if __name__ == "__main__":
    leave_on_sigterm()
    sys.exit(main())
