"""Wan's own layout, and single files: where a network's tensors are, and the stock network made of them.

The folders that Wan-AI publishes beside the diffusers ones hold `diffusion_pytorch_model*.safetensors`, `config.json`
(in `high_noise_model/` and `low_noise_model/` where there are two experts), `models_t5_umt5-xxl-enc-bf16.pth`,
`Wan2.1_VAE.pth` or `Wan2.2_VAE.pth`, and the tokenizer in `google/umt5-xxl/`. Other programs pass single files around:
half precision, fp8, fp8 with scales, GGUF. What comes out is always diffusers' or transformers' own class, the same to
the bit as from a diffusers folder with these weights; fp8 is widened on the way, GGUF stays as diffusers runs it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, GGUFQuantizationConfig, WanTransformer3DModel
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from pusa.errors import InputError
from pusa.models import weight_files
from pusa.models.wan import recognise
from pusa.models.wan.recognise import TEXT_ENCODER, TRANSFORMER, TRANSFORMER_2, VAE
from pusa.models.weight_files import Stored

WEIGHTS = "diffusion_pytorch_model"
EXPERTS = ("high_noise_model", "low_noise_model")
TOKENIZER = "google/umt5-xxl"
DOWNLOADS = {
    TRANSFORMER: [f"{WEIGHTS}*.safetensors*", f"{EXPERTS[0]}/*"],
    TRANSFORMER_2: [f"{EXPERTS[1]}/*"],
    VAE: ["Wan2.*_VAE.*"],
    TEXT_ENCODER: ["models_t5_*"],
    "tokenizer": [f"{TOKENIZER}/*"],
}
"""Which files of such a repository a part needs."""

_GLOBS = {VAE: "Wan2.*_VAE.*", TEXT_ENCODER: "models_t5_umt5*"}
_CALLED = {TRANSFORMER: "a transformer", VAE: "an autoencoder", TEXT_ENCODER: "a text encoder"}
_FLAGS = {TRANSFORMER: "--model", VAE: "--vae", TEXT_ENCODER: "--text-encoder"}
_NOT_LOADED = ("spiece_model", "encoder.embed_tokens.weight")
"""The tokenizer inside ComfyUI's text encoders, and the second name of the embedding."""
_FP8 = ("F8_E4M3", "F8_E5M2")
_LARGEST_FP8 = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}


@dataclass(frozen=True)
class Part:
    """One network of a model as it lies on the disk.

    path: the file or folder it is in. config: diffusers' or transformers'. tensors: by their names; empty where only
    the configuration was downloaded. scales: what to multiply fp8 weights with, by the weights' names.
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
    """Whether a folder is in Wan's own layout (complete or not)."""
    if (folder / "model_index.json").is_file():
        return False
    if any((folder / name / "config.json").is_file() for name in EXPERTS) or any(folder.glob(f"{WEIGHTS}*")):
        return True
    return _own_config(folder).get("_class_name") == "WanModel"


def experts(folder: Path) -> list[Path]:
    """The folders of the two experts, high noise first; none where there is one transformer."""
    homes = [folder / name for name in EXPERTS]
    return homes if any(home.is_dir() for home in homes) else []


def in_folder(kind: str, folder: Path) -> Part:
    """A part of a folder in Wan's own layout; without tensors where only its configuration is there."""
    if kind in (TRANSFORMER, TRANSFORMER_2):
        home = (experts(folder) or [folder])[-1 if kind == TRANSFORMER_2 else 0]
        own = _own_config(home)
        files = files_of(kind, folder)
        if not files:
            if not own:
                raise InputError(f"{home} is incomplete: it has no {WEIGHTS}*.safetensors; copy or download it again.")
            return Part(TRANSFORMER, home, recognise.official_config(own), {}, {})
        return from_files(TRANSFORMER, home, files, heads=own.get("num_heads") or own.get("num_attention_heads"))
    if found := files_of(kind, folder):
        return from_files(kind, found[0], found[:1])
    if kind == VAE:
        big = in_folder(TRANSFORMER, folder).config["in_channels"] == 48
        return Part(kind, folder, recognise.wan22_vae() if big else recognise.wan21_vae(), {}, {})
    return Part(kind, folder, {}, {}, {})


def from_files(kind: str, path: Path, files: Sequence[Path], heads: int | None = None) -> Part:
    """The network of this kind in these files; `path` is what the user knows them by, `heads` what its config says.

    Raises InputError when they hold something else, a transformer of another task, or a broken quantisation.
    """
    stored: dict[str, Stored] = {}
    for file in files:
        for name, one in weight_files.listing(file).items():
            if name in stored:
                raise InputError(f"{file} and {stored[name].file} both have {name}: give one model.")
            stored[name] = one
    found = recognise.prefixes(stored)
    if kind not in found:
        raise _mixed_up(kind, path, found, stored)
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
    """The files of a part (transformer_2 is the second expert) that are there, in a folder in Wan's own layout."""
    if kind in _GLOBS:
        return sorted(file for file in folder.glob(_GLOBS[kind]) if file.suffix in weight_files.SUFFIXES)[:1]
    homes = experts(folder) or [folder]
    which = 1 if kind == TRANSFORMER_2 else 0
    return shards(homes[which], WEIGHTS) if which < len(homes) else []


def listed(kind: str, files: Iterable[Path]) -> list[Stored]:
    """The tensors of a network in these files, without scales and marks, whatever task it is for."""
    stored = {name: one for file in files for name, one in weight_files.listing(file).items()}
    start = recognise.prefixes(stored).get(kind, "")
    return list(_separate({name: one for name, one in stored.items() if name.startswith(start)})[0].values())


def holds(file: Path) -> list[str]:
    """The kinds of network in a file."""
    return list(recognise.prefixes(weight_files.listing(file)))


def shards(folder: Path, stem: str) -> list[Path]:
    """The safetensors files of a network in a folder, all there; InputError names one that is missing."""
    files = sorted(folder.glob(f"{stem}*.safetensors"))
    wanted: set[str] = set()
    for index in folder.glob(f"{stem}*.safetensors.index.json"):
        try:
            wanted |= set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{index} is damaged; copy it again.") from error
    for file in files:
        first, _, count = file.stem.rpartition("-of-")
        if count.isdigit():
            base = first.rpartition("-")[0]
            wanted |= {f"{base}-{i:05d}-of-{count}.safetensors" for i in range(1, int(count) + 1)}
    if lost := sorted(wanted - {file.name for file in files}):
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise InputError(
            f"{folder} is incomplete: {lost[0]}{more} of its {len(wanted)} files of weights is not there; copy or "
            "download it again."
        )
    return files


def tokenizer_beside(path: Path) -> Path | None:
    """The folder of the tokenizer that belongs to a text encoder's file or folder, where there is one near it."""
    folder = path if path.is_dir() else path.parent
    for near in (folder / "tokenizer", folder.parent / "tokenizer", folder / TOKENIZER, folder):
        if (near / "tokenizer.json").is_file() or (near / "spiece.model").is_file():
            return near
    return None


def network(part: Part, dtype: torch.dtype) -> nn.Module:
    """The part as diffusers' or transformers' class, on the CPU in `dtype`; InputError unless every tensor fits."""
    if not part.tensors:
        raise InputError(
            f"{part.path} is incomplete: the weights of its {part.kind} are not there; copy or download it again"
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
    """The tensors of a part by name in `dtype`, in float32 where diffusers keeps that, and GGUF's as they are.

    This is what diffusers' own loading of a folder does; its loading of a single file casts everything to bfloat16.
    """
    names = {(one.file, one.name): name for name, one in part.tensors.items()}
    scaled = {(one.file, one.name): name for name, one in part.scales.items()}
    factors = {scaled[one.file, one.name]: tensor.float() for one, tensor in weight_files.read(part.scales.values())}
    exact = set(WanTransformer3DModel._keep_in_fp32_modules) if part.kind == TRANSFORMER else set()
    for one, tensor in weight_files.read(part.tensors.values()):
        name = names[one.file, one.name]
        if name in _NOT_LOADED:
            continue
        if not tensor.is_floating_point():
            yield name, tensor
            continue
        if name in factors:
            rows = factors[name].flatten()
            tensor = tensor.float() * (rows[:, None] if len(rows) > 1 else rows)
        elif (largest := _LARGEST_FP8.get(tensor.dtype)) and tensor.float().abs().max() == largest:
            raise InputError(
                f"{one.file} is scaled fp8 without its scales ({one.name} fills all of fp8's range): get the file that "
                "has them."
            )
        yield name, weight_files.aligned(tensor.to(torch.float32 if exact & set(name.split(".")) else dtype))


def _check_scales(path: Path, tensors: Mapping[str, Stored], scales: Mapping[str, Stored]) -> None:
    for name, one in tensors.items():
        if one.dtype in _FP8 and name not in scales:
            raise InputError(
                f"{path} is scaled fp8, but {one.name} has no scale in it: copy the file again, or get one that has."
            )
    for name, scale in scales.items():
        if name not in tensors:
            raise InputError(f"{path} is incomplete: it has {scale.name} without a weight; copy it again.")
        rows = tensors[name].shape[0]
        if tensors[name].dtype not in _FP8 or scale.shape not in ((), (1,), (1, 1), (rows,), (rows, 1)):
            raise InputError(
                f"{path} is quantised in a way that is not read ({tensors[name].name}: {tensors[name].dtype} with "
                f"scales {list(scale.shape)}): get fp8 with a scale per tensor or row, or another precision."
            )


def _check_complete(part: Part) -> None:
    """InputError unless the part has every tensor of its network in the right shape, and no other."""
    with torch.device("meta"):
        if part.kind == TEXT_ENCODER:
            skeleton: Any = UMT5EncoderModel(UMT5Config(**part.config))
        else:
            cls = WanTransformer3DModel if part.kind == TRANSFORMER else AutoencoderKLWan
            skeleton = cls.from_config(part.config)
    wanted = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items() if name not in _NOT_LOADED}
    have = {name: one for name, one in part.tensors.items() if name not in _NOT_LOADED}
    if lost := sorted(set(wanted) - set(have)):
        more = f" nor {len(lost) - 1} others" if len(lost) > 1 else ""
        raise InputError(
            f"The {part.kind} {part.path} is incomplete: it has no {lost[0]}{more}; copy or download it again."
        )
    if extra := sorted(set(have) - set(wanted)):
        more = f" and {len(extra) - 1} others" if len(extra) > 1 else ""
        raise InputError(
            f"The {part.kind} {part.path} has {have[extra[0]].name}{more}, which no plain Wan text-to-video model has: "
            "use one of those."
        )
    for name, one in have.items():
        if one.shape != wanted[name]:
            raise InputError(
                f"The {part.kind} {part.path} is damaged or mixed from two models: {one.name} has the shape "
                f"{list(one.shape)} instead of {list(wanted[name])}."
            )


def _separate(named: Mapping[str, Stored]) -> tuple[dict[str, Stored], dict[str, Stored], bool]:
    """Weights, scales by the names of their weights, and whether something marks the whole as scaled."""
    tensors, scales, scaled = {}, {}, False
    for name, one in named.items():
        if suffix := next((s for s in recognise.SCALES if name.endswith(s)), None):
            scales[name.removesuffix(suffix) + ".weight"] = one
        elif name.endswith(recognise.MARKS):
            scaled = scaled or name.endswith(("scaled_fp8", ".comfy_quant"))
        else:
            tensors[name] = one
    return tensors, scales, scaled


def _mixed_up(kind: str, path: Path, found: Iterable[str], names: Iterable[str]) -> InputError:
    for other in found:
        return InputError(f"{path} is {_CALLED[other]}, not {_CALLED[kind]}: give it with {_FLAGS[other]}.")
    if any(".lora_" in name or name.startswith("lora_") for name in names):
        return InputError(f"{path} is a LoRA: give it with --lora, and a model with --model.")
    first = min(names, default="nothing")
    return InputError(
        f"{path} is not {_CALLED[kind]} of Wan (it holds {first}): give another file with {_FLAGS[kind]}."
    )


def _own_config(folder: Path) -> dict[str, Any]:
    try:
        data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'config.json'} is damaged ({error}); copy it again.") from error
    return data if isinstance(data, dict) else {}
