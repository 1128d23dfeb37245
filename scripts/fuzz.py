#!/usr/bin/env python
"""Feed mutated files to the readers, guided by code coverage (atheris, libFuzzer), for a given time.

    python scripts/fuzz.py readers --seconds 60                     # checkpoints: zip, legacy, safetensors
    python scripts/fuzz.py readers --seconds 36000 --corpus DIR     # starts from DIR and adds to it
    python scripts/fuzz.py settings                                 # YAML files and merge recipes
    python scripts/fuzz.py prompts                                  # prompts.txt

A reader may give values or raise EdgError. Any other exception, more than 200 MB or more than two seconds of
CPU time for one input is a crash: the input is kept, and the exit code is 5. The last line is JSON.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from edg.cli.main import guard
from edg.core.arguments import Parser
from edg.core.errors import OK, SOME_FAILED, EdgError, MachineError

MAX_SECONDS, MAX_MEGABYTES, MAX_LENGTH = 2.0, 200, 16 << 10
ROOT = Path(__file__).resolve().parents[1]


def reader(path: str) -> None:
    from edg.cli.info import describe
    from edg.networks import open_weights

    weights = open_weights(path)
    describe(weights)
    for name in weights:
        if weights.info(name).nbytes < MAX_MEGABYTES << 20:
            weights[name]
    weights.verify()


def settings(path: str) -> None:
    from edg.core.config import read_yaml
    from edg.merging.recipe import from_dict

    from_dict(read_yaml(path))


def prompts(path: str) -> None:
    from edg.data.prompts import read_prompts

    read_prompts(path)


TARGETS: dict[str, Callable[[str], None]] = {"readers": reader, "settings": settings, "prompts": prompts}


# ---- seeds -------------------------------------------------------------------------------------------------


def seeds(target: str) -> list[bytes]:
    """Small valid files, and for the readers the malicious ones of tests/helpers/pickles.py."""
    if target == "prompts":
        text = "a red circle moves left\r\n\N{KITE} stays\n"
        return [text.encode(code) for code in ("utf-8", "utf-8-sig", "utf-16", "utf-16-be")]
    if target == "settings":
        return [path.read_bytes() for path in sorted((ROOT / "configs/merge").glob("*.yaml"))]
    sys.path.insert(0, str(ROOT / "tests" / "helpers"))
    import pickles

    evil = pickles.payloads("/nonexistent/sentinel").values()
    return _valid() + [pickles.checkpoint(item, form) for item in evil for form in ("zip", "legacy")]


def _valid() -> list[bytes]:
    import torch

    from edg.weights.writers import write_pt, write_safetensors

    state = {
        "a.weight": torch.arange(6.0).view(2, 3).t(),
        "b": torch.arange(5),
        "c": torch.tensor(1.0).half(),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        made = []
        for write in (
            lambda: torch.save({"state_dict": state, "epoch": 1}, path),
            lambda: torch.save(state, path, _use_new_zipfile_serialization=False),
            lambda: write_pt(path, state, {"edg": "{}"}),
            lambda: write_safetensors(path, state, {"edg": '{"base": {"path": "x", "sha256": "0"}}'}),
        ):
            write()
            made.append(path.read_bytes())
    return made


# ---- the process that libFuzzer runs in --------------------------------------------------------------------


class Run:
    """Calls a target with inputs as a file in memory, and counts."""

    def __init__(self, target: str, counts: Path):
        self.call, self.counts, self.reported = TARGETS[target], counts, time.monotonic()
        self.fd = os.memfd_create("input")
        self.path = f"/proc/self/fd/{self.fd}"
        self.total = {"executions": 0, "bytes": 0, "slowest_seconds": 0.0, "most_megabytes": 0.0}

    def __call__(self, data: bytes) -> None:
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, data, 0)
        memory, began = _peak(), time.process_time()
        with contextlib.suppress(EdgError):
            self.call(self.path)
        self._count(len(data), time.process_time() - began, _peak() - memory)

    def _count(self, size: int, seconds: float, megabytes: float) -> None:
        total = self.total
        total["executions"] += 1
        total["bytes"] += size
        if total["executions"] > 1:  # the first one imports
            total["slowest_seconds"] = max(total["slowest_seconds"], round(seconds, 3))
            total["most_megabytes"] = max(total["most_megabytes"], round(megabytes, 1))
            assert seconds <= MAX_SECONDS, f"{seconds:.1f} s for {size} bytes"
            assert megabytes <= MAX_MEGABYTES, f"{megabytes:.0f} MB for {size} bytes"
        if time.monotonic() - self.reported > 0.5:
            self.reported = time.monotonic()
            self.counts.write_text(json.dumps(total | {"peak_megabytes": round(_peak(), 1)}))


def _peak() -> float:
    """Most memory this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


MODULES = {
    "readers": ("edg.weights.store", "edg.cli.merge"),
    "settings": ("edg.core.config", "edg.merging.recipe"),
    "prompts": ("edg.data.prompts",),
}


def child(target: str, counts: str, *flags: str) -> None:
    """Run libFuzzer, which ends the process."""
    import atheris

    if target == "readers":
        import torch

        torch.set_num_threads(1)
    with atheris.instrument_imports(include=["edg"]):
        for module in MODULES[target]:
            importlib.import_module(module)
    atheris.Setup([sys.argv[0], *flags], Run(target, Path(counts)))
    atheris.Fuzz()


# ---- the command -------------------------------------------------------------------------------------------


def parser() -> Parser:
    made = Parser(prog="fuzz.py", description=__doc__.splitlines()[0])
    made.add_argument("target", choices=TARGETS)
    made.add_argument("--seconds", type=int, default=60, help="duration in seconds (60)")
    made.add_argument("--corpus", help="folder of inputs, which is read and extended (default: none is kept)")
    made.add_argument("--crashes", default="fuzz-crashes", help="folder for inputs that crash (fuzz-crashes)")
    made.add_argument("--json", help="file for the figures, one line of JSON")
    made.add_argument("--seed", type=int, default=1, help="seed of libFuzzer (1)")
    return made


def fuzz(args) -> int:
    """Run the child and report its result. Raises MachineError without atheris."""
    if importlib.util.find_spec("atheris") is None:
        raise MachineError(
            "atheris is not installed", fix="pip install atheris (Linux, Python 3.11 or newer)"
        )
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(args.corpus or f"{scratch}/corpus")
        given, counts = Path(scratch) / "seeds", Path(scratch) / "counts.json"
        for folder in (corpus, given, Path(args.crashes)):
            folder.mkdir(parents=True, exist_ok=True)
        for index, data in enumerate(seeds(args.target)):
            (given / f"{index:03d}").write_bytes(data)
        before = set(Path(args.crashes).iterdir())
        flags = [
            f"-max_total_time={args.seconds}", f"-seed={args.seed}", f"-max_len={MAX_LENGTH}", "-timeout=60",
            f"-artifact_prefix={args.crashes}/", "-rss_limit_mb=0", str(corpus), str(given),
        ]  # fmt: skip
        began = time.monotonic()
        run = subprocess.run([sys.executable, __file__, "--child", args.target, str(counts), *flags])
        made = json.loads(counts.read_text()) if counts.exists() else {"executions": 0}
        crashes = sorted(str(path) for path in set(Path(args.crashes).iterdir()) - before)
        made = {
            "target": args.target, "seconds": round(time.monotonic() - began), **made,
            "seeds": index + 1, "corpus": len(list(corpus.iterdir())), "crashes": crashes,
        }  # fmt: skip
    with contextlib.suppress(OSError):
        Path(args.crashes).rmdir()  # when it is empty
    if args.json:
        Path(args.json).write_text(json.dumps(made) + "\n")
    print(json.dumps(made))
    return OK if not crashes and run.returncode == 0 and made["executions"] else SOME_FAILED


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    sys.exit(guard(lambda: fuzz(parser().parse_args()), "fuzz.py"))
