"""The names of Wan's weights: in diffusers, in Wan's own code and ComfyUI, and in the files of trainers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from diffusers import WanTransformer3DModel
from peft.tuners.lora import LoraLayer
from torch import nn

Shapes = Mapping[str, tuple[int | None, ...]]
"""{parameter: its shape} of a diffusers model. A linear layer's is [out, in], and an unknown length is None."""

_FLAT = ("lora_unet_", "lora_unet__", "lora_transformer_", "lycoris_")
"""What kohya's programs and LyCORIS put before a name, in which they replace each dot by an underscore."""
_ORIGINAL = (
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"_attn\.to_([qkv])$", r"_attn.\1"),
    (r"_attn\.to_out\.0$", "_attn.o"),
    (r"\.ffn\.net\.0\.proj$", ".ffn.0"),
    (r"\.ffn\.net\.2$", ".ffn.2"),
    (r"^(blocks\.\d+)\.norm2$", r"\1.norm3"),
    (r"^(blocks\.\d+)\.scale_shift_table$", r"\1.modulation"),
    (r"^scale_shift_table$", "head.modulation"),
    (r"^condition_embedder\.time_embedder\.linear_1$", "time_embedding.0"),
    (r"^condition_embedder\.time_embedder\.linear_2$", "time_embedding.2"),
    (r"^condition_embedder\.time_proj$", "time_projection.1"),
    (r"^condition_embedder\.text_embedder\.linear_1$", "text_embedding.0"),
    (r"^condition_embedder\.text_embedder\.linear_2$", "text_embedding.2"),
    (r"^proj_out$", "head.head"),
)


def original_name(module: str) -> str:
    """Return the name of a diffusers module or modulation table in Wan's own code, which ComfyUI uses, too."""
    for pattern, replacement in _ORIGINAL:
        module = re.sub(pattern, replacement, module)
    return module


def every_name(shapes: Shapes) -> dict[str, str]:
    """Return {name: diffusers name} for every name that a file may have for a module or modulation table."""
    names: dict[str, str] = {}
    for parameter in shapes:
        module = _owner(parameter)
        for known in (module, original_name(module)):
            names[known] = module
            names |= {prefix + known.replace(".", "_"): module for prefix in _FLAT}
            if known.endswith(".to_out.0"):  # as the attention processors of old diffusers name it
                names[known.removesuffix(".0")] = module
    return names


def _owner(parameter: str) -> str:
    """Return the module of a weight or bias. A modulation table, which has no module, keeps its name."""
    return parameter.removesuffix(".weight").removesuffix(".bias")


def parameter_shapes(model: nn.Module) -> Shapes:
    """Return the shapes of a model's parameters without those of adapters, as if none of them were quantised."""
    shapes: dict[str, tuple[int | None, ...]] = {}
    for module, layer in model.named_modules():
        if ".base_layer" in module or ".lora_" in module:
            continue
        base = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
        for name, value in base.named_parameters(module, recurse=False):
            shapes[name] = tuple(value.shape)
        if isinstance(base, nn.Linear):
            shapes[f"{module}.weight"] = (base.out_features, base.in_features)
            if base.bias is not None:
                shapes[f"{module}.bias"] = (base.out_features,)
    return shapes


def wan_shapes(keys: Iterable[str]) -> Shapes:
    """Return the parameters of a Wan of unknown size, with the blocks that occur in the keys of a file."""
    numbers = {match[1] for key in keys if (match := re.search(r"(?:^|[._])blocks[._](\d{1,4})[._]", key))}
    with torch.device("meta"):
        one = parameter_shapes(WanTransformer3DModel(num_layers=1))
    return {
        name.replace("blocks.0.", f"blocks.{number}."): (None,) * len(shape)
        for name, shape in one.items()
        for number in (sorted(numbers, key=int) if name.startswith("blocks.0.") else ("0",))
    }
