"""Merging: one pass over the inputs, block by block, for all outputs of a recipe.

Three stages overlap: a thread reads the next blocks, this one computes, a thread writes; a fourth hashes
the inputs behind the reader. All work in a few buffers that are used again and again, so memory depends on
the block size, not on the files (steps marked `whole` hold one tensor of each input). Where all inputs are
bit-equal the base's bytes are copied.

Dtypes: float inputs are computed in float32 (float64 where an input is), written in the base's dtype or the
recipe's; tensors that are not float (counters, flags) are copied from the base.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from edg.core.errors import BadFileError, MachineError, UsageError
from edg.weights import keys
from edg.weights.align import Aligned, align
from edg.weights.atomic import check_writable, write_atomically
from edg.weights.hashing import HashFollower
from edg.weights.masks import BLOCK, keep_mask
from edg.weights.provenance import base_reference, provenance
from edg.weights.recipe import Recipe, remarks
from edg.weights.steps import Block, Step, Ties, TiesStatistics, ties_statistics
from edg.weights.store import open_weights
from edg.weights.tensors import FLOATS, ITEMSIZE, TensorInfo, raw_bytes, torch_dtype
from edg.weights.writers import FORMATS, TensorWriter, open_writer

READ_AHEAD = 2
SLOTS = READ_AHEAD + 2
Progress = Callable[[int, int], None]  # (bytes done, bytes in all) of the base


@dataclass(frozen=True)
class Made:
    """A finished output: its path, number of tensors in the mapping, number stored, bytes of the file."""

    output: str
    path: Path
    tensors: int
    stored: int
    nbytes: int


@dataclass
class Output:
    """State of one output while it is made."""

    name: str
    path: Path
    steps: list[Step]  # per aligned tensor
    infos: list[TensorInfo]
    writer: TensorWriter | None = None
    ties: dict[Step, TiesStatistics] = field(default_factory=dict)
    open_tensor: str = ""  # the tensor whose blocks are being stored


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
    """One block: which tensor, from which element, how many, whether it is the last of the tensor."""

    index: int
    start: int
    count: int
    last: bool
    slot: Slot
    tensors: dict[str, Tensor] = field(default_factory=dict)


def run(
    recipe: Recipe,
    out: str | os.PathLike,
    *,
    full: bool = False,
    format: str = "safetensors",
    block: int = BLOCK,
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
    strict: bool = False,
) -> list[Made]:
    """Carry out a recipe; writes {out}/{output}.{format} and {out}/{output}.{format}.json for every output.

    full: complete files; else only tensors that differ from the base, with a reference to it. block: elements
    at a time, a multiple of 2^20 (the result does not depend on it). strict: NaN or Inf in an input is an
    error. Raises UsageError (names, shapes, paths), BadFileError (inputs), MachineError (disk).
    """
    return Merge(recipe, Path(out), full, format, block, progress, warn or to_stderr, strict).run()


def to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


class Merge:
    def __init__(self, recipe, out, full, format, block, progress, warn, strict):
        if format not in FORMATS:
            raise UsageError(f"format {format!r}", expected="one of " + ", ".join(FORMATS))
        if block % BLOCK or block <= 0:
            raise UsageError(f"block {block}", expected=f"a multiple of {BLOCK}")
        self.recipe, self.out, self.full, self.format, self.block = recipe, out, full, format, block
        self.progress, self.warn, self.strict = progress, warn, strict
        self.bad_values: dict[str, int] = {}
        self.names = list(recipe.inputs)

    def run(self) -> list[Made]:
        self.inputs = {name: open_weights(path) for name, path in self.recipe.inputs.items()}
        self.aligned, self.absent, notes = align(self.inputs, self.recipe.missing)
        if self.format == "safetensors":  # wide dtypes first: every tensor stays aligned
            self.aligned.sort(key=lambda tensor: -ITEMSIZE[self._out_info(tensor).dtype])
        self.outputs = [self._output(name) for name in self.recipe.outputs]
        self._check_paths()
        for note in notes + self._remarks():
            self.warn(f"note: {note}")
        self._check_space()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the cores are for reading, computing and writing at once
        try:
            for output in self.outputs:
                self._ties(output)
            self.bad_values.clear()
            return self._write_all()
        finally:
            torch.set_num_threads(threads)

    # --- before the pass
    # --------------------------------------------------------------------------------------
    def _output(self, name: str) -> Output:
        steps = [self.recipe.step_for(name, tensor.name) for tensor in self.aligned]
        infos = [self._out_info(tensor) for tensor in self.aligned]
        return Output(name, self.out / f"{name}.{self.format}", steps, infos)

    def _out_info(self, tensor: Aligned) -> TensorInfo:
        keep = tensor.info.dtype not in FLOATS or not self.recipe.dtype
        return TensorInfo(tensor.info.shape, tensor.info.dtype if keep else self.recipe.dtype)

    def _check_paths(self) -> None:
        for output in self.outputs:
            for weights in self.inputs.values():
                for file in weights.files:
                    if os.path.exists(output.path) and os.path.samefile(output.path, file.path):
                        raise UsageError(
                            f"the output {output.path} is the input {file.path}",
                            fix="choose another folder or name",
                        )

    def _remarks(self) -> list[str]:
        found = [f"{name}: {note}" for name, weights in self.inputs.items() for note in weights.notes]
        seen: dict[tuple[int, int], str] = {}
        for name, weights in self.inputs.items():
            for file in weights.files[:1]:
                first = seen.setdefault((file.stat.st_dev, file.stat.st_ino), name)
                if first != name:
                    found.append(f"{first} and {name} are the same file: there is nothing to extrapolate")
        found += remarks(self.recipe)
        if all(keys.component(tensor.name) in ("other", "buffers") for tensor in self.aligned):
            found.append("unknown model family: merging by name only")
        return found

    def _check_space(self) -> None:
        """Room for the complete files; for files of changes only the most they could take is compared."""
        if os.path.isfile(self.out):
            raise UsageError(f"{self.out} is a file", expected="a folder to write to")
        folder = check_writable(self.out)
        needed = sum(info.nbytes for output in self.outputs for info in output.infos)
        free = shutil.disk_usage(folder).free
        if needed > free and self.full:
            raise MachineError(
                f"the outputs need {needed / 1e9:.2f} GB, {folder} has {free / 1e9:.2f} GB left",
                fix="free some space or choose another folder",
            )
        if needed > free:
            self.warn(f"note: {free / 1e9:.2f} GB are left, the outputs may need up to {needed / 1e9:.2f} GB")

    def _ties(self, output: Output) -> None:
        for step in dict.fromkeys(s for s in output.steps if isinstance(s, Ties)):
            chosen = [i for i, s in enumerate(output.steps) if s == step and self._is_float(i)]
            numel = sum(self.aligned[i].info.numel for i in chosen)
            output.ties[step] = ties_statistics(step, numel, lambda chosen=chosen: self._blocks_of(chosen))

    def _blocks_of(self, chosen: Sequence[int]) -> Iterator[Block]:
        slot = Slot()
        for work in self._works(chosen, [slot]):
            self._read(work)
            yield self._block(work, None)

    # --- the pass
    # ---------------------------------------------------------------------------------------------
    def _is_float(self, index: int) -> bool:
        return self.aligned[index].info.dtype in FLOATS

    def _whole(self, index: int) -> bool:
        return any(output.steps[index].whole for output in self.outputs)

    def _works(self, chosen: Sequence[int], slots: list[Slot]) -> Iterator[Work]:
        turn = 0
        for index in chosen:
            numel = self.aligned[index].info.numel
            size = max(numel, 1) if self._whole(index) else self.block
            for start in range(0, max(numel, 1), size):
                count = min(size, numel - start)
                yield Work(index, start, count, start + size >= numel, slots[turn % len(slots)])
                turn += 1

    def _write_all(self) -> list[Made]:
        files = {str(f.path): f for weights in self.inputs.values() for f in weights.files}
        hashes = HashFollower(list(files.values()))
        try:
            with ThreadPoolExecutor(1, "edg-read") as reader, ThreadPoolExecutor(1, "edg-write") as writer:
                self._open_writers()
                self._pass(reader, writer, hashes)
            return self._finish(hashes)
        except BaseException:
            hashes.stop()
            raise
        finally:
            for output in self.outputs:
                if output.writer:
                    output.writer.abort()

    def _open_writers(self) -> None:
        draft = dict.fromkeys((str(f.path) for w in self.inputs.values() for f in w.files), "0" * 64)
        for output in self.outputs:
            plan = {tensor.name: info for tensor, info in zip(self.aligned, output.infos, strict=True)}
            size = len(json.dumps({"edg": json.dumps(self._provenance(output, draft))}))
            output.writer = open_writer(output.path, self.format, plan, size, reserve=self.full)

    def _pass(self, reader: ThreadPoolExecutor, writer: ThreadPoolExecutor, hashes: HashFollower) -> None:
        slots = [Slot() for _ in range(SLOTS)]
        total, done = sum(t.info.nbytes for t in self.aligned), 0
        works, waiting = self._works(range(len(self.aligned)), slots), []

        def more() -> None:
            for work in works:
                if work.slot.written:
                    work.slot.written.result()
                waiting.append((work, reader.submit(self._read, work)))
                if len(waiting) >= READ_AHEAD:
                    return

        more()
        while waiting:
            work, reading = waiting.pop(0)
            reading.result()
            tensor = self.aligned[work.index]
            results = [(output, self._compute(output, work)) for output in self.outputs]
            work.slot.written = writer.submit(self._store, work, results)
            for source in tensor.sources.values():
                size = ITEMSIZE[source.info.dtype]
                hashes.advance(source.where[0], source.where[1] + (work.start + work.count) * size)
            done += work.count * ITEMSIZE[tensor.info.dtype]
            if self.progress:
                self.progress(done, total)
            more()
        for slot in slots:
            if slot.written:
                slot.written.result()

    def _read(self, work: Work) -> None:
        """Fill the slot's input buffers (reader thread)."""
        tensor = self.aligned[work.index]
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

    def _block(self, work: Work, out: Tensor | None, ties: TiesStatistics | None = None) -> Block:
        tensor = self.aligned[work.index]
        tensors = work.tensors
        if self._whole(work.index):
            tensors = {name: values.view(tensor.info.shape) for name, values in tensors.items()}
            out = None

        def mask(stream: str, keep: float) -> Tensor:
            room = work.slot.get("mask", work.count, torch.bool)
            found = keep_mask(self.recipe.seed, tensor.name, stream, keep, work.start, work.count, room)
            return found.view(next(iter(tensors.values())).shape)

        return Block(tensors, len(tensor.info.shape), mask, self.recipe.mask_scalars, out, ties)

    def _compute(self, output: Output, work: Work) -> Tensor | None:
        """The block of an output in the output's dtype; None when it is the base's, bit for bit."""
        tensor, step, info = self.aligned[work.index], output.steps[work.index], output.infos[work.index]
        base = next(iter(work.tensors.values()))
        if not self._is_float(work.index):
            return None
        copied = step.copies(self.names)
        if copied is None and step.keeps_equal and self._all_equal(work):
            copied = self.names[0]
        if copied is not None:
            result = work.tensors[copied]
        else:
            room = work.slot.get(f"out {output.name}", work.count, base.dtype)
            result = step.run(self._block(work, room, output.ties.get(step))).reshape(-1)
        same_dtype = info.dtype == tensor.info.dtype
        if same_dtype and tensor.in_base and (result is base or _bits_equal(result, base)):
            return None
        wanted = torch_dtype(info.dtype)
        if result.dtype == wanted:
            return result
        narrow = work.slot.get(f"narrow {output.name}", work.count, wanted).copy_(result)
        if wanted == torch.float16 and not torch.isfinite(narrow.sum()):
            self._check_overflow(output, tensor, result, narrow)
        return narrow

    def _check_overflow(self, output: Output, tensor: Aligned, result: Tensor, narrow: Tensor) -> None:
        lost = int((torch.isfinite(result) & ~torch.isfinite(narrow)).sum())
        if lost:
            raise UsageError(
                f"{output.name}: {lost} values of {tensor.name} are too large for float16",
                fix="write float32 or bfloat16 (--dtype)",
            )

    def _all_equal(self, work: Work) -> bool:
        base, *others = work.tensors.values()
        return all(_bits_equal(base, other) for other in others)

    def _store(self, work: Work, results: list[tuple[Output, Tensor | None]]) -> None:
        """Append a block to every output (writer thread); what equals the base only in complete files."""
        tensor = self.aligned[work.index]
        for output, result in results:
            info = output.infos[work.index]
            if output.open_tensor != tensor.name:
                if result is None and tensor.in_base and not self.full:
                    continue  # equal so far; if a later block differs, the beginning is fetched again
                output.writer.begin(tensor.name, info)
                output.open_tensor = tensor.name
                self._append_beginning(output, tensor, info, work)
            if result is None:
                result = self._as_stored(work, info)
            output.writer.append(raw_bytes(result))
            if work.last:
                output.writer.end()
                output.open_tensor = ""

    def _append_beginning(self, output: Output, tensor: Aligned, info: TensorInfo, work: Work) -> None:
        source = next(iter(tensor.sources.values()))
        for start in range(0, work.start if not self.full else 0, self.block):
            room = work.slot.get("beginning", self.block, torch_dtype(info.dtype))
            source.read_into(start, room)
            output.writer.append(raw_bytes(room))

    def _as_stored(self, work: Work, info: TensorInfo) -> Tensor:
        base, wanted = next(iter(work.tensors.values())), torch_dtype(info.dtype)
        return base if base.dtype == wanted else work.slot.get("stored", work.count, wanted).copy_(base)

    # --- after the pass
    # ---------------------------------------------------------------------------------------
    def _finish(self, follower: HashFollower) -> list[Made]:
        hashes = follower.result()
        for weights in self.inputs.values():
            weights.check_unchanged()
        follower.remember()
        self._report_bad_values()
        made = []
        for output in self.outputs:
            stored, record = len(output.writer.written), self._provenance(output, hashes)
            output.writer.finish({"edg": json.dumps(record)})
            sidecar = output.path.with_name(output.path.name + ".json")
            write_atomically(sidecar, (json.dumps(record, indent=1) + "\n").encode())
            size = output.path.stat().st_size
            made.append(Made(output.name, output.path, len(self.aligned), stored, size))
        return made

    def _report_bad_values(self) -> None:
        for what, count in list(self.bad_values.items())[:10]:
            self.warn(f"warning: {what} holds {count} values that are NaN or infinite")
        if len(self.bad_values) > 10:
            self.warn(f"warning: so do {len(self.bad_values) - 10} more tensors")
        if self.bad_values and self.strict:
            raise BadFileError(
                f"{len(self.bad_values)} tensors hold NaN or Inf, first {next(iter(self.bad_values))}",
                expected="finite weights",
                fix="leave out --strict to merge anyway",
            )

    def _provenance(self, output: Output, hashes: Mapping[str, str]) -> dict:
        tensors = len(self.aligned)
        stored = len(output.writer.written) if output.writer else tensors
        record = provenance(self.recipe, output.name, self.inputs, hashes, tensors, stored)
        if not self.full:
            record |= base_reference(self.inputs, hashes, output.path, self.absent)
        return record


def _bits_equal(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit (-0 is not 0, NaN may equal NaN)."""
    whole = torch.int64 if a.dtype == torch.float64 else torch.int32
    return a.dtype == b.dtype and torch.equal(a.view(whole), b.view(whole))
