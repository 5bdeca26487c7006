"""Several processes train one model: whole copies that average their gradients (DDP), or one copy in shards (FSDP2).

Launched by `torchrun` or `accelerate launch`, which set RANK, WORLD_SIZE and the meeting point; without them everything
here is the identity. Nothing that leaves a run is sharded: weights, averages and optimiser state are gathered by name
on process 0 and spread again from there, so a checkpoint does not know how many processes wrote it.

A step has `accumulate` x `size` micro-batches, its *lanes*. Lane l goes to process l mod size, and what is in it
depends on (seed, lane, step) alone: two processes with a lane each see the clips, noise and σ of one with two lanes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from pusa.errors import InputError, PusaError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process (`rank`) among `size` of them. The chief, rank 0, alone writes files."""

    rank: int = 0
    size: int = 1

    @property
    def chief(self) -> bool:
        return self.rank == 0


def local_device() -> torch.device:
    """The device of this process: the GPU of its LOCAL_RANK, the only GPU, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


@contextmanager
def join() -> Iterator[World]:
    """Meet the other processes that the launcher started, for the block; alone without a launcher.

    A process group that is already there is used and left in place.
    """
    if dist.is_initialized():
        yield World(dist.get_rank(), dist.get_world_size())
        return
    if int(os.environ.get("WORLD_SIZE", 1)) <= 1:
        yield World()
        return
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise InputError(
            f"WORLD_SIZE is set but {', '.join(missing)} is not: start with torchrun or accelerate launch."
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(local_device())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def wrap(model: nn.Module, kind: Literal["ddp", "fsdp"], world: World) -> nn.Module:
    """The module to call in training; its parameters become shards in place with "fsdp" (every block, then the rest).

    model: a Wan transformer with its `blocks`, on this process's device, the same on every process.
    """
    if kind not in ("ddp", "fsdp"):
        raise InputError(f"There is no way of working in parallel called {kind!r}: set train.parallel to ddp or fsdp.")
    if world.size == 1:
        return model
    if kind == "ddp":
        return DistributedDataParallel(model, broadcast_buffers=False)
    device = next(model.parameters()).device
    mesh = init_device_mesh(device.type, (world.size,))
    blocks: Any = model.blocks
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def accumulating(model: nn.Module, more: bool) -> AbstractContextManager[None]:
    """Around forward and backward of a micro-batch: with `more` to come, copies do not average gradients yet."""
    if more and isinstance(model, DistributedDataParallel):
        waiting: AbstractContextManager[None] = model.no_sync()
        return waiting
    return nullcontext()


def shards(model: nn.Module) -> dict[str, tuple[int, int]]:
    """{parameter: (numbers held by this process, numbers in all)}."""
    return {name: (_local(p).numel(), p.numel()) for name, p in model.named_parameters()}


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all of what processes hold in shards. Every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def collect(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """Whole tensors, copied to the CPU of process 0; empty on the others. Every process must call it."""
    copies: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if world.chief:
            copies[name] = full.to("cpu", copy=True)
    return copies


@torch.no_grad()
def spread(values: Mapping[str, Tensor], targets: Mapping[str, Tensor], world: World) -> None:
    """The way back: copy the whole tensors of process 0 into `targets` everywhere, whole or sharded, in place."""
    for name, target in targets.items():
        if world.chief:
            value = values[name].to(target.device, target.dtype)
        else:
            value = torch.empty(target.shape, dtype=target.dtype, device=target.device)
        if isinstance(target, DTensor):
            target.copy_(distribute_tensor(value, target.device_mesh, target.placements))
            continue
        if world.size > 1:
            dist.broadcast(value, 0)
        target.copy_(value)


def optimiser_state(
    optimiser: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], world: World
) -> dict[str, dict[str, Any]]:
    """{parameter: {moment: whole tensor or number}} on process 0; empty on the others."""
    state: dict[str, dict[str, Any]] = {}
    for name, p in parameters.items():
        kept = optimiser.state.get(p, {})
        tensors = collect({key: value for key, value in kept.items() if isinstance(value, Tensor)}, world)
        if world.chief:
            state[name] = {**kept, **tensors}
    return state


def restore_optimiser(
    optimiser: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    state: Mapping[str, Mapping[str, Any]],
    world: World,
) -> None:
    """Give every process its part of what `optimiser_state` gathered, on however many processes that was."""
    layout = from_chief(
        world,
        lambda: {
            name: {k: (v.shape, v.dtype) if isinstance(v, Tensor) else v for k, v in kept.items()}
            for name, kept in state.items()
        },
    )
    for name, p in parameters.items():
        kept: dict[str, Any] = {}
        for key, form in layout[name].items():
            if not isinstance(form, tuple):
                kept[key] = form
                continue
            shape, dtype = form
            like_p = shape == p.shape and key != "step"
            device = torch.device("cpu") if key == "step" else p.device
            kept[key] = torch.zeros_like(p, dtype=dtype) if like_p else torch.zeros(shape, dtype=dtype, device=device)
            spread({key: state[name][key]} if world.chief else {}, {key: kept[key]}, world)
        if kept:
            optimiser.state[p] = kept


def from_chief(world: World, work: Callable[[], T]) -> T:
    """Do `work` on process 0 and return its result (picklable) everywhere; if it fails, every process fails."""
    outcome: list[Any] = [None, None]
    if world.chief:
        try:
            outcome[0] = work()
        except Exception as error:
            if world.size == 1:
                raise
            outcome[1] = error if isinstance(error, PusaError) else PusaError(f"process 0 failed: {error!r}")
            dist.broadcast_object_list(outcome, 0)
            raise
    if world.size > 1:
        dist.broadcast_object_list(outcome, 0)
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def everyones(world: World, values: Tensor) -> Tensor:
    """[...] of each process -> [size, ...] on every process, in the order of ranks."""
    if world.size == 1:
        return values[None]
    parts = [torch.empty_like(values) for _ in range(world.size)]
    dist.all_gather(parts, values)
    return torch.stack(parts)


def anyone(world: World, flag: bool) -> bool:
    """Whether it is so on any process. Every process must call it."""
    return bool(everyones(world, torch.tensor(flag)).any())


def everyones_words(world: World, words: list[str]) -> list[str]:
    """The words of every process, in the order of ranks."""
    if world.size == 1:
        return words
    parts: list[list[str]] = [[] for _ in range(world.size)]
    dist.all_gather_object(parts, words)
    return [word for part in parts for word in part]


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
