"""What the benchmarks share: commands timed from outside, medians, tables, and bench/RESULTS.md.

Every benchmark ends with `write_section(NAME, TEXT)`: TEXT says what was measured and holds its `table`; the
command, machine, versions and commit are added here. This module stays light (no torch, no numpy): the peak
memory of a command that a process starts is never told smaller than that process was (wait4(2)), so whatever
needs torch runs `apart`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import multiprocessing
import os
import platform
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "RESULTS.md"
PACKAGES = ("torch", "numpy", "safetensors")
TITLE = "# Speed and memory\n\nA section is one run of one command, all of it measured in that run.\n"


# ---- commands ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """Wall seconds, seconds of CPU, peak resident bytes, and what the command printed."""

    seconds: float
    cpu: float
    peak: int
    output: str


def measure(command: Sequence[str | os.PathLike], written: Path | None = None, **settings) -> Measured:
    """Run a command to its end; `written`: a folder whose files must be on the disk before the clock stops.

    The command finds this checkout's `edg` first. settings: of subprocess.Popen. Raises SystemExit with the
    end of its output when it fails."""
    if "torch" in sys.modules:
        raise RuntimeError("peak memory is measured from a process without torch")
    with tempfile.TemporaryFile() as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            list(map(str, command)), stdout=log, stderr=subprocess.STDOUT, **{"env": environment()} | settings
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
        for path in written.rglob("*") if written else ():
            sync(path)
        seconds = time.perf_counter() - began
        log.seek(0)
        output = log.read().decode(errors="replace")
    if process.returncode:
        tail = "\n".join(output.splitlines()[-20:])
        raise SystemExit(f"{' '.join(map(str, command))}\nended with {process.returncode}:\n{tail}")
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, KiB elsewhere
    return Measured(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit, output)


def environment(**more: str) -> dict[str, str]:
    """The surroundings of a command: as they are, with this checkout's `edg` first."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | more


@functools.cache
def _helper() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def apart(function: Callable, *arguments):
    """function(*arguments) in another process (always the same one), so that this one stays light."""
    return _helper().submit(function, *arguments).result()


@contextlib.contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """A hidden folder in `parent`, deleted at the end, also when SIGTERM is the end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=parent) as folder:
        yield Path(folder)


# ---- the disk ----------------------------------------------------------------------------------------------


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def evict(paths: Sequence[Path]) -> float | None:
    """Take synced files out of the page cache; the share that stayed (0 to 1), None where nobody can tell."""
    for path in paths if hasattr(os, "posix_fadvise") else ():
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)
    found = _said("fincore", "-b", "-n", "-o", "RES,SIZE", *map(str, paths)).split()
    return sum(map(int, found[::2])) / max(1, sum(map(int, found[1::2]))) if found else None


# ---- telling -----------------------------------------------------------------------------------------------


def ratio(these: Sequence[float], those: Sequence[float]) -> float:
    """Median of the ratios, pair by pair: what was measured one after the other is compared."""
    return statistics.median(a / b for a, b in zip(these, those, strict=True))


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table whose columns line up; all but the first are set to the right."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        aligned = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        return "| " + " | ".join(aligned) + " |"

    rule = "|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|"
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])


def command() -> str:
    """How this program was called; of absolute paths the name alone."""
    script, *words = (Path(word).name if os.path.isabs(word) else word for word in sys.argv)
    return shlex.join(["python", f"bench/{Path(script).name}", *words])


def machine() -> str:
    """Processor, cores, memory, accelerator, system, versions, date, commit: the last line of a section."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [f"{_processor()}, {cores} cores", f"{memory:.0f} GiB", _accelerator(), platform.system()]
    parts += [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in PACKAGES)]
    return "; ".join([*parts, time.strftime("%Y-%m-%d"), f"commit {_commit()}"])


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _processor() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _accelerator() -> str:
    names = _said("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader").splitlines()
    return ", ".join(names) or "no GPU"


def _commit() -> str:
    changed = _said("git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/RESULTS.md")
    return (_said("git", "rev-parse", "--short", "HEAD") or "unknown") + " with changes" * bool(changed)


def write_section(name: str, text: str, path: Path = RESULTS) -> None:
    """Put the section `name` into the results in place of its last one, and print it."""
    body = f"## {name}\n\n`{command()}`\n\n{text.strip()}\n\n{machine()}\n"
    print(body)
    old = path.read_text() if path.exists() else TITLE
    title, *parts = re.split(r"(?m)^(?=## )", old)
    sections = {part.splitlines()[0][3:].strip(): part.strip() + "\n" for part in parts} | {name: body}
    path.write_text("\n".join([title.strip() + "\n", *(sections[key] for key in sorted(sections))]))
