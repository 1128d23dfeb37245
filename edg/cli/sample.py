"""`edg sample`, also scripts/infer_multi.py: flags -> SampleConfig -> clips.

Every flag of the released sampler is here by its own name. Defaults are those of the published run.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from typing import Any

from edg import systems
from edg.core.arguments import Parser
from edg.core.dist import world, world_from_environment
from edg.core.errors import EdgError
from edg.core.log import log
from edg.core.options import add_flags, names, typed_values
from edg.runner.config import IGNORED, PARTS, ModelConfig, SampleConfig, completed
from edg.systems.base import System


def add_sample_arguments(parser: Parser, argv: Sequence[str] = ()) -> None:
    """Add the general flags, and those of the system that `argv` names by --system or --config."""
    add_flags(parser, *PARTS.values(), system_of(argv).part("options"))
    for name in IGNORED:
        parser.add_argument(f"--{name}", default=None, help=argparse.SUPPRESS)


def system_of(argv: Sequence[str]) -> System:
    """The system that a command line names, the default where it names none or one that is unknown."""
    found: dict[str, str] = {}
    known = names(ModelConfig)
    for flag, following in zip(argv, [*argv[1:], ""], strict=False):
        name, equals, value = flag.partition("=")
        if name.startswith("--") and (field := known.get(name[2:].replace("-", "_"))):
            found[field] = value if equals else following
    try:
        return systems.of(found.get("system"), found.get("config"))
    except EdgError:
        return systems.get()


def config_of(args: argparse.Namespace) -> SampleConfig:
    """The settings that the parsed flags give, with those that the model's system suggests. Raises
    UsageError."""
    given = _given(args)
    return SampleConfig.from_values(completed(given.get("config"), given, given))


def suggested(args: argparse.Namespace) -> list[str]:
    """The flags of the settings that the model's system suggests where none were given."""
    given = SampleConfig.from_values(_given(args)).arguments()
    return [flag for flag in config_of(args).arguments() if flag not in given]


def _given(args: argparse.Namespace) -> dict[str, Any]:
    chosen = systems.of(getattr(args, "system", None), getattr(args, "config", None))
    return typed_values(args, *PARTS.values(), chosen.part("options"))


def sample(args: argparse.Namespace) -> int:
    """Run `edg sample`; returns the exit code. Raises EdgError."""
    here = world_from_environment()
    from edg.runner.prepare import prepare
    from edg.runner.sample import run

    ignored = [f"--{name}" for name in IGNORED if getattr(args, name) is not None]
    if ignored and here.is_first:
        log(f"ignored, because they have no effect: {' '.join(ignored)}")
    if (filled := suggested(args)) and here.is_first:
        log(f"settings of {args.config}, as measured: {shlex.join(filled)}")
    job = prepare(config_of(args), here)
    with world(job.placement.device.type) as here:
        run(job, here)
    return 0
