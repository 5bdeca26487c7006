"""LoRAs on a model: loaded at a strength, changed, removed and written. What a file says is `dialects`' business.

Strength s means W + s * (alpha / r) * B A, with alpha from the file. A file without alpha, as the official ones are,
means W + s * B A; there s = 1.4 extrapolates what was learned. The sum is formed as the model runs, never in the
weights, so it works over weights in any form, an adapter can change strength or leave, and the same name loaded again
replaces what it named. `differences` does the same for what is no factor: changes of biases, norms and tables.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.hooks import HookRegistry
from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from pusa.errors import InputError
from pusa.files import replacing, sha256
from pusa.models.backbone import Expert
from pusa.models.lora import deltas, dialects, header
from pusa.models.lora.deltas import Differences
from pusa.models.lora.dialects import scaling
from pusa.models.wan.weight_names import original_name, parameter_shapes, wan_shapes


@dataclass(frozen=True)
class LoraFile:
    """A LoRA to load. path: its file or folder. scale: its strength. expert: which of two it is for; None for both."""

    path: str | Path
    scale: float = 1.0
    expert: Expert | None = None


@dataclass(frozen=True)
class Lora:
    """A loaded adapter. path: its file; sha256: its `fingerprint`; scale: its strength now.

    ranks: the ranks that occur; modules: how many linear layers have factors of it; differences: how many parameters it
    changes as a whole. expert: of a model with two, the one that it is on.
    """

    name: str
    path: Path
    sha256: str
    scale: float
    ranks: tuple[int, ...]
    modules: int
    differences: int = 0
    expert: Expert | None = None


def load(transformer: WanTransformer3DModel, path: str | Path, scale: float = 1.0, name: str | None = None) -> Lora:
    """Add the adapter in `path` to the model at strength `scale`.

    path: .safetensors, a .pt, .pth or .bin of plain tensors, or the folder of a PEFT adapter. name: what it is called,
    `default_name` by default; an adapter of that name is replaced, others stay as they are. Raises InputError, leaving
    the model as it was, for what `dialects.read` refuses and for a difference of a parameter that is quantised.
    """
    file = header.file_of(path)
    _check_scale(scale, f"LoRA {path}")
    name = default_name(path) if name is None else name
    if not re.fullmatch(r"[\w-]+", name):
        raise InputError(f"The LoRA name {name!r} may have letters, digits, '_' and '-' only.")
    changes = dialects.read(file, parameter_shapes(transformer))
    deltas.check(transformer, changes.differences)
    digest = fingerprint(file)

    active = [other for other in _active(transformer) if other != name]
    remove(transformer, name)
    Differences.of(transformer).put(transformer, name, changes.differences, scale)
    if changes.factors:
        _inject(transformer, name, changes.factors)
        for module in changes.factors:
            transformer.get_submodule(module).set_scale(name, scale)
        transformer.set_adapter([*active, name])
    _maybe_remove_and_reapply_group_offloading(transformer)
    ranks = tuple(sorted({len(down) for down, _ in changes.factors.values()}))
    return Lora(name, file.absolute(), digest, scale, ranks, len(changes.factors), len(changes.differences))


def choose_name(present: Sequence[Lora], path: str | Path, name: str | None = None) -> str:
    """What to call a LoRA beside those on the model: `name`, or its `default_name` with a number where that is taken.

    The same file again gets the name it has. Raises InputError when the same content is on the same transformer under
    another name, so that nothing is added twice; `present` are those of one transformer, or of both experts.
    """
    file = header.file_of(path).absolute()
    if name is None:
        files, base = {lora.name: lora.path for lora in present}, default_name(path)
        numbered = itertools.chain([base], (f"{base}_{number}" for number in itertools.count(2)))
        name = next(candidate for candidate in numbered if files.get(candidate, file) == file)
    others = [lora for lora in present if lora.name != name]
    digest = fingerprint(file) if others else None
    if twin := next((lora for lora in others if lora.sha256 == digest), None):
        raise InputError(
            f"The LoRA {path} is there already, as {twin.name!r} from {twin.path} at strength {twin.scale:g}: give it "
            "once, at the strength it should have."
        )
    return name


def set_scale(transformer: WanTransformer3DModel, name: str, scale: float) -> None:
    """Give the adapter `name` another strength, whatever it had before; at 0 the model is what it was without it.

    The next forward has it; nothing is loaded or added again. Raises InputError for a name that the model does not have
    and for a strength that is not finite.
    """
    _check_scale(scale, f"LoRA {name}")
    _check_known(transformer, name)
    for layer in _layers(transformer).values():
        layer.set_scale(name, scale)
    Differences.of(transformer).scale(transformer, name, scale)


def remove(transformer: WanTransformer3DModel, name: str) -> None:
    """Take the adapter `name` off the model, bit for bit; nothing when there is none of that name."""
    if name in getattr(transformer, "peft_config", {}):
        transformer.delete_adapters(name)
    Differences.of(transformer).remove(transformer, name)


def names(transformer: WanTransformer3DModel) -> tuple[str, ...]:
    """The adapters that the model has."""
    return tuple(dict.fromkeys([*getattr(transformer, "peft_config", {}), *Differences.of(transformer).names]))


def default_name(path: str | Path) -> str:
    """What a LoRA is called when nobody says: the stem of its file, or the folder's name where all files are alike."""
    path = Path(path).absolute()
    generic = path.stem in header.FOLDER_STEMS
    return re.sub(r"\W+", "_", path.parent.name if generic else path.name if path.is_dir() else path.stem) or "lora"


def read(
    path: str | Path, layers: Mapping[str, tuple[int, int]] | None = None
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, str]]:
    """The factors in a file of any dialect, {diffusers module: (A [r, in], B [out, r])}, and the file's metadata.

    W + B A is what the file means: alpha is folded into B, which is float32 where that changed it and otherwise in the
    file's type. layers: the model's, as `linears` gives them; without it the names are checked against Wan's, and sizes
    are not. Raises InputError as `load` does, and for a file that has more than factors.
    """
    shapes = None
    if layers is not None:
        known = {f"{module}.weight": (out, into) for module, (into, out) in layers.items()}
        shapes = {**wan_shapes(layers), **known}
    changes = dialects.read(path, shapes)
    if changes.differences:
        raise InputError(
            f"The LoRA {path} is more than factors of linear layers: it changes {len(changes.differences)} parameters "
            f"as a whole (such as {min(changes.differences)}), so it can only be loaded, not written or merged."
        )
    return changes.factors, changes.metadata


def linears(model: nn.Module) -> dict[str, tuple[int, int]]:
    """{module: (in_features, out_features)} of every linear layer that an adapter can change."""
    layers: dict[str, tuple[int, int]] = {}
    for module, layer in model.named_modules():
        linear = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
        if isinstance(linear, nn.Linear) and ".base_layer" not in module and ".lora_" not in module:
            layers[module] = (linear.in_features, linear.out_features)
    return layers


def save(
    transformer: nn.Module,
    path: str | Path,
    metadata: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write one adapter as `diffusion_model.*.lora_A/B.weight` safetensors, alpha folded into B; atomic.

    ComfyUI, WanVideoWrapper, diffusers and `load` read that form. metadata: strings, or values written as JSON. name:
    the adapter, which may be left out when the model has one. weights: what to write instead of the model's own factors
    (an average of them, or what processes hold in shards), by parameter name. The run-time strength is not part of the
    file.
    """
    layers = _layers(transformer)
    known = sorted({adapter for layer in layers.values() for adapter in layer.lora_A})
    if name is None and len(known) != 1:
        have = f"has {len(known)} LoRAs ({', '.join(known)}): name one" if known else "has no LoRA to write"
        raise InputError(f"The model {have}.")
    name = name or known[0]
    if name not in known:
        raise InputError(f"The model has no LoRA {name!r}: it has {', '.join(known) or 'none'}.")
    if name in Differences.of(transformer).names:
        raise InputError(
            f"The LoRA {name} is more than factors of linear layers, so it cannot be written: keep its file."
        )
    stabilised = bool(getattr(getattr(transformer, "peft_config", {}).get(name), "use_rslora", False))
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for module, layer in layers.items():
        if name not in layer.lora_A:
            continue
        trained = scaling(layer.lora_alpha[name], layer.r[name], stabilised)
        down, up = (
            layer.get_submodule(f"{side}.{name}").weight
            if weights is None
            else weights[f"{module}.{side}.{name}.weight"]
            for side in ("lora_A", "lora_B")
        )
        factors[module] = down, up if trained == 1 else up * trained
    write(path, factors, metadata)


def write(
    path: str | Path, factors: Mapping[str, tuple[Tensor, Tensor]], metadata: Mapping[str, Any] | None = None
) -> None:
    """`save` for factors that stand alone, {diffusers module: (A [r, in], B [out, r])}, which mean W + B A."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"A LoRA is written as safetensors, so {path} must end in .safetensors.")
    tensors = {
        f"diffusion_model.{original_name(module)}.lora_{side}.weight": value.detach().contiguous().cpu()
        for module, pair in factors.items()
        for side, value in zip("AB", pair, strict=True)
    }
    strings = {k: v if isinstance(v, str) else json.dumps(v) for k, v in (metadata or {}).items()}
    with replacing(path) as part:
        save_file(tensors, str(part), metadata={"format": "pt", **strings})


def fingerprint(path: Path) -> str:
    """The `sha256` of a LoRA file, or of it and the PEFT configuration that says what its numbers mean."""
    config = header.configuration_file(path)
    if config is None:
        return sha256(path)
    return hashlib.sha256(f"{sha256(path)} {sha256(config)}".encode()).hexdigest()


def _inject(transformer: WanTransformer3DModel, name: str, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Put factors beside the linear layers that they are of, as a PEFT adapter."""
    ranks = {module: len(down) for module, (down, _) in factors.items()}
    top = max(ranks.values())
    pattern = {re.escape(module): rank for module, rank in ranks.items() if rank != top}
    config = LoraConfig(r=top, lora_alpha=top, target_modules=list(factors), lora_dropout=0.0,
                        rank_pattern=pattern, alpha_pattern=dict(pattern))  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are meant
        inject_adapter_in_model(config, transformer, name, low_cpu_mem_usage=True)
    transformer._hf_peft_config_loaded = True
    for module, pair in factors.items():
        layer = transformer.get_submodule(module)
        base = layer.get_base_layer()
        for side, value in zip(("lora_A", "lora_B"), pair, strict=True):
            getattr(layer, side)[name].weight = nn.Parameter(value.to(base.weight.device, _computed_in(base)))


def _computed_in(linear: nn.Linear) -> torch.dtype:
    """The type that a layer computes in, however its weights are stored."""
    registry = getattr(linear, "_diffusers_hook", None)
    casting = registry.get_hook("layerwise_casting") if isinstance(registry, HookRegistry) else None
    for kind in (getattr(casting, "compute_dtype", None), getattr(linear, "compute_dtype", None), linear.weight.dtype):
        if isinstance(kind, torch.dtype) and kind.is_floating_point and kind.itemsize > 1:
            return kind
    return torch.bfloat16


def _layers(model: nn.Module) -> dict[str, LoraLayer]:
    return {module: layer for module, layer in model.named_modules() if isinstance(layer, LoraLayer)}


def _active(transformer: WanTransformer3DModel) -> list[str]:
    return list(transformer.active_adapters()) if getattr(transformer, "peft_config", {}) else []


def _check_scale(scale: float, what: str) -> None:
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise InputError(f"The strength of the {what} is {scale!r}: give a finite number, 1 is the trained strength.")


def _check_known(transformer: WanTransformer3DModel, name: str) -> None:
    if name not in (known := names(transformer)):
        raise InputError(f"The model has no LoRA {name!r}: it has {', '.join(known) or 'none'}.")
