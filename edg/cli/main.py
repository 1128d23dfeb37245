"""`edg COMMAND`: a table of commands; each imports what it needs when called, so that `--help` is instant."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Any

from edg.core.arguments import Parser
from edg.core.device import cores_are_wanted
from edg.core.dist import (
    World,
    is_first_rank,
    is_launched,
    processes_here,
    rank_label,
    world_from_environment,
)
from edg.core.errors import (
    DEFECT,
    INTERRUPTED,
    TERMINATED,
    EdgError,
    MachineError,
    UsageError,
    is_out_of_memory,
    nearest,
    visible,
)
from edg.core.process import CODES, die_with_parent, stopping
from edg.systems import all_systems
from edg.systems.base import Command, load_part

GRACE = 5  # seconds; when rank 0 meets the same error, torchrun ends the others before they report it again


SINGLE = "run it without torchrun, or unset WORLD_SIZE"


COMMANDS = {
    "merge": Command(
        "checkpoints + recipe -> parameter sets",
        "edg.cli.merge:add_merge_arguments",
        "edg.cli.merge:merge_command",
        SINGLE,
    ),
    "sample": Command(
        "images + prompts -> clips, with one or several parameter sets",
        "edg.cli.sample:add_sample_arguments",
        "edg.cli.sample:sample",
        reads_argv=True,
    ),
    "sweep": Command(
        "a grid over any options of sample -> a folder for each point, scores, a report",
        "edg.cli.sweep:add_sweep_arguments",
        "edg.cli.sweep:sweep",
        "run what --dry-run prints, each under torchrun",
    ),
    "demo": Command(
        "a local web page that animates images",
        "edg.cli.demo:add_arguments",
        "edg.cli.demo:run",
        SINGLE,
    ),
    "train": Command(
        "a configuration -> trained parameter sets",
        "edg.cli.train:add_arguments",
        "edg.cli.train:train",
    ),
    "info": Command(
        "what a checkpoint is, without loading it; how a clip was made",
        "edg.cli.info:add_info_arguments",
        "edg.cli.main:info",
        polls_signals=False,
    ),
    "report": Command(
        "runs -> one page that shows their clips side by side, with scores and recipes",
        "edg.cli.report:add_arguments",
        "edg.cli.report:run",
        SINGLE,
    ),
    "export": Command(
        "a parameter set -> one complete file that other tools open",
        "edg.cli.export:add_export_arguments",
        "edg.cli.export:export_command",
        SINGLE,
    ),
    "score": Command(
        "a folder of clips -> numbers: motion, consistency, alignment, distances",
        "edg.cli.score:add_arguments",
        "edg.cli.score:run",
        SINGLE,
    ),
    "verify": Command(
        "recompute the reference numbers",
        "edg.cli.verify:add_arguments",
        "edg.cli.verify:run",
        polls_signals=False,
    ),
    "doctor": Command(
        "what this machine can run, and what is missing",
        "edg.cli.doctor:add_arguments",
        "edg.cli.doctor:doctor",
        reads_argv=True,
        polls_signals=False,
    ),
    "fetch": Command(
        "download published checkpoints into CKPT_PATH",
        "edg.cli.fetch:add_arguments",
        "edg.cli.fetch:fetch",
        SINGLE,
        polls_signals=False,
    ),
    "completion": Command(
        "a script that lets bash, zsh or fish complete commands, flags and values",
        "edg.cli.completion:add_arguments",
        "edg.cli.completion:completion",
        polls_signals=False,
    ),
}
for _system in all_systems():  # descriptions only, nothing of a system is imported
    COMMANDS |= _system.commands


def info(args) -> int:
    from edg import systems
    from edg.cli.info import info_command

    def model_of(weights) -> str:
        _, name, why = systems.identify(weights)
        return f"{name} (identified by {why})" if name else f"unknown: {why}"

    return info_command(args, model_of)


# ---- entry -------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None, program: str = "edg") -> int:
    """Run a command line; returns its exit code. A user's mistake is one line (`--debug`: a traceback;
    `--json`: an object)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    rest = [arg for arg in argv if arg not in ("--debug", "--json")]
    return guard(lambda: _run(rest, program), debug="--debug" in argv, as_json="--json" in argv)


def guard(call: Callable[[], int], program: str = "edg", debug: bool = False, as_json: bool = False) -> int:
    """Return the code of `call()`; a user's mistake, an interrupt or trouble of the machine is one line that
    begins with `program`, and its exit code. Defects of ours are raised. debug: the traceback instead.
    as_json: one line of JSON instead, {"error": {kind, exit_code, given, expected, fix}}, defects too."""
    try:
        return call()
    except KeyboardInterrupt:
        fix = "no file is left half-written; run the same command again to resume"
        return _report_error(_with_code(INTERRUPTED, "interrupted", fix), program, as_json)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Terminated:
        if as_json:
            fix = "run the same command again to resume"
            _report_error(_with_code(TERMINATED, "terminated", fix), program, as_json)
        raise
    except Exception as error:
        known = error if isinstance(error, EdgError) else _machine_trouble(error)
        if debug or known is None:
            if not as_json:
                raise
            traceback.print_exc()
        return _report_error(
            known or _with_code(DEFECT, f"{type(error).__name__}: {error}"), program, as_json
        )


def _with_code(code: int, given: str, fix: str = "") -> EdgError:
    error = EdgError(given, fix=fix)
    error.exit_code = code
    return error


def _run(argv: list[str], program: str) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if argv[0] in ("-V", "--version"):
        import edg

        print(f"edg {edg.__version__}")
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        fix = nearest(name, COMMANDS) or "see edg --help"
        raise UsageError(f"edg has no command {name!r}", expected=", ".join(COMMANDS), fix=fix)
    if COMMANDS[name].single_process and world_from_environment().size > 1:
        fix = COMMANDS[name].single_process
        raise UsageError(f"edg {name} in several processes", expected="one process", fix=fix)
    check_working_directory()
    # before the command's module is imported, so that mistakes show at once
    args = parser_of(name, program, rest).parse_args(rest)
    return _stoppable(COMMANDS[name], args)


def _stoppable(command: Command, args: Any) -> int:
    """The command's exit code; raises KeyboardInterrupt or Terminated where it sees that a signal came."""
    with stopping.postponed(), nullcontext() if command.polls_signals else stopping.at_once():
        try:
            with stopping.at_once():  # imports
                run = load_part(command.run)
            return run(args) or 0
        except EdgError:
            raise
        except Exception:  # such as worker processes that the same signal ended
            stopping.check()
            raise


def check_working_directory() -> None:
    """Raise MachineError where the folder that relative paths start from is gone."""
    try:
        os.getcwd()
    except OSError as error:
        raise MachineError(
            f"the working directory cannot be accessed: {error.strerror}", fix="cd to a folder that exists"
        ) from error


def parser_of(name: str, program: str = "edg", argv: Sequence[str] = ()) -> Parser:
    """A command's parser; of `sample`, for the system that `argv` names."""
    command = COMMANDS[name]
    parser = Parser(prog=program if program != "edg" else f"edg {name}", description=command.help)
    more = (argv,) if command.reads_argv else ()
    load_part(command.add)(parser, *more)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--json", action="store_true", help="print an error as one line of JSON on stderr")
    return parser


def _overview() -> str:
    usage = "usage: edg COMMAND ...   (edg COMMAND --help lists its flags)"
    lines = [f"  {name:<15}{command.help}" for name, command in COMMANDS.items()]
    codes = "exit codes: 0 ok, 2 usage, 3 bad input file, 4 machine, 5 some items failed, 130/143 signals"
    return "\n".join([usage, "", *lines, "", codes])


def _report_error(error: EdgError, program: str, as_json: bool) -> int:
    if not is_first_rank():
        time.sleep(GRACE)
    line = (
        json.dumps({"error": error.as_dict()})
        if as_json
        else visible(f"{rank_label()}{program}: error: {error}")
    )
    with suppress(OSError):  # a log on a full disk
        print(line, file=sys.stderr, flush=True)
    return error.exit_code


def _machine_trouble(error: Exception) -> EdgError | None:
    """The error to report for an exception that is the machine's, None for a defect of ours."""
    line = next(iter(str(error).splitlines()), "")
    if is_out_of_memory(error):
        advice = "when sampling, try --low-memory, --bs 1, --dtype fp16 or no --resident"
        return MachineError("out of memory", fix=f"{advice}. {line}".rstrip(". "))
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("edg"):
        return MachineError(
            f"the package {error.name} is not installed", fix="pip install -r requirements.txt"
        )
    if "torchvision::nms" in line:
        from edg.cli.doctor import TORCHVISION_FIX

        given, _, fix = TORCHVISION_FIX.partition("; ")
        return MachineError(given, fix=fix)
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return MachineError(
            f"torch.compile failed ({line})", fix="install a C++ compiler, or leave out --compile"
        )
    if isinstance(error, OSError):
        from pathlib import Path

        from edg.core.files import machine_error

        return machine_error(error, Path(str(error.filename or "the output"))) or MachineError(str(error))
    return None


class Terminated(SystemExit):
    """SIGTERM, as an exception so that temporary files are removed on the way out."""


def terminate(number, frame):
    raise Terminated(TERMINATED)


def wait_asleep() -> None:
    """Let threads sleep while they wait for each other, where other processes want the cores: one that spins
    keeps the thread it waits for from running (docs/speed.md). On an idle machine, sleep costs more than it
    gives. Read when torch is loaded."""
    if processes_here(World()) > 1 or cores_are_wanted():
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def entry(argv: Sequence[str] | None = None, program: str = "edg") -> None:
    """The process: signals, a terminal that may not know unicode, threads that leave the cores to others,
    and the exit code."""
    wait_asleep()
    signal.signal(signal.SIGTERM, terminate)
    if is_launched():  # a killed torchrun leaves nobody behind
        die_with_parent()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    given = sys.argv[1:] if argv is None else argv
    stopping.force(lambda number: _report_forced(number, program, "--json" in given))
    try:
        with stopping.postponed():
            sys.exit(main(argv, program))
    finally:
        for number in CODES:  # there is nothing left to be stopped
            if callable(signal.getsignal(number)):
                signal.signal(number, stopping.note)


def _report_forced(number: int, program: str, as_json: bool) -> None:
    """The last line of a process that is ended; not where nobody takes it, for that could wait for ever."""
    code = CODES[signal.Signals(number)]
    fix = "run the same command again to resume; it removes the temporary files"
    error = _with_code(code, f"did not answer {signal.Signals(number).name} in time, and was ended", fix)
    line = json.dumps({"error": error.as_dict()}) if as_json else f"{program}: error: {error}"
    with suppress(OSError, ValueError):
        if select.select([], [2], [], 0)[1]:
            os.write(2, (line + "\n").encode())
