"""One pass over the inputs of a merge, block by block: a thread reads, this one computes, a thread writes.

All work in a few buffers that are used again and again, so memory depends on the block size, not on the files
(steps marked `whole` hold one tensor of each input).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from edg.core.errors import UsageError
from edg.core.process import stopping
from edg.merging.align import Aligned
from edg.merging.masks import keep_mask
from edg.merging.plan import MergePlan, Output
from edg.merging.steps import MergeBlock, MergeStep, TiesStatistics
from edg.weights.hashing import HashFollower
from edg.weights.tensors import FLOATS, ITEMSIZE, NARROW, TensorInfo, dtype_name, raw_bytes, torch_dtype
from edg.weights.writers import TensorWriter

READ_AHEAD = 2
SLOTS = READ_AHEAD + 2
Progress = Callable[[int, int], None]  # (bytes done, bytes in all) of the base


@dataclass
class Target:
    """An output while it is written: its writer (None: nowhere), and the tensor whose blocks are being
    stored."""

    output: Output
    writer: TensorWriter | None
    ties: Mapping[MergeStep, TiesStatistics]
    open_tensor: str = ""


@dataclass
class Slot:
    """Buffers of one block on its way, by purpose; `written` is done when they may be used again."""

    buffers: dict[str, Tensor] = field(default_factory=dict)
    written: Future | None = None

    def get(self, purpose: str, numel: int, dtype: torch.dtype) -> Tensor:
        nbytes = numel * dtype.itemsize
        if purpose not in self.buffers or self.buffers[purpose].numel() < nbytes:
            self.buffers[purpose] = torch.empty(nbytes, dtype=torch.uint8)
        return self.buffers[purpose][:nbytes].view(dtype)


@dataclass
class Work:
    """One block on its way: index of the tensor, first element, number of elements, whether it is the
    last."""

    index: int
    start: int
    count: int
    last: bool
    slot: Slot
    tensors: dict[str, Tensor] = field(default_factory=dict)


class Pass:
    """One pass over the inputs: `blocks` only reads; `run` fills the targets. bad_values: input and tensor
    -> count of NaN and Inf."""

    def __init__(self, plan: MergePlan):
        self.plan = plan
        self.bad_values: dict[str, int] = {}
        self.names = list(plan.recipe.inputs)

    def blocks(self, chosen: Sequence[int]) -> Iterator[MergeBlock]:
        """The blocks of some aligned tensors, one at a time in the same memory."""
        for work in self._works(chosen, [Slot()]):
            stopping.check()
            self._read(work)
            yield self._block(work, None)

    def values(self, target: Target, index: int, start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
        """(first element, values as they are stored) of the blocks of one output that meet start..stop, one
        at a time in the same memory."""
        info = target.output.infos[index]
        for work in self._works([index], [Slot()]):
            if work.start < stop and start < work.start + work.count:
                self._read(work)
                result = self._compute(target, work)
                yield work.start, (_as_stored(work, info) if result is None else result).reshape(-1)

    def run(self, targets: Sequence[Target], hashes: HashFollower, progress: Progress | None) -> None:
        """Compute and store every block; the hashes follow the reader."""
        with ThreadPoolExecutor(1, "edg-read") as reader, ThreadPoolExecutor(1, "edg-write") as writer:
            self._overlap(targets, reader, writer, hashes, progress)

    def _works(self, chosen: Sequence[int], slots: list[Slot]) -> Iterator[Work]:
        turn = 0
        for index in chosen:
            numel = self.plan.aligned[index].info.numel
            size = max(numel, 1) if self.plan.whole(index) else self.plan.block
            for start in range(0, max(numel, 1), size):
                count = min(size, numel - start)
                yield Work(index, start, count, start + size >= numel, slots[turn % len(slots)])
                turn += 1

    def _overlap(self, targets, reader, writer, hashes: HashFollower, progress: Progress | None) -> None:
        aligned, slots = self.plan.aligned, [Slot() for _ in range(SLOTS)]
        total, done = sum(t.info.nbytes for t in aligned), 0
        works, waiting = self._works(range(len(aligned)), slots), []

        def more() -> None:
            for work in works:
                if work.slot.written:
                    work.slot.written.result()
                waiting.append((work, reader.submit(self._read, work)))
                if len(waiting) >= READ_AHEAD:
                    return

        more()
        while waiting:
            stopping.check()
            work, reading = waiting.pop(0)
            reading.result()
            tensor = aligned[work.index]
            results = [(target, self._compute(target, work)) for target in targets]
            work.slot.written = writer.submit(self._store, work, results)
            for source in tensor.sources.values():
                size = ITEMSIZE[source.info.dtype]
                hashes.advance(source.where[0], source.where[1] + (work.start + work.count) * size)
            done += work.count * ITEMSIZE[tensor.info.dtype]
            if progress:
                progress(done, total)
            more()
        for slot in slots:
            if slot.written:
                slot.written.result()

    # ---- reading (reader thread) ---------------------------------------------------------------------------

    def _read(self, work: Work) -> None:
        """Fill the slot's input buffers."""
        tensor = self.plan.aligned[work.index]
        sources = list(tensor.sources.items())
        if tensor.info.dtype not in FLOATS:
            dtype = torch_dtype(tensor.info.dtype)
            sources = sources[:1]
        else:
            wide = any(source.info.dtype == "float64" for _, source in sources)
            dtype = torch.float64 if wide else torch.float32
        for name, source in sources:
            work.tensors[name] = work.slot.get(f"in {name}", work.count, dtype)
            source.read_into(work.start, work.tensors[name])
            if dtype.is_floating_point:
                self._count_bad(f"{name}: {tensor.name}", work.tensors[name])

    def _count_bad(self, what: str, values: Tensor) -> None:
        if not torch.isfinite(values.sum()):  # the sum is cheap and almost always enough
            bad = values.numel() - int(torch.isfinite(values).sum())
            if bad:
                self.bad_values[what] = self.bad_values.get(what, 0) + bad

    # ---- computing -----------------------------------------------------------------------------------------

    def _block(self, work: Work, out: Tensor | None, ties: TiesStatistics | None = None) -> MergeBlock:
        recipe, tensor, tensors = self.plan.recipe, self.plan.aligned[work.index], work.tensors
        if self.plan.whole(work.index):
            tensors = {name: values.view(tensor.info.shape) for name, values in tensors.items()}
            out = None

        def mask(stream: str, keep: float) -> Tensor:
            room = work.slot.get("mask", work.count, torch.bool)
            found = keep_mask(recipe.seed, tensor.name, stream, keep, work.start, work.count, room)
            return found.view(next(iter(tensors.values())).shape)

        return MergeBlock(tensors, len(tensor.info.shape), mask, recipe.mask_scalars, out, ties)

    def _compute(self, target: Target, work: Work) -> Tensor | None:
        """The block of an output in the output's dtype; None when it is the base's, bit for bit."""
        output, tensor = target.output, self.plan.aligned[work.index]
        step, info = output.steps[work.index], output.infos[work.index]
        base = next(iter(work.tensors.values()))
        if not self.plan.is_float(work.index):
            return None
        copied = step.copies(self.names)
        if copied is None and step.keeps_equal and _all_equal(work):
            copied = self.names[0]
        if copied is not None:
            result = work.tensors[copied]
        else:
            room = work.slot.get(f"out {output.name}", work.count, base.dtype)
            result = step.run(self._block(work, room, target.ties.get(step))).reshape(-1)
        same_dtype = info.dtype == tensor.info.dtype
        if same_dtype and tensor.in_base and (result is base or _bits_equal(result, base)):
            return None
        wanted = torch_dtype(info.dtype)
        if result.dtype == wanted:
            return result
        narrow = work.slot.get(f"narrow {output.name}", work.count, wanted).copy_(result)
        if info.dtype in NARROW:
            _check_overflow(output, tensor, result, narrow)
        return narrow

    # ---- storing (writer thread) ---------------------------------------------------------------------------

    def _store(self, work: Work, results: list[tuple[Target, Tensor | None]]) -> None:
        """Append a block to every output; what equals the base only in complete files."""
        tensor = self.plan.aligned[work.index]
        for target, result in results:
            info = target.output.infos[work.index]
            if target.open_tensor != tensor.name:
                if result is None and tensor.in_base and not self.plan.full:
                    continue  # equal so far; if a later block differs, the beginning is fetched again
                target.writer.begin(tensor.name, info)
                target.open_tensor = tensor.name
                self._append_beginning(target, tensor, info, work)
            if result is None:
                result = _as_stored(work, info)
            target.writer.append(raw_bytes(result))
            if work.last:
                target.writer.end()
                target.open_tensor = ""

    def _append_beginning(self, target: Target, tensor: Aligned, info: TensorInfo, work: Work) -> None:
        source = next(iter(tensor.sources.values()))
        for start in range(0, work.start if not self.plan.full else 0, self.plan.block):
            room = work.slot.get("beginning", self.plan.block, torch_dtype(info.dtype))
            source.read_into(start, room)
            target.writer.append(raw_bytes(room))


def _as_stored(work: Work, info: TensorInfo) -> Tensor:
    base, wanted = next(iter(work.tensors.values())), torch_dtype(info.dtype)
    return base if base.dtype == wanted else work.slot.get("stored", work.count, wanted).copy_(base)


def _check_overflow(output: Output, tensor: Aligned, result: Tensor, narrow: Tensor) -> None:
    if narrow.dtype == torch.float16:
        lost = 0 if torch.isfinite(narrow.sum()) else (torch.isfinite(result) & ~torch.isfinite(narrow)).sum()
    else:  # some of these have no infinity and take the largest value they have
        lost = (torch.isfinite(result) & (result.abs() > torch.finfo(narrow.dtype).max)).sum()
    if lost:
        kind = dtype_name(narrow.dtype)
        raise UsageError(
            f"{output.name}: {int(lost)} values of {tensor.name} are too large for {kind}",
            fix="write them as float32 or bfloat16 (--dtype)",
        )


def _all_equal(work: Work) -> bool:
    base, *others = work.tensors.values()
    return all(_bits_equal(base, other) for other in others)


def _bits_equal(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit (-0 is not 0, NaN may equal NaN)."""
    whole = torch.int64 if a.dtype == torch.float64 else torch.int32
    return a.dtype == b.dtype and torch.equal(a.view(whole), b.view(whole))
