"""The processes that a launcher started for one command: the rank of this process, and communication between them.

`torchrun` and `accelerate launch` set RANK, WORLD_SIZE and the address. Without a launcher, every function here is the
identity. Only rank 0 writes files and prints.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from pusa.errors import Cancelled, InputError, PusaError

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessGroup:
    """This process (`rank`, from 0) among `size` processes."""

    rank: int = 0
    size: int = 1

    @property
    def is_rank_zero(self) -> bool:
        return self.rank == 0


def current_group() -> ProcessGroup:
    """The initialised process group; before `join`, this process alone."""
    return ProcessGroup(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else ProcessGroup()


def local_device() -> torch.device:
    """The device of this process: the GPU of its LOCAL_RANK, or the only GPU, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


@contextmanager
def join() -> Iterator[ProcessGroup]:
    """Initialise the process group for the block. Without a launcher, the group is this process alone.

    If a process group exists already, it is used and not destroyed. Raises InputError if the launcher did not set all
    variables, or if it started more processes on this machine than there are GPUs.
    """
    if dist.is_initialized():
        yield current_group()
        return
    if int(os.environ.get("WORLD_SIZE", 1)) <= 1:
        yield ProcessGroup()
        return
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise InputError(
            f"WORLD_SIZE is set but {', '.join(missing)} is not: start with torchrun or accelerate launch."
        )
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    if torch.cuda.is_available():
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if here > torch.cuda.device_count():
            raise InputError(
                f"There are {here} processes for {torch.cuda.device_count()} GPUs: start one for each GPU at most."
            )
        torch.cuda.set_device(local_device())
    try:
        yield current_group()
    except Cancelled:  # all processes have agreed to stop
        dist.destroy_process_group()
        raise
    # Not after another error: other processes may wait in a collective call, and then destroying the group would hang.
    dist.destroy_process_group()


def first_to_fail(code: int) -> int | None:
    """Report a failure with this exit code: None for the first process that fails, for the others its exit code.

    One failure often makes the other processes fail, too. So it is printed once, and all processes exit with one code.
    """
    if not dist.is_initialized():
        return None
    try:
        store = dist.distributed_c10d._get_default_store()
        first = store.compare_set("pusa/failed", "", f"{dist.get_rank()} {code}").decode()
    except RuntimeError:  # the process of the store has ended
        return code
    rank, said = map(int, first.split())
    return None if rank == dist.get_rank() else said


def from_rank_zero(group: ProcessGroup, work: Callable[[], T]) -> T:
    """Call `work` in rank 0 and return its result, which must be picklable, in every process.

    If `work` fails, every process raises an error.
    """
    outcome: list[Any] = [None, None]
    if group.is_rank_zero:
        try:
            outcome[0] = work()
        except Exception as error:
            if group.size == 1:
                raise
            outcome[1] = error if isinstance(error, PusaError) else PusaError(f"rank 0 failed: {error!r}")
            dist.broadcast_object_list(outcome, 0)
            raise
    if group.size > 1:
        dist.broadcast_object_list(outcome, 0)
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def all_agree(group: ProcessGroup, what: str) -> bool:
    """Whether `what` is the same in every process. Every process must call it."""
    return len(set(gather_words(group, [what]))) == 1


def broadcast(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of the tensors of rank 0. In the other processes, `tensors` give the shapes, types and devices."""
    copies = [tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors]
    for copy in copies:
        dist.broadcast(copy, 0)
    return copies


def gather(group: ProcessGroup, values: Tensor) -> Tensor:
    """[...] in each process -> [size, ...] in every process, ordered by rank."""
    if group.size == 1:
        return values[None]
    parts = [torch.empty_like(values) for _ in range(group.size)]
    dist.all_gather(parts, values)
    return torch.stack(parts)


def any_rank(group: ProcessGroup, flag: bool) -> bool:
    """Whether `flag` is true in any process. Every process must call it."""
    return bool(gather(group, torch.tensor(flag)).any())


def gather_words(group: ProcessGroup, words: list[str]) -> list[str]:
    """The words of every process, ordered by rank. Every process must call it."""
    if group.size == 1:
        return words
    parts: list[list[str]] = [[] for _ in range(group.size)]
    dist.all_gather_object(parts, words)
    return [word for part in parts for word in part]
