"""Read a LoRA file in any dialect. Every key of the file is used, or an error names it.

| dialect | a key |
| --- | --- |
| diffusers | `transformer.blocks.0.attn1.to_q.lora_A.weight`, alphas in the metadata |
| PEFT | `base_model.model.blocks.0.attn1.to_q.lora_A.weight`, alphas in the `adapter_config.json` next to it |
| ComfyUI and Kijai's files | `diffusion_model.blocks.0.self_attn.q.lora_A.weight`, or lora_down, lora_up and alpha |
| official Pusa, DiffSynth | `blocks.0.self_attn.q.lora_A.default.weight`, without alpha; also behind `pipe.dit.` |
| kohya, musubi | `lora_unet_blocks_0_self_attn_q.lora_down.weight` with its alpha |
| LightX2V | ComfyUI's, with `.diff`, `.diff_b` and `.diff_m` |

The result has two kinds of changes. *Factors* of a linear layer mean W + (alpha / r) B A, or alpha / sqrt(r) if the
configuration says rank-stabilised. Alpha comes from a key next to the factors or from the configuration; without alpha,
the file means W + B A. *Differences* are added to a whole weight (`.diff`), bias (`.diff_b` or `lora_B.bias`) or
modulation table (`.diff_m`). The factors of a convolution are multiplied to a difference. A strength multiplies both
kinds.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from pusa.errors import InputError
from pusa.models import weight_files
from pusa.models.lora import header
from pusa.models.wan.weight_names import Shapes, every_name, strip, wan_shapes

_KEY = re.compile(
    r"(?P<target>.+)\.(?:(?P<side>lora_(?:A|B|down|up))(?:\.[^.]+)?\.(?P<of>weight|bias)|(?P<whole>alpha|diff(?:_[bm])?))"
)
_SIDES = {"lora_A": "down", "lora_down": "down", "lora_B": "up", "lora_up": "up"}
_OTHER_KINDS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_w": "LoHa",
    "lokr_w": "LoKr",
    "lora_mid": "LoCon in Tucker form",
    "oft_": "OFT",
}
_IMAGE_KEYS = re.compile(r"img_emb|image_embedder|[kv]_img|add_[kv]_proj|norm_added_k")
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_WIDTHS = {1536: "Wan2.1-1.3B", 3072: "Wan2.2-TI2V-5B", 5120: "Wan 14B"}
_PICKLES = (b"PK", *(bytes([0x80, protocol]) for protocol in range(2, 6)))
"""The first two bytes of PyTorch's pickles, new and old."""


@dataclass(frozen=True)
class Changes:
    """The changes that a file makes at strength 1.

    factors: {diffusers module: (A [r, in], B [out, r])} of linear layers. B is multiplied by the scaling; if that
    changes it, B is float32. differences: {diffusers parameter: what is added to it, in its shape}. metadata: that of
    the file, with the PEFT configuration next to it as "adapter_config". 8-bit numbers are converted to bfloat16, which
    is exact. scalings: {diffusers module: the scaling that is in B}, 1 for a file without alpha.
    """

    factors: dict[str, tuple[Tensor, Tensor]]
    differences: dict[str, Tensor]
    metadata: dict[str, str]
    scalings: dict[str, float] = field(default_factory=dict)


@dataclass
class _Target:
    """The changes of one module. keys: the keys of the file that they come from."""

    down: Tensor | None = None
    up: Tensor | None = None
    up_bias: Tensor | None = None
    alpha: float | None = None
    differences: dict[str, Tensor] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)


def read(path: str | Path, shapes: Shapes | None = None) -> Changes:
    """Return the changes of a LoRA. path: as for `header.file_of`.

    shapes: those of the model. Without shapes, the names are checked against Wan's, and sizes are not checked. Raises
    InputError if the file cannot be read or contains code, a key does not fit the model, a size differs, or a number is
    not finite.
    """
    path = header.file_of(path)
    tensors, metadata = _read(path)
    config = _configuration(path, metadata)
    targets = _sort(path, tensors, wan_shapes(tensors) if shapes is None else shapes)
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    differences: dict[str, Tensor] = {}
    scalings: dict[str, float] = {}
    for module, target in targets.items():
        differences |= target.differences
        if target.down is None or target.up is None:
            continue
        trained = _trained(path, module, target, config)
        if target.up_bias is not None:
            differences[f"{module}.bias"] = target.up_bias.float() * trained
        if target.down.ndim > 2:
            product = target.up.flatten(1).float() @ target.down.flatten(1).float() * trained
            differences[f"{module}.weight"] = product.reshape(len(product), *target.down.shape[1:])
        else:
            factors[module] = target.down, target.up if trained == 1 else target.up.float() * trained
            scalings[module] = trained
    return Changes(factors, differences, metadata, scalings)


def is_lora(path: Path) -> bool:
    """Return whether the header of a file, or of the LoRA file in a folder, has keys of a LoRA."""
    file = header.in_folder(path) or path
    if not file.is_file() or file.suffix not in (".safetensors", ".pt", ".pth", ".bin"):
        return False
    return any(_KEY.fullmatch(name) for name in weight_files.listing(file))


def made_for(width: int) -> str | None:
    """Return the Wan model with this width, or None."""
    return _WIDTHS.get(width)


def scaling(alpha: float, rank: int, stabilised: bool) -> float:
    """Return the factor of B A: alpha / r, or alpha / sqrt(r) for a rank-stabilised LoRA (arXiv 2312.03732)."""
    return alpha / (math.sqrt(rank) if stabilised else rank)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a file, with the PEFT configuration next to it as "adapter_config"."""
    weight_files.refuse_pointer(path)
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
        if isinstance(error, UnpicklingError) and path.open("rb").read(2) in _PICKLES:
            raise InputError(
                f"{path} is a pickle that contains more than tensors and could run code, so it is not opened: get it "
                "as a .safetensors file."
            ) from error
        raise InputError(
            f"{path} is not a LoRA; give a .safetensors file, or a .pt, .pth or .bin file of tensors."
        ) from error
    if not isinstance(tensors, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) and value.layout == torch.strided
        for key, value in tensors.items()
    ):
        raise InputError(f"The LoRA {path} is not a dictionary of tensors, but perhaps a checkpoint: give a LoRA.")
    for key, value in tensors.items():
        if not value.is_floating_point() and not key.endswith(".alpha"):
            raise InputError(f"The LoRA {path} has {key} as {value.dtype}: give a LoRA in a floating-point type.")
        if value.is_floating_point() and value.element_size() == 1:
            tensors[key] = value = value.to(torch.bfloat16)
        if not value.isfinite().all():
            raise InputError(f"The LoRA {path} is damaged: {key} has values that are not finite; copy it again.")
    if config := header.configuration_file(path):
        metadata = {**metadata, "adapter_config": config.read_text(encoding="utf-8")}
    return tensors, metadata


def _sort(path: Path, tensors: Mapping[str, Tensor], shapes: Shapes) -> dict[str, _Target]:
    """Return the changes of each module. InputError unless every tensor is known, complete and of the right size."""
    names = every_name(shapes)
    targets: dict[str, _Target] = {}
    unknown: list[str] = []
    for key, value in tensors.items():
        match = _KEY.fullmatch(key)
        module = match and _module(match, names)
        target = targets.get(module or "", _Target())
        if match and module and _take(path, target, key, value, match, module, shapes):
            target.keys.append(key)
            targets[module] = target
        else:
            unknown.append(key)
    _refuse_other_kinds(path, unknown)
    for module, target in targets.items():
        _check_sizes(path, module, target, shapes)
    if unknown:
        raise _unknown_keys(path, unknown, len(tensors), shapes, some_fit=bool(targets))
    if not targets:
        raise InputError(f"Nothing in the LoRA {path} fits the model: the file has no tensors; copy it again.")
    return targets


def _module(match: re.Match[str], names: Mapping[str, str]) -> str | None:
    table = match["whole"] == "diff_m"
    return names.get(strip(match["target"]) + (".modulation" if table else ""))


def _take(
    path: Path, target: _Target, key: str, value: Tensor, match: re.Match[str], module: str, shapes: Shapes
) -> bool:
    """Store a tensor in the target. Return False if the module cannot have such a change."""
    whole = match["whole"]
    if whole in ("diff", "diff_b", "diff_m"):
        parameter = f"{module}.bias" if whole == "diff_b" else module if module in shapes else f"{module}.weight"
        if parameter not in shapes:
            return False
        taken = parameter in target.differences
        target.differences[parameter] = value
    elif len(shapes.get(f"{module}.weight", ())) < 2:
        return False
    elif whole == "alpha":
        if value.numel() != 1:
            raise InputError(f"The LoRA {path} is damaged: {key} has {value.numel()} numbers instead of one.")
        taken, target.alpha = target.alpha is not None, float(value)
    else:
        place = _SIDES[match["side"]]
        if match["of"] == "bias":
            if place == "down" or f"{module}.bias" not in shapes:
                return False
            place = "up_bias"
        taken = getattr(target, place) is not None
        setattr(target, place, value)
    if taken:
        raise InputError(f"The LoRA {path} names {module} twice ({', '.join([*target.keys, key])}).")
    return True


def _check_sizes(path: Path, module: str, target: _Target, shapes: Shapes) -> None:
    factors = target.down is not None or target.up is not None
    if (factors or target.alpha is not None or target.up_bias is not None) and (
        target.down is None or target.up is None
    ):
        raise InputError(f"The LoRA {path} is incomplete: {module} has only {', '.join(target.keys)}.")
    if target.down is not None and target.up is not None:
        down, up = target.down, target.up
        whole = shapes[f"{module}.weight"]
        if f"{module}.weight" in target.differences or (
            target.up_bias is not None and f"{module}.bias" in target.differences
        ):
            raise InputError(f"The LoRA {path} names {module} twice ({', '.join(target.keys)}).")
        if down.ndim != len(whole) or up.ndim != len(whole) or up.flatten(1).shape[1] != len(down) or not len(down):
            raise InputError(f"The LoRA {path} is damaged: the two factors of {module} do not multiply.")
        if not _fits((len(up), *down.shape[1:]), whole):
            if len(whole) == 2:
                there, here = f"{down.shape[1]} to {len(up)}", f"{whole[1]} to {whole[0]}"
                given = f"maps {there} features in the LoRA{_width(down.shape[1])} and {here} in the model"
            else:
                given = f"is {_by((len(up), *down.shape[1:]))} in the LoRA and {_by(whole)} in the model"
            raise InputError(f"The LoRA {path} was made for a model of another size: {module} {given}.")
    if target.up_bias is not None:
        _check_whole(path, f"{module}.bias", target.up_bias, shapes)
    for parameter, value in target.differences.items():
        target.differences[parameter] = _check_whole(path, parameter, value, shapes)


def _check_whole(path: Path, parameter: str, value: Tensor, shapes: Shapes) -> Tensor:
    """Return a difference in the shape of its parameter. Only dimensions of length 1 may differ."""
    shape = shapes[parameter]
    if _fits(value.shape, shape):
        return value
    if None not in shape and _core(value.shape) == _core(shape):
        return value.reshape([length for length in shape if length is not None])
    if None in shape and len(_core(value.shape)) <= len(shape):
        return value
    raise InputError(
        f"The LoRA {path} was made for a model of another size: {parameter} is {_by(value.shape)} in the LoRA"
        f"{_width(value.shape[0]) if value.ndim else ''} and {_by(shape)} in the model."
    )


def _fits(given: Iterable[int], shape: tuple[int | None, ...]) -> bool:
    given = tuple(given)
    return len(given) == len(shape) and all(b is None or a == b for a, b in zip(given, shape, strict=True))


def _core(shape: Iterable[int | None]) -> tuple[int | None, ...]:
    return tuple(length for length in shape if length != 1)


def _by(shape: Iterable[int | None]) -> str:
    return "x".join(map(str, shape)) or "a single number"


def _width(features: int) -> str:
    return f" (as in {_WIDTHS[features]})" if features in _WIDTHS else ""


def _refuse_other_kinds(path: Path, unknown: list[str]) -> None:
    for key in unknown:
        for part, kind in _OTHER_KINDS.items():
            if part in key:
                raise InputError(
                    f"The LoRA {path} is a {kind} ({key}), which is not supported: merge it into its model with the "
                    "program that made it."
                )


def _unknown_keys(path: Path, unknown: list[str], count: int, shapes: Shapes, *, some_fit: bool) -> InputError:
    """Return the error for keys that match nothing in the model."""
    image = [key for key in unknown if _IMAGE_KEYS.search(key)]
    if image:
        return InputError(
            f"The LoRA {path} is for an image-to-video model: {len(image)} of its {count} keys change layers for the "
            f"image (such as {image[0]}), which a text-to-video model does not have: use the text-to-video version."
        )
    if not some_fit and not any("lora" in key.lower() or ".diff" in key for key in unknown):
        return InputError(
            f"{path} is not a LoRA: its {len(unknown)} keys (such as {unknown[0]}) are those of a network; give a "
            "network with --model, --vae or --text-encoder."
        )
    if not some_fit:
        return InputError(
            f"Nothing in the LoRA {path} fits the model: none of its {len(unknown)} keys (such as {unknown[0]}) names "
            "a layer of the model; use a LoRA for Wan."
        )
    more = f"{len(unknown)} of its {count} keys"
    blocks = 1 + max((int(match[1]) for name in shapes if (match := re.match(r"blocks\.(\d+)\.", name))), default=-1)
    numbers = [int(m[1]) if (m := re.search(r"(?:^|[._])blocks[._](\d{1,4})[._]", key)) else -1 for key in unknown]
    if min(numbers) >= blocks:
        return InputError(
            f"The LoRA {path} was made for a larger model: {more} change blocks up to {max(numbers)} (such as "
            f"{unknown[0]}), and this one has {blocks}, 0 to {blocks - 1}."
        )
    return InputError(
        f"The LoRA {path} does not fit the model: {more} match no layer (such as {', '.join(unknown[:3])}); use a LoRA "
        "for this model."
    )


def _trained(path: Path, module: str, target: _Target, config: Mapping[str, Any]) -> float:
    """Return the factor of B A at strength 1. Alpha is that of the file or of the configuration, or else the rank."""
    assert target.down is not None
    rank, alpha = len(target.down), target.alpha
    try:
        if alpha is None:
            patterns = config.get("alpha_pattern") or {}
            found = (a for pattern, a in patterns.items() if re.match(rf"(.*\.)?({strip(pattern)})$", module))
            common = config.get("lora_alpha")
            alpha = float(next(found, rank if common is None else common))
        if not math.isfinite(alpha):
            raise ValueError(f"its alpha is {alpha}")
    except (ValueError, TypeError, AttributeError, re.error) as error:
        raise InputError(f"The LoRA {path} has a damaged configuration ({error}); copy it again.") from error
    return scaling(alpha, rank, bool(config.get("use_rslora")))


def _configuration(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the LoraConfig from PEFT's adapter_config.json or diffusers' metadata, or an empty dictionary."""
    text = metadata.get("adapter_config") or metadata.get("lora_adapter_metadata")
    if not text:
        return {}
    try:
        config = json.loads(text)
        if not isinstance(config, dict):
            raise ValueError("not a dictionary")
    except ValueError as error:
        raise InputError(f"The LoRA {path} has a damaged configuration ({error}); copy it again.") from error
    config = {key.removeprefix("transformer."): value for key, value in config.items()}
    kind, start = config.get("peft_type") or "LORA", config.get("init_lora_weights")
    if config.get("use_dora") or kind != "LORA":
        other = "DoRA" if config.get("use_dora") else kind
        raise InputError(
            f"The LoRA {path} is a {other}, which is not supported: merge it into its model with the program that "
            "made it."
        )
    if isinstance(start, str) and start.startswith(_CHANGED_BASE):
        raise InputError(
            f"The LoRA {path} was initialised with {start}, which also changes the base model: convert it to an "
            "ordinary LoRA with PEFT."
        )
    return config
