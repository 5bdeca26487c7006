"""Several processes train one model: whole copies that average their gradients (DDP), or one copy in shards (FSDP2).

`pusa.processes` meets the others; without a launcher everything here is the identity. Nothing that leaves a run is
sharded: weights, averages and optimiser state are gathered by name on process 0 and spread again from there, so a
checkpoint does not know how many processes wrote it.

A step has `accumulate` x `size` micro-batches, its *lanes*. Lane l goes to process l mod size, and what is in it
depends on (seed, lane, step) alone: two processes with a lane each see the clips, noise and σ of one with two lanes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from pusa.errors import InputError
from pusa.processes import ProcessGroup, from_rank_zero


def wrap(model: nn.Module, kind: Literal["ddp", "fsdp"], group: ProcessGroup) -> nn.Module:
    """The module to call in training; its parameters become shards in place with "fsdp" (every block, then the rest).

    model: a Wan transformer with its `blocks`, on this process's device, the same on every process.
    """
    if kind not in ("ddp", "fsdp"):
        raise InputError(f"There is no way of working in parallel called {kind!r}: set train.parallel to ddp or fsdp.")
    if group.size == 1:
        return model
    if kind == "ddp":
        return DistributedDataParallel(model, broadcast_buffers=False)
    device = next(model.parameters()).device
    mesh = init_device_mesh(device.type, (group.size,))
    blocks: Any = getattr(model, "blocks", ())
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


def set_trainable(model: nn.Module, parameters: Mapping[str, nn.Parameter], trainable: bool) -> None:
    """Set whether the next forward pass of `model` leads gradients to these parameters."""
    for p in parameters.values():
        p.requires_grad_(trainable)
    if isinstance(model, FSDPModule):
        model.reshard()  # FSDP reads the flag when it gathers the parameters; the root module keeps gathered ones


def shards(model: nn.Module) -> dict[str, tuple[int, int]]:
    """{parameter: (numbers held by this process, numbers in all)}."""
    return {name: (_local(p).numel(), p.numel()) for name, p in model.named_parameters()}


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all of what processes hold in shards. Every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def collect(tensors: Mapping[str, Tensor], group: ProcessGroup) -> dict[str, Tensor]:
    """Whole tensors, copied to the CPU of process 0; empty on the others. Every process must call it."""
    copies: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if group.is_rank_zero:
            copies[name] = full.to("cpu", copy=True)
    return copies


@torch.no_grad()
def spread(values: Mapping[str, Tensor], targets: Mapping[str, Tensor], group: ProcessGroup) -> None:
    """The way back: copy the whole tensors of process 0 into `targets` everywhere, whole or sharded, in place."""
    for name, target in targets.items():
        if group.is_rank_zero:
            value = values[name].to(target.device, target.dtype)
        else:
            value = torch.empty(target.shape, dtype=target.dtype, device=target.device)
        if isinstance(target, DTensor):
            target.copy_(distribute_tensor(value, target.device_mesh, target.placements))
            continue
        if group.size > 1:
            dist.broadcast(value, 0)
        target.copy_(value)


def optimiser_state(
    optimiser: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], group: ProcessGroup
) -> dict[str, dict[str, Any]]:
    """{parameter: {moment: whole tensor or number}} on process 0; empty on the others."""
    state: dict[str, dict[str, Any]] = {}
    for name, p in parameters.items():
        kept = optimiser.state.get(p, {})
        tensors = collect({key: value for key, value in kept.items() if isinstance(value, Tensor)}, group)
        if group.is_rank_zero:
            state[name] = {**kept, **tensors}
    return state


def restore_optimiser(
    optimiser: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    state: Mapping[str, Mapping[str, Any]],
    group: ProcessGroup,
) -> None:
    """Give every process its part of what `optimiser_state` gathered, on however many processes that was."""
    layout = from_rank_zero(
        group,
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
            spread({key: state[name][key]} if group.is_rank_zero else {}, {key: kept[key]}, group)
        if kept:
            optimiser.state[p] = kept


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
