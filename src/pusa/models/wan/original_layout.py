"""Wan's own layout, and single files: find the tensors of a network, and make the stock network of them.

A folder in Wan's own layout, as Wan-AI publishes it, has `diffusion_pytorch_model*.safetensors` and `config.json` (in
`high_noise_model/` and `low_noise_model/` if there are two experts), `models_t5_umt5-xxl-enc-bf16.pth`,
`Wan2.1_VAE.pth` or `Wan2.2_VAE.pth`, and the tokenizer in `google/umt5-xxl/`. Other programs use single files in half
precision, fp8, fp8 with scales, or GGUF.

The result is always a stock class of diffusers or transformers, bit-identical to one from a diffusers folder with these
weights. fp8 weights are converted to the wanted type. GGUF weights stay quantised, and diffusers runs them.
Reading headers and configurations does not import torch; only `network` does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pusa.errors import InputError
from pusa.models import weight_files
from pusa.models.wan import recognise
from pusa.models.wan.prefixes import unwrapped
from pusa.models.wan.recognise import TEXT_ENCODER, TRANSFORMER, TRANSFORMER_2, VAE
from pusa.models.weight_files import Stored

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

WEIGHTS = "diffusion_pytorch_model"
EXPERTS = ("high_noise_model", "low_noise_model")
TOKENIZER = "google/umt5-xxl"
_BLOCKS = ("block*.safetensors", "non_block.safetensors")
DOWNLOADS = {
    TRANSFORMER: [f"{WEIGHTS}*.safetensors*", *_BLOCKS, f"{EXPERTS[0]}/*"],
    TRANSFORMER_2: [f"{EXPERTS[1]}/*"],
    VAE: ["Wan2.*_VAE.*"],
    TEXT_ENCODER: ["models_t5_*"],
    "tokenizer": [f"{TOKENIZER}/*"],
}
"""The files of such a repository that a part needs, as patterns."""

_GLOBS = {VAE: "Wan2.*_VAE.*", TEXT_ENCODER: "models_t5_umt5*"}
_TITLES = {TRANSFORMER: "a transformer", VAE: "an autoencoder", TEXT_ENCODER: "a text encoder"}
_FLAGS = {TRANSFORMER: "--model", VAE: "--vae", TEXT_ENCODER: "--text-encoder"}
_NOT_LOADED = ("spiece_model", "encoder.embed_tokens.weight")
"""Not parameters: the tokenizer inside ComfyUI's text encoders, and the second name of the embedding."""
_ADAPTER = re.compile(r"(?:^|\.)(?:lora_|lokr_|hada_)")
_FP8 = ("F8_E4M3", "F8_E5M2")
_LARGEST_FP8 = {"torch.float8_e4m3fn": 448.0, "torch.float8_e5m2": 57344.0}


@dataclass(frozen=True)
class Part:
    """One network of a model on the disk.

    path: its file or folder. config: that of diffusers or transformers. tensors: by name; empty if only the
    configuration was downloaded. scales: {weight: factor} of scaled fp8 weights.
    """

    kind: str
    path: Path
    config: dict[str, Any]
    tensors: Mapping[str, Stored]
    scales: Mapping[str, Stored]

    @property
    def files(self) -> list[Path]:
        return sorted({one.file for one in self.tensors.values()})


def is_original(folder: Path) -> bool:
    """Return whether a folder is in Wan's own layout. It may be incomplete."""
    if (folder / "model_index.json").is_file():
        return False
    if any((folder / name).is_dir() for name in EXPERTS) or any(folder.glob(f"{WEIGHTS}*")):
        return True
    if (folder / _BLOCKS[1]).is_file():
        return True
    return _own_config(folder).get("_class_name") == "WanModel"


def experts(folder: Path) -> list[Path]:
    """Return the folders of the two experts, high noise first; an empty list if there is one transformer."""
    homes = [folder / name for name in EXPERTS]
    return homes if any(home.is_dir() for home in homes) else []


def in_folder(kind: str, folder: Path) -> Part:
    """Return a part of a folder in Wan's own layout. It has no tensors if the folder has only its configuration."""
    if kind in (TRANSFORMER, TRANSFORMER_2):
        home = (experts(folder) or [folder])[-1 if kind == TRANSFORMER_2 else 0]
        own = _own_config(home)
        files = files_of(kind, folder)
        if not files:
            if not own:
                raise InputError(f"{home} is incomplete: it has no {WEIGHTS}*.safetensors; copy or download it again.")
            return Part(TRANSFORMER, home, recognise.official_config(own), {}, {})
        part = from_files(TRANSFORMER, home, files, heads=own.get("num_heads") or own.get("num_attention_heads"))
        if (blocks := own.get("num_layers", part.config["num_layers"])) != part.config["num_layers"]:
            raise InputError(
                f"{home} is incomplete: its weights have {part.config['num_layers']} blocks, and its config.json says "
                f"{blocks}; copy or download it again."
            )
        return part
    if found := files_of(kind, folder):
        return from_files(kind, found[0], found[:1])
    if kind == VAE:
        big = in_folder(TRANSFORMER, folder).config["in_channels"] == 48
        return Part(kind, folder, recognise.wan22_vae() if big else recognise.wan21_vae(), {}, {})
    return Part(kind, folder, {}, {}, {})


def from_files(kind: str, path: Path, files: Sequence[Path], heads: int | None = None) -> Part:
    """Return the network of this kind in these files.

    path: what the user gave, for messages. heads: the number of attention heads, if a config has it. Raises InputError
    if the files contain something else, a transformer for another task, or a damaged quantisation.
    """
    stored: dict[str, Stored] = {}
    for file in files:
        for name, one in _listing(file).items():
            if name in stored:
                raise InputError(f"{file} and {stored[name].file} both have {name}: give the files of one model.")
            stored[name] = one
    found = recognise.prefixes(stored, str(path))
    if kind not in found:
        raise _wrong_kind(kind, path, found, stored)
    start = found[kind]
    mine = {name.removeprefix(start): one for name, one in stored.items() if name.startswith(start)}
    if kind == TRANSFORMER:
        recognise.refuse_variant(str(path), mine)
    tensors, scales, scaled = _separate(recognise.canonical(kind, mine))
    shapes = {name: one.shape for name, one in tensors.items()}
    if kind == TRANSFORMER:
        config = recognise.transformer_config(str(path), shapes, heads)
        recognise.refuse_config(str(path), config, wan22=config["image_dim"] is None)
    elif kind == VAE:
        config = recognise.vae_config(str(path), shapes)
    else:
        config = recognise.text_encoder_config(str(path), shapes)
    if scaled or scales or "scaled_fp8" in stored:
        _check_scales(path, tensors, scales)
    return Part(kind, path, config, tensors, scales)


def files_of(kind: str, folder: Path) -> list[Path]:
    """Return the existing files of a part in a folder in Wan's own layout. transformer_2 is the second expert."""
    if kind in _GLOBS:
        return sorted(file for file in folder.glob(_GLOBS[kind]) if file.suffix in weight_files.SUFFIXES)[:1]
    homes = experts(folder) or [folder]
    which = 1 if kind == TRANSFORMER_2 else 0
    return shards(homes[which], WEIGHTS) if which < len(homes) else []


def tensors_of(kind: str, files: Iterable[Path]) -> list[Stored]:
    """Return the tensors of a network in these files, without scales and marks. The network may be for any task."""
    stored = {name: one for file in files for name, one in _listing(file).items()}
    start = recognise.prefixes(stored).get(kind, "")
    return list(_separate({name: one for name, one in stored.items() if name.startswith(start)})[0].values())


def kinds_in(file: Path) -> list[str]:
    """Return the kinds of network in a file."""
    return list(recognise.prefixes(_listing(file)))


def shards(folder: Path, stem: str) -> list[Path]:
    """Return the safetensors files of a network in a folder. If one is missing, InputError names it.

    An index names the files. Without an index they are those with this stem, or LightX2V's, which has one per block.
    """
    wanted: set[str] = set()
    for index in folder.glob(f"{stem}*.safetensors.index.json"):
        try:
            wanted |= set(map(str, json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{index} is damaged; copy it again.") from error
    files = {file.name for file in folder.glob(f"{stem}*.safetensors")}
    if wanted:
        files = {name for name in wanted if (folder / name).is_file()}
    elif stem and not files:
        files = {file.name for glob in _BLOCKS for file in folder.glob(glob)}
    for file in [Path(name) for name in files]:
        first, _, count = file.stem.rpartition("-of-")
        if count.isdigit():
            base = first.rpartition("-")[0]
            wanted |= {f"{base}-{i:05d}-of-{count}.safetensors" for i in range(1, int(count) + 1)}
    if lost := sorted(wanted - files):
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise InputError(
            f"{folder} is incomplete: {lost[0]}{more} of its {len(wanted)} files of weights is missing; copy or "
            "download it again."
        )
    return [folder / name for name in sorted(files)]


def tokenizer_near(path: Path) -> Path | None:
    """Return the folder of a tokenizer near the file or folder of a text encoder, or None."""
    folder = path if path.is_dir() else path.parent
    for near in (folder / "tokenizer", folder.parent / "tokenizer", folder / TOKENIZER, folder):
        if (near / "tokenizer.json").is_file() or (near / "spiece.model").is_file():
            return near
    return None


def network(part: Part, dtype: torch.dtype) -> nn.Module:
    """Return the part as a stock network on the CPU in `dtype`. Raises InputError unless every tensor fits."""
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKLWan, GGUFQuantizationConfig, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    if not part.tensors:
        raise InputError(
            f"{part.path} is incomplete: the weights of its {part.kind} are missing; copy or download it again"
            + (f", or give them with {_FLAGS[part.kind]}." if part.kind != TRANSFORMER else ".")
        )
    _check_complete(part)
    state = dict(_typed(part, dtype))
    if part.kind == TEXT_ENCODER:
        state["encoder.embed_tokens.weight"] = state["shared.weight"]
        encoder: nn.Module = UMT5EncoderModel.from_pretrained(
            None, config=UMT5Config(**part.config), state_dict=state, dtype=dtype
        )
        return encoder
    cls = WanTransformer3DModel if part.kind == TRANSFORMER else AutoencoderKLWan
    if not any(file.suffix.lower() in weight_files.GGUF for file in part.files):
        with init_empty_weights():
            model: nn.Module = cls.from_config(part.config)
        model.load_state_dict(state, assign=True)
        return model
    with TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps({"_class_name": cls.__name__, **part.config}))
        quantised: nn.Module = cls.from_single_file(
            state,
            config=folder,
            torch_dtype=dtype,
            quantization_config=GGUFQuantizationConfig(compute_dtype=dtype),
            local_files_only=True,
        )
    return quantised


def _typed(part: Part, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and tensors of a part in `dtype`, or in float32 if diffusers keeps it.

    diffusers does the same when it loads a folder. (When it loads a single file, it casts everything to bfloat16.)
    Weights of linear layers that GGUF quantises stay so. diffusers cannot run any other quantised parameter.
    """
    import torch
    from diffusers import WanTransformer3DModel
    from torch import nn

    stay = {f"{name}.weight" for name, layer in _empty(part).named_modules() if isinstance(layer, nn.Linear)}
    names = {(one.file, one.name): name for name, one in part.tensors.items()}
    scaled = {(one.file, one.name): name for name, one in part.scales.items()}
    factors = {scaled[one.file, one.name]: tensor.float() for one, tensor in weight_files.read(part.scales.values())}
    # private; test_wans_own_layout_and_a_single_file_are_the_diffusers_folder_bit_for_bit (test_sources.py) compares
    exact = set(WanTransformer3DModel._keep_in_fp32_modules) if part.kind == TRANSFORMER else set()
    for one, tensor in weight_files.read(part.tensors.values()):
        name = names[one.file, one.name]
        if name in _NOT_LOADED:
            continue
        if one.quantised and (name not in stay or exact & set(name.split("."))):
            tensor = weight_files.dequantised(tensor, one)
        if not tensor.is_floating_point():
            yield name, tensor
            continue
        if name in factors:
            rows = factors[name].flatten()
            tensor = tensor.float() * (rows[:, None] if len(rows) > 1 else rows)
        elif (largest := _LARGEST_FP8.get(str(tensor.dtype))) and tensor.float().abs().max() == largest:
            raise InputError(
                f"{one.file} is scaled fp8 without its scales ({one.name} uses the full range of fp8): get the file "
                "with scales."
            )
        yield name, weight_files.aligned(tensor.to(torch.float32 if exact & set(name.split(".")) else dtype))


def _check_scales(path: Path, tensors: Mapping[str, Stored], scales: Mapping[str, Stored]) -> None:
    for name, one in tensors.items():
        if one.dtype in _FP8 and name not in scales:
            raise InputError(
                f"{path} is scaled fp8, and {one.name} has no scale: copy the file again, or get one with all scales."
            )
    for name, scale in scales.items():
        if name not in tensors:
            raise InputError(f"{path} is incomplete: it has {scale.name} without a weight; copy it again.")
        rows = tensors[name].shape[0]
        if tensors[name].dtype not in _FP8 or scale.shape not in ((), (1,), (1, 1), (rows,), (rows, 1)):
            raise InputError(
                f"{path} has an unsupported quantisation ({tensors[name].name}: {tensors[name].dtype} with scales "
                f"{list(scale.shape)}): get fp8 with a scale per tensor or row, or another precision."
            )


def _check_complete(part: Part) -> None:
    """Raise InputError unless the part has exactly the tensors of its network, in the right shapes."""
    state = _empty(part).state_dict()
    wanted = {name: tuple(tensor.shape) for name, tensor in state.items() if name not in _NOT_LOADED}
    have = {name: one for name, one in part.tensors.items() if name not in _NOT_LOADED}
    if lost := sorted(set(wanted) - set(have)):
        more = f" nor {len(lost) - 1} others" if len(lost) > 1 else ""
        raise InputError(
            f"The {part.kind} {part.path} is incomplete: it has no {lost[0]}{more}; copy or download it again."
        )
    if extra := sorted(set(have) - set(wanted)):
        more = f" and {len(extra) - 1} others" if len(extra) > 1 else ""
        raise InputError(
            f"The {part.kind} {part.path} has {have[extra[0]].name}{more}, which is not part of a Wan text-to-video "
            "model: use such a model."
        )
    for name, one in have.items():
        if one.shape != wanted[name]:
            raise InputError(
                f"The {part.kind} {part.path} is damaged or mixed from two models: {one.name} has the shape "
                f"{list(one.shape)} instead of {list(wanted[name])}."
            )


def _listing(file: Path) -> dict[str, Stored]:
    """Return the tensors of a file by their names without the names of wrappers."""
    return {unwrapped(name): one for name, one in weight_files.listing(file).items()}


def _empty(part: Part) -> nn.Module:
    """Return the network of a part without memory for its weights."""
    import torch
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.device("meta"):
        if part.kind == TEXT_ENCODER:
            encoder: nn.Module = UMT5EncoderModel(UMT5Config(**part.config))
            return encoder
        cls = WanTransformer3DModel if part.kind == TRANSFORMER else AutoencoderKLWan
        network: nn.Module = cls.from_config(part.config)
        return network


def _separate(named: Mapping[str, Stored]) -> tuple[dict[str, Stored], dict[str, Stored], bool]:
    """Return the weights, {weight: its scale}, and whether a mark shows that weights are scaled."""
    tensors, scales, scaled = {}, {}, False
    for name, one in named.items():
        if suffix := next((s for s in recognise.SCALES if name.endswith(s)), None):
            scales[name.removesuffix(suffix) + ".weight"] = one
        elif name.endswith(recognise.MARKS):
            scaled = scaled or name.endswith(("scaled_fp8", ".comfy_quant"))
        else:
            tensors[name] = one
    return tensors, scales, scaled


def _wrong_kind(kind: str, path: Path, found: Iterable[str], names: Iterable[str]) -> InputError:
    for other in found:
        return InputError(f"{path} is {_TITLES[other]}, not {_TITLES[kind]}: give it with {_FLAGS[other]}.")
    if any(_ADAPTER.search(name) for name in names):
        return InputError(f"{path} is a LoRA: give it with --lora, and a model with --model.")
    first = min(names, default="nothing")
    return InputError(
        f"{path} is not {_TITLES[kind]} of Wan (it contains {first}): give another file with {_FLAGS[kind]}."
    )


def _own_config(folder: Path) -> dict[str, Any]:
    try:
        data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'config.json'} is damaged ({error}); copy it again.") from error
    return data if isinstance(data, dict) else {}
