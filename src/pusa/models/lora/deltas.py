"""Differences of whole parameters, which some LoRA files contain besides factors. Their strength can change.

The weight of a linear layer does not change. A hook adds x D^T + d to the output of the layer, so the weight may be
stored in fp8, GGUF or int8. Any other parameter (of a norm, a modulation table, the patch embedding) becomes
original + sum of strength * difference. This sum always starts from the original, in float32, so no difference is added
twice. If no difference is left, the original is restored bit for bit.
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
"""The attribute of a model in which its differences are stored."""


class Differences:
    """All differences of one model: {parameter: difference} and a strength for each adapter that has differences."""

    def __init__(self) -> None:
        self._sets: dict[str, tuple[float, Mapping[str, Tensor]]] = {}
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

    def put(self, model: nn.Module, name: str, differences: Mapping[str, Tensor], scale: float) -> None:
        """Set the differences of the adapter `name`. InputError if one cannot be added to its parameter."""
        check(model, differences)
        self.remove(model, name)
        if differences:
            self._sets[name] = scale, differences
            self._apply(model, differences)

    def scale(self, model: nn.Module, name: str, scale: float) -> None:
        """Change the strength of an adapter's differences, if it has any."""
        if name in self._sets:
            _, differences = self._sets[name]
            self._sets[name] = scale, differences
            self._apply(model, differences)

    def remove(self, model: nn.Module, name: str) -> None:
        """Remove the differences of an adapter, if it has any."""
        if name in self._sets:
            _, differences = self._sets.pop(name)
            self._apply(model, differences)

    def _apply(self, model: nn.Module, parameters: Iterable[str]) -> None:
        """Update the hooks and values of these parameters to the current differences and strengths."""
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
        """Return (strength, difference) of each adapter that changes this parameter."""
        return [
            (scale, differences[parameter])
            for scale, differences in self._sets.values()
            if scale and parameter in differences
        ]


class _Addition:
    """A forward hook of a linear layer, which adds x D^T + d. D and d are the sums for weight and bias."""

    def __init__(self, weights: list[tuple[float, Tensor]], biases: list[tuple[float, Tensor]]) -> None:
        self._weights, self._biases = weights, biases
        self._ready: tuple[Tensor | None, Tensor | None] = None, None

    def __call__(self, layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        cached = next((total for total in self._ready if total is not None), None)
        if cached is None or (cached.device, cached.dtype) != (output.device, output.dtype):
            self._ready = tuple(  # type: ignore[assignment]
                _total(terms, output.device, torch.float32).to(output.dtype) if terms else None
                for terms in (self._weights, self._biases)
            )
        weight, bias = self._ready
        if weight is not None:
            return output + functional.linear(arguments[0].to(output.dtype), weight, bias)
        return output if bias is None else output + bias


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
    scaled = (scale * value.to(device, dtype) for scale, value in terms)
    return functools.reduce(torch.add, scaled)
