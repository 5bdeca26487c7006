"""What is trained, and how it is written down: a LoRA on a frozen base, or every weight of the transformer.

Trained numbers are float32 whatever the base is stored in, and have one name each; optimiser, averages, checkpoints
and several processes all speak of them by that name.
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from pusa.errors import InputError
from pusa.models.lora import runtime
from pusa.models.wan.transformer import VectorWanTransformer3DModel

ADAPTER = "pusa"
LORA_FILE, FULL_FOLDER = "lora.safetensors", "transformer"


@dataclass(frozen=True)
class Adaptation:
    """The trained part of a transformer. parameters: by name; dtypes: what each was stored in when it came."""

    transformer: VectorWanTransformer3DModel
    is_lora: bool
    dtypes: Mapping[str, torch.dtype]

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Looked up anew each time, since sharding replaces them."""
        return {name: p for name, p in self.transformer.named_parameters() if p.requires_grad}

    def write(self, folder: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Path:
        """Write whole `weights` as `lora.safetensors` or as a `transformer` folder that stock diffusers loads."""
        if self.is_lora:
            path = folder / LORA_FILE
            runtime.save(self.transformer, path, metadata, name=ADAPTER, weights=weights)
            return path
        with torch.device("meta"):
            plain = VectorWanTransformer3DModel.from_config(dict(self.transformer.config))
        plain.load_state_dict({k: v.to(self.dtypes[k]) for k, v in weights.items()}, strict=True, assign=True)
        place, part = folder / FULL_FOLDER, folder / f".{FULL_FOLDER}.part"
        shutil.rmtree(part, ignore_errors=True)
        plain.save_pretrained(part)
        shutil.rmtree(place, ignore_errors=True)
        return part.rename(place)


def adapt(transformer: VectorWanTransformer3DModel, settings: Any, seed: int) -> Adaptation:
    """Make the transformer trainable: a new LoRA as `settings` (`Config.lora`) say, or all of it where they are None.

    The first factor of a LoRA is drawn from `seed`, the second is zero, so that training begins at the base itself.
    """
    if getattr(transformer, "peft_config", {}):
        raise InputError(
            f"The model already carries the LoRA {', '.join(transformer.peft_config)}: train on the bare model."
        )
    if settings is None:
        return _adapt_all(transformer)
    transformer.requires_grad_(False)
    _check_targets(transformer, settings.targets)
    alpha = settings.rank if settings.alpha is None else settings.alpha
    config = LoraConfig(
        r=settings.rank, lora_alpha=alpha, target_modules=list(settings.targets), use_rslora=settings.rslora
    )
    with torch.random.fork_rng(devices=[transformer.device] if transformer.device.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            transformer.add_adapter(config, ADAPTER)
        except ValueError as error:
            raise InputError(f"The LoRA cannot be made: {str(error).splitlines()[0].rstrip('.')}.") from error
    for layer in transformer.modules():
        if isinstance(layer, LoraLayer):
            layer.lora_A[ADAPTER].float()
            layer.lora_B[ADAPTER].float()
    return Adaptation(transformer, True, {})


def _adapt_all(transformer: VectorWanTransformer3DModel) -> Adaptation:
    if odd := [name for name, p in transformer.named_parameters() if p.dtype not in _TRAINABLE]:
        raise InputError(
            f"All of a quantised model cannot be trained ({odd[0]} is not stored in 16 or 32 bits): load "
            "it unquantised, or train a LoRA."
        )
    dtypes = {name: p.dtype for name, p in transformer.named_parameters()}
    transformer.requires_grad_(True)
    for p in transformer.parameters():
        p.data = p.data.float()
    return Adaptation(transformer, False, dtypes)


_TRAINABLE = (torch.float32, torch.bfloat16, torch.float16)


def _check_targets(transformer: nn.Module, targets: Any) -> None:
    """Every target must be the end of some linear layer's name, at a dot."""
    if not targets:
        raise InputError("The LoRA would train nothing: lora.targets is empty; name layers such as to_q or ffn.net.2.")
    layers = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    for target in targets:
        if any(f".{name}".endswith(f".{target}") for name in layers):
            continue
        endings = {".".join(parts[i:]) for name in layers for parts in [name.split(".")] for i in range(len(parts))}
        near = difflib.get_close_matches(target, sorted(endings), n=1)
        usual = sorted({name.split(".", 2)[2] for name in layers if name.startswith("blocks.")})
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(usual)}."
        raise InputError(
            f"The LoRA would train nothing at {target!r}: no linear layer of the model ends in that; {hint}"
        )
