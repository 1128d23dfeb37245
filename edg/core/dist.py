"""Processes of a run: the same program with and without torchrun. Environment variables of the process are
read here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from edg.core.errors import EdgError, MachineError, UsageError

T = TypeVar("T")
# Ranks wait for each other only at the start and at the end of a run, which may take hours. A rank that dies
# is noticed by torchrun, which ends the others; this limit is for a rank that hangs.
GROUP_TIMEOUT = timedelta(hours=24)


@dataclass(frozen=True)
class World:
    """rank of size processes, the local_rank-th on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def shard(self, items: Sequence[T]) -> list[T]:
        """This rank's share: contiguous, sizes differ by at most one, possibly empty."""
        base, extra = divmod(len(items), self.size)
        start = base * self.rank + min(extra, self.rank)
        return list(items[start : start + base + (self.rank < extra)])

    def broadcast(self, value: Any = None) -> Any:
        """Rank 0's value on every rank."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        with _others():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def first(self, function: Callable[[], T]) -> T:
        """function() of rank 0, for every rank; after its EdgError the others leave with the error's code."""
        value, failure = None, None
        if self.is_first:
            try:
                value = function()
            except EdgError as error:
                failure = error
        value, code = self.broadcast((value, failure.exit_code if failure else 0))
        if failure:
            raise failure
        if code:
            raise SystemExit(code)
        return value

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of ranks, on every rank; also a barrier."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        with _others():
            dist.all_gather_object(values, value)
        return values


@contextmanager
def _others() -> Iterator[None]:
    """Raise MachineError when another rank has died, or hangs for longer than the group's timeout."""
    try:
        yield
    except RuntimeError as error:
        raise MachineError(
            f"another process of this run does not answer: {next(iter(str(error).splitlines()), '')}",
            fix="see its messages for the cause; run the same command again to resume",
        ) from error


def world_from_environment() -> World:
    """The world that torchrun describes (RANK, WORLD_SIZE, LOCAL_RANK), or a world of one."""
    try:
        numbers = [int(os.environ.get(name, default)) for name, default in _VARIABLES]
    except ValueError as error:
        raise UsageError(f"RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers ({error})") from error
    return World(*numbers)


def rank_label() -> str:
    """ "[rank 1] " in front of a line where there are several processes, else ""."""
    return f"[rank {os.environ.get('RANK', '0')}] " if os.environ.get("WORLD_SIZE", "1") != "1" else ""


def terminal_type() -> str:
    """The kind of terminal (TERM), "dumb" where none is named."""
    return os.environ.get("TERM", "dumb")


def is_first_rank() -> bool:
    """True on rank 0, by the environment alone."""
    return os.environ.get("RANK", "0") == "0"


def is_launched() -> bool:
    """True if torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def processes_here(world: World) -> int:
    """The number of this run's processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world.size))


_VARIABLES = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


@contextmanager
def world(device: str = "cpu", timeout: timedelta = GROUP_TIMEOUT) -> Iterator[World]:
    """The world of this process; with more than one a group is opened (gloo, on cuda nccl as well).

    timeout: how long a rank that has come to a meeting waits for the others. Raises MachineError when there
    is no group to be had (the port is in use, the others do not come).
    """
    here = world_from_environment()
    if here.size == 1:
        yield here
        return
    import torch.distributed as dist

    with_nccl = device.startswith("cuda") and dist.is_nccl_available()
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
        # torchrun keeps its store when it restarts all ranks: without a prefix they find dead ones' addresses
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        backend = "cpu:gloo,cuda:nccl" if with_nccl else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        place = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise MachineError(
            f"{here.size} processes cannot connect at {place}: {next(iter(str(error).splitlines()), '')}",
            fix="start them with torchrun; if the port is in use, choose another with --master_port",
        ) from error
    try:
        yield here
    finally:
        dist.destroy_process_group()
