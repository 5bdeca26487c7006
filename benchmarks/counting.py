"""Count what a piece of work does: operations, bytes and seconds, in all and by part of a model.

`Counter` sees every operation of torch that runs inside it, forward and backward.

* flops: two for a multiplication with its addition, of matrix products, convolutions and attention, as in
  `torch.utils.flop_counter`.
* moved: bytes that the operations read and write. A view moves nothing.
* allocated: bytes of new tensors. The counter also has `peak`: the most of them that lived at once.
* least: bytes that would be moved if each run of neighbouring operations of one part were a single pass, which reads
  its inputs once and writes once what a later part reads.
* launches: operations that are not views.
* seconds: time inside the operations. What Python does between them is not in it.

`torch.profiler` has times, but neither the bytes nor the part of the model to which an operation belongs.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# private, as is _overloadpacket below; tests/benchmarks/test_counting.py fails when they move
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, flop_registry

PartOf = Callable[[Sequence[tuple[str, nn.Module]], str], str]
"""part_of(modules, operation): the part of a model to which an operation belongs.

modules: the names and modules inside whose forward it runs, from the outermost. operation: its name, such as `aten.mm`.
"""


@dataclass
class Counts:
    """See the docstring of the module."""

    flops: int = 0
    moved: int = 0
    allocated: int = 0
    least: int = 0
    launches: int = 0
    seconds: float = 0.0


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what runs in `count`: `Counter(model, kind_in_wan).count(run).parts`.

    Not for inference mode, in which a linear layer or attention arrives here before it is split into known operations.


    finish: waits for the device, so that the seconds are those of the operations and not those of their start.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        part_of: PartOf = lambda modules, operation: "everything",
        finish: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parts: dict[str, Counts] = {}
        self._model, self._part_of, self._finish = model, part_of, finish
        self._modules: list[tuple[str, nn.Module]] = []
        self._made: dict[int, tuple[int, str, int]] = {}  # storage -> the run that made it, its part, its bytes
        self._run, self._part, self._seen = 0, "", set[int]()
        self.peak = self._live = 0

    @property
    def total(self) -> Counts:
        sums = Counts()
        for counts in self.parts.values():
            for name, value in vars(counts).items():
                setattr(sums, name, getattr(sums, name) + value)
        return sums

    def count(self, run: Callable[[], Any]) -> Counter:
        """Run it and count; return the counter."""
        with _followed(self._model, self._modules), self:
            run()
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._finish()
        started = time.perf_counter()
        out = func(*args, **kwargs)
        self._finish()
        seconds = time.perf_counter() - started
        given = {id(t.untyped_storage()): t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = {id(t.untyped_storage()): t for t in tree_leaves(out) if isinstance(t, Tensor)}
        fresh = [t for key, t in made.items() if key not in given]
        name = str(func._overloadpacket)
        part = self._part_of(self._modules, name)
        counts = self.parts.setdefault(part, Counts())
        counts.seconds += seconds
        if not fresh and not func._schema.is_mutable:
            return out  # a view
        counts.launches += 1
        counts.flops += flops(func, args, kwargs, out)
        read = sum(map(_bytes, given.values()))
        allocated = sum(t.untyped_storage().nbytes() for t in fresh)
        written = allocated if fresh else max((_bytes(t) for t in made.values()), default=0)
        counts.allocated += allocated
        counts.moved += read + written
        self._follow(part, counts, given, fresh)
        return out

    def _follow(self, part: str, counts: Counts, given: dict[int, Tensor], fresh: list[Tensor]) -> None:
        """Count `least`: what this run of operations reads from outside, and what earlier runs therefore wrote."""
        if part != self._part:
            self._run, self._part, self._seen = self._run + 1, part, set()
        for key, tensor in given.items():
            maker = self._made.get(key)
            if key in self._seen or (maker and maker[0] == self._run):
                continue
            self._seen.add(key)
            counts.least += _bytes(tensor)
            if maker and maker[2]:
                self.parts[maker[1]].least += maker[2]
                self._made[key] = (maker[0], maker[1], 0)
        for tensor in fresh:
            storage = tensor.untyped_storage()
            self._made[id(storage)] = (self._run, part, storage.nbytes())
            self._live += storage.nbytes()
            self.peak = max(self.peak, self._live)
            weakref.finalize(storage, self._release, id(storage), storage.nbytes())

    def _release(self, key: int, size: int) -> None:
        self._made.pop(key, None)
        self._live -= size


def flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Return the operations of a call. Those of attention and of oneDNN on a CPU are not in the registry of torch."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    if func._overloadpacket in (attention, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward):
        backward = func._overloadpacket is not attention
        query, key, value = args[1:4] if backward else args[:3]
        scores = query[..., 0].numel() * key.shape[-2]
        return int((5 if backward else 2) * scores * (query.shape[-1] + value.shape[-1]))
    if func._overloadpacket is torch.ops.aten.mkldnn_convolution:
        x, weight = args[:2]
        return conv_flop_count(x.shape, weight.shape, out.shape)
    formula = flop_registry.get(func._overloadpacket)
    return int(formula(*args, **kwargs, out_val=out)) if formula else 0


def _bytes(tensor: Tensor) -> int:
    """Bytes of the tensor's values; a value that stands for many by a stride of 0 counts once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


@contextmanager
def _followed(model: nn.Module | None, stack: list[tuple[str, nn.Module]]) -> Iterator[None]:
    """Inside the block, `stack` has the modules of `model` whose forward runs."""
    hooks = []
    for name, module in model.named_modules() if model is not None else ():
        hooks.append(module.register_forward_pre_hook(lambda m, _, name=name: stack.append((name, m))))
        hooks.append(module.register_forward_hook(lambda *_: _popped(stack), always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _popped(stack: list[Any]) -> None:
    stack.pop()


KINDS = ("linear layers", "attention", "norms and modulation", "rotary embedding", "GELU", "text", "the rest")


def kind_in_wan(modules: Sequence[tuple[str, nn.Module]], operation: str) -> str:
    """Return the kind, of `KINDS`, of an operation in a `WanTransformer3DModel`; a `PartOf`.

    The text is its embedder and its keys and values of the cross-attention. The rest is what stands outside the blocks.
    """
    if "scaled_dot_product" in operation or operation.startswith(
        ("aten._flash_attention", "aten._efficient_attention")
    ):
        return "attention"
    name, module = modules[-1] if modules else ("", nn.Identity())
    names = [name for name, _ in modules]
    if any(part in name for name in names for part in ("text_embedder", "attn2.to_k", "attn2.to_v", "attn2.norm_k")):
        return "text"
    block = any(name.startswith("blocks.") for name in names)
    if block and isinstance(module, nn.Linear):
        return "linear layers"
    if block and "attn" in name.rsplit(".", 1)[-1]:
        return "rotary embedding" if name.endswith("attn1") else "attention"
    if block and type(module).__name__.endswith("GELU"):
        return "GELU"
    return "norms and modulation" if block or "norm_out" in name else "the rest"


def kind_in_autoencoder(modules: Sequence[tuple[str, nn.Module]], operation: str) -> str:
    """Return the kind of an operation of an autoencoder, by the operation alone; a `PartOf`."""
    kinds = {
        "convolutions": ("convolution",),
        "padding and joining": ("pad", "cat", "clone", "copy", "slice", "fill"),
        "SiLU": ("silu",),
        "upsampling": ("upsample",),
        "attention": ("scaled_dot_product",),
    }
    return next(
        (kind for kind, names in kinds.items() if any(name in operation for name in names)), "norms and the rest"
    )
