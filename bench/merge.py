"""Compare merging with the disk and with mergekit: seconds, megabytes per second, peak memory.

    python bench/merge.py                    # two files of 0.5 GB
    python bench/merge.py --size 2x10.4GB    # the published size

Two checkpoints with names and shapes of a published model and random values (the second differs from the
first in the denoising network only, as a fine-tuned one does) are merged, one command after another; every
output is compared with the plain formula and deleted. The floor is what dd(1) needs to read the inputs and to
write and sync as many bytes as the output has. mergekit gets an environment of its own, made once.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from bench import results  # noqa: E402
from bench.results import Measured, apart, measure, ratio  # noqa: E402

PEER, VERSION = "mergekit", "0.1.5"
PEER_FLAGS = ["--lazy-unpickle", "--out-shard-size", "50M"]  # little memory: shards of 0.2 GB
PEER_FOLDER = ROOT / ".bench-peer"
ROOM = 4.1  # what lies on the disk at once, in inputs: both, two outputs, a little
SCALING, DROP_RATE, SEED = 0.5, 0.7, 5
BLOCK = 1 << 22  # elements made at a time
SAMPLE = 24  # tensors compared per output
UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9}


@dataclass(frozen=True)
class Case:
    """An edg merge: its recipe (of configs/merge or RECIPES), its flags, mergekit's name of the method."""

    title: str
    recipe: str
    flags: tuple[str, ...] = ("--full",)
    peer: str = ""


@dataclass
class Row:
    """What was measured of one command, run after run."""

    title: str
    runs: list[Measured] = field(default_factory=list)
    nbytes: int = 0
    floors: list[float] = field(default_factory=list)
    against: Row | None = None
    checked: int = 0


CASES = (
    Case("dyn and con in one pass, complete", "edg"),
    Case("dyn and con, changed tensors only", "edg", ()),
    Case("dyn and con, complete, 16 bits", "edg", ("--full", "--dtype", "float16")),
    Case("task arithmetic, one output", "task", peer="task_arithmetic"),
    Case("DARE, one output", "dare", peer="dare_linear"),
)
RECIPES = {
    "task": {"op": "task_arithmetic", "scaling": SCALING},
    "dare": {"op": "task_arithmetic", "scaling": SCALING, "drop_rate": DROP_RATE},
}


# ---- the two files (runs apart: needs torch) ---------------------------------------------------------------


def layout(spec: str, nbytes: float = math.inf) -> dict:
    """name -> TensorInfo of a published model in float32; of a random half, tenth, ... when nbytes is less.

    0-d tensors become 1-d: mergekit cannot read 0-d ones without loading whole files."""
    import random

    from edg.networks.latent_video.load import build
    from edg.networks.latent_video.models import load_spec
    from edg.weights.tensors import TensorInfo

    tensors = build(load_spec(spec)).state_dict()
    infos = {name: TensorInfo(tuple(t.shape) or (1,), "float32") for name, t in tensors.items()}
    if nbytes > 0.98 * sum(info.nbytes for info in infos.values()):
        return infos
    chosen, left = set(), nbytes
    for name in random.Random(0).sample(sorted(infos), len(infos)):
        if infos[name].nbytes <= left:
            chosen.add(name)
            left -= infos[name].nbytes
    return {name: info for name, info in infos.items() if name in chosen}


def make_inputs(folder: Path, spec: str, nbytes: float) -> list[Path]:
    """Write base.ckpt and tuned.ckpt, a block at a time."""
    import numpy as np

    from edg.networks.latent_video.keys import FAMILY
    from edg.weights.writers import PtWriter, _Pickler, _Tensor

    class FlatWriter(PtWriter):
        """Tensors at the top of the pickle instead of under `state_dict`, where mergekit does not look."""

        def _record(self, name, data):
            if name == "data.pkl":
                buffer = io.BytesIO()
                table = {n: _Tensor(key, info) for key, (n, info) in enumerate(self.written.items())}
                _Pickler(buffer, protocol=2).dump(table)
                data = buffer.getvalue()
            super()._record(name, data)

    paths = [folder / "base.ckpt", folder / "tuned.ckpt"]
    infos = layout(spec, nbytes)
    writers = [FlatWriter(path, infos) for path in paths]
    random = np.random.Generator(np.random.SFC64(SEED))
    base, change = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    for name, info in infos.items():
        for writer in writers:
            writer.begin(name, info)
        for start in range(0, info.numel, BLOCK):
            ours, theirs = base[: info.numel - start], change[: info.numel - start]
            random.random(out=ours, dtype=np.float32)
            ours -= 0.5
            ours *= 0.1
            writers[0].append(ours)
            if FAMILY.component(name) == "unet":
                random.random(out=theirs, dtype=np.float32)
                theirs -= 0.5
                theirs *= 0.01
                ours += theirs
            writers[1].append(ours)
        for writer in writers:
            writer.end()
    for writer in writers:
        writer.finish({})
    return paths


# ---- the truth (runs apart: needs torch) -------------------------------------------------------------------


def check(case: Case, inputs: Sequence[Path], outputs: Sequence[Path], peer: bool = False) -> int:
    """Compare sampled tensors with the formula in plain torch, files read by torch and safetensors alone.

    Returns how many were compared. Raises SystemExit when one differs by more than a unit in the last
    place."""
    import torch
    from safetensors import safe_open

    torch.set_num_threads(1)
    base, tuned = (torch.load(path, mmap=True, weights_only=True) for path in inputs)
    files = {path: safe_open(path, "pt") for path in outputs}
    names = sorted(base)[:: max(1, len(base) // SAMPLE)]
    changed = [name for name in sorted(base) if name.startswith("model.diffusion_model.")]
    names = list(dict.fromkeys(names + changed[:: max(1, len(changed) // SAMPLE)]))
    count = 0
    for output in ("dyn", "con") if case.recipe == "edg" else ("merged",):
        named = [(path, file) for path, file in files.items() if peer or path.stem == output]
        stored = {name: file for _, file in named for name in file.keys()}  # noqa: SIM118
        if "--full" in case.flags and sorted(stored) != sorted(base):
            raise SystemExit(f"refused: {case.title}: {len(stored)} of {len(base)} tensors in the output")
        for name in names:
            found = stored[name].get_tensor(name) if name in stored else base[name]
            if peer and case.recipe == "dare":
                good = _share_is_right(base[name], tuned[name], found)
            else:
                good = _equal(found, formula(case.recipe, output, name, base[name], tuned[name]))
            if not good:
                raise SystemExit(f"refused: {case.title}: {output}: {name} is not what the formula gives")
            count += 1
    return count


def formula(recipe: str, output: str, name: str, base, tuned):
    """The merges as they are published, with fresh tensors for everything."""
    from edg.merging.masks import keep_mask

    keep = 1 - DROP_RATE

    def thin(delta, stream: str, seed: int):
        if delta.ndim == 1:
            return delta
        mask = keep_mask(seed, name, stream, keep, 0, delta.numel()).view(delta.shape)
        return delta * mask * (1 / keep)

    if output == "dyn":
        further = base + 0.25 * (base - tuned)
        return base + 0.75 * thin(further - base, "deg", 123)
    if output == "con":
        return 1.0 * tuned + 0.25 * thin(tuned - base, "adt", 123)
    delta = tuned - base
    return base + SCALING * (thin(delta, "dare0", 0) if recipe == "dare" else delta)


def _equal(found, wanted) -> bool:
    import torch

    spacing = torch.finfo(found.dtype).eps
    return torch.allclose(found.double(), wanted.to(found.dtype).double(), rtol=spacing, atol=0)


def _share_is_right(base, tuned, found) -> bool:
    """The peer's masks are its own: so many entries changed as DARE keeps."""
    if base.equal(tuned):
        return base.equal(found)
    share = float((found != base).double().mean())
    return abs(share - (1 - DROP_RATE)) < 0.02 + 3 / math.sqrt(base.numel())


# ---- the stages --------------------------------------------------------------------------------------------


class Bench:
    """Commands on two files, one after another; what a command made is deleted before the next."""

    def __init__(self, work: Path, inputs: Sequence[Path], peer: Path | None):
        self.work, self.inputs, self.peer = work, list(inputs), peer
        self.cached: list[float | None] = []  # shares of the inputs, before every command
        self.env = results.environment(XDG_CACHE_HOME=str(work / "cache"))  # hashes are not remembered
        for name, step in RECIPES.items():
            recipe = {"inputs": {"base": "", "tuned": ""}, "seed": 0, "outputs": {"merged": [step]}}
            (work / f"{name}.yaml").write_text(json.dumps(recipe))

    def run(self, case: Case, runs: int) -> list[Row]:
        """The rows of a case: edg's, and the peer's where there is one."""
        mine, other = Row(f"edg: {case.title}"), Row(f"{PEER}: {case.title}")
        for _ in range(runs):
            self._one(mine, self._edg(case), case)
            if case.peer and self.peer:
                self._one(other, self._peer(case), case, peer=True)
                mine.against = other
            mine.floors.append(self._floor(mine.nbytes))
            other.floors.append(mine.floors[-1])
        return [mine, other] if case.peer else [mine]

    def _one(self, row: Row, command: list, case: Case, peer: bool = False) -> None:
        out = self.work / "out"
        self._evict()
        row.runs.append(measure(command, written=out, env=self.env))
        made = sorted(out.rglob("*.safetensors"))
        row.nbytes = sum(path.stat().st_size for path in made)
        if not row.checked:
            row.checked = apart(check, case, self.inputs, made, peer)
        shutil.rmtree(out)

    def _evict(self) -> None:
        self.cached.append(results.evict(self.inputs))

    def _edg(self, case: Case) -> list:
        recipe = self.work / f"{case.recipe}.yaml" if case.recipe in RECIPES else case.recipe
        files = ["--base", self.inputs[0], "--tuned", self.inputs[1], "--out", self.work / "out"]
        return [sys.executable, "-m", "edg", "merge", recipe, *files, *case.flags, "--quiet"]

    def _peer(self, case: Case) -> list:
        parameters = {"weight": SCALING} | ({"density": 1 - DROP_RATE} if case.recipe == "dare" else {})
        recipe = {
            "merge_method": case.peer,
            "base_model": str(self.inputs[0]),
            "models": [{"model": str(self.inputs[1]), "parameters": parameters}],
            "dtype": "float32",
        }
        path = self.work / "peer.yaml"
        path.write_text(json.dumps(recipe))
        program = self.peer.with_name("mergekit-pytorch")
        return [program, path, self.work / "out", *PEER_FLAGS, "--quiet"]

    def _floor(self, nbytes: int) -> float:
        """Seconds in which dd reads the inputs, and writes and syncs so many bytes."""
        self._evict()
        target = self.work / "floor"
        reads = [measure(["dd", f"if={path}", "of=/dev/null", "bs=16M"]) for path in self.inputs]
        size = ["bs=16M", f"count={nbytes}", "iflag=count_bytes", "conv=fdatasync"]
        write = measure(["dd", "if=/dev/zero", f"of={target}", *size])
        target.unlink()
        return sum(run.seconds for run in (*reads, write))


def find_peer(given: str) -> Path | None:
    """The Python of an environment with the peer: the one given, else one made here; None where it cannot be.

    What the peer needs and this environment has (torch) is taken from here."""
    python = Path(given or PEER_FOLDER / "bin" / "python").absolute()
    if given == "none":
        return None
    if given and not python.with_name("mergekit-pytorch").exists():
        raise SystemExit(
            f"--peer {given}: there is no mergekit-pytorch beside it; leave out --peer to make an environment"
        )
    if not python.with_name("mergekit-pytorch").exists():
        print(f"making an environment with {PEER} {VERSION} in {PEER_FOLDER.name}", file=sys.stderr)
        try:
            measure([sys.executable, "-m", "venv", PEER_FOLDER])
            theirs = next(PEER_FOLDER.glob("lib/python*/site-packages"))
            ours = dict.fromkeys(map(sysconfig.get_path, ("purelib", "platlib")))
            (theirs / "zz_host.pth").write_text("\n".join(ours) + "\n")  # after its own, which therefore win
            measure([python, "-m", "pip", "install", "--quiet", f"{PEER}=={VERSION}"])
        except SystemExit as error:
            print(f"{error}\n{PEER} cannot be installed, so its rows stay empty", file=sys.stderr)
            return None
    return python


def peer_version(python: Path) -> str:
    tell = f"import importlib.metadata; print(importlib.metadata.version({PEER!r}))"
    return subprocess.run([python, "-c", tell], capture_output=True, text=True, check=True).stdout.strip()


# ---- telling -----------------------------------------------------------------------------------------------

HEAD = ("", "seconds", "CPU s", "MB/s out", "peak MB", "x floor", "x peer", "memory x peer", "checked")


def cells(row: Row) -> list[str]:
    if not row.runs:
        return [row.title, "not installed", *["-"] * (len(HEAD) - 2)]
    median = {
        name: statistics.median(getattr(run, name) for run in row.runs) for name in ("seconds", "cpu", "peak")
    }
    told = [f"{median['seconds']:.2f}", f"{median['cpu']:.1f}", f"{row.nbytes / median['seconds'] / 1e6:.0f}"]
    told += [f"{median['peak'] / 1e6:.0f}", f"{ratio([r.seconds for r in row.runs], row.floors):.2f}"]
    for name in ("seconds", "peak"):
        pairs = [[getattr(run, name) for run in r.runs] for r in (row, row.against)] if row.against else None
        told.append(f"{ratio(*pairs):.2f}" if pairs else "-")
    return [row.title, *told, f"{row.checked} tensors"]


def report(rows: Sequence[Row], bench: Bench, nbytes: int, count: int, args: argparse.Namespace) -> str:
    floor = statistics.median(rows[0].floors)
    stayed = [share for share in bench.cached if share is not None]
    cache = f"at most {100 * max(stayed):.0f} % stayed" if stayed else "whether all of it left is unknown"
    peer = f"{PEER} {peer_version(bench.peer)}" if bench.peer else f"{PEER} (not to be had here)"
    lines = [
        f"Two `.ckpt` of {nbytes / 1e9:.3f} GB, {count} tensors each of {args.spec}, float32; runs:",
        f"{args.runs}, medians, ratios pair by pair. Before every command the inputs (not the programs) were",
        f"taken out of the page cache ({cache}). Time ends when the output is on the disk.",
        "",
        results.table(HEAD, map(cells, rows)),
        "",
        "Floor: dd reads both inputs, then writes and syncs as many bytes as the output has",
        f"({floor:.2f} s for the first row). Goals at 2x10.4GB: the first row at most 1.3 x floor, 800 MB;",
        "against the peer at most 1.05 x its time and 1 x its memory. Checked: tensors of one output against",
        f"the plain formula, to the last place. Peer: `mergekit-pytorch {' '.join(PEER_FLAGS)}`",
        f"of {peer}, in an environment of its own with this one's torch; its imports count, as edg's",
        "do. The shards are small so that it may write as it goes.",
    ]
    return "\n".join(lines)


def bytes_of(size: str) -> float:
    """Of `2x10.4GB`: the bytes of one file."""
    found = re.fullmatch(r"2x(\d+(?:\.\d+)?)([KMG]?)B", size)
    if not found:
        raise argparse.ArgumentTypeError(f"{size!r}: two files, as in 2x0.5GB or 2x10.4GB")
    return float(found[1]) * UNITS[found[2]]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--size", default="2x0.5GB", help="number and size of the inputs: 2x0.5GB (default), 2x10.4GB, ..."
    )
    parser.add_argument("--runs", type=int, help="runs of every command (3; 1 from 2 GB on)")
    parser.add_argument(
        "--spec", default="dynamicrafter-512", help="model whose names and shapes the inputs have"
    )
    parser.add_argument(
        "--peer",
        default="",
        metavar="PYTHON",
        help=f"folder of an environment with {PEER} (default: one is made, once), or none",
    )
    parser.add_argument("--work", type=Path, default=ROOT, help="folder for temporary files (here)")
    parser.add_argument("--results", type=Path, default=results.RESULTS, help="file of the results")
    args = parser.parse_args(argv)
    args.nbytes = bytes_of(args.size)
    args.runs = args.runs or (1 if args.nbytes >= 2e9 else 3)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    free, needed = shutil.disk_usage(args.work).free, ROOM * args.nbytes
    if free < needed:
        raise SystemExit(
            f"--size {args.size} needs {needed / 1e9:.1f} GB of disk for two inputs and two outputs, "
            f"{args.work} has {free / 1e9:.1f} GB free: give another folder (--work) or size"
        )
    peer = find_peer(args.peer)
    with results.scratch(args.work) as work:
        inputs = apart(make_inputs, work, args.spec, args.nbytes)
        bench, rows = Bench(work, inputs, peer), []
        for case in CASES:
            rows += bench.run(case, args.runs)
            print("  ".join(cells(rows[-1])), file=sys.stderr, flush=True)
        text = report(rows, bench, inputs[0].stat().st_size, apart(count_tensors, inputs[0]), args)
    results.write_section("merge", text, args.results)


def count_tensors(path: Path) -> int:
    from edg.networks import open_weights

    return len(open_weights(path))


if __name__ == "__main__":
    main()
