"""Measure one guided denoising step against the straightforward loop and the rate of the machine.

    python bench/step.py                         # the 512 network at width 128, and sprites; needs no GPU
    python bench/step.py 512 1024 --compile      # what a GPU is measured with

`bench/naive.py` is the loop as released, on the same weights; a variant whose result differs from its in
float32 by more than 1e-4, or in 16 bits by more than 1.2 times what autocast does, ends the run. Every
variant is a process of its own; they step in turn, one at a time, so that a ratio is one of neighbours in
time. The floor is the floating-point operations of the naive loop at the rate of a large matrix product in
the faster of two libraries. What is approximate makes a whole clip, and counts as the steps that the release
makes of it (its first call is a clip); `bench/approximations.py` measures the loss of quality.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench import naive, results  # noqa: E402
from edg.core.device import choose, fix_threads, keep_memory, usable_cores  # noqa: E402
from edg.diffusion.guidance import guided, side_by_side  # noqa: E402
from edg.diffusion.multistep import dpmpp  # noqa: E402
from edg.diffusion.schedule import make_schedule  # noqa: E402
from edg.networks.latent_video import onednn_linear  # noqa: E402
from edg.networks.latent_video.model import LatentVideoModel  # noqa: E402
from edg.networks.latent_video.presets import PRESETS  # noqa: E402
from edg.networks.latent_video.spec import ModelSpec  # noqa: E402
from edg.networks.latent_video.unet import UNet  # noqa: E402
from edg.systems.edg.condition import Condition  # noqa: E402
from edg.systems.edg.denoiser import denoiser  # noqa: E402
from edg.systems.edg.options import SamplingOptions  # noqa: E402
from edg.systems.edg.parameter_sets import how_to_compile  # noqa: E402
from edg.systems.edg.sampling_schedule import sampling_schedule  # noqa: E402
from edg.verify.rules import fill, input_tensor  # noqa: E402

SCALE, RESCALE = 7.5, 0.7
STEPS = 50  # of a clip in the release
FEWER = SamplingOptions(
    steps=12,
    switch_at=(),
    solver="dpmpp",
    guidance_interval=(300, 700),
    reuse=2,
    guidance_scale=SCALE,
    guidance_rescale=RESCALE,
)
VARIANTS = {
    "naive": "the loop as released",
    "edg": "as `edg sample` makes it",
    "two calls": "edg, one condition after the other",
    "telling anew": "edg, keys and values of the tokens at every step",
    "giving pages back": "edg, with the allocator's own settings",
    "by MKL": "edg, all linear layers by PyTorch's own choice",
    "four prompts": "edg --bs 4, for each of the four",
    "approximate": "edg, approximate: a 50th of a clip of 12 steps, interval, reuse",
    "compiled": "edg --compile",
    "four prompts, compiled": "edg --bs 4 --compile, for each of the four",
    "approximate, compiled": "edg --compile, approximate: a 50th of such a clip",
}
MODELS = ["512-narrow", "sprites"]
APPROXIMATE = ["approximate", "approximate, compiled"]
COMPILED = ["compiled", "four prompts, compiled", "approximate, compiled"]
TOLERANCE = 1e-4  # of the largest value, in float32
IN_16_BITS = 1.2  # in 16 bits: times as far from float32 as the loop under autocast is


@dataclass(frozen=True)
class Model:
    """A network to measure: its spec and latent size."""

    name: str
    spec: ModelSpec
    height: int
    width: int

    @property
    def frames(self) -> int:
        return self.spec.frames


def models() -> dict[str, Model]:
    def whole(name: str) -> Model:
        spec = PRESETS[name]
        return Model(name, spec, spec.height // spec.latent_factor, spec.width // spec.latent_factor)

    large = PRESETS["dynamicrafter-512"]
    narrow = replace(large, unet=replace(large.unet, model_channels=128))
    return {
        "512-narrow": Model("512, width 128, latent 16x32", narrow, 16, 32),
        "sprites": whole("sprites"),
        "512": whole("dynamicrafter-512"),
        "1024": whole("dynamicrafter-1024"),
    }


@dataclass(frozen=True)
class Setting:
    """What a worker is told; everything else follows from it."""

    model: str
    variant: str
    device: str
    dtype: str
    threads: int
    batch: int = 1

    @property
    def stands_for(self) -> int:
        """Steps of one prompt, as released, that a call stands for."""
        return self.batch * (STEPS if self.variant in APPROXIMATE else 1)


class Network:
    """The part of the model that a step needs: no towers, no autoencoder."""

    def __init__(self, unet: UNet):
        self.unet = unet

    predict = LatentVideoModel.predict


def make_step(setting: Setting, model: Model | None = None) -> Callable[[], Tensor]:
    """The step of one variant, or the clip of an approximate one: weights and inputs by the reference's rule,
    the same for every variant."""
    model = model or models()[setting.model]
    device, dtype = choose(setting.device, setting.dtype)
    spec = model.spec.unet
    with torch.device("meta"):
        unet = UNet(spec).eval().requires_grad_(False)
    own = torch.float32 if setting.variant == "naive" else dtype
    unet = fill(unet, 0, device=device, dtype=own)
    size = model.frames, model.height, model.width
    tokens = spec.text_tokens + spec.image_tokens * model.frames

    def given(name: str, *shape: int) -> Tensor:
        one = input_tensor(0, name, (1, *shape)).to(device)
        return one.repeat(setting.batch, *[1] * len(shape))

    def condition(name: str) -> Condition:
        words = None if spec.temporal_selfatt_only else given(f"words.{name}", size[0], spec.adapter_width)
        context = given(f"context.{name}", tokens, spec.context_dim)
        return Condition(context, words, given("concat", spec.in_channels - 4, *size), None)

    x = given("x", 4, *size)
    t_B = torch.full((len(x),), 500, device=device)
    told = [condition("full"), condition("null")]
    if setting.variant == "naive":
        unet.requires_grad_(dtype != torch.float32)  # of what needs a gradient autocast keeps what it cast
        return lambda: naive.guided(unet, x, t_B, told, SCALE, RESCALE).float()
    network, weights = Network(unet), [SCALE, 1 - SCALE]
    if setting.variant in COMPILED:
        unet.compile(**how_to_compile(device))
    if setting.variant in APPROXIMATE:
        return make_clip(network, model, dict(zip(("full", "null"), told, strict=True)), x)
    if setting.variant == "two calls":
        denoise = side_by_side(*(one.predict(network) for one in told))
    else:
        denoise = Condition.predict_all(told, network)
    if setting.variant == "telling anew":
        return lambda: guided(Condition.predict_all(told, network), weights, RESCALE)(x, t_B)
    return lambda: guided(denoise, weights, RESCALE)(x, t_B)


def make_clip(network: Network, model: Model, told: dict[str, Condition], x: Tensor) -> Callable[[], Tensor]:
    """Noise to latent in few steps, as `generate` takes a batch of clips through them."""
    schedule = make_schedule(model.spec.schedule, model.spec.parameterization)
    [(use, steps)] = sampling_schedule(schedule, 1, FEWER)
    sets = SimpleNamespace(
        network=lambda index: network, sequential_cfg=False, schedule=schedule, spec=model.spec
    )

    def clip() -> Tensor:
        *_, last = dpmpp(denoiser(sets, use, [told], steps, FEWER), x, steps)
        return last.x

    return clip


def surroundings(setting: Setting) -> AbstractContextManager:
    """What all steps of a variant are taken in: of the released loop in 16 bits autocast over float32
    parameters, to float16 on a GPU."""
    device, dtype = choose(setting.device, setting.dtype)
    if setting.variant != "naive" or dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, torch.float16 if device.type == "cuda" else torch.bfloat16)


# ---- a worker: one variant in a process of its own ---------------------------------------------------------


def work(setting: Setting, pipe: Any) -> None:
    """Take a step, then answer the parent's requests, one at a time, until it says "end"."""
    if setting.variant not in ("naive", "giving pages back") and setting.device == "cpu":
        keep_memory()
    fix_threads(setting.threads)
    torch.set_grad_enabled(False)
    onednn_linear.ONEDNN &= setting.variant != "by MKL"
    with surroundings(setting):
        answer(setting, pipe)


def answer(setting: Setting, pipe: Any) -> None:
    step = make_step(setting)
    began = time.perf_counter()
    result = step()
    wait(setting)
    first = time.perf_counter() - began
    answers: dict[str, Callable[[], Any]] = {
        "step": lambda: timed(step, setting) / setting.stands_for,
        "result": lambda: result.cpu().numpy(),
        "first": lambda: first,
        "memory": lambda: peak_memory(setting),
        "rate": lambda: matmul_rate(setting),
        "rate of layers": lambda: matmul_rate(setting, onednn_linear.linear),
        "flops": lambda: count_flops(step),
        "profile": lambda: profile(step, setting),
    }
    pipe.send("ready")
    while (asked := pipe.recv()) != "end":
        pipe.send(answers[asked]())


def wait(setting: Setting) -> None:
    if setting.device != "cpu":
        torch.cuda.synchronize()


def timed(step: Callable[[], Any], setting: Setting) -> float:
    wait(setting)
    began = time.perf_counter()
    step()
    wait(setting)
    return time.perf_counter() - began


def peak_memory(setting: Setting) -> int:
    if setting.device != "cpu":
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def matmul_rate(setting: Setting, product: Callable[[Tensor, Tensor], Tensor] = torch.matmul) -> float:
    """Operations per second of the best of ten products of two square matrices."""
    device, dtype = choose(setting.device, setting.dtype)
    n = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        timed(lambda: product(a, b), setting)
        return 2 * n**3 / min(timed(lambda: product(a, b), setting) for _ in range(10))


def count_flops(step: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def profile(step: Callable[[], Any], setting: Setting) -> list[tuple[str, int, float]]:
    """(operation, calls, share of the time) of the ten that take longest by themselves."""
    activity = torch.profiler.ProfilerActivity
    on_gpu = setting.device != "cpu"
    with torch.profiler.profile(activities=[activity.CUDA if on_gpu else activity.CPU]) as taken:
        step()
        wait(setting)
    own = [
        (row.key, row.count, row.self_device_time_total if on_gpu else row.self_cpu_time_total)
        for row in taken.key_averages()
    ]
    total = sum(seconds for _, _, seconds in own)
    own.sort(key=lambda row: -row[2])
    return [(name, calls, seconds / total) for name, calls, seconds in own[:10]]


class Worker:
    def __init__(self, setting: Setting):
        context = mp.get_context("spawn")
        self.setting = setting
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(setting, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self._answer()

    def ask(self, what: str) -> Any:
        self.pipe.send(what)
        return self._answer()

    def _answer(self) -> Any:
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join()
            sys.exit(f"step.py: {self.setting} ended with code {self.process.exitcode}")

    def end(self) -> None:
        self.pipe.send("end")
        self.process.join()


# ---- the table ---------------------------------------------------------------------------------------------


def measure(model: str, variants: list[str], args: argparse.Namespace) -> str:
    """Rows of one model as text: the naive loop first, then every variant beside it."""

    def setting(variant: str) -> Setting:
        batch = 4 if variant.startswith("four") else 1
        return Setting(model, variant, args.device, args.dtype, args.threads, batch)

    half = choose(args.device, args.dtype)[1] != torch.float32
    if half:  # in which they are by PyTorch's own choice
        variants = [name for name in variants if name != "by MKL"]
    if not variants:
        sys.exit("step.py: 'by MKL' is a variant in float32 alone")
    exact = result_of(replace(setting("naive"), dtype="fp32")) if half else None
    first = Worker(setting("naive"))
    rate, of_layers, flops = first.ask("rate"), first.ask("rate of layers"), first.ask("flops")
    expected, limit = held_to(torch.from_numpy(first.ask("result")), exact)
    rows, naive_seconds, profiles = [], [], []
    for variant in variants:
        other = Worker(setting(variant))
        found = torch.from_numpy(other.ask("result"))
        if variant not in APPROXIMATE:
            check(variant, found, expected, limit)
        elif not found.isfinite().all():
            sys.exit(f"step.py: the latent of {variant!r} is not finite")
        pairs = [(first.ask("step"), other.ask("step")) for _ in range(args.pairs)]
        naive_seconds += [a for a, _ in pairs]
        seconds = median(b for _, b in pairs)
        ratio = median(a / b for a, b in pairs)
        rows.append(row(variant, seconds, ratio, flops, rate, other.ask("memory"), other.ask("first")))
        if variant == "edg":
            profiles = other.ask("profile")
        other.end()
    rows.insert(
        0,
        row("naive", median(naive_seconds), 1.0, flops, rate, first.ask("memory"), first.ask("first")),
    )
    first.end()
    rows[0][0] += ", under autocast" * half
    head = (
        f"{models()[model].name}: {flops / 1e12:.3g} TFLOP a step as released, {rate / 1e9:.0f} GFLOP/s by "
        f"PyTorch's matrix products, {of_layers / 1e9:.0f} by those of edg's linear layers"
        f"{', which are the same' * half}: floor {show(flops / max(rate, of_layers))}."
    )
    columns = ["", "step", "times naive", "of PyTorch's rate", "peak memory", "first call"]
    text = f"{head}\n\n{results.table(columns, rows)}"
    if profiles:
        shares = [[f"`{name}`", str(calls), f"{share:.0%}"] for name, calls, share in profiles]
        text += f"\n\nWhat is left in `edg`:\n\n{results.table(['operation', 'calls', 'share'], shares)}"
    return text


def row(
    variant: str, seconds: float, ratio: float, flops: int, rate: float, memory: int, first: float
) -> list:
    share = flops / seconds / rate
    return [
        VARIANTS[variant],
        show(seconds),
        f"{ratio:.2f}",
        "" if variant in APPROXIMATE else f"{share:.0%}",  # whose operations are fewer
        f"{memory / 1e9:.2f} GB",
        show(first),
    ]


def show(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def result_of(setting: Setting) -> Tensor:
    """The result of a worker that ends at once."""
    worker = Worker(setting)
    result = torch.from_numpy(worker.ask("result"))
    worker.end()
    return result


def held_to(made: Tensor, exact: Tensor | None) -> tuple[Tensor, float]:
    """(what the variants' results are compared with, the largest distance allowed). made: the naive loop's
    result; exact: where that is in 16 bits, the same loop's in float32."""
    return (made, TOLERANCE) if exact is None else (exact, IN_16_BITS * distance(made, exact))


def distance(result: Tensor, expected: Tensor) -> float:
    """The largest difference, of the largest value."""
    return float((result - expected).abs().max() / expected.abs().max())


def check(variant: str, result: Tensor, expected: Tensor, limit: float) -> None:
    if not (apart := distance(result, expected)) <= limit:
        sys.exit(
            f"step.py: {variant!r} is {apart:.1e} of its largest value from the naive loop in float32, "
            f"more than {limit:.1e}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=MODELS, help=", ".join(models()))
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS)[1:], default=list(VARIANTS)[1:8])
    parser.add_argument("--compile", action="store_true", help="also measure the compiled variants")
    parser.add_argument("--pairs", type=int, default=7, help="pairs of steps (7)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=usable_cores())
    args = parser.parse_args()
    if unknown := set(args.models) - set(models()):
        parser.error(f"unknown model {', '.join(unknown)}; expected {', '.join(models())}")
    variants = [*args.variants, *(name for name in COMPILED if args.compile and name not in args.variants)]
    named = args.models if args.models != MODELS else []
    how = f", {args.dtype}" * (args.dtype != "auto") + ", compiled" * args.compile
    section = ": ".join(["step", *[" ".join(named)] * bool(named)]) + how
    results.write_section(section, "\n\n".join(measure(model, variants, args) for model in args.models))
    return 0


if __name__ == "__main__":
    sys.exit(main())
