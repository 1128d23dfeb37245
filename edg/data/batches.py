"""Which samples a training step sees, on which rank, and the seeds of what is drawn for them.

A global batch has B = batch x ranks x accumulate samples. Sample n = step * B + position of the whole run is
item permutation(seed, n // size)[n % size] of the data: every epoch shows each item once. So a resumed run
and any number of ranks see the same samples with the same noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from edg.core.errors import EdgError, UsageError
from edg.core.seeding import derive, generator


class Key(NamedTuple):
    """What a sample is asked for by: item `index` in its `epoch`, for `position` in the batch of `step`."""

    epoch: int
    index: int
    step: int
    position: int


class Order:
    """A batch sampler without end: for each micro-batch of this rank, its `batch` keys."""

    def __init__(
        self,
        batch: int,
        ranks: int,
        rank: int,
        accumulate: int,
        size: int,
        seed: int,
        first_step: int = 0,
    ):
        if min(batch, ranks, accumulate, size) < 1 or not 0 <= rank < ranks:
            raise UsageError(
                f"batch {batch}, rank {rank} of {ranks}, accumulate {accumulate}, {size} samples",
                expected="numbers of at least 1, and a rank below their number",
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
class Table:
    """Clips in memory: columns of equal length, tensors or lists, and the frames in [-1, 1]."""

    columns: Mapping[str, Any]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key: Any) -> dict[str, Any]:
        index = getattr(key, "index", key)
        return {name: column[index] for name, column in self.columns.items()}


class Keyed:
    """Data whose samples carry the key they were asked for by, as `collate` needs it."""

    def __init__(self, data: Sequence[Any]):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        return {**self.data[key], "key": key}


class Caught(torch.utils.data.Dataset):
    """Data in which a user's error is an item, for `told` to raise: one that a worker process raises comes
    out of a DataLoader as a page of traceback."""

    def __init__(self, data: Any):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.data[key]
        except EdgError as error:
            return error


def told(item: Any) -> Any:
    """The item (or batch) of `Caught` data; raises the EdgError that it may be."""
    if isinstance(item, EdgError):
        raise item
    return item


def collate(items: Sequence[dict[str, Any]], seed: int) -> Any:
    """Samples of `Keyed` as one batch: tensors stacked, numbers to tensors, the rest as lists, and the seeds
    of their random draws: `draw` (B,) for each sample, `batch_draw` (B,) for what the global batch shares.
    The first error among samples of `Caught` is the batch."""
    if failed := [item for item in items if isinstance(item, EdgError)]:
        return failed[0]
    keys = [item["key"] for item in items]
    batch: dict[str, Any] = {}
    for name in items[0]:
        if name == "key":
            continue
        column = [item[name] for item in items]
        if isinstance(column[0], torch.Tensor):
            batch[name] = torch.stack(column)
        elif isinstance(column[0], (bool, int, float)):
            batch[name] = torch.tensor(column)
        else:
            batch[name] = column
    batch["draw"] = torch.tensor([derive(seed, "sample", key.step, key.position) for key in keys])
    batch["batch_draw"] = torch.tensor([derive(seed, "batch", key.step) for key in keys])
    return batch
