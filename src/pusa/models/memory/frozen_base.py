"""The frozen base of a training in less memory: stored in 8 or 4 bits, in the memory of the machine, or both.

Each linear layer of the blocks computes y = x Wᵀ + b, and in the backward pass dx = dy W, with the weight that it makes
from its storage at that moment. Nothing of the weight is kept for the backward pass. The arithmetic is that of an
ordinary linear layer, so weights that only move give the same losses and gradients, bit for bit.

diffusers' layerwise casting and group offloading, which `profiles` uses, work in the forward pass only.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pusa.models.memory.stored_weights import Storage, Stored


class FrozenLinear(nn.Linear):
    """A linear layer whose weight is stored. `adopt` makes it from an ordinary layer, in place."""

    stored: Stored | None
    """The weight where it lies; None while it is in the machine's memory only."""
    swap: Swap | None
    number: int

    @classmethod
    def adopt(cls, layer: nn.Linear, storage: Storage | None, device: torch.device) -> FrozenLinear:
        """Store the weight of a layer and move it to `device`. The weight is no parameter of the layer any more."""
        weight = layer.weight.detach()
        del layer.weight
        layer.__class__ = cls
        assert isinstance(layer, FrozenLinear)
        layer.stored, layer.swap, layer.number = Stored.of(weight, storage).to(device), None, 0
        if layer.bias is not None:
            layer.bias.data = layer.bias.data.to(device)
        return layer

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight [out, in] in the type of the layer. It may be computed from its storage and fetched for this."""
        if self.swap is not None:
            self.swap.visit(self.number)
        assert self.stored is not None
        return self.stored.weight()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
        return y


class _Product(torch.autograd.Function):
    """x Wᵀ + b for a `FrozenLinear`. It saves no tensors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenLinear) -> Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype
        return functional.linear(x, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        rows = gradient.reshape(-1, gradient.shape[-1]) @ ctx.layer.weight.to(gradient.dtype)
        return rows.reshape(*gradient.shape[:-1], -1).to(ctx.dtype), None


class Swap:
    """Blocks whose weights are in the machine's memory, and on the device one after another.

    At most two of them are on the device: the block that computes, and the one that follows in the present direction,
    which is copied meanwhile. The direction is forward, and in the backward pass back.
    """

    def __init__(self, blocks: Sequence[Sequence[FrozenLinear]], device: torch.device) -> None:
        self.blocks, self.device = blocks, device
        self.current = -1
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._arrived: dict[int, Any] = {}
        self._homes: list[list[Stored]] = []
        for number, block in enumerate(blocks):
            homes = []
            for layer in block:
                assert layer.stored is not None
                homes.append(layer.stored.pinned() if self._stream else layer.stored)
                layer.stored, layer.swap, layer.number = None, self, number
            self._homes.append(homes)

    @property
    def host_bytes(self) -> int:
        """The bytes of the weights in the machine's memory."""
        return sum(home.nbytes for homes in self._homes for home in homes)

    @property
    def on_device(self) -> tuple[int, ...]:
        """The blocks that are on the device, or on their way."""
        return tuple(self._arrived)

    def visit(self, number: int) -> None:
        """Have the weights of a block on the device, start to copy those of the next one, and release all others."""
        if number == self.current:
            return
        step = 1 if number > self.current else -1
        following = number + step if 0 <= number + step < len(self.blocks) else number - step
        for other in [other for other in self._arrived if other not in (number, following)]:
            self._release(other)
        self._fetch(number)
        if self._stream is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(self._arrived[number])
            for layer in self.blocks[number]:
                for tensor in layer.stored.tensors() if layer.stored else ():
                    tensor.record_stream(stream)
        self.current = number
        if 0 <= following < len(self.blocks):
            self._fetch(following)

    def _fetch(self, number: int) -> None:
        if number in self._arrived:
            return
        with torch.cuda.stream(self._stream):  # does nothing for None
            for layer, home in zip(self.blocks[number], self._homes[number], strict=True):
                layer.stored = home.to(self.device, copy=True)
            self._arrived[number] = self._stream.record_event() if self._stream else None

    def _release(self, number: int) -> None:
        for layer in self.blocks[number]:
            layer.stored = None
        del self._arrived[number]


def place(
    model: nn.Module, blocks: Sequence[nn.Module], device: torch.device, *, storage: Storage | None, swapped: int
) -> Swap | None:
    """Store the frozen linear layers of the blocks, and move the model to `device`. Returns the swap, if there is one.

    model: on the CPU, with its adapter attached; trained layers stay as they are. storage: None for weights as they
    are. swapped: the number of blocks whose weights stay in the machine's memory; they are the last ones.
    """
    kept = len(blocks) - min(swapped, len(blocks))
    away: list[list[FrozenLinear]] = []
    for number, block in enumerate(blocks):
        target = device if number < kept else torch.device("cpu") if device.type != "meta" else device
        layers = [FrozenLinear.adopt(layer, storage, target) for layer in _frozen(block)]
        if number >= kept:
            away.append(layers)
    model.to(device)
    return Swap(away, device) if away else None


def offloading(block: nn.Module, *arguments: Any) -> Any:
    """Run a block with gradient checkpointing, and keep its input, the first argument, in the machine's memory.

    The other arguments belong to all blocks and stay where they are. On the meta device, the input is not kept.
    """
    x = weakref.ref(arguments[0])  # the hooks live until the backward pass, and x must not

    def pack(tensor: Tensor) -> Any:
        given = x()
        if given is None or tensor.untyped_storage() is not given.untyped_storage() or tensor.shape != given.shape:
            return tensor
        if tensor.is_meta:
            return tensor.device, tensor.shape, tensor.dtype
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return tensor.device, host.copy_(tensor, non_blocking=True)

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        device, kept, *dtype = packed
        if dtype:
            return torch.empty(kept, device=device, dtype=dtype[0])
        moved: Tensor = kept.to(device, non_blocking=True, copy=True)
        return moved

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return checkpoint(block, *arguments, use_reentrant=False)


def _frozen(block: nn.Module) -> list[nn.Linear]:
    """Return the linear layers of a block that do not learn, without those of adapters."""
    bases = {id(m.get_base_layer()) for m in block.modules() if isinstance(m, LoraLayer)}
    return [
        layer
        for name, layer in block.named_modules()
        if isinstance(layer, nn.Linear)
        and (id(layer) in bases or not any(part in name for part in (".lora_A", ".lora_B")))
        and not layer.weight.requires_grad
    ]
