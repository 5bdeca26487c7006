"""DoRA (arXiv 2402.09353): the changed weight gets the lengths of the file, by rows or by columns.

W' = m (W + dW) / |W + dW|. |.| is the length of each row (PEFT, and LyCORIS with `wd_on_out`) or of each column. So
W' depends on the weights of the model. At strength s the weight is W + s (W' - W), as in ComfyUI: s = 0 is the model
without the LoRA, and s = 1 is the trained weight. (At other strengths PEFT and LyCORIS each have another rule.)

With g = m / |W + dW|, the change of a row is (g - 1) W + g dW. Only g has to be stored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from pusa.errors import InputError
from pusa.models.lora.dialects import Changes


@dataclass(frozen=True)
class Gain:
    """The relative change of each row [out] or column [in] of a weight, float32: g - 1. One of the two is None."""

    rows: Tensor | None = None
    columns: Tensor | None = None


def resolve(model: nn.Module, changes: Changes) -> tuple[Changes, dict[str, Gain]]:
    """Return the changes for the weights of this model without magnitudes, and the gain of each linear layer.

    Raises InputError for a weight whose numbers are not in memory.
    """
    if not changes.magnitudes:
        return changes, {}
    factors, products = dict(changes.factors), dict(changes.products)
    differences, gains = dict(changes.differences), {}
    for module, magnitude in changes.magnitudes.items():
        weight = weight_of(model, module)
        grown = gain(weight, step(changes, module), magnitude).cpu()
        parameter = f"{module}.weight"
        if weight.ndim > 2:
            change = differences[parameter].to(weight).float()
            differences[parameter] = ((weight + change) * grown.to(weight) - weight).cpu()
            continue
        by_rows, flat = len(grown) == len(weight), grown.flatten()
        gains[module] = Gain(rows=flat - 1) if by_rows else Gain(columns=flat - 1)
        if module in factors:
            down, up = (value.float() for value in factors[module])
            factors[module] = (down, up * grown) if by_rows else (down * grown, up)
        elif by_rows:
            products[module] = replace(products[module], rows=flat)
        else:
            products[module] = replace(products[module], columns=flat)
    return replace(changes, factors=factors, products=products, differences=differences, magnitudes={}), gains


def change_of(changes: Changes, parameter: str, weight: Tensor) -> Tensor | None:
    """Return what a LoRA adds to a parameter at strength 1, float32, or None. weight: the value of the parameter."""
    module = parameter.removesuffix(".weight")
    if module in changes.factors or module in changes.products:
        change = step(changes, module)
    elif parameter in changes.differences:
        change = changes.differences[parameter].float()
    else:
        return None
    if module not in changes.magnitudes:
        return change
    base = weight.float()
    return (base + change.to(base)) * gain(base, change, changes.magnitudes[module]) - base


def step(changes: Changes, module: str) -> Tensor:
    """Return the change of the weight of a module before the magnitudes, in the shape of the weight."""
    if module in changes.factors:
        down, up = changes.factors[module]
        return up.float() @ down.float()
    if module in changes.products:
        return changes.products[module].difference()
    return changes.differences[f"{module}.weight"].float()


def gain(weight: Tensor, change: Tensor, magnitude: Tensor) -> Tensor:
    """Return g = m / |W + dW| in the shape of the magnitude, float32. weight: float32."""
    changed = weight + change.to(weight)
    kept = 0 if magnitude.shape[1] == 1 else 1
    others = [axis for axis in range(weight.ndim) if axis != kept]
    length = torch.linalg.vector_norm(changed, dim=others, keepdim=True)
    grown: Tensor = magnitude.to(weight) / (length + torch.finfo(torch.float32).eps)
    return grown


def weight_of(model: nn.Module, module: str) -> Tensor:
    """Return the weight that a layer computes with, float32. InputError if its numbers are not in memory."""
    layer = model.get_submodule(module)
    base: Any = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
    weight: Any = base.weight.detach()
    if weight.is_meta:
        raise InputError(
            f"{module}.weight is on the disk, so a DoRA cannot be added: give it when the model is loaded."
        )
    if hasattr(base.weight, "quant_type"):  # GGUF
        from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

        weight = dequantize_gguf_tensor(base.weight).as_subclass(Tensor)
    elif type(weight) is not Tensor and hasattr(weight, "dequantize"):  # torchao
        weight = weight.dequantize()
    if not weight.is_floating_point():
        kind = str(weight.dtype).removeprefix("torch.")
        raise InputError(
            f"{module}.weight is stored as {kind}, whose numbers a DoRA cannot use: load the model in bfloat16, fp8 or "
            "GGUF."
        )
    numbers: Tensor = weight.float()
    return numbers
