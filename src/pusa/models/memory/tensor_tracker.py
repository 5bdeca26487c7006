"""What code takes, found by running it on the meta device, where tensors have shapes and no data.

A ledger follows every tensor from its making to its release, which gives the peak, and counts the operations of matrix
products, convolutions and attention.
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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Pass:
    """Of one pass of a network: the most bytes that its activations take at a time, and its operations."""

    peak: int
    flops: int


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the storages of tensors that come and go, and counts operations.

    copies: convolutions take a copy of what they read and write for the time they run, as oneDNN's do on a CPU.
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
                self._given[id(storage)] = storage  # weights and inputs, which were there before
        out = func(*args, **kwargs)
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += int(formula(*args, **kwargs, out_val=out))
        made = [tensor for tensor in tree_leaves(out) if isinstance(tensor, Tensor)]
        for tensor in made:
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
    """Attention without its matrix of scores, which the meta device would otherwise make."""

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


@torch.no_grad()
def rehearse(run: Callable[[], Any], copies: bool = False) -> Pass:
    """What `run` takes; its networks and inputs lie on the meta device. copies: as `Ledger` has it."""
    attention, ledger = FusedAttention(), Ledger(copies)
    with attention, ledger:
        run()
    return Pass(ledger.peak, ledger.flops + attention.flops)
