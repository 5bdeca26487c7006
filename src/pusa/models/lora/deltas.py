"""Changes of a model besides factors: whole parameters, products of LoHa and LoKr, gains of DoRA. Strengths can change.

The weight of a linear layer does not change. A hook adds x D^T + d to the output of the layer, so the weight may be
stored in fp8, GGUF or int8. D is a stored difference, or a product that is computed when the layer runs. A gain of DoRA
adds the output of the layer times the relative change of each row, or the output for an input that is multiplied by the
relative change of each column.

Any other parameter (of a norm, a modulation table, the patch embedding) becomes original + sum of strength *
difference. This sum always starts from the original, in float32, so no difference is added twice. If no difference is
left, the original is restored bit for bit.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from pusa.errors import InputError
from pusa.models.lora.magnitudes import Gain
from pusa.models.lora.products import Product

T = TypeVar("T")
_KEPT = "pusa_differences"
"""The attribute of a model in which its differences are stored."""


@dataclass(frozen=True)
class Additions:
    """The changes of one adapter at strength 1. whole: {parameter: difference}. products, gains: by linear layer."""

    whole: Mapping[str, Tensor]
    products: Mapping[str, Product] = field(default_factory=dict)
    gains: Mapping[str, Gain] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.whole or self.products or self.gains)


class Differences:
    """All such changes of one model: the additions and the strength of each adapter that has some."""

    def __init__(self) -> None:
        self._sets: dict[str, tuple[float, Additions]] = {}
        self._originals: dict[str, Tensor] = {}
        self._handles: dict[str, RemovableHandle] = {}

    @classmethod
    def of(cls, model: nn.Module) -> Differences:
        """Return the differences of a model, which are empty at first."""
        if _KEPT not in vars(model):
            vars(model)[_KEPT] = cls()
        kept = vars(model)[_KEPT]
        assert isinstance(kept, cls)
        return kept

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters that have differences."""
        return tuple(self._sets)

    def put(self, model: nn.Module, name: str, additions: Additions, scale: float) -> None:
        """Set the changes of the adapter `name`. InputError if one cannot be added to its parameter."""
        check(model, additions.whole)
        self.remove(model, name)
        if additions:
            self._sets[name] = scale, additions
            self._apply(model, additions)

    def scale(self, model: nn.Module, name: str, scale: float) -> None:
        """Change the strength of an adapter's differences, if it has any."""
        if name in self._sets:
            _, additions = self._sets[name]
            self._sets[name] = scale, additions
            self._apply(model, additions)

    def remove(self, model: nn.Module, name: str) -> None:
        """Remove the differences of an adapter, if it has any."""
        if name in self._sets:
            _, additions = self._sets.pop(name)
            self._apply(model, additions)

    def _apply(self, model: nn.Module, changed: Additions) -> None:
        """Update the hooks and values of what these additions change to the current additions and strengths."""
        modules = [_place(model, parameter)[0] for parameter in changed.whole]
        for module in dict.fromkeys([*modules, *changed.products, *changed.gains]):
            if handle := self._handles.pop(module, None):
                handle.remove()
            layer = _layer(model, module)
            if isinstance(layer, nn.Linear):
                addition = _Addition(
                    self._terms({key: one.whole for key, (_, one) in self._sets.items()}, f"{module}.weight"),
                    self._terms({key: one.whole for key, (_, one) in self._sets.items()}, f"{module}.bias"),
                    self._terms({key: one.products for key, (_, one) in self._sets.items()}, module),
                    self._terms({key: one.gains for key, (_, one) in self._sets.items()}, module),
                )
                if addition:
                    self._handles[module] = layer.register_forward_hook(addition)
        for parameter in changed.whole:
            module, kind = _place(model, parameter)
            layer = _layer(model, module)
            if not isinstance(layer, nn.Linear):
                self._set(parameter, getattr(layer, kind))

    @torch.no_grad()
    def _set(self, parameter: str, value: Tensor) -> None:
        original = self._originals.setdefault(parameter, value.detach().clone())
        if terms := self._terms({key: one.whole for key, (_, one) in self._sets.items()}, parameter):
            wide = torch.promote_types(value.dtype, torch.float32)
            value.copy_(original.to(wide) + _total(terms, original.device, wide))
        else:
            value.copy_(self._originals.pop(parameter))

    def _terms(self, values: Mapping[str, Mapping[str, T]], place: str) -> list[tuple[float, T]]:
        """Return (strength, value) of each adapter that changes this place. values: {adapter: {place: value}}."""
        return [(self._sets[name][0], of[place]) for name, of in values.items() if self._sets[name][0] and place in of]


class _Addition:
    """A forward hook of a linear layer. Each argument is a list of (strength, value)."""

    def __init__(
        self,
        weights: list[tuple[float, Tensor]],
        biases: list[tuple[float, Tensor]],
        products: list[tuple[float, Product]],
        gains: list[tuple[float, Gain]],
    ) -> None:
        self._weights, self._biases, self._products = weights, biases, products
        self._rows = [(scale, gain.rows) for scale, gain in gains if gain.rows is not None]
        self._columns = [(scale, gain.columns) for scale, gain in gains if gain.columns is not None]
        self._ready: _Ready | None = None

    def __bool__(self) -> bool:
        return bool(self._weights or self._biases or self._products or self._rows or self._columns)

    def __call__(self, layer: nn.Linear, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self._ready is None or (self._ready.device, self._ready.dtype) != (output.device, output.dtype):
            self._ready = self._prepare(output.device, output.dtype)
        ready, result, x = self._ready, output, arguments[0].to(output.dtype)
        bias = None if layer.bias is None else layer.bias.to(output)
        if ready.rows is not None:
            result = result + (output if bias is None else output - bias) * ready.rows
        if ready.columns is not None:
            scaled = layer.forward(x * ready.columns)  # without this hook
            result = result + (scaled if bias is None else scaled - bias)
        for scale, product in ready.products:
            changes = (functional.linear(x, (scale * rows).to(output.dtype)) for rows in product.by_rows())
            result = result + torch.cat(list(changes), dim=-1)
        if ready.weight is not None:
            return result + functional.linear(x, ready.weight, ready.bias)
        return result if ready.bias is None else result + ready.bias

    def _prepare(self, device: torch.device, dtype: torch.dtype) -> _Ready:
        sums = (self._weights, self._biases, self._rows, self._columns)
        weight, bias, rows, columns = (
            _total(terms, device, torch.float32).to(dtype) if terms else None for terms in sums
        )
        products = [(scale, product.to(device)) for scale, product in self._products]
        return _Ready(device, dtype, weight, bias, rows, columns, products)


@dataclass(frozen=True)
class _Ready:
    """The sums of the terms of a hook on the device and in the type of the layer's output."""

    device: torch.device
    dtype: torch.dtype
    weight: Tensor | None
    bias: Tensor | None
    rows: Tensor | None
    columns: Tensor | None
    products: list[tuple[float, Product]]


def check(model: nn.Module, parameters: Iterable[str]) -> None:
    """Raise InputError unless a difference can be added to each of these parameters."""
    for parameter in parameters:
        module, kind = _place(model, parameter)
        layer = _layer(model, module)
        value = getattr(layer, kind)
        if isinstance(layer, nn.Linear):
            continue
        if not value.is_floating_point() or value.element_size() == 1 or value.is_meta:
            where = "on disk" if value.is_meta else f"as {str(value.dtype).removeprefix('torch.')}"
            raise InputError(
                f"{parameter} is stored {where}, so the LoRA cannot change it: load the model in memory, with all "
                "layers except linear ones in bfloat16 or float32."
            )


def _place(model: nn.Module, parameter: str) -> tuple[str, str]:
    """Return the names of a parameter's module and of the parameter in it."""
    module, _, kind = parameter.rpartition(".")
    return module, kind


def _layer(model: nn.Module, module: str) -> nn.Module:
    """Return a module, or the base layer of the LoRA layer that wraps it."""
    layer = model.get_submodule(module)
    base = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
    assert isinstance(base, nn.Module)
    return base


def _total(terms: Iterable[tuple[float, Tensor]], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the sum of strength * difference."""
    return _sum(scale * value.to(device, dtype) for scale, value in terms)


def _sum(values: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, values)
