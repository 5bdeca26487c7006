"""Read a LoRA file in any dialect. Every key of the file is used, or an error names it.

| dialect | a key |
| --- | --- |
| diffusers | `transformer.blocks.0.attn1.to_q.lora_A.weight`, alphas in the metadata |
| PEFT | `base_model.model.blocks.0.attn1.to_q.lora_A.weight`, alphas in the `adapter_config.json` next to it |
| ComfyUI and Kijai's files | `diffusion_model.blocks.0.self_attn.q.lora_A.weight`, or lora_down, lora_up and alpha |
| official Pusa, DiffSynth | `blocks.0.self_attn.q.lora_A.default.weight`, without alpha; also behind `pipe.dit.` |
| kohya, musubi | `lora_unet_blocks_0_self_attn_q.lora_down.weight` with its alpha |
| LyCORIS | `lycoris_blocks_0_self_attn_q.lokr_w1`, or hada_w1_a, with dora_scale and alpha |
| LightX2V | ComfyUI's, with `.diff`, `.diff_b` and `.diff_m` |

The result has these kinds of changes. *Factors* of a linear layer mean W + (alpha / r) B A, or alpha / sqrt(r) if the
configuration says rank-stabilised. Alpha comes from a key next to the factors or from the configuration; without alpha,
the file means W + B A. *Products* are those of LoHa and LoKr. *Differences* are added to a whole weight (`.diff`), bias
(`.diff_b` or `lora_B.bias`) or modulation table (`.diff_m`). The factors of a convolution are multiplied to a
difference. *Magnitudes* of DoRA replace the lengths of the rows or columns of the changed weight. A strength multiplies
the whole change of a weight.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from torch import Tensor

from pusa.errors import InputError
from pusa.models import weight_files
from pusa.models.backbone import Expert
from pusa.models.lora import files, header, products, refusals
from pusa.models.lora.configuration import Configuration
from pusa.models.lora.products import Product, tucker
from pusa.models.wan.prefixes import strip
from pusa.models.wan.weight_names import Shapes, every_name, original_name, wan_shapes

_KEY = re.compile(
    r"(?P<target>.+?)(?:"
    r"\.(?P<side>lora_(?:A|B|down|up|mid))(?:\.(?!weight$|bias$)[^.]+)?(?:\.(?P<of>weight|bias))?"
    r"|(?:_lora|\.lora|\.lora_linear_layer)\.(?P<way>down|up)\.weight"
    r"|\.(?P<whole>alpha|diff(?:_[bm])?|[wb]_norm)"
    r"|\.(?P<magnitude>dora_scale|lora_magnitude_vector)(?:\.(?!weight$)[^.]+)?(?:\.weight)?"
    r"|\.(?P<part>hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))(?:\.[^.]+)?"
    r")"
)
_SIDES = {"lora_A": "down", "lora_down": "down", "lora_B": "up", "lora_up": "up", "lora_mid": "mid"}
_WHOLE = {"diff": "weight", "w_norm": "weight", "diff_b": "bias", "b_norm": "bias"}
_WIDTHS = {1536: "Wan2.1-1.3B", 3072: "Wan2.2-TI2V-5B", 5120: "Wan 14B"}


@dataclass(frozen=True)
class Changes:
    """The changes that a file makes at strength 1. Names of modules and parameters are those of diffusers.

    Attributes:
        factors: {module: (A [r, in], B [out, r])} of linear layers. B is multiplied by the scaling; if that changes it,
            B is float32.
        differences: {parameter: what is added to it, in its shape}.
        metadata: that of the file, with the PEFT configuration next to it as "adapter_config".
        products: {module: the change of a linear layer by a LoHa or LoKr}.
        magnitudes: {module: lengths}, a column [out, 1, ...] for the rows of the changed weight, or a row [1, in, ...]
            for its columns.
        scalings: {module: the scaling that is in B}, 1 for a file without alpha.
    """

    factors: dict[str, tuple[Tensor, Tensor]]
    differences: dict[str, Tensor]
    metadata: dict[str, str]
    scalings: dict[str, float] = field(default_factory=dict)
    products: dict[str, Product] = field(default_factory=dict)
    magnitudes: dict[str, Tensor] = field(default_factory=dict)

    @property
    def changed(self) -> list[str]:
        """The parameters that change."""
        return [*(f"{module}.weight" for module in (*self.factors, *self.products)), *self.differences]

    @property
    def kinds(self) -> str:
        """The kinds of its changes, in words."""
        found: list[str] = ["LoRA"] if self.factors or not self.products else []
        found += dict.fromkeys(product.kind for product in self.products.values())
        return " and ".join([*found, *(["DoRA"] if self.magnitudes else [])])


@dataclass
class _Target:
    """The changes of one module.

    keys: the keys of the file that they come from. given: the module's name in the file. parts: the tensors of a LoHa
    or LoKr.
    """

    down: Tensor | None = None
    up: Tensor | None = None
    mid: Tensor | None = None
    up_bias: Tensor | None = None
    alpha: float | None = None
    magnitude: Tensor | None = None
    parts: dict[str, Tensor] = field(default_factory=dict)
    differences: dict[str, Tensor] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    given: str = ""


def read(path: str | Path, shapes: Shapes | None = None, expert: Expert | None = None) -> Changes:
    """Return the changes of a LoRA. path: as for `header.file_of`.

    shapes: those of the model. Without shapes, the names are checked against Wan's, and sizes are not checked. expert:
    the one whose changes are returned, for a file with changes of two.

    Raises InputError if the file cannot be read or contains code, a key does not fit the model, a size differs, a
    number is not finite, or the file is for two experts and none is named.
    """
    path = header.file_of(path)
    tensors, metadata = files.read(path)
    if len(header.experts_of(tensors)) > 1:
        if expert is None:
            raise InputError(
                f"The LoRA {path} is for both experts of Wan2.2, with changes for each: use it with a model of two "
                "experts, or name one expert."
            )
        tensors = header.of_expert(tensors, expert)
    config = Configuration.of(path, metadata, expert)
    shapes = wan_shapes(tensors) if shapes is None else shapes
    targets = _sort(path, tensors, shapes)
    changes = Changes({}, {}, metadata)
    names = {module: _names(module, target) for module, target in targets.items()}
    for module, target in targets.items():
        changes.differences.update(target.differences)
        if target.magnitude is not None:
            changes.magnitudes[module] = target.magnitude
        if target.parts:
            scale = config.scaling(names[module], products.rank(target.parts), target.alpha)
            _take_product(path, changes, module, target, scale, shapes)
        elif target.down is not None and target.up is not None:
            _take_factors(changes, module, target, config.scaling(names[module], len(target.down), target.alpha))
    for key in config.unmatched(names.values()):
        warnings.warn(
            f"alpha_pattern of the LoRA {path.name} has {key}, which names no layer of the file, so it has no effect.",
            stacklevel=2,
        )
    if config.values.get("use_dora") and not changes.magnitudes:
        raise InputError(f"The LoRA {path} is incomplete: it is a DoRA without magnitudes; copy it again.")
    return changes


def is_lora(path: Path) -> bool:
    """Return whether the header of a file, or of the LoRA file in a folder, has keys of a LoRA."""
    file = header.in_folder(path) or path
    if not file.is_file() or file.suffix not in (".safetensors", ".pt", ".pth", ".bin"):
        return False
    return any(_KEY.fullmatch(name) for name in weight_files.listing(file))


def made_for(width: int) -> str | None:
    """Return the Wan model with this width, or None."""
    return _WIDTHS.get(width)


def _names(module: str, target: _Target) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of a layer for `Configuration.scaling`: that in the file, and all others."""
    given = target.given.removeprefix("base_model.model.")
    return (given,), (strip(given), module, original_name(module))


def _take_factors(changes: Changes, module: str, target: _Target, trained: float) -> None:
    """Add the factors of a layer, or the difference of a convolution. trained: the scaling."""
    down, up = target.down, target.up
    assert down is not None
    assert up is not None
    if target.up_bias is not None:
        changes.differences[f"{module}.bias"] = target.up_bias.float() * trained
    if target.mid is not None:
        kernel = tucker(target.mid, up.flatten(1).T, down.flatten(1))
        changes.differences[f"{module}.weight"] = kernel * trained
    elif down.ndim > 2:
        product = up.flatten(1).float() @ down.flatten(1).float() * trained
        changes.differences[f"{module}.weight"] = product.reshape(len(product), *down.shape[1:])
    else:
        changes.factors[module] = down, up if trained == 1 else up.float() * trained
        changes.scalings[module] = trained


def _take_product(path: Path, changes: Changes, module: str, target: _Target, scale: float, shapes: Shapes) -> None:
    """Add the product of a LoHa or LoKr, or the difference of a convolution. InputError unless its size is right."""
    whole = shapes[f"{module}.weight"]
    try:
        if len(whole) == 2:
            product = products.of(target.parts, scale)
            shape: tuple[int, ...] = product.shape
            changes.products[module] = product
        else:
            kernel = products.kernel(target.parts) * scale
            changes.differences[f"{module}.weight"] = _check_whole(path, f"{module}.weight", kernel, shapes)
            return
    except (KeyError, RuntimeError) as error:
        if isinstance(error, KeyError):
            raise InputError(f"The LoRA {path} is incomplete: {module} has only {', '.join(target.keys)}.") from error
        raise InputError(f"The LoRA {path} is damaged: the factors of {module} do not multiply.") from error
    if not _fits(shape, whole):
        raise _other_size(path, module, shape, whole)


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
            target.given = match["target"]
            targets[module] = target
        else:
            unknown.append(key)
    refusals.other_kinds(path, unknown)
    for module, target in targets.items():
        _check_sizes(path, module, target, shapes)
    if unknown:
        raise refusals.unknown_keys(path, unknown, len(tensors), shapes, some_fit=bool(targets))
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
    if whole and whole != "alpha":
        parameter = module if whole == "diff_m" or module in shapes else f"{module}.{_WHOLE[whole]}"
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
    elif part := match["part"]:
        taken = part in target.parts
        target.parts[part] = value
    else:
        place = "magnitude" if match["magnitude"] else match["way"] or _SIDES[match["side"]]
        if match["of"] == "bias":
            if place != "up" or f"{module}.bias" not in shapes:
                return False
            place = "up_bias"
        taken = getattr(target, place) is not None
        setattr(target, place, value)
    if taken:
        raise InputError(f"The LoRA {path} names {module} twice ({', '.join([*target.keys, key])}).")
    return True


def _check_sizes(path: Path, module: str, target: _Target, shapes: Shapes) -> None:
    """Raise InputError unless the tensors of a module are complete and of its size. Their shapes become the model's."""
    whole = shapes.get(f"{module}.weight", ())
    paired = target.down is not None and target.up is not None
    lone = any(value is not None for value in (target.down, target.up, target.mid, target.alpha, target.up_bias))
    if lone and not paired and not (target.parts and target.down is target.up is target.up_bias is None):
        raise InputError(f"The LoRA {path} is incomplete: {module} has only {', '.join(target.keys)}.")
    if target.magnitude is not None:
        if not paired and not target.parts:
            raise InputError(f"The LoRA {path} is incomplete: {module} has only {', '.join(target.keys)}.")
        target.magnitude = _magnitude(path, module, target.magnitude, whole)
    if ((paired or target.parts) and f"{module}.weight" in target.differences) or (paired and target.parts):
        raise InputError(f"The LoRA {path} names {module} twice ({', '.join(target.keys)}).")
    if target.up_bias is not None and f"{module}.bias" in target.differences:
        raise InputError(f"The LoRA {path} names {module} twice ({', '.join(target.keys)}).")
    if target.down is not None and target.up is not None:
        _shape_factors(path, module, target, whole)
    if target.up_bias is not None:
        _check_whole(path, f"{module}.bias", target.up_bias, shapes)
    for parameter, value in target.differences.items():
        target.differences[parameter] = _check_whole(path, parameter, value, shapes)


def _shape_factors(path: Path, module: str, target: _Target, whole: tuple[int | None, ...]) -> None:
    """Give A the shape [r, in, ...] of its layer, and B [out, r]. The kernel of a convolution may be flattened."""
    down, up = target.down, target.up
    assert down is not None
    assert up is not None
    up, kernel = up.flatten(1) if up.ndim > 1 else up, target.mid
    if len(whole) == 2 and down.ndim > 2:
        down = down.flatten(1)
    if up.ndim != 2 or down.ndim < 2 or up.shape[1] != (len(down) if kernel is None else len(kernel)) or not len(down):
        raise InputError(f"The LoRA {path} is damaged: the two factors of {module} do not multiply.")
    into = down.shape[1:] if kernel is None else (down.flatten(1).shape[1], *kernel.shape[2:])
    if not _fits((len(up), *into), whole):
        known = [length for length in whole[1:] if length is not None]
        if len(whole) == 2 or kernel is not None or prod(into) != prod(known):
            if not (None in whole and down.ndim == 2 < len(whole)):
                raise _other_size(path, module, (len(up), *into), whole)
        else:
            down = down.reshape(len(down), *known)
            if not _fits((len(up), *known), whole):
                raise _other_size(path, module, (len(up), *into), whole)
    target.down, target.up = down, up


def _magnitude(path: Path, module: str, value: Tensor, whole: tuple[int | None, ...]) -> Tensor:
    """Return the lengths of a DoRA as a column for the rows of the weight, or as a row for its columns."""
    out, into = whole[0], whole[1]
    rows = value.ndim < 2 or (value.shape[1] == 1 and (out is None or value.shape[0] == out))
    if value.numel() != (value.shape[0] if rows else value.shape[1]) or (
        None not in (out, into) and value.numel() != (out if rows else into)
    ):
        raise InputError(
            f"The LoRA {path} was made for a model of another size: the magnitude of {module} is {_by(value.shape)} in "
            f"the LoRA, and the layer is {_by(whole)}."
        )
    return value.reshape((-1, *[1] * (len(whole) - 1)) if rows else (1, -1, *[1] * (len(whole) - 2)))


def _other_size(path: Path, module: str, given: tuple[int, ...], whole: tuple[int | None, ...]) -> InputError:
    if len(whole) == 2:
        there, here = f"{given[1]} to {given[0]}", f"{whole[1]} to {whole[0]}"
        says = f"maps {there} features in the LoRA{_width(given[1])} and {here} in the model"
    else:
        says = f"is {_by(given)} in the LoRA and {_by(whole)} in the model"
    return InputError(f"The LoRA {path} was made for a model of another size: {module} {says}.")


def _check_whole(path: Path, parameter: str, value: Tensor, shapes: Shapes) -> Tensor:
    """Return a difference in the shape of its parameter. Dimensions of length 1 may differ; a kernel may be flat."""
    shape = shapes[parameter]
    if _fits(value.shape, shape):
        return value
    known = [length for length in shape if length is not None]
    if len(known) == len(shape):
        flat = value.ndim == 2 < len(shape) and value.shape[0] == known[0] and value.numel() == prod(known)
        if flat or _core(value.shape) == _core(shape):
            return value.reshape(known)
    elif len(_core(value.shape)) <= len(shape):
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
