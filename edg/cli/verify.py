"""`edg verify`: recompute a reference folder with the functions that `merge` and the systems use."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edg.core.arguments import Parser, as_path
from edg.core.errors import MachineError, UsageError, nearest
from edg.core.shipped import CHECKOUT

if TYPE_CHECKING:
    import torch

    from edg.verify.cases import Group, Verdict

FAILED, UNKNOWN = 1, 2  # exit codes of `edg verify` alone


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "folder", type=as_path, nargs="?", help="a reference folder (default: tests/reference)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (cpu)")
    parser.add_argument("--dtype", default="float32", help="float32, bf16 or fp16 (float32)")
    parser.add_argument(
        "--only", nargs="+", metavar="CASE", help="only these cases or groups; patterns are allowed"
    )


def run(args: argparse.Namespace) -> int:
    return main(args.folder, device=args.device, dtype=args.dtype, only=args.only)


def known_groups() -> dict[str, Group]:
    """The groups of all systems, and those that belong to none."""
    from edg.systems import all_systems
    from edg.verify.groups import GROUPS

    found = dict(GROUPS)
    for system in all_systems():
        if system.verify is not None:
            found |= system.part("verify")
    return found


def default_folder() -> Path:
    """tests/reference of the source tree or of the current directory. UsageError where there is none."""
    for root in (CHECKOUT, Path.cwd()):
        if (root / "tests" / "reference" / "index.json").is_file():
            return root / "tests" / "reference"
    raise UsageError(
        "no reference folder was given and none came with this installation",
        expected="a folder with index.json",
        fix="run `edg verify DIR`, or run it in a clone of the repository",
    )


def main(
    folder: str | Path | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    only: Sequence[str] | None = None,
) -> int:
    """Print one row per case; 0 when all pass, 1 when any fails, 2 when none fails but a case is unknown.

    device: cpu, cuda, cuda:1... only: names, groups or patterns of them.
    dtype: float32, bf16 or fp16, what the networks run in; schedules, tokens and merges stay float32. In 16
    bits the relative L2 error of a pass is at most 3e-2 and 5e-3, of a guided run guidance scale times that.
    """
    from edg.verify import cases

    where, what = _device(device), _dtype(dtype)
    folder = Path(folder) if folder is not None else default_folder()
    measure = "largest abs. error" if dtype in ("float32", "fp32") else "error (rel. L2)"
    print(f"{'case':<36} {measure:>18} {'tolerance':>10}  verdict", flush=True)
    verdicts = []
    for verdict in cases.iter_folder(folder, known_groups(), where, what, only):
        print(row(verdict), flush=True)
        verdicts.append(verdict)
    print(summary(verdicts))
    return exit_code(verdicts)


def row(verdict: Verdict) -> str:
    """One line of the table, with the reason of a failure at its end."""
    text = f"{verdict.case:<36} {verdict.error:>18.3g} {verdict.tolerance:>10.2g}  {verdict.status}"
    why = " ".join(part for part in (verdict.output, verdict.note) if part)
    return text if verdict.status == "pass" else f"{text}  {why}".rstrip()


def summary(verdicts: Sequence[Verdict]) -> str:
    count = {status: sum(v.status == status for v in verdicts) for status in ("pass", "FAIL", "unknown")}
    return (
        f"{len(verdicts)} cases: {count['pass']} passed, {count['FAIL']} failed, {count['unknown']} unknown"
    )


def exit_code(verdicts: Sequence[Verdict]) -> int:
    statuses = {verdict.status for verdict in verdicts}
    return FAILED if "FAIL" in statuses or not verdicts else UNKNOWN if "unknown" in statuses else 0


def _device(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device is {name!r}", expected="cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MachineError("no CUDA device on this machine", expected=name, fix="use --device cpu")
    return device


def _dtype(name: str) -> torch.dtype:
    import torch

    known = {
        "float32": torch.float32, "fp32": torch.float32,
        "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
        "float16": torch.float16, "fp16": torch.float16,
    }  # fmt: skip
    if name not in known:
        raise UsageError(f"dtype is {name!r}", expected="float32, bf16 or fp16", fix=nearest(name, known))
    return known[name]
