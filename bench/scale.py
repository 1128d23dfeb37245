"""Measure the cost of longer, larger and more clips, and of a folder of prompts against the released loop.

    python bench/scale.py                  # the sprites network, on the CPU about ten minutes
    python bench/scale.py --model 512-narrow --only network

Cost is fitted as size^p; the table has the exponent of the time and that of the counted operations.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from math import ceil, log
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from bench import naive, results, step  # noqa: E402
from edg.core.device import fix_threads, keep_memory, multiplies, usable_cores  # noqa: E402
from edg.data.prompts import read_folder  # noqa: E402
from edg.diffusion.prediction import to_x0  # noqa: E402
from edg.networks import open_weights  # noqa: E402
from edg.networks.latent_video import onednn_linear  # noqa: E402
from edg.networks.latent_video.presets import SPRITES  # noqa: E402
from edg.systems.base import Request  # noqa: E402
from edg.systems.edg.clip_state import condition_batch, decode, start, to_frames  # noqa: E402
from edg.systems.edg.generate import advance, generate  # noqa: E402
from edg.systems.edg.options import SamplingOptions  # noqa: E402
from edg.systems.edg.parameter_sets import ParameterSets  # noqa: E402
from edg.systems.edg.sampling_schedule import schedule_of_sets  # noqa: E402

WEIGHTS = ROOT / "edg/sprites/weights"
AXES = {
    "frames": ((4, 8, 16, 32), "everything but attention over time is per frame"),
    "height": ((1, 2, 4), "per cell; self-attention within a frame per pair of cells"),
    "batch": ((1, 2, 4, 8), "samples know nothing of each other; calls and their overhead are shared"),
}


@contextmanager
def process(kept: bool, share: int = 1) -> Iterator[ProcessPoolExecutor]:
    """A process of its own for one of `share` equal parts of the cores, with the allocator as `edg sample`
    sets it (kept), or as it is."""
    how = {"initializer": prepare, "initargs": (kept, usable_cores() // share)}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), **how) as one:
        yield one


def prepare(kept: bool, threads: int) -> None:
    fix_threads(threads)
    torch.set_grad_enabled(False)
    if kept:
        keep_memory()


# ---- the network -------------------------------------------------------------------------------------------


def cost(model: str, axis: str, size: int, repeat: int) -> tuple[float, int]:
    """(seconds, floating-point operations) of one guided step, in this process."""
    known = step.models()[model]
    clip = {"frames": known.frames, "height": known.height, "width": known.width, "batch": 1}
    clip[axis] = clip[axis] * size if axis == "height" else size
    changed = replace(known, spec=replace(known.spec, frames=clip["frames"]), height=clip["height"])
    setting = step.Setting(model, "edg", "cpu", "fp32", usable_cores(), clip["batch"])
    run = step.make_step(setting, changed)
    flops = step.count_flops(run)
    return median(step.timed(run, setting) for _ in range(repeat)), flops


def exponent(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """p of cost ~ size^p by least squares on the logarithms."""
    x, y = [log(size) for size in sizes], [log(one) for one in costs]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


def network(model: str, repeat: int) -> str:
    rows = []
    with process(kept=True) as one:
        for axis, (sizes, why) in AXES.items():
            found = [one.submit(cost, model, axis, size, repeat).result() for size in sizes]
            seconds, flops = zip(*found, strict=True)
            told = ", ".join(step.show(s) for s in seconds)
            powers = [f"{exponent(sizes, values):.2f}" for values in (seconds, flops)]
            unit = "x" if axis == "height" else ""
            rows.append([axis, ", ".join(f"{unit}{size}" for size in sizes), told, *powers, why])
    head = ["one guided step", "sizes", "median", "exponent", "of operations", "why"]
    return f"{step.models()[model].name}:\n\n{results.table(head, rows)}"


# ---- whole runs --------------------------------------------------------------------------------------------


def requests(count: int, options: SamplingOptions) -> list[Request]:
    pairs = read_folder(ROOT / "prompts/sprites")
    size = SPRITES.frames, SPRITES.height, SPRITES.width
    return [
        Request(f"{i:04d}", pairs[i % len(pairs)].prompt, 123, *size, options, pairs[i % len(pairs)].image)
        for i in range(count)
    ]


def parameter_sets(count: int, **how) -> ParameterSets:
    """`count` sets in turn: the fine-tuned network, base, the fine-tuned, ..."""
    files = {name: open_weights(WEIGHTS / f"{name}.safetensors") for name in ("tuned", "base")}
    sets = {f"set{i}": list(files.values())[i % 2] for i in range(count)}
    return ParameterSets(SPRITES.with_adapter(), sets, **how)


def sampling(steps: int, sets: int = 2) -> SamplingOptions:
    at = tuple(1000 * (sets - 1 - i) // sets for i in range(sets - 1))
    return SamplingOptions(
        steps=steps, switch_at=at, guidance_scale=step.SCALE, guidance_rescale=step.RESCALE
    )


def clips(
    networks: ParameterSets, requests: Sequence[Request], one_by_one: bool = False
) -> tuple[float, list]:
    """(seconds, frames). one_by_one: prompt by prompt, with `bench/naive.py` for every step."""
    began = time.perf_counter()
    if one_by_one:
        made = [naive_clip(networks, request) for request in requests]
    else:
        made = [result.frames for result in generate(networks, requests)]
    return time.perf_counter() - began, made


def naive_clip(sets: ParameterSets, request: Request):
    options, clip = request.options, start(sets, request)
    for (index,), steps in schedule_of_sets(sets, options):
        network = sets.network(index)
        conditions = list(condition_batch(network, index, [clip], options).values())

        def guided(x, t, network=network, conditions=conditions):
            return naive.guided(
                network.unet, x, t, conditions, options.guidance_scale, options.guidance_rescale
            )

        advance([clip], to_x0(guided, sets.schedule, sets.spec.parameterization), steps, "")
    return to_frames(decode(sets.network(1), clip, options), options)


@dataclass(frozen=True)
class Way:
    """How a folder is made: `batch` clips a call, in `ranks` processes that share the cores and the prompts
    as under torchrun. dtype: of edg's parameters; of the released loop autocast's, over float32."""

    name: str = field(compare=False)
    batch: int = 1
    ranks: int = 1
    compiled: bool = False
    naive: bool = False
    dtype: torch.dtype = torch.float32

    def make(self, several: Sequence[ProcessPoolExecutor], requests: Sequence[Request]) -> tuple[float, list]:
        """(seconds of the slowest process, frames)"""
        jobs = [one.submit(share, self, requests[i :: self.ranks]) for i, one in enumerate(several)]
        seconds, made = zip(*(job.result() for job in jobs), strict=True)
        return max(seconds), [made[i % self.ranks][i // self.ranks] for i in range(len(requests))]


@cache
def networks_of(way: Way) -> ParameterSets:
    dtype = torch.float32 if way.naive else way.dtype
    how = {"batch_size": way.batch, "compiled": way.compiled, "dtype": dtype}
    sets = parameter_sets(2, resident=way.naive, **how)
    if way.naive:  # as in the release: of what needs a gradient autocast keeps the cast weights
        for index in range(len(sets.names)):
            sets.network(index).requires_grad_(True)
    return sets


def share(way: Way, requests: Sequence[Request]) -> tuple[float, list]:
    with torch.autocast("cpu", way.dtype, enabled=way.naive and way.dtype != torch.float32):
        return clips(networks_of(way), requests, one_by_one=way.naive)


def floor(steps: int) -> float:
    """Seconds of the operations of one clip's steps, as edg makes them, at the faster library's rate of a
    matrix product."""
    setting = step.Setting("sprites", "edg", "cpu", "fp32", usable_cores())
    rate = max(step.matmul_rate(setting, product) for product in (torch.matmul, onednn_linear.linear))
    return steps * step.count_flops(step.make_step(setting)) / rate


def folder(prompts: int, steps: int, batch: int, rounds: int) -> str:
    """Every way makes a part of the folder, then every way the next, so that they meet the same machine. At
    most `rounds` parts, of whole batches for every process."""
    cores = usable_cores()
    batch = min(batch, ceil(prompts / cores))
    whole = batch * cores
    part = whole * ceil(prompts / whole / rounds)
    ways = [
        Way("as released, one at a time, two networks", naive=True),
        Way("edg, 1 per call, one network"),
        Way(f"edg, {batch} per call, one network", batch),
        Way(f"edg, {batch} per call, {cores} processes with a thread and a network each", batch, cores),
        Way("the same, --compile, which is not counted", batch, cores, compiled=True),
    ]
    if multiplies(bf16 := torch.bfloat16):
        ways += [
            Way("as released, under autocast to bfloat16", naive=True, dtype=bf16),
            Way(f"edg in {cores} processes, --dtype bf16", batch, cores, dtype=bf16),
            Way("the same, --compile, which is not counted", batch, cores, compiled=True, dtype=bf16),
        ]
    ways = list(dict.fromkeys(ways))  # with one core or one clip per call some are the same
    wanted, expected = requests(prompts, sampling(steps)), []
    seconds, differences = {way: [] for way in ways}, {way: [] for way in ways}
    with ExitStack() as stack:
        least = stack.enter_context(process(kept=True)).submit(floor, steps).result()
        pools = {
            way: [stack.enter_context(process(not way.naive, way.ranks)) for _ in range(way.ranks)]
            for way in ways
        }
        for way in ways:  # what comes with the first call alone
            way.make(pools[way], requests(way.batch * way.ranks, sampling(2)))
        for at in range(0, prompts, part):
            for way in ways:
                took, made = way.make(pools[way], wanted[at : at + part])
                seconds[way].append(took)
                expected = made if way == ways[0] else expected
                differences[way].append(difference(way, made, expected))
    naive_took = seconds[ways[0]]
    rows = []
    for way in ways:
        ratios = [a / b for a, b in zip(naive_took, seconds[way], strict=True)]
        apart = f"{np.mean(differences[way]):.3f}"
        rows.append([way.name, show_rate(prompts, sum(seconds[way])), f"{median(ratios):.2f}", apart])
    told = "the floor: edg's steps alone, at the rate of matrix products in float32"
    rows.append([told, show_rate(1, least), f"{sum(naive_took) / prompts / least:.2f}", ""])
    head = [f"{prompts} prompts, {steps} guided steps", "clips a minute", "times the released loop"]
    return results.table([*head, "frames apart, of 255"], rows)


def difference(way: Way, made: list, expected: list) -> float:
    """Mean distance of the frames, of 255. In float32 rounding may not show at all, in 16 bits not much."""
    apart = abs(np.stack(made).astype(int) - np.stack(expected))
    if (apart.max() if way.dtype == torch.float32 else apart.mean()) > 2:
        sys.exit(
            f"scale.py: the frames of {way.name!r} differ by {apart.mean():.2f} of 255, at most {apart.max()}"
        )
    return float(apart.mean())


def show_rate(prompts: int, seconds: float) -> str:
    return f"{60 * prompts / seconds:.1f}"


def run(prompts: int, steps: int, sets: int) -> float:
    """Seconds of a run of its own."""
    return clips(parameter_sets(sets), requests(prompts, sampling(steps, sets)))[0]


def runs(steps: int) -> str:
    """Seconds of whole runs against the number of prompts, and of parameter sets."""
    prompts, sets = (1, 2, 4, 8), (1, 2, 3, 4)
    with process(kept=True) as one:
        by_prompts = [one.submit(run, n, steps, 2).result() for n in prompts]
        by_sets = [one.submit(run, 2, steps, n).result() for n in sets]
    rows = [
        [
            name,
            ", ".join(map(str, sizes)),
            ", ".join(map(step.show, seconds)),
            f"{exponent(sizes, seconds):.2f}",
            why,
        ]
        for name, sizes, seconds, why in (
            ("prompts", prompts, by_prompts, "a swap of parameters is shared, the steps are not"),
            (
                "parameter sets",
                sets,
                by_sets,
                "the steps are shared out among them; each adds its swap and encoding",
            ),
        )
    ]
    return results.table([f"a run of {steps} steps", "sizes", "seconds", "exponent", "why"], rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="sprites", choices=step.models(), help="model of the network's rows"
    )
    parser.add_argument("--only", choices=["network", "runs", "folder"])
    parser.add_argument("--repeat", type=int, default=5, help="steps per median (5)")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4, help="clips per call in the folder's last rows (4)")
    parser.add_argument("--rounds", type=int, default=4, help="rounds in which the folder is made (4)")
    args = parser.parse_args()
    parts = {
        "network": lambda: network(args.model, args.repeat),
        "runs": lambda: runs(args.steps),
        "folder": lambda: folder(args.prompts, args.steps, args.batch, args.rounds),
    }
    told = [make() for name, make in parts.items() if args.only in (None, name)]
    results.write_section("scale" if not args.only else f"scale: {args.only}", "\n\n".join(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
