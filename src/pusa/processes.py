"""The processes that a launcher started for one command: which one this is, meeting the others, acting as one.

`torchrun` and `accelerate launch` set RANK, WORLD_SIZE and the meeting point; without them everything here is the
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
    """This process (`rank`) among `size` of them. Only rank 0 writes files."""

    rank: int = 0
    size: int = 1

    @property
    def is_rank_zero(self) -> bool:
        return self.rank == 0


def current_group() -> ProcessGroup:
    """The processes that have met; this one alone before `join`."""
    return ProcessGroup(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else ProcessGroup()


def local_device() -> torch.device:
    """The device of this process: the GPU of its LOCAL_RANK, the only GPU, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


@contextmanager
def join() -> Iterator[ProcessGroup]:
    """Meet the other processes that the launcher started, for the block; alone without a launcher.

    A process group that is already there is used and left in place. Raises InputError when the launcher set half of
    what is needed, or started more processes on this machine than it has GPUs.
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
    except Cancelled:  # all have agreed to stop
        dist.destroy_process_group()
        raise
    # Not after another error: some may be waiting in the middle of an exchange, and taking leave of them would hang.
    dist.destroy_process_group()


def first_to_fail(code: int) -> int | None:
    """Report a failure with this exit code; None when it is the first of all processes, else the first one's code.

    So that one failure, which often makes the other processes fail as well, is said once and has one exit code.
    """
    if not dist.is_initialized():
        return None
    try:
        store = dist.distributed_c10d._get_default_store()
        first = store.compare_set("pusa/failed", "", f"{dist.get_rank()} {code}").decode()
    except RuntimeError:  # the process that keeps the store has ended
        return code
    rank, said = map(int, first.split())
    return None if rank == dist.get_rank() else said


def from_rank_zero(group: ProcessGroup, work: Callable[[], T]) -> T:
    """Do `work` on process 0 and return its result (picklable) everywhere; if it fails, every process fails."""
    outcome: list[Any] = [None, None]
    if group.is_rank_zero:
        try:
            outcome[0] = work()
        except Exception as error:
            if group.size == 1:
                raise
            outcome[1] = error if isinstance(error, PusaError) else PusaError(f"process 0 failed: {error!r}")
            dist.broadcast_object_list(outcome, 0)
            raise
    if group.size > 1:
        dist.broadcast_object_list(outcome, 0)
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def all_agree(group: ProcessGroup, what: str) -> bool:
    """Whether every process says the same. Every process must call it."""
    return len(set(gather_words(group, [what]))) == 1


def broadcast(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that process 0 has in the place of these, of the same shapes, types and kind of device."""
    copies = [tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors]
    for copy in copies:
        dist.broadcast(copy, 0)
    return copies


def gather(group: ProcessGroup, values: Tensor) -> Tensor:
    """[...] of each process -> [size, ...] on every process, in the order of ranks."""
    if group.size == 1:
        return values[None]
    parts = [torch.empty_like(values) for _ in range(group.size)]
    dist.all_gather(parts, values)
    return torch.stack(parts)


def any_rank(group: ProcessGroup, flag: bool) -> bool:
    """Whether it is so on any process. Every process must call it."""
    return bool(gather(group, torch.tensor(flag)).any())


def gather_words(group: ProcessGroup, words: list[str]) -> list[str]:
    """The words of every process, in the order of ranks."""
    if group.size == 1:
        return words
    parts: list[list[str]] = [[] for _ in range(group.size)]
    dist.all_gather_object(parts, words)
    return [word for part in parts for word in part]
