"""Measure the time to the first result: `edg --help`, `edg info` on a large file, the first clip of run.sh.

    python bench/startup.py

The file for `edg info` has the real zip layout of a published checkpoint and holes where the values would be.
run.sh runs its default (sprites, a folder of its own) until the first clip is there; its setting up of an
environment is left out. Seconds of imports are told by the processes themselves, through a `sitecustomize` on
their path: nothing in edg is changed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from bench import results  # noqa: E402
from bench.merge import layout  # noqa: E402
from bench.results import apart, measure, ratio  # noqa: E402

LIST_ZIP = "import sys, zipfile; zipfile.ZipFile(sys.argv[1]).namelist()"
# run.sh as it is, but for the line that sets up an environment.
RUN = "install_once() { :; }; . <(grep -v 'scripts/setup.sh' run.sh)"
# Outermost imports, timed; written when the process ends.
SITE = """
import atexit, builtins, json, os, sys, time
state, original = {"argv": "", "imports": 0.0, "inside": False}, builtins.__import__
def timed(*args, **kwargs):
    if state["inside"]:
        return original(*args, **kwargs)
    state["inside"], began = True, time.perf_counter()
    try:
        return original(*args, **kwargs)
    finally:
        state["inside"] = False
        state["imports"] += time.perf_counter() - began
def tell():
    told = {"argv": sys.argv, "imports": state["imports"]}
    with open(os.path.join(os.environ["EDG_BENCH_LOG"], f"{os.getpid()}.json"), "w") as file:
        json.dump(told, file)
builtins.__import__ = timed
atexit.register(tell)
"""
Times = tuple[float, float, float]  # medians of ours and of what stands beside, ratio pair by pair


def hollow(path: Path, spec: str) -> int:
    """Let torch.save write a checkpoint of the real layout without values (needs torch: apart); its bytes."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        tensors = {name: torch.empty(info.shape) for name, info in layout(spec).items()}
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save({"state_dict": tensors}, path)
    return path.stat().st_size


def pairs(ours: Sequence, floor: Sequence, runs: int, cold: Sequence[Path] = ()) -> Times:
    """Two commands in turn, some files out of the page cache before each."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        for found, command in zip(seconds, (ours, floor), strict=True):
            results.evict(cold)
            found.append(measure([sys.executable, *command]).seconds)
    return statistics.median(seconds[0]), statistics.median(seconds[1]), ratio(*seconds)


def first_clip(work: Path, limit: float) -> tuple[float, float]:
    """(seconds from the start of run.sh to its first clip's file, seconds of imports in them)."""
    site, logs, clips = work / "site", work / "logs", work / "clips"
    for folder in (site, logs):
        folder.mkdir()
    (site / "sitecustomize.py").write_text(SITE)
    env = results.environment(CKPT_PATH=str(work / "ckpt"), EDG_BENCH_LOG=str(logs))
    env["PYTHONPATH"] = os.pathsep.join([str(site), env["PYTHONPATH"]])
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
    command = ["bash", "-c", RUN, "run.sh", "--savedir", str(clips)]
    with open(work / "log", "w+") as log:
        began, clock = time.time(), time.monotonic()
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
        try:
            while not (found := list(clips.rglob("*_sample*.mp4"))):
                if process.poll() is not None or time.monotonic() - clock > limit:
                    log.seek(0)
                    raise SystemExit("run.sh made no clip:\n" + "\n".join(log.read().splitlines()[-20:]))
                time.sleep(0.02)
            seconds = min(path.stat().st_mtime for path in found) - began
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait()
    told = [json.loads(path.read_text()) for path in logs.glob("*.json")]
    if not {"run_merge.py", "infer_multi.py"} <= {Path(t["argv"][0]).name for t in told}:
        raise SystemExit("run.sh: the merge and the sampler did not both tell their imports")
    return seconds, sum(t["imports"] for t in told)  # the processes follow one another


def rows(args: argparse.Namespace, work: Path) -> list[list[str]]:
    def row(what: str, goal: float, floor: str, found: Times) -> list[str]:
        ours, theirs, times = found
        met = "met" if ours <= goal else "missed"
        return [what, f"{ours:.3f}", f"{goal:g}", met, floor, f"{theirs:.3f}", f"{times:.1f}"]

    edg, file = ("-m", "edg"), work / "hollow.ckpt"
    size = apart(hollow, file, args.spec)
    found = [
        row("`edg --help`", 0.15, "`python -c pass`", pairs((*edg, "--help"), ("-c", "pass"), args.runs)),
        row(
            f"`edg info`, {size / 1e9:.1f} GB",
            1,
            "names by `zipfile`",
            pairs((*edg, "info", file), ("-c", LIST_ZIP, file), args.runs, [file]),
        ),
    ]
    if not args.no_clip:
        seconds, imports = first_clip(work, args.limit)
        told = (seconds - imports, imports, (seconds - imports) / imports)
        found.append(row("`run.sh` to its first clip, less imports", 20, "its imports", told))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=15, help="runs of the short commands (15)")
    parser.add_argument("--spec", default="dynamicrafter-512", help="model whose layout the large file has")
    parser.add_argument("--no-clip", action="store_true", help="leave out run.sh")
    parser.add_argument("--limit", type=float, default=900, help="time limit of run.sh in seconds (900)")
    parser.add_argument("--work", type=Path, default=ROOT, help="folder for temporary files (here)")
    parser.add_argument("--results", type=Path, default=results.RESULTS, help="file of the results")
    args = parser.parse_args(argv)
    with results.scratch(args.work) as work:
        found = rows(args, work)
    lines = [
        f"{args.runs} runs in turn with what stands beside, medians.",
        "",
        results.table(("", "seconds", "goal", "", "beside it", "seconds", "ratio"), found),
        "",
        "The file of `edg info` has the real layout and holes for values; it is evicted from the page cache",
        "before each run. run.sh: one run of its default (sprites), without setting up an environment, from",
        "its start to the first clip's file: merge, loading, sampling and decoding up to there.",
    ]
    results.write_section("startup", "\n".join(lines), args.results)


if __name__ == "__main__":
    main()
