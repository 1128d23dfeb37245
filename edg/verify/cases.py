"""Cases of a reference folder: reading, recomputing, comparing with the stored outputs.

A folder holds `index.json` (format: `tests/reference/README.md`) and one safetensors file per case with
tensors `in/NAME` and `out/NAME`. A `Group` recomputes its cases with the functions that commands call. A case
without outputs returns counts of disagreements instead, which must all be zero.
"""

from __future__ import annotations

import fnmatch
import gzip
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edg.core.errors import BadFileError, UsageError, nearest
from edg.verify import rules
from edg.weights.readers.safetensors import open_safetensors
from edg.weights.tensors import InputFile

#: Largest relative L2 error of a float output when the networks run in 16 bits.
RELATIVE_L2 = {torch.bfloat16: 3e-2, torch.float16: 5e-3}
#: Group name -> what recomputes its cases.
Groups = Mapping[str, "Group"]


def read_tensors(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a safetensors file whose names start with `prefix`, by the rest of their names.

    Raises BadFileError when the file is missing or not of this format.
    """
    tensors, _ = open_safetensors(InputFile(path))
    return {name[len(prefix) :]: t.load() for name, t in tensors.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class Case:
    """One entry of `index.json`. Its networks shall run on `device` in `dtype`. kind: its group, None for an
    unknown one.

    Latents, schedules and guidance stay float32; a network's inputs and weights are cast to `dtype`.
    """

    name: str
    group: str
    config: dict[str, Any]
    seed: int
    key_prefix: str
    raw: Mapping[str, Any]
    folder: Path
    device: torch.device
    dtype: torch.dtype
    kind: Group | None = None

    @property
    def path(self) -> Path:
        return self.folder / self.raw["file"]

    @property
    def input_seed(self) -> int:
        return self.raw.get("input_seed", self.seed)

    @property
    def input_names(self) -> list[str]:
        return list(self.raw.get("inputs") or {})

    @cached_property
    def stored_inputs(self) -> dict[str, Tensor]:
        return read_tensors(self.path, "in/") if self.path.suffix == ".safetensors" else {}

    @cached_property
    def expected(self) -> dict[str, Tensor]:
        return read_tensors(self.path, "out/") if self.path.suffix == ".safetensors" else {}

    @cached_property
    def manifest(self) -> dict[str, list]:
        """A `keys` case's file: checkpoint key -> [shape, dtype]."""
        return json.loads(gzip.decompress(self.path.read_bytes()))

    def input(self, name: str, shape: Sequence[int] | None = None) -> Tensor:
        """Input `name` on the case's device, in the dtype it is stored in (float32 by rule).

        Stored where the file holds it, else by the input rule; `shape` is needed for names that the index
        does not list (noise_{k}, posterior.*, x_T of a pipeline).
        """
        if name in self.stored_inputs:
            return self.stored_inputs[name].to(self.device)
        listed = (self.raw.get("inputs") or {}).get(name)
        if listed is not None and "rule" not in str(listed.get("source", "rule")):
            raise BadFileError(f"{self.path} has no tensor in/{name}", expected="every input without a rule")
        if shape is None and listed is None:
            raise BadFileError(f"case {self.name} has no input {name!r}", expected="the input in index.json")
        return rules.input_tensor(self.input_seed, name, listed["shape"] if shape is None else shape).to(
            self.device
        )

    def relative_l2(self, output: str) -> float | None:
        """The limit of a float output's relative L2 error in 16 bits, None in float32."""
        if self.dtype not in RELATIVE_L2:
            return None
        factor = 1.0 if self.kind is None else self.kind.amplification(self, output)
        return RELATIVE_L2[self.dtype] * factor

    def has_input(self, name: str) -> bool:
        return name in (self.raw.get("inputs") or {}) or name in self.stored_inputs


@dataclass(frozen=True)
class Group:
    """Cases of one kind. run: case -> {output name: tensor}. exact: no network, so always float32 on the CPU.
    amplification: (case, output) -> factor on the 16-bit error of one network pass."""

    run: Callable[[Case], dict[str, Tensor]]
    exact: bool = False
    amplification: Callable[[Case, str], float] = lambda case, output: 1.0

    def __call__(self, case: Case) -> dict[str, Tensor]:
        return self.run(case)


@dataclass(frozen=True)
class Verdict:
    """The verdict on one case; error and tolerance are those of `output`, the worst by its own limit."""

    case: str
    group: str
    status: str  # "pass" | "FAIL" | "unknown"
    output: str = ""
    error: float = 0.0
    tolerance: float = 0.0
    note: str = ""


def load_cases(
    folder: Path, groups: Groups, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> list[Case]:
    """Every case of a folder. Raises UsageError without index.json, BadFileError for an unreadable one."""
    index_path = Path(folder) / "index.json"
    if not index_path.is_file():
        raise UsageError(
            f"{folder} has no index.json", expected="a reference folder, such as tests/reference"
        )
    try:
        entries = json.loads(index_path.read_text())["cases"]
        return [_case(entry, groups, Path(folder), torch.device(device), dtype) for entry in entries]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadFileError(f"{index_path}: {error!r}", expected="an index of reference cases") from error


def _case(
    entry: Mapping[str, Any], groups: Groups, folder: Path, device: torch.device, dtype: torch.dtype
) -> Case:
    kind = groups.get(entry["group"])
    exact = kind is not None and kind.exact
    return Case(
        name=entry["name"],
        group=entry["group"],
        config=entry.get("config") or {},
        seed=entry.get("seed", 0),
        key_prefix=entry.get("key_prefix") or "",
        raw=entry,
        folder=folder,
        device=torch.device("cpu") if exact else device,
        dtype=torch.float32 if exact else dtype,
        kind=kind,
    )


def select(cases: Sequence[Case], only: Sequence[str] | None) -> list[Case]:
    """The cases whose name or group matches a pattern (`samp_*`). UsageError for one that matches none."""
    if not only:
        return list(cases)
    for pattern in only:
        if not any(_matches(case, pattern) for case in cases):
            known = [case.name for case in cases] + [case.group for case in cases]
            raise UsageError(f"no case or group is called {pattern!r}", fix=nearest(pattern, known))
    return [case for case in cases if any(_matches(case, pattern) for pattern in only)]


def _matches(case: Case, pattern: str) -> bool:
    return fnmatch.fnmatchcase(case.name, pattern) or fnmatch.fnmatchcase(case.group, pattern)


def run_folder(
    folder: Path,
    groups: Groups,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    only: Sequence[str] | None = None,
) -> list[Verdict]:
    """Recompute the cases of a folder and judge each."""
    return list(iter_folder(folder, groups, device, dtype, only))


def iter_folder(
    folder: Path,
    groups: Groups,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    only: Sequence[str] | None = None,
) -> Iterator[Verdict]:
    """`run_folder`, one verdict at a time."""
    for case in select(load_cases(folder, groups, device, dtype), only):
        yield run_case(case, groups)


def run_case(case: Case, known: Collection[str] = ()) -> Verdict:
    """Recompute one case; an exception of its group is the case's failure. known: names of groups, for the
    note on an unknown one."""
    if case.kind is None:
        return Verdict(
            case.name, case.group, "unknown", note=f"no group {case.group!r}; {nearest(case.group, known)}"
        )
    try:
        with torch.no_grad(), _exact_float32():
            got = case.kind(case)
        return judge(case, got)
    except Exception as error:
        return Verdict(
            case.name, case.group, "FAIL", error=float("inf"), note=f"{type(error).__name__}: {error}"
        )


@contextmanager
def _exact_float32() -> Iterator[None]:
    """TF32 off while a case runs: the tolerances are meant for float32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def judge(case: Case, got: Mapping[str, Tensor]) -> Verdict:
    """Compare every expected output; the verdict names the worst by its own tolerance."""
    expected = case.expected
    if not expected and not case.raw.get("outputs"):
        expected = {name: torch.zeros_like(torch.as_tensor(value)) for name, value in got.items()}
    limits = case.raw.get("outputs") or {}
    lost = sorted(set(limits) - set(expected))
    if lost:
        return Verdict(
            case.name,
            case.group,
            "FAIL",
            lost[0],
            float("inf"),
            note="the expected output is not in the file",
        )
    if not expected:
        return Verdict(case.name, case.group, "FAIL", error=float("inf"), note="nothing was compared")
    worst, worst_ratio = None, -1.0
    for name, want in expected.items():
        error, tolerance, note = _compare(got.get(name), want, limits.get(name, {}), case.relative_l2(name))
        ratio = 0.0 if error == 0 else error / tolerance if tolerance > 0 and not note else float("inf")
        if ratio > worst_ratio:
            status = "FAIL" if ratio > 1 else "pass"
            worst_ratio = ratio
            worst = Verdict(case.name, case.group, status, name, error, tolerance, note)
    return worst


def _compare(
    got: Tensor | None, want: Tensor, limit: Mapping[str, Any], relative_l2: float | None
) -> tuple[float, float, str]:
    """(error, tolerance, note): maximum absolute error, or relative L2 where that has a limit."""
    infinite = float("inf")
    if got is None:
        return infinite, 0.0, "not computed"
    got = torch.as_tensor(got).detach().cpu()
    if got.shape != want.shape:
        return infinite, 0.0, f"shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    if want.numel() == 0:
        return 0.0, 0.0, ""
    if got.is_floating_point() != want.is_floating_point():
        return infinite, 0.0, f"dtype {got.dtype}, expected {want.dtype}"
    if want.dtype == torch.uint8:
        return _compare_levels(got, want)
    if not want.is_floating_point():
        return float((got.long() - want.long()).abs().max()), 0.0, ""
    got, want = got.double(), want.double()
    finite = torch.isfinite(want)
    same = torch.equal(finite, torch.isfinite(got)) and torch.equal(
        torch.nan_to_num(got[~finite], nan=0.5), torch.nan_to_num(want[~finite], nan=0.5)
    )
    if not same:
        return infinite, 0.0, "NaN or infinite values at other positions"
    if not finite.any():
        return 0.0, 0.0, ""
    difference = (got - want)[finite]
    if relative_l2 is not None:
        return float(difference.norm()) / (float(want[finite].norm()) or 1.0), relative_l2, ""
    largest = float(want[finite].abs().max())
    atol = limit.get("atol")
    atol = 2e-6 * largest if atol is None or atol != atol else atol  # an index without one, or with NaN
    tolerance = atol + (limit.get("rtol") or 0.0) * largest
    return float(difference.abs().max()), tolerance, ""


def _compare_levels(got: Tensor, want: Tensor) -> tuple[float, float, str]:
    """8-bit frames: at most one level, on at most 0.1 % of the values."""
    difference = (got.long() - want.long()).abs()
    share = float((difference > 0).double().mean())
    note = f"{share:.2%} of the values differ, at most 0.1 % are allowed to" if share > 1e-3 else ""
    return float(difference.max()), 1.0, note
