"""`edg demo`: a page on this machine where images are made to move.

It shows the first of the models that systems offer whose weights are there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

from edg import systems
from edg.core.arguments import Parser, whole
from edg.core.errors import EdgError, MachineError
from edg.demo.jobs import DemoModel, Slider
from edg.systems.base import DemoSetup

EXAMPLES = 8
LOOPBACK = "127.0.0.1"
MAX_STEPS = 100


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--host", default=LOOPBACK, help=f"address to listen on ({LOOPBACK})")
    parser.add_argument(
        "--port", type=whole(0, 65535), default=7860, help="port to listen on; 0: any free port (7860)"
    )
    parser.add_argument(
        "--model", choices=("auto", *demo_setups()), default="auto",
        help="auto: the first of these whose weights exist (auto)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (auto)")
    parser.add_argument(
        "--dtype", default="auto", help="auto (fp32 on cpu, fp16 on cuda), fp32, fp16 or bf16"
    )
    parser.add_argument("--threads", type=whole(1, 4096), help="CPU threads (all cores)")
    parser.add_argument("--low-memory", action="store_true", help="for small GPUs, see edg sample")


def run(args: argparse.Namespace) -> int:
    """Serve the page until a signal. Raises MachineError."""
    if find_spec("gradio") is None:
        raise MachineError("edg demo needs the package gradio", fix="pip install 'edg[demo]'")
    from edg.demo.process import serve

    serve(lambda: demo_model(args), args.host, args.port, ready)
    return 0


def ready(model: DemoModel, address: str) -> None:
    print(f"edg demo: {model.name} at {address}  (Ctrl-C to stop)", flush=True)


# ---- the model ---------------------------------------------------------------------------------------------


def demo_setups() -> dict[str, Callable[[], DemoSetup]]:
    """The models that systems offer for the page, the preferred first."""
    parts = (system.part("demo") for system in systems.all_systems() if system.demo is not None)
    return {name: make for part in parts for name, make in part.items()}


def chosen_setup(model: str) -> DemoSetup:
    """The setup of a model, or for "auto" the first whose weights are there. Raises MachineError."""
    missing = MachineError("no system has a model for the demo")
    for name, make in demo_setups().items():
        try:
            if model in ("auto", name):
                return make()
        except MachineError as error:
            missing = error
    raise missing


def demo_model(args: argparse.Namespace) -> DemoModel:
    """The model, and others for comparison. Raises MachineError where its weights are missing."""
    from edg.api import Model

    setup = chosen_setup(args.model)
    machine = {name: getattr(args, name) for name in ("device", "dtype", "threads", "low_memory")}
    kept: dict[str, Any] | None = {} if setup.one_network else None
    model = Model(setup.model, {**setup.options, **machine}, kept)
    others = {name: Model(None, {**options, **machine}, kept) for name, options in setup.others.items()}
    sliders = [Slider(name, **asdict(slider)) for name, slider in setup.sliders.items()]
    return DemoModel(
        setup.model,
        {"edg": model.animate, **{name: other.animate for name, other in others.items()}},
        (*sliders, Slider("steps", 1, MAX_STEPS, 1, setup.steps, shared=True)),
        examples(setup.model),
        about=setup.about,
        small=setup.small,
        warm_up=setup.warm_up,
        doubt=setup.doubt,
    )


def examples(name: str) -> list[tuple[str, str]]:
    """(image, prompt) of the prompts that come with the model."""
    from edg.data.prompts import read_folder
    from edg.runner.prepare import default_prompts

    try:
        pairs = read_folder(default_prompts(*systems.find(name)))
    except EdgError:  # an installation without them
        return []
    return [(str(pair.image.resolve()), pair.prompt) for pair in pairs[:EXAMPLES]]
