"""LoRA files in and out: whichever dialect a file speaks, each of its keys is used or named in an error.

Dialects read: diffusers and PEFT (`transformer.blocks.0.attn1.to_q.lora_A.weight`), ComfyUI
(`diffusion_model.blocks.0.self_attn.q.lora_A.weight`, also lora_down/lora_up), the official Pusa files
(`blocks.0.self_attn.q.lora_A.default.weight`) and kohya (`lora_unet_blocks_0_self_attn_q.lora_down.weight`).

Strength s means W + s * (alpha / r) * B A, with alpha from the file (alpha / sqrt(r) where a PEFT config beside it says
that it is rank-stabilised). A file without alpha, as the official ones are, means W + s * B A; there s = 1.4
extrapolates what was learned. The sum is formed as the model runs, never in the
weights, so an adapter can change strength or leave, and the same name loaded again replaces what it named.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pusa.errors import InputError
from pusa.media import replacing

_PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "pipe.dit.")
_KOHYA = "lora_unet_"
_KEY = re.compile(r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_down|lora_up)(\.[^.]+)?\.weight|(?P<scaled>.+)\.alpha")
_SIDES = {"lora_A": "down", "lora_down": "down", "lora_B": "up", "lora_up": "up"}
_ORIGINAL = (
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"_attn\.to_([qkv])$", r"_attn.\1"),
    (r"_attn\.to_out\.0$", "_attn.o"),
    (r"\.ffn\.net\.0\.proj$", ".ffn.0"),
    (r"\.ffn\.net\.2$", ".ffn.2"),
    (r"^condition_embedder\.time_embedder\.linear_1$", "time_embedding.0"),
    (r"^condition_embedder\.time_embedder\.linear_2$", "time_embedding.2"),
    (r"^condition_embedder\.time_proj$", "time_projection.1"),
    (r"^condition_embedder\.text_embedder\.linear_1$", "text_embedding.0"),
    (r"^condition_embedder\.text_embedder\.linear_2$", "text_embedding.2"),
    (r"^proj_out$", "head.head"),
)


@dataclass(frozen=True)
class Lora:
    """A loaded adapter. ranks: the ranks that occur; modules: how many linear layers it changes."""

    name: str
    path: Path
    sha256: str
    scale: float
    ranks: tuple[int, ...]
    modules: int


@dataclass
class _Pair:
    down: Tensor | None = None  # [r, in]
    up: Tensor | None = None  # [out, r]
    alpha: float | None = None
    keys: list[str] = field(default_factory=list)


def load(transformer: WanTransformer3DModel, path: str | Path, scale: float = 1.0, name: str | None = None) -> Lora:
    """Add the adapter in `path` (.safetensors, or a .pt/.pth/.bin of plain tensors) to the model at strength `scale`.

    name: what it is called, the file's stem by default; an adapter of that name is replaced, others stay as they are.
    Raises InputError, leaving the model as it was, when the file cannot be read, nothing in it fits the model, a key is
    left over or a shape differs.
    """
    path = Path(path)
    if not math.isfinite(scale):
        raise InputError(
            f"The strength of the LoRA {path} is {scale}: give a finite number, 1 is the trained strength."
        )
    name = name or re.sub(r"\W+", "_", path.stem)
    if not re.fullmatch(r"[\w-]+", name):
        raise InputError(f"The LoRA name {name!r} may have letters, digits, '_' and '-' only.")
    pairs, _ = _pairs(path, linears(transformer))

    present = getattr(transformer, "peft_config", {})
    active = transformer.active_adapters() if present else []
    if name in present:
        transformer.delete_adapters(name)
    ranks = {module: len(pair.down) for module, pair in pairs.items() if pair.down is not None}
    top = max(ranks.values())
    rank_pattern = {re.escape(module): rank for module, rank in ranks.items() if rank != top}
    config = LoraConfig(r=top, lora_alpha=top, target_modules=list(pairs), lora_dropout=0.0,
                        rank_pattern=rank_pattern, alpha_pattern=dict(rank_pattern))  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are meant
        inject_adapter_in_model(config, transformer, name, low_cpu_mem_usage=True)
    transformer._hf_peft_config_loaded = True
    for module, pair in pairs.items():
        layer = transformer.get_submodule(module)
        weight = layer.get_base_layer().weight
        dtype = weight.dtype if weight.is_floating_point() and weight.element_size() > 1 else torch.bfloat16
        for side, value in (("lora_A", pair.down), ("lora_B", pair.up)):
            assert value is not None
            linear = getattr(layer, side)[name]
            linear.weight = nn.Parameter(value.to(weight.device, dtype))
        layer.set_scale(name, scale)
    transformer.set_adapter([*(other for other in active if other != name), name])
    return Lora(name, path.resolve(), sha256(path), scale, tuple(sorted(set(ranks.values()))), len(pairs))


def read(
    path: str | Path, layers: Mapping[str, tuple[int, int]] | None = None
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, str]]:
    """The factors in a file of any dialect, {diffusers module: (A [r, in], B [out, r])}, and the file's metadata.

    W + B A is what the file means: alpha is folded into B, which is float32 where that changed it and otherwise in the
    file's type. layers: the model's, as `linears` gives them; without it the names are checked against Wan's, and sizes
    are not. Raises InputError as `load` does.
    """
    path = Path(path)
    pairs, metadata = _pairs(path, layers)
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for module, pair in pairs.items():
        assert pair.down is not None
        assert pair.up is not None
        factors[module] = (pair.down, pair.up)
    return factors, metadata


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
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"A LoRA is written as safetensors, so {path} must end in .safetensors.")
    layers = {module: layer for module, layer in transformer.named_modules() if isinstance(layer, LoraLayer)}
    names = sorted({adapter for layer in layers.values() for adapter in layer.lora_A})
    if name is None and len(names) != 1:
        have = f"has {len(names)} LoRAs ({', '.join(names)}): name one" if names else "has no LoRA to write"
        raise InputError(f"The model {have}.")
    name = name or names[0]
    if name not in names:
        raise InputError(f"The model has no LoRA {name!r}: it has {', '.join(names) or 'none'}.")
    stabilised = bool(getattr(getattr(transformer, "peft_config", {}).get(name), "use_rslora", False))
    tensors: dict[str, Tensor] = {}
    for module, layer in layers.items():
        if name not in layer.lora_A:
            continue
        trained = _scaling(layer.lora_alpha[name], layer.r[name], stabilised)
        key = f"diffusion_model.{original_name(module)}"
        down, up = (
            layer.get_submodule(f"{side}.{name}").weight
            if weights is None
            else weights[f"{module}.{side}.{name}.weight"]
            for side in ("lora_A", "lora_B")
        )
        up = up if trained == 1 else up * trained
        tensors |= {
            f"{key}.lora_{side}.weight": v.detach().contiguous().cpu() for side, v in zip("AB", (down, up), strict=True)
        }
    strings = {k: v if isinstance(v, str) else json.dumps(v) for k, v in (metadata or {}).items()}
    with replacing(path) as part:
        save_file(tensors, str(part), metadata={"format": "pt", **strings})


def original_name(module: str) -> str:
    """The name that Wan's own code, and with it ComfyUI, gives to a module of the diffusers model."""
    for pattern, replacement in _ORIGINAL:
        module = re.sub(pattern, replacement, module)
    return module


def sha256(path: Path) -> str:
    """Hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file and its safetensors metadata, with a neighbouring PEFT config under "adapter_config"."""
    if not path.is_file():
        what = "is a folder: give the file in it" if path.is_dir() else "does not exist: check the path"
        raise InputError(f"The LoRA {path} {what}.")
    try:
        if path.suffix == ".safetensors":
            with safe_open(str(path), "pt") as file:
                keys = file.keys()
                tensors, metadata = {key: file.get_tensor(key) for key in keys}, file.metadata() or {}
        else:
            tensors, metadata = torch.load(path, map_location="cpu", weights_only=True), {}
    except Exception as error:
        if path.suffix == ".safetensors":
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(f"The LoRA {path} is damaged or not a LoRA ({reason}); copy it again.") from error
        raise InputError(
            f"{path} is no LoRA; give a .safetensors file, or a .pt, .pth or .bin that holds plain tensors."
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise InputError(f"The LoRA {path} is not a plain dictionary of tensors: it may be a training checkpoint.")
    config = path.with_name("adapter_config.json")
    if path.stem == "adapter_model" and config.is_file():
        metadata = {**metadata, "adapter_config": config.read_text(encoding="utf-8")}
    return tensors, metadata


def _pairs(path: Path, layers: Mapping[str, tuple[int, int]] | None) -> tuple[dict[str, _Pair], dict[str, str]]:
    tensors, metadata = _read(path)
    pairs = _pair(_wan_layers(tensors) if layers is None else layers, path, tensors)
    _fold_alpha(pairs, path, metadata)
    return pairs, metadata


def _wan_layers(keys: Iterable[str]) -> dict[str, None]:
    """Wan's linear layers, of any size, with the blocks that the keys of a file speak of."""
    numbers = {match[1] for key in keys if (match := re.search(r"(?:^|[._])blocks[._](\d{1,4})[._]", key))}
    with torch.device("meta"):
        layers = linears(WanTransformer3DModel(num_layers=1))
    return {
        module.replace("blocks.0.", f"blocks.{number}."): None
        for module in layers
        for number in (sorted(numbers, key=int) if module.startswith("blocks.0.") else ("0",))
    }


def _pair(layers: Mapping[str, tuple[int, int] | None], path: Path, tensors: Mapping[str, Tensor]) -> dict[str, _Pair]:
    """Sort a file's tensors by the layer that they change, and check that nothing is left over."""
    names: dict[str, str] = {}
    for module in layers:
        names |= {module: module, original_name(module): module}
        names |= {_KOHYA + known.replace(".", "_"): module for known in (module, original_name(module))}

    pairs: dict[str, _Pair] = {}
    left: list[str] = []
    for key, value in tensors.items():
        match = _KEY.fullmatch(key)
        target = match and names.get(_strip(match["module"] or match["scaled"]))
        if not match or not target:
            left.append(key)
            continue
        pair = pairs.setdefault(target, _Pair())
        pair.keys.append(key)
        if match["scaled"]:
            pair.alpha = float(value)
        elif getattr(pair, _SIDES[match["part"]]) is not None:
            raise InputError(f"The LoRA {path} names {target} twice ({', '.join(pair.keys)}).")
        else:
            setattr(pair, _SIDES[match["part"]], value)
    if not pairs:
        example = f"such as {left[0]}" if left else "the file is empty"
        raise InputError(
            f"Nothing in the LoRA {path} fits the model: none of its {len(left)} keys names one of the model's layers "
            f"({example}); it was made for another kind of model."
        )
    if left:
        raise InputError(
            f"The LoRA {path} changes more than this model can take: {len(left)} of its {len(tensors)} keys fit no "
            f"linear layer of it (such as {', '.join(left[:3])})."
        )
    for module, pair in pairs.items():
        _check_pair(path, module, pair, layers[module])
    return pairs


def _strip(module: str) -> str:
    for prefix in _PREFIXES:
        module = module.removeprefix(prefix)
    return module


def _check_pair(path: Path, module: str, pair: _Pair, size: tuple[int, int] | None) -> None:
    if pair.down is None or pair.up is None:
        raise InputError(f"The LoRA {path} is incomplete: {module} has only {', '.join(pair.keys)}.")
    if pair.down.ndim != 2 or pair.up.ndim != 2 or pair.down.shape[0] != pair.up.shape[1]:
        raise InputError(f"The LoRA {path} is damaged: the two factors of {module} do not multiply.")
    given = (pair.down.shape[1], pair.up.shape[0])
    if size is not None and given != size:
        raise InputError(
            f"The LoRA {path} was made for a model of another size: {module} maps {given[0]} to {given[1]} features "
            f"there and {size[0]} to {size[1]} here."
        )


def _fold_alpha(pairs: Mapping[str, _Pair], path: Path, metadata: Mapping[str, str]) -> None:
    """Multiply each B by its scaling; alpha is in the key beside it or in the PEFT config that came with the file."""
    config = _peft_config(path, metadata)
    if config.get("use_dora"):
        raise InputError(f"The LoRA {path} is a DoRA, which cannot be read: merge it into its model where it was made.")
    stabilised = bool(config.get("use_rslora"))
    for module, pair in pairs.items():
        assert pair.down is not None
        assert pair.up is not None
        rank = len(pair.down)
        alpha = pair.alpha
        if alpha is None:
            patterns = config.get("alpha_pattern") or {}
            found = (a for p, a in patterns.items() if re.match(rf"(.*\.)?({_strip(p)})$", module))
            alpha = float(next(found, config.get("lora_alpha") or rank))
        if (trained := _scaling(alpha, rank, stabilised)) != 1:
            pair.up = pair.up.float() * trained


def _scaling(alpha: float, rank: int, stabilised: bool) -> float:
    """What multiplies B A: alpha / r, or alpha / sqrt(r) in a rank-stabilised LoRA (arXiv 2312.03732)."""
    return alpha / (math.sqrt(rank) if stabilised else rank)


def _peft_config(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The LoraConfig saved with a file: PEFT's adapter_config.json, or what diffusers keeps in the metadata."""
    text = metadata.get("adapter_config") or metadata.get("lora_adapter_metadata")
    if not text:
        return {}
    try:
        config = json.loads(text)
        if not isinstance(config, dict):
            raise ValueError("no dictionary")
    except ValueError as error:
        raise InputError(f"The LoRA {path} has a damaged configuration ({error}); copy it again.") from error
    return {key.removeprefix("transformer."): value for key, value in config.items()}
