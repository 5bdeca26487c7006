"""Training on several processes: each has a copy of the model (DDP), or they share one copy in shards (FSDP2).

`pusa.processes` connects the processes. With one process, the functions here change nothing. Checkpoints and exported
files contain no shards: weights, averages and optimiser state are gathered by name on rank 0, and distributed again
from there. So a checkpoint does not depend on the number of processes.

A step has `accumulate` × `size` micro-batches, called lanes. Process r computes the lanes l with l mod size = r. The
content of a lane depends on the seed, the lane and the step only. So two processes with one lane each see the same
clips, noise and σ as one process with two lanes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


def wrap(
    model: nn.Module, kind: Literal["ddp", "fsdp"], group: ProcessGroup, blocks: Iterable[nn.Module] = ()
) -> nn.Module:
    """Return the module to call in training.

    With "ddp" the result is a wrapper. With "fsdp" it is `model` itself, and its parameters become shards in place: one
    group for each of `blocks`, as `Backbone.blocks` returns them, and one for the rest. model: on the device of this
    process, with the same weights on every process. Raises InputError for another kind.
    """
    if kind not in ("ddp", "fsdp"):
        raise InputError(f"train.parallel is {kind!r}: set it to ddp or fsdp.")
    if group.size == 1:
        return model
    if kind == "ddp":
        return DistributedDataParallel(model, broadcast_buffers=False)
    device = next(model.parameters()).device
    mesh = init_device_mesh(device.type, (group.size,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def accumulating(model: nn.Module, more: bool) -> AbstractContextManager[None]:
    """Wrap the forward and backward pass of a micro-batch. If `more` follow, DDP does not average gradients yet."""
    if more and isinstance(model, DistributedDataParallel):
        without_sync: AbstractContextManager[None] = model.no_sync()
        return without_sync
    return nullcontext()


def set_trainable(model: nn.Module, parameters: Mapping[str, nn.Parameter], trainable: bool) -> None:
    """Set whether these parameters get gradients in the next forward and backward pass of `model`."""
    for p in parameters.values():
        p.requires_grad_(trainable)
    if isinstance(model, FSDPModule):
        model.reshard()  # FSDP reads the flag when it gathers the parameters; the root module keeps gathered ones


def shards(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return {parameter: (elements on this process, elements in total)}."""
    return {name: (_local(p).numel(), p.numel()) for name, p in model.named_parameters()}


def is_sharded(model: nn.Module) -> bool:
    """Return whether FSDP2 has divided the parameters of the model into shards."""
    return isinstance(model, FSDPModule)


def whole(tensor: Tensor) -> Tensor:
    """Return the tensor, gathered from all processes if it is sharded. Every process must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def collect(tensors: Mapping[str, Tensor], group: ProcessGroup) -> dict[str, Tensor]:
    """Return whole copies of the tensors, on the CPU of rank 0; {} on other processes. Every process must call this."""
    copies: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if group.is_rank_zero:
            copies[name] = full.to("cpu", copy=True)
    return copies


@torch.no_grad()
def spread(values: Mapping[str, Tensor], targets: Mapping[str, Tensor], group: ProcessGroup) -> None:
    """Copy the whole `values` of rank 0 into `targets` on every process, in place. Targets may be sharded."""
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
    """Return {parameter: {name of the state: whole tensor or number}} on rank 0, and {} on other processes."""
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
    """Set the state that `optimiser_state` returned, whatever the number of processes was then."""
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
