"""LoRAs on a model: load them at a strength, change the strength, remove them, and write them.

Strength s means W + s * (alpha / r) * B A, with alpha from the file. Files without alpha, such as the official ones,
mean W + s * B A. (So s = 1.4 extrapolates the training.) The sum is formed in each forward pass, and the weights do not
change. So it works with weights stored in any form, and the strength can change at any time. `dialects` reads the
files. `deltas` handles the changes of biases, norms and tables.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.hooks import HookRegistry

# private; test_over_a_model_that_is_offloaded_in_groups (tests/models/lora/test_strengths.py) fails when it moves
from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from pusa.errors import InputError
from pusa.files import replacing, sha256
from pusa.models.backbone import Expert
from pusa.models.lora import deltas, dialects, header, magnitudes
from pusa.models.lora.configuration import scaling
from pusa.models.lora.deltas import Additions, Differences
from pusa.models.wan.weight_names import original_name, parameter_shapes, wan_shapes


@dataclass(frozen=True)
class Lora:
    """A loaded LoRA.

    path: its file. sha256: its `fingerprint`. scale: its current strength. ranks: the ranks of its factors. modules:
    the number of linear layers with factors, or with a product of a LoHa or LoKr. differences: the number of parameters
    with a difference. expert: the expert that it changes, for a model with two.
    """

    name: str
    path: Path
    sha256: str
    scale: float
    ranks: tuple[int, ...]
    modules: int
    differences: int = 0
    expert: Expert | None = None


def load(
    transformer: WanTransformer3DModel,
    path: str | Path,
    scale: float = 1.0,
    name: str | None = None,
    expert: Expert | None = None,
) -> Lora:
    """Add a LoRA to the model at strength `scale`.

    path: a .safetensors file, a .pt, .pth or .bin file of tensors, or the folder of a PEFT adapter. name: of the LoRA,
    by default `default_name`. A LoRA with the same name is replaced, and others do not change. expert: the one that the
    model is, for a file that has changes for two. Raises InputError where `dialects.read` does, for a difference of a
    quantised parameter, and for a DoRA of a weight whose numbers are not in memory; the model does not change then.
    """
    file = header.file_of(path)
    _check_scale(scale, f"LoRA {path}")
    name = default_name(path) if name is None else name
    if not re.fullmatch(r"[\w-]+", name):
        raise InputError(f"The LoRA name {name!r} may have letters, digits, '_' and '-' only.")
    changes = dialects.read(file, parameter_shapes(transformer), expert if header.is_for_both(file) else None)
    changes, gains = magnitudes.resolve(transformer, changes)
    deltas.check(transformer, changes.differences)
    digest = fingerprint(file)

    active = [other for other in _active(transformer) if other != name]
    remove(transformer, name)
    additions = Additions(changes.differences, changes.products, gains)
    Differences.of(transformer).put(transformer, name, additions, scale)
    if changes.factors:
        _inject(transformer, name, changes.factors)
        for module in changes.factors:
            transformer.get_submodule(module).set_scale(name, scale)
        transformer.set_adapter([*active, name])
    _maybe_remove_and_reapply_group_offloading(transformer)
    ranks = tuple(sorted({len(down) for down, _ in changes.factors.values()}))
    modules = len(changes.factors) + len(changes.products)
    return Lora(name, file.absolute(), digest, scale, ranks, modules, len(changes.differences))


def choose_name(present: Sequence[Lora], path: str | Path, name: str | None = None) -> str:
    """Return the name for a LoRA: `name`, or its `default_name`, with a number if another file has that name.

    present: the LoRAs on the model. A file that is present keeps its name. Raises InputError if the same content is
    present under another name, so that it is not added twice.
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
            "once, with the wanted strength."
        )
    return name


def set_scale(transformer: WanTransformer3DModel, name: str, scale: float) -> None:
    """Set the strength of the LoRA `name`, from the next forward pass on. At 0, the model computes as without the LoRA.

    Raises InputError if the model does not have the LoRA, or if the strength is not finite.
    """
    _check_scale(scale, f"LoRA {name}")
    _check_known(transformer, name)
    for layer in _layers(transformer).values():
        layer.set_scale(name, scale)
    Differences.of(transformer).scale(transformer, name, scale)


def remove(transformer: WanTransformer3DModel, name: str) -> None:
    """Remove the LoRA `name`, if the model has it. The model is then as before, bit for bit."""
    if name in getattr(transformer, "peft_config", {}):
        transformer.delete_adapters(name)
    Differences.of(transformer).remove(transformer, name)


@contextmanager
def stock_keys(transformer: WanTransformer3DModel) -> Iterator[None]:
    """Inside the block, give the weights in the state of the model their stock names, and leave LoRAs out.

    The layers of PEFT stay on the model after the last LoRA was removed.
    """

    def rename(_: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object) -> None:
        for key in list(state):
            value = state.pop(key)
            if ".lora_" not in key:
                state[key.replace(".base_layer.", ".")] = value

    hook = transformer.register_state_dict_post_hook(rename)
    try:
        yield
    finally:
        hook.remove()


def names(transformer: WanTransformer3DModel) -> tuple[str, ...]:
    """Return the names of the LoRAs on the model."""
    return tuple(dict.fromkeys([*getattr(transformer, "peft_config", {}), *Differences.of(transformer).names]))


def default_name(path: str | Path) -> str:
    """Return the default name of a LoRA: that of its file, or that of the folder if the file has a generic name."""
    path = Path(path).absolute()
    generic = path.stem in header.FOLDER_STEMS
    return re.sub(r"\W+", "_", path.parent.name if generic else path.name if path.is_dir() else path.stem) or "lora"


def read(
    path: str | Path, layers: Mapping[str, tuple[int, int]] | None = None, expert: Expert | None = None
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, str]]:
    """Return the factors of a file in any dialect, {diffusers module: (A [r, in], B [out, r])}, and its metadata.

    The factors mean W + B A: B is multiplied by the scaling, and is float32 if that changes it. layers: those of the
    model, as `linears` returns them. Without layers, the names are checked against Wan's, and sizes are not checked.
    expert: the one whose factors are returned, for a file with those of two. Raises InputError where `load` does, and
    for a file with other changes than factors.
    """
    changes = changes_of(path, layers, expert)
    if changes.products or changes.magnitudes:
        raise InputError(
            f"The LoRA {path} is a {changes.kinds}, which has no two factors for each layer, so it cannot be written "
            "as an ordinary LoRA: use it with --lora, or export it with --to merged."
        )
    if changes.differences:
        raise InputError(
            f"The LoRA {path} has more than factors of linear layers: it changes {len(changes.differences)} parameters "
            f"as a whole (such as {min(changes.differences)}), so it cannot be written or merged: use it with --lora."
        )
    return changes.factors, changes.metadata


def changes_of(
    path: str | Path, layers: Mapping[str, tuple[int, int]] | None = None, expert: Expert | None = None
) -> dialects.Changes:
    """Return everything that a file changes, see `dialects.Changes`. layers, expert and errors: as for `read`."""
    shapes = None
    if layers is not None:
        known = {f"{module}.weight": (out, into) for module, (into, out) in layers.items()}
        shapes = {**wan_shapes(layers), **known}
    return dialects.read(path, shapes, expert)


def linears(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return {module: (in_features, out_features)} of every linear layer that a LoRA can change."""
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
    """Write one LoRA as safetensors with the keys `diffusion_model.*.lora_A/B.weight`, atomically.

    ComfyUI, WanVideoWrapper, diffusers and `load` read this form. B is multiplied by the scaling. The file does not
    contain the run-time strength. metadata: strings, or values that are written as JSON. name: of the LoRA; it can be
    left out if the model has one. weights: the weights to write, by parameter name, instead of those of the model; for
    example an average, or weights gathered from shards.
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
            f"The LoRA {name} has more than factors of linear layers, so it cannot be written: keep its file."
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
    """Write factors as `save` does. factors: {diffusers module: (A [r, in], B [out, r])}, which mean W + B A."""
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
    """Return the SHA-256 of a LoRA file, or of the file and the PEFT configuration that gives its scaling."""
    config = header.configuration_file(path)
    if config is None:
        return sha256(path)
    return hashlib.sha256(f"{sha256(path)} {sha256(config)}".encode()).hexdigest()


def _inject(transformer: WanTransformer3DModel, name: str, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Add factors to their linear layers, as a PEFT adapter."""
    ranks = {module: len(down) for module, (down, _) in factors.items()}
    top = max(ranks.values())
    pattern = {re.escape(module): rank for module, rank in ranks.items() if rank != top}
    config = LoraConfig(r=top, lora_alpha=top, target_modules=list(factors), lora_dropout=0.0,
                        rank_pattern=pattern, alpha_pattern=dict(pattern))  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several LoRAs are intended
        inject_adapter_in_model(config, transformer, name, low_cpu_mem_usage=True)
    # private; without it, set_adapter raises, and test_dialects_mean_the_same_sum (test_runtime.py) fails
    transformer._hf_peft_config_loaded = True
    for module, pair in factors.items():
        layer = transformer.get_submodule(module)
        base = layer.get_base_layer()
        for side, value in zip(("lora_A", "lora_B"), pair, strict=True):
            getattr(layer, side)[name].weight = nn.Parameter(value.to(base.weight.device, _computed_in(base)))


def _computed_in(linear: nn.Linear) -> torch.dtype:
    """Return the type in which a layer computes. Its weight may be stored in another type."""
    # Private, of layerwise casting; test_over_weights_stored_in_fp8 (test_strengths.py) fails when it moves.
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
