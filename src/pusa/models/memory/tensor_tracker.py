"""Find the peak memory and the operations of code by running it on the meta device, where tensors have no data.

The tracker follows every tensor from its creation to its release, which gives the peak. It counts the operations of
matrix products, convolutions and attention.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# private, as is _overloadpacket below; test_operations_are_those_that_training_counts
# (tests/models/memory/test_estimate.py) fails when they move
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Pass:
    """One pass of a network. peak: the greatest memory of its activations, in bytes. flops: its operations."""

    peak: int
    flops: int


class TensorTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the storages of tensors that are created and released, and counts operations.

    copies: whether convolutions copy their inputs, weights and outputs while they run, as those of oneDNN on a CPU do.
    """

    def __init__(self, copies: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.copies, self.live, self.peak, self.flops = copies, 0, 0, 0
        self._known: set[int] = set()
        self._given: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor) and id(storage := tensor.untyped_storage()) not in self._known:
                self._given[id(storage)] = storage  # weights and inputs, which existed before
        out = func(*args, **kwargs)
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += int(formula(*args, **kwargs, out_val=out))
        for tensor in (leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)):
            storage = tensor.untyped_storage()
            if id(storage) not in self._known and id(storage) not in self._given:
                self._known.add(id(storage))
                self.live += storage.nbytes()
                weakref.finalize(storage, self._release, id(storage), storage.nbytes())
        extra = 0
        if self.copies and func is torch.ops.aten.convolution.default:
            extra = sum(tensor.nbytes for tensor in (args[0], args[1], out))
        self.peak = max(self.peak, self.live + extra)
        return out

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


class FusedAttention(TorchFunctionMode):
    """Replaces attention, which on the meta device would create the matrix of its scores, and counts its operations."""

    flops = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        query, key, value = given["query"], given["key"], given["value"]
        heads = prod(query.shape[:-2])
        self.flops += 2 * heads * query.shape[-2] * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        return query.new_empty(*query.shape[:-1], value.shape[-1])


class _FusedAttention(torch.autograd.Function):
    """Attention on the meta device, which saves what fused attention saves: its inputs, its output, and a row sum."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def rehearse_step(run: Callable[[], Any]) -> Pass:
    """Return what a forward and backward pass on the meta device needs, with the gradients that it leaves.

    The operations of attention are not counted. A mode of functions, as in `rehearse`, is not active in the backward
    pass, in which gradient checkpointing computes attention again. So the function itself is replaced meanwhile.
    """

    def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
        return _FusedAttention.apply(query, key, value)  # type: ignore[no-untyped-call]

    tracker, original = TensorTracker(copies=False), F.scaled_dot_product_attention
    F.scaled_dot_product_attention = attention  # type: ignore[assignment]
    try:
        with torch.enable_grad(), tracker:
            run()
    finally:
        F.scaled_dot_product_attention = original
    return Pass(tracker.peak, tracker.flops)


@torch.no_grad()
def rehearse(run: Callable[[], Any], copies: bool = False) -> Pass:
    """Return what `run` needs. Its networks and inputs are on the meta device. copies: see `TensorTracker`."""
    attention, tracker = FusedAttention(), TensorTracker(copies)
    with attention, tracker:
        run()
    return Pass(tracker.peak, tracker.flops + attention.flops)
