"""Measure denoising steps beside other work, by the number of threads and how they wait.

    python bench/threads.py                      # idle, then beside 16 busy loops, for about a minute

OpenMP's threads wait for each other after every operation. By default they spin; where others want the cores,
a thread that spins keeps the one it waits for from running. Each row is a process of its own, as OpenMP reads
its environment variables when torch is loaded. The busy loops run while steps are timed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from bench import results  # noqa: E402

WAITING = {
    "as torch does": {},
    "`GOMP_SPINCOUNT=0`": {"GOMP_SPINCOUNT": "0"},
    "`OMP_WAIT_POLICY=PASSIVE`": {"OMP_WAIT_POLICY": "PASSIVE"},
}
BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
# Steps of one clip of sprites: one to begin with, then as many as are asked for, or as the seconds allow.
STEPS = """
import sys, time
from edg import load
threads, steps, limit = map(int, sys.argv[1:])
began, count = None, 0
class Enough(Exception): pass
def progress(*step, **more):
    global began, count
    if began is None:
        print("ready", flush=True)
        sys.stdin.readline()
        began = time.perf_counter()
        return
    count += 1
    if count == steps or time.perf_counter() - began > limit:
        print((time.perf_counter() - began) / count, flush=True)
        raise Enough
try:
    image, prompt = "prompts/sprites/05-red-circle.png", "a red circle moves left"
    load("sprites", threads=threads).animate(image, prompt, ddim_steps=steps + 1, progress=progress)
except Enough:
    pass
"""


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Run so many other processes that compute."""
    others = [subprocess.Popen([sys.executable, "-S", "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in others:
            process.kill()
            process.wait()


def seconds_per_step(threads: int, waiting: str, args: argparse.Namespace, load: int) -> float:
    """Seconds per step of a process with these threads, beside `load` busy loops."""
    env = {k: v for k, v in results.environment().items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    env |= WAITING[waiting] | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-P", "-c", STEPS, *map(str, (threads, args.steps, args.limit))]
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            if process.stdout.readline().strip() != "ready":
                raise SystemExit(f"no step was made with {threads} threads")
            with busy(load):
                process.stdin.write("\n")
                process.stdin.flush()
                return float(process.stdout.readline())
        finally:
            process.kill()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--threads",
        type=int,
        default=os.cpu_count(),
        help="number of threads to compare with one (all cores)",
    )
    parser.add_argument("--steps", type=int, default=8, help="steps to time (8)")
    parser.add_argument("--load", type=int, default=16, help="number of busy loops (16)")
    parser.add_argument("--limit", type=int, default=8, help="seconds after which a row ends early (8)")
    parser.add_argument(
        "--runs", type=int, default=3, help="runs of each row on the idle machine, in turn (3)"
    )
    parser.add_argument("--results", type=Path, default=results.RESULTS, help="file of the results")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rows = [(threads, waiting) for threads in (args.threads, 1) for waiting in WAITING]
    idle = {row: [] for row in rows}
    for _ in range(args.runs):
        for row in rows:
            idle[row].append(seconds_per_step(*row, args, 0))
    loaded = {row: seconds_per_step(*row, args, args.load) for row in rows}
    lines = [
        f"Seconds per step of one clip of sprites: on the idle machine (median of {args.runs} runs of",
        f"{args.steps} steps), and beside {args.load} busy loops (one run of {args.steps} steps, ended by",
        f"the first one after {args.limit} seconds).",
        "",
        results.table(
            ("threads", "they wait", "idle", f"beside {args.load} loops"),
            [(n, how, f"{median(idle[n, how]):.3f}", f"{loaded[n, how]:.2f}") for n, how in rows],
        ),
    ]
    results.write_section("threads", "\n".join(lines), args.results)


if __name__ == "__main__":
    main()
