"""Steps of a recipe: each is a frozen dataclass of its settings with a `run(block)`.

A step sees one block of every input (a whole tensor where `whole` is true) and returns the block of the
output; the arithmetic itself is in `ops`. The first input of a recipe is the base P.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from edg.core import config
from edg.core.errors import UsageError, nearest
from edg.core.written import text_of
from edg.merging import ops

LARGEST = 1e15  # of a coefficient: the product of two and a weight is a float32
SHARES = ("drop_rate", "dare_drop_rate", "density")  # settings that are parts of a whole
MaskSource = Callable[[str, float], Tensor]  # (stream, keep probability) -> boolean mask of the block's shape


@dataclass
class MergeBlock:
    """One block of every input.

    tensors: input name -> values, the base first.
    ndim: of the whole tensor.
    mask: (stream, keep probability) -> mask of the block.
    mask_scalars: mask 0-d tensors (as released).
    out: memory for the result, or None.
    ties: statistics of the flattened model, for a `ties` step.
    """

    tensors: dict[str, Tensor]
    ndim: int
    mask: MaskSource
    mask_scalars: bool = True
    out: Tensor | None = None
    ties: TiesStatistics | None = None

    @property
    def base(self) -> Tensor:
        return next(iter(self.tensors.values()))

    def tuned(self, of: str) -> Tensor:
        """The input named `of`, or the second one."""
        return self.tensors[of] if of else list(self.tensors.values())[1]

    def models(self, of: Sequence[str]) -> list[Tensor]:
        """The inputs named in `of`, or all but the base."""
        return [self.tensors[name] for name in of] if of else list(self.tensors.values())[1:]

    def dare_mask(self, stream: str, keep: float) -> Tensor | None:
        return self.mask(stream, keep) if ops.needs_mask(self.ndim, keep, self.mask_scalars) else None


@dataclass(frozen=True)
class TiesStatistics:
    """Trimming threshold of each model, and the sign that settles exact ties (-1, 0 or 1)."""

    thresholds: tuple[float, ...]
    majority: float


@dataclass(frozen=True)
class MergeStep:
    """Base of all steps. where: module kinds or name patterns it applies to (empty: everything). optional:
    True, or the patterns of `where` that may match no tensor; otherwise that is an error."""

    where: tuple[str, ...] = ()
    optional: bool | tuple[str, ...] = field(default=False, kw_only=True)
    op: ClassVar[str] = ""
    whole: ClassVar[bool] = False  # needs whole tensors
    keeps_equal: ClassVar[bool] = True  # where all inputs are equal, the result is the base

    def __post_init__(self):
        for key, value in vars(self).items():
            values = [
                v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, float | int)
            ]
            if not all(abs(v) <= LARGEST for v in values):
                raise UsageError(
                    f"{self.op}: {key} {value}", expected=f"a finite number of at most {LARGEST:g}"
                )
            if key in SHARES and not all(0 <= v <= 1 for v in values):
                raise UsageError(f"{self.op}: {key} {value}", expected="a number from 0 to 1")
            if key == "rank" and any(v < 0 for v in values):
                raise UsageError(f"{self.op}: {key} {value}", expected="a whole number, 0 or more")
        if not isinstance(self.optional, bool) and (strange := sorted({*self.optional} - {*self.where})):
            raise UsageError(
                f"{self.op}: optional: {strange[0]!r}", expected="true, or patterns that are in where"
            )

    def may_lack(self, pattern: str) -> bool:
        """True if a pattern of `where` may meet no tensor."""
        return self.optional if isinstance(self.optional, bool) else pattern in self.optional

    def run(self, block: MergeBlock) -> Tensor:
        raise NotImplementedError

    def copies(self, names: Sequence[str]) -> str | None:
        """The input the result is exactly equal to, whatever the values, or None."""
        return None

    def used(self, names: Sequence[str]) -> tuple[str, ...]:
        """The inputs the step refers to by name."""
        of = getattr(self, "of", ())
        return (of,) if isinstance(of, str) and of else tuple(of)


@dataclass(frozen=True)
class Copy(MergeStep):
    """An input as it is (`of`, default the base)."""

    of: str = ""
    op: ClassVar[str] = "copy"

    def copies(self, names):
        return self.of or names[0]

    def run(self, block):
        return block.tensors[self.of] if self.of else block.base


@dataclass(frozen=True)
class LinearCombination(MergeStep):
    """sum_i weights[i] * input i; the weights in the order of the inputs."""

    weights: tuple[float, ...] = ()
    op: ClassVar[str] = "linear"
    keeps_equal: ClassVar[bool] = False

    def copies(self, names):
        used = [(n, w) for n, w in zip(names, self.weights, strict=False) if w]
        return used[0][0] if len(used) == 1 and used[0][1] == 1 else None

    def run(self, block):
        return ops.linear(list(block.tensors.values()), self.weights, out=block.out)


@dataclass(frozen=True)
class Average(MergeStep):
    """Mean over `of` (default: all inputs but the base)."""

    of: tuple[str, ...] = ()
    op: ClassVar[str] = "average"

    def run(self, block):
        return ops.average(block.models(self.of), out=block.out)


@dataclass(frozen=True)
class Extrapolate(MergeStep):
    """P + alpha (P - S), S = `of` (default: the second input)."""

    alpha: float = 0.0
    of: str = ""
    op: ClassVar[str] = "extrapolate"

    def copies(self, names):
        return names[0] if self.alpha == 0 else None

    def run(self, block):
        return ops.extrapolate(block.base, block.tuned(self.of), self.alpha, out=block.out)


@dataclass(frozen=True)
class TaskArithmetic(MergeStep):
    """P + scaling * sum of task vectors (scaling a number, or one per model), each first thinned by DARE when
    drop_rate is not 0; dare_scale multiplies the thinned vectors."""

    scaling: float | tuple[float, ...] = 1.0
    of: tuple[str, ...] = ()
    drop_rate: float = 0.0
    dare_scale: float = 1.0
    op: ClassVar[str] = "task_arithmetic"

    def run(self, block):
        deltas = dare_deltas(block, self.of, self.drop_rate, self.dare_scale)
        return ops.add_task_vectors(block.base, deltas, self.scaling, out=block.out)


@dataclass(frozen=True)
class Ties(MergeStep):
    """P + scaling * TIES-merged task vectors; `drop_rate` of the entries is trimmed. dare_drop_rate thins
    first.

    The threshold is global over the tensors of the step, found exactly in two more passes over the inputs,
    and the majority sign in a third."""

    scaling: float = 1.0
    of: tuple[str, ...] = ()
    drop_rate: float = 0.8
    dare_drop_rate: float = 0.0
    dare_scale: float = 1.0
    op: ClassVar[str] = "ties"

    def deltas(self, block: MergeBlock) -> list[Tensor]:
        return dare_deltas(block, self.of, self.dare_drop_rate, self.dare_scale)

    def trimmed(self, block: MergeBlock, thresholds: Sequence[float]) -> list[Tensor]:
        return [ops.ties_trim(d, t) for d, t in zip(self.deltas(block), thresholds, strict=True)]

    def run(self, block):
        merged = ops.ties_merge(self.trimmed(block, block.ties.thresholds), block.ties.majority)
        return ops.add_task_vectors(block.base, [merged], self.scaling, out=block.out)


@dataclass(frozen=True)
class Magnitude(MergeStep):
    """P + scaling * (task vector cut to its `density` largest entries). Reads whole tensors."""

    density: float = 1.0
    scaling: float = 1.0
    of: str = ""
    op: ClassVar[str] = "magnitude"
    whole: ClassVar[bool] = True

    def run(self, block):
        delta = ops.magnitude(ops.task_vector(block.tuned(self.of), block.base), self.density)
        return ops.add_task_vectors(block.base, [delta], self.scaling)


@dataclass(frozen=True)
class SvdRank(MergeStep):
    """P + scaling * (task vector cut to rank `rank`, or int(density * smaller side)). Reads whole tensors."""

    density: float | None = None
    rank: int | None = None
    scaling: float = 1.0
    of: str = ""
    op: ClassVar[str] = "svd"
    whole: ClassVar[bool] = True

    def run(self, block):
        delta = ops.svd_rank(ops.task_vector(block.tuned(self.of), block.base), self.density, self.rank)
        return ops.add_task_vectors(block.base, [delta], self.scaling)


@dataclass(frozen=True)
class Dynamic(MergeStep):
    """EDG's dyn: P + beta D(alpha (P - S)), S = `of` (default: the second input)."""

    alpha: float = 0.25
    beta: float = 0.75
    drop_rate: float = 0.7
    of: str = ""
    op: ClassVar[str] = "dynamic"

    def copies(self, names):
        return names[0] if 0 in (self.alpha, self.beta) else None

    def run(self, block):
        keep = ops.keep_probability(self.drop_rate)
        mask = block.dare_mask("deg", keep)
        return ops.dynamic(block.base, block.tuned(self.of), mask, keep, self.alpha, self.beta, out=block.out)


@dataclass(frozen=True)
class Consistent(MergeStep):
    """EDG's con: alpha S + beta D(S - P) as released, or anchored: P + alpha (S - P) + beta D(S - P)."""

    alpha: float = 1.0
    beta: float = 0.25
    drop_rate: float = 0.7
    form: str = "released"
    of: str = ""
    op: ClassVar[str] = "consistent"

    def __post_init__(self):
        super().__post_init__()
        if self.form not in ("released", "anchored"):
            raise UsageError(f"consistent: form {self.form!r}", expected="released or anchored")

    @property
    def keeps_equal(self):
        return self.form == "anchored" or self.alpha == 1

    def copies(self, names):
        if self.beta == 0 and self.alpha == 1:
            return self.of or names[1]
        return names[0] if self.beta == 0 and self.alpha == 0 and self.form == "anchored" else None

    def run(self, block):
        keep, anchored = ops.keep_probability(self.drop_rate), self.form == "anchored"
        mask, tuned = block.dare_mask("adt", keep), block.tuned(self.of)
        return ops.consistent(
            block.base, tuned, mask, keep, self.alpha, self.beta, anchored=anchored, out=block.out
        )


STEPS: dict[str, type[MergeStep]] = {
    step.op: step
    for step in (
        Copy, LinearCombination, Average, Extrapolate, TaskArithmetic, Ties, Magnitude, SvdRank, Dynamic,
        Consistent,
    )
}  # fmt: skip


def dare_deltas(block: MergeBlock, of: Sequence[str], drop_rate: float, scale: float) -> list[Tensor]:
    """Task vectors of the models, thinned; model i uses the mask stream `dare{i}`."""
    keep, deltas = ops.keep_probability(drop_rate), []
    for index, model in enumerate(block.models(of)):
        delta = ops.task_vector(model, block.base)
        delta = ops.dare(delta, block.dare_mask(f"dare{index}", keep), keep, out=delta)
        deltas.append(delta if scale == 1 else delta.mul_(scale))
    return deltas


def ties_statistics(step: Ties, numel: int, blocks: Callable[[], Iterable[MergeBlock]]) -> TiesStatistics:
    """Thresholds and majority sign of a TIES step over all its tensors.

    numel: elements in all of them; blocks(): the blocks once more, called three times."""
    searches: list[ops.KthSmallest] = []
    for _ in range(2):
        for search in searches:
            search.next_pass()
        for block in blocks():
            deltas = step.deltas(block)
            searches = searches or [ops.KthSmallest(ops.ties_rank(numel, step.drop_rate)) for _ in deltas]
            for search, delta in zip(searches, deltas, strict=True):
                search.update(delta)
    thresholds = tuple(search.value() for search in searches)
    votes = sum(ops.ties_sign_votes(step.trimmed(block, thresholds)) for block in blocks())
    return TiesStatistics(thresholds, float((votes > 0) - (votes < 0)))


def make_step(data: object, place: str) -> MergeStep:
    """A step from its YAML table {op: name, ...}. Raises UsageError naming the place and the nearest key."""
    if not isinstance(data, dict) or not isinstance(data.get("op"), str):
        raise UsageError(f"{place}: {data!r}"[:200], expected="a mapping with `op: ...`")
    kind = STEPS.get(data["op"])
    if kind is None:
        raise UsageError(
            f"{place}: unknown op {data['op']!r}",
            expected="one of " + ", ".join(STEPS),
            fix=nearest(data["op"], STEPS),
        )
    settings = {key: value for key, value in data.items() if key != "op"}
    for key in ("where", "of", "optional"):  # one name may stand without brackets
        if key != "optional" and key in settings:
            settings[key] = text_of(settings[key])
        if isinstance(settings.get(key), str) and not isinstance(getattr(kind, key, ""), str):
            settings[key] = [settings[key]]
    try:
        return config.build(kind, settings, f"{place}.{kind.op}")
    except UsageError as error:
        if place in error.given:
            raise
        raise UsageError(f"{place}: {error.given}", expected=error.expected, fix=error.fix) from None
