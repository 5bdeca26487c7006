"""Differences of whole parameters, at a strength that may change and leave again: what a LoRA cannot say with factors.

A linear layer is never touched: its differences are added to what it says, so its weights may be stored in fp8, GGUF or
int8. Any other parameter (a norm, a table, the patch embedding) becomes original + sum of strength * difference. That
sum is always formed anew from the original, in float32, so nothing is ever added twice; when no strength is left, the
original is put back bit for bit.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from pusa.errors import InputError

_KEPT = "pusa_differences"
"""The attribute of a model that keeps its differences."""


class Differences:
    """All differences of one model: for each adapter that has some, a set {parameter: difference} and its strength."""

    def __init__(self) -> None:
        self._sets: dict[str, tuple[float, Mapping[str, Tensor]]] = {}
        self._originals: dict[str, Tensor] = {}
        self._handles: dict[str, RemovableHandle] = {}

    @classmethod
    def of(cls, model: nn.Module) -> Differences:
        """Those of a model, which has none at first."""
        if _KEPT not in vars(model):
            vars(model)[_KEPT] = cls()
        kept = vars(model)[_KEPT]
        assert isinstance(kept, cls)
        return kept

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters that have differences."""
        return tuple(self._sets)

    def put(self, model: nn.Module, name: str, differences: Mapping[str, Tensor], scale: float) -> None:
        """Add a set, or replace the one of that name; InputError when a parameter's numbers cannot be added to."""
        check(model, differences)
        self.remove(model, name)
        if differences:
            self._sets[name] = scale, differences
            self._apply(model, differences)

    def scale(self, model: nn.Module, name: str, scale: float) -> None:
        """Change the strength of a set; nothing where there is none of that name."""
        if name in self._sets:
            _, differences = self._sets[name]
            self._sets[name] = scale, differences
            self._apply(model, differences)

    def remove(self, model: nn.Module, name: str) -> None:
        """Take a set out; nothing where there is none of that name."""
        if name in self._sets:
            _, differences = self._sets.pop(name)
            self._apply(model, differences)

    def _apply(self, model: nn.Module, parameters: Iterable[str]) -> None:
        """Make everything that these parameters belong to say what the present sets and strengths come to."""
        for module in dict.fromkeys(_place(model, parameter)[0] for parameter in parameters):
            if handle := self._handles.pop(module, None):
                handle.remove()
            layer = _layer(model, module)
            if isinstance(layer, nn.Linear):
                weights, biases = self._terms(f"{module}.weight"), self._terms(f"{module}.bias")
                if weights or biases:
                    self._handles[module] = layer.register_forward_hook(_Addition(weights, biases))
        for parameter in parameters:
            module, kind = _place(model, parameter)
            layer = _layer(model, module)
            if not isinstance(layer, nn.Linear):
                self._set(parameter, getattr(layer, kind))

    @torch.no_grad()
    def _set(self, parameter: str, value: Tensor) -> None:
        original = self._originals.setdefault(parameter, value.detach().clone())
        if terms := self._terms(parameter):
            wide = torch.promote_types(value.dtype, torch.float32)
            value.copy_(original.to(wide) + _total(terms, original.device, wide))
        else:
            value.copy_(self._originals.pop(parameter))

    def _terms(self, parameter: str) -> list[tuple[float, Tensor]]:
        """(strength, difference) of each set that has one of this parameter."""
        return [
            (scale, differences[parameter])
            for scale, differences in self._sets.values()
            if scale and parameter in differences
        ]


class _Addition:
    """A forward hook of a linear layer, which adds x D^T + d for the totals D of weights and d of biases."""

    def __init__(self, weights: list[tuple[float, Tensor]], biases: list[tuple[float, Tensor]]) -> None:
        self._weights, self._biases = weights, biases
        self._ready: tuple[Tensor | None, Tensor | None] = None, None

    def __call__(self, layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        made = next((total for total in self._ready if total is not None), None)
        if made is None or (made.device, made.dtype) != (output.device, output.dtype):
            self._ready = tuple(  # type: ignore[assignment]
                _total(terms, output.device, torch.float32).to(output.dtype) if terms else None
                for terms in (self._weights, self._biases)
            )
        weight, bias = self._ready
        if weight is not None:
            return output + functional.linear(arguments[0].to(output.dtype), weight, bias)
        return output if bias is None else output + bias


def check(model: nn.Module, parameters: Iterable[str]) -> None:
    """InputError unless something can be added to each of these parameters."""
    for parameter in parameters:
        module, kind = _place(model, parameter)
        layer = _layer(model, module)
        value = getattr(layer, kind)
        if isinstance(layer, nn.Linear):
            continue
        if not value.is_floating_point() or value.element_size() == 1 or value.is_meta:
            where = "on disk" if value.is_meta else f"as {str(value.dtype).removeprefix('torch.')}"
            raise InputError(
                f"{parameter} is kept {where}, so that the difference which the LoRA has for it cannot be added: load "
                "the model with all but its linear layers in bfloat16 or float32, and in memory."
            )


def _place(model: nn.Module, parameter: str) -> tuple[str, str]:
    """The module that has a parameter, and what it calls it."""
    module, _, kind = parameter.rpartition(".")
    return module, kind


def _layer(model: nn.Module, module: str) -> nn.Module:
    """A module, or the layer inside the adapter that wraps it."""
    layer = model.get_submodule(module)
    base = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
    assert isinstance(base, nn.Module)
    return base


def _total(terms: Iterable[tuple[float, Tensor]], device: torch.device, dtype: torch.dtype) -> Tensor:
    """The sum of strength * difference."""
    scaled = (scale * value.to(device, dtype) for scale, value in terms)
    return functools.reduce(torch.add, scaled)
