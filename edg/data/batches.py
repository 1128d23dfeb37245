"""Batches of a training: the samples of a step on each rank, and the seeds of their random draws.

A global batch has B = batch x ranks x accumulate samples. Sample n = step * B + position of the whole run is
item permutation(seed, n // size)[n % size] of the data: every epoch shows each item once. So a resumed run
and any number of ranks see the same samples with the same noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from edg.core.errors import EdgError, require
from edg.core.seeding import derive, generator

Sample = dict[str, Any]  # tensors, numbers and texts of one training sample, by name
T = TypeVar("T")


class Key(NamedTuple):
    """Address of a sample: item `index` in its `epoch`, for `position` in the batch of `step`."""

    epoch: int
    index: int
    step: int
    position: int


class SampleSource(Protocol):
    """Training data: a sequence of samples, asked for by Key."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any) -> Sample: ...


class ResumableBatchSampler:
    """Endless batch sampler: for each micro-batch of this rank its `batch` keys, from `first_step` on."""

    def __init__(
        self, batch: int, ranks: int, rank: int, accumulate: int, size: int, seed: int, first_step: int = 0
    ):
        require(
            min(batch, ranks, accumulate, size) >= 1 and 0 <= rank < ranks,
            f"batch {batch}, rank {rank} of {ranks}, accumulate {accumulate}, {size} samples",
            "numbers of at least 1, and a rank below the number of ranks",
        )
        self.batch, self.ranks, self.rank, self.accumulate = batch, ranks, rank, accumulate
        self.size, self.seed, self.first_step = size, seed, first_step
        self._epoch, self._shuffled = -1, torch.empty(0, dtype=torch.long)

    def __iter__(self) -> Iterator[list[Key]]:
        step = self.first_step
        while True:
            for micro in range(self.accumulate):
                first = (micro * self.ranks + self.rank) * self.batch
                yield [self.key(step, first + i) for i in range(self.batch)]
            step += 1

    def key(self, step: int, position: int) -> Key:
        """The key of a position of the global batch."""
        n = step * self.batch * self.ranks * self.accumulate + position
        epoch, place = divmod(n, self.size)
        if epoch != self._epoch:
            self._shuffled = torch.randperm(self.size, generator=generator(self.seed, "epoch", epoch))
            self._epoch = epoch
        return Key(epoch, int(self._shuffled[place]), step, position)


@dataclass(frozen=True)
class TensorTable:
    """Samples in memory: columns of equal length, each a tensor or a list."""

    columns: Mapping[str, Tensor | list[str]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key: Key | int) -> Sample:
        index = getattr(key, "index", key)
        return {name: column[index] for name, column in self.columns.items()}


class KeyedDataset:
    """Data whose samples carry the key they were asked for by, as `collate` needs it."""

    def __init__(self, data: SampleSource):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: Key) -> Sample:
        return {**self.data[key], "key": key}


class ErrorCatchingDataset(torch.utils.data.Dataset):
    """Data that returns an EdgError as the item, for `raise_if_error`: an exception out of a worker process
    would come as a page of traceback."""

    def __init__(self, data: SampleSource):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: Any) -> Sample | EdgError:
        try:
            return self.data[key]
        except EdgError as error:
            return error


def raise_if_error(item: T | EdgError) -> T:
    """The item (or batch) of an ErrorCatchingDataset. Raises the EdgError that it may be."""
    if isinstance(item, EdgError):
        raise item
    return item


def collate(items: Sequence[Sample | EdgError], seed: int) -> Sample | EdgError:
    """One batch of the samples of a KeyedDataset: tensors stacked, numbers as tensors, the rest as lists.

    Seeds of the random draws are added: `draw` (B,) for each sample, `batch_draw` (B,) for what the global
    batch shares. The first error among the samples, if any, is returned instead.
    """
    if failed := [item for item in items if isinstance(item, EdgError)]:
        return failed[0]
    keys = [item["key"] for item in items]
    batch: Sample = {}
    for name in items[0]:
        if name == "key":
            continue
        column = [item[name] for item in items]
        if isinstance(column[0], Tensor):
            batch[name] = torch.stack(column)
        elif isinstance(column[0], (bool, int, float)):
            batch[name] = torch.tensor(column)
        else:
            batch[name] = column
    batch["draw"] = torch.tensor([derive(seed, "sample", key.step, key.position) for key in keys])
    batch["batch_draw"] = torch.tensor([derive(seed, "batch", key.step) for key in keys])
    return batch
