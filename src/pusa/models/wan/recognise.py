"""Which Wan a set of tensor names and shapes is.

A file says nothing about itself: its names tell the network and the layout, its shapes the sizes. Names are first
brought to those of diffusers and transformers (with diffusers' own conversion where it has one), so that everything
after that knows one vocabulary. Nothing here reads a file; `T` is whatever belongs to a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers, convert_wan_vae_to_diffusers

from pusa.errors import InputError
from pusa.models.backbone import Expert

T = TypeVar("T")
Shapes = Mapping[str, tuple[int, ...]]
"""Of Wan2.2 A14B's two transformers, the one for high noise or the one for low."""

TRANSFORMER, TRANSFORMER_2, VAE, TEXT_ENCODER = "transformer", "transformer_2", "vae", "text_encoder"
HEAD_DIM = 128
"""Of every Wan; the shapes only tell heads times this."""
SCALES = (".scale_weight", ".weight_scale")
"""What an fp8 weight W is to be multiplied with, in ComfyUI's older and newer spelling."""
MARKS = ("scaled_fp8", ".scale_input", ".input_scale", ".comfy_quant")
"""Other tensors of a scaled file: marks, and scales of activations, which only a matrix product in fp8 needs."""

_ANCHORS = {
    TRANSFORMER: ("patch_embedding.weight",),
    VAE: ("encoder.conv1.weight", "encoder.conv_in.weight"),
    TEXT_ENCODER: ("token_embedding.weight", "shared.weight", "encoder.embed_tokens.weight", "token_embd.weight"),
}
_VARIANTS = {
    "vace_blocks.": "VACE",
    "face_adapter.": "Animate",
    "casual_audio_encoder.": "speech-to-video",
    "audio_injector.": "speech-to-video",
    "audio_proj.": "speech-to-video",
    "control_adapter.": "camera-control",
    "ref_conv.": "Fun-Control",
}
_EXPERT = re.compile(r"(?<![a-z])(high|low)[ _-]?noise", re.IGNORECASE)
_EXPERT_OF_22 = re.compile(r"(?:2[._]?2|A14B)(?:.*[^a-z])?(high|low)(?![a-z])", re.IGNORECASE)

WAN22_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)  # fmt: skip
WAN22_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)  # fmt: skip
"""Of the latents of Wan2.2's autoencoder, per channel: constants of the architecture, in no file of weights."""


@dataclass(frozen=True)
class Family:
    """What a transformer is called, and its licence."""

    name: str
    licence: str = "Apache-2.0"


_FAMILIES = {
    (1536, 30, 16): Family("Wan2.1 T2V 1.3B"),
    (5120, 40, 16): Family("Wan2.1 T2V 14B or an expert of Wan2.2 T2V A14B (their tensors look the same)"),
    (3072, 30, 48): Family("Wan2.2 TI2V 5B"),
}
_A14B = Family("Wan2.2 T2V A14B")


def family(config: Mapping[str, Any], *, experts: bool = False) -> Family:
    """The Wan that has such a transformer. config: diffusers'. experts: there are two of it."""
    width = config.get("num_attention_heads", 40) * config.get("attention_head_dim", HEAD_DIM)
    layers, channels = config.get("num_layers", 40), config.get("in_channels", 16)
    found = _FAMILIES.get((width, layers, channels))
    if found is None:
        return Family(f"Wan of {layers} layers, {width} wide, {channels} channels", "unknown")
    return _A14B if experts and width == 5120 else found


def expert_of(name: str) -> Expert | None:
    """ "high" or "low" when a file's or folder's name says that it is one of Wan2.2's experts; tensors do not tell."""
    match = _EXPERT.search(name) or _EXPERT_OF_22.search(name)
    return None if match is None else "high" if match[1].lower() == "high" else "low"


def prefixes(names: Iterable[str]) -> dict[str, str]:
    """The networks that tensors of these names make up, each with what stands before its names.

    A file may hold several: `model.diffusion_model.`, `vae.`, `text_encoders.umt5xxl.transformer.` in ComfyUI's
    checkpoints. Empty when none of them is part of a Wan.
    """
    found: dict[str, str] = {}
    for name in names:
        for kind, anchors in _ANCHORS.items():
            for anchor in anchors:
                start = name.removesuffix(anchor)
                if start != name and (not start or start.endswith(".")):
                    found.setdefault(kind, start)
    return found


def canonical(kind: str, named: Mapping[str, T]) -> dict[str, T]:
    """The same under the names of diffusers (transformer, vae) or transformers (text_encoder)."""
    if kind == TRANSFORMER:
        if any(".self_attn." in name or name.startswith("head.") for name in named):
            converted: dict[str, T] = convert_wan_transformer_to_diffusers(dict(named))
            return converted
        return dict(named)
    if kind == VAE:
        if "encoder.conv1.weight" not in named:
            return dict(named)
        if any(name.startswith("encoder.downsamples.0.downsamples.") for name in named):
            named = {_vae22_name(name): value for name, value in named.items()}
        renamed: dict[str, T] = convert_wan_vae_to_diffusers(dict(named))
        return renamed
    return (
        {_text_name(name): value for name, value in named.items()} if "token_embedding.weight" in named else {**named}
    )


_RESIDUAL = {"residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2", "residual.6": "conv2",
             "shortcut": "conv_shortcut"}  # fmt: skip
_STAGE = re.compile(r"(encoder\.down|decoder\.up)samples\.(\d+)\.(?:down|up)samples\.(\d+)\.(.*)\.(\w+)")


def _vae22_name(name: str) -> str:
    """Wan2.2's autoencoder nests its stages, which diffusers' conversion does not know; the rest is as in Wan2.1."""
    match = _STAGE.fullmatch(name)
    if not match:
        return name
    side, stage, place, layer, leaf = match.groups()
    if layer in _RESIDUAL:
        return f"{side}_blocks.{stage}.resnets.{place}.{_RESIDUAL[layer]}.{leaf}"
    return f"{side}_blocks.{stage}.{side.removeprefix('encoder.').removeprefix('decoder.')}sampler.{layer}.{leaf}"


_TEXT = {
    "attn.q": "layer.0.SelfAttention.q",
    "attn.k": "layer.0.SelfAttention.k",
    "attn.v": "layer.0.SelfAttention.v",
    "attn.o": "layer.0.SelfAttention.o",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm1": "layer.0.layer_norm",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}


def _text_name(name: str) -> str:
    """Wan's own UMT5 in the names of transformers."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(\w+)", name)
    if match and match[2] in _TEXT:
        return f"encoder.block.{match[1]}.{_TEXT[match[2]]}.{match[3]}"
    ends = {"token_embedding": "shared", "norm": "encoder.final_layer_norm"}
    stem, _, leaf = name.rpartition(".")
    return f"{ends.get(stem, stem)}.{leaf}"


def refuse_variant(name: str, names: Iterable[str]) -> None:
    """InputError when these tensors (names as in the file) are a Wan transformer of another task."""
    names = list(names)
    embedded = [n for n in names if "img_emb." in n or "image_embedder" in n]
    if any("emb_pos" in n or "pos_embed" in n for n in embedded):
        raise refusal(name, "a first-and-last-frame checkpoint", "Wan-AI/Wan2.1-T2V-14B-Diffusers")
    for start, task in _VARIANTS.items():
        if any(n.startswith(start) or f".{start}" in n for n in names):
            raise InputError(
                f"{name} is a Wan of another task ({task}), but only a plain text-to-video one will do: use for "
                "example Wan-AI/Wan2.1-T2V-1.3B-Diffusers."
            )


def refuse_config(name: str, config: Mapping[str, Any], *, wan22: bool = False) -> None:
    """InputError when a transformer's diffusers config is that of an image-to-video model.

    wan22: it has two experts, or no tensors for an image's embedding, which only Wan2.1 has.
    """
    if config.get("pos_embed_seq_len"):
        raise refusal(name, "a first-and-last-frame checkpoint", "Wan-AI/Wan2.1-T2V-14B-Diffusers")
    if config.get("in_channels", 16) == 36:
        right = "Wan-AI/Wan2.2-T2V-A14B-Diffusers" if wan22 else "Wan-AI/Wan2.1-T2V-14B-Diffusers"
        raise refusal(name, "an image-to-video checkpoint (36 input channels)", right)


def refusal(name: str, what: str, right: str) -> InputError:
    return InputError(f"{name} is {what}; one timestep per frame makes a text-to-video model do that: use {right}.")


# ------------------------------------------------------------------------------------------------ configs from shapes


def transformer_config(name: str, shapes: Shapes, heads: int | None = None) -> dict[str, Any]:
    """diffusers' config of the transformer with these shapes (names of diffusers). heads: where a config says it."""
    get = _Sizes(name, "transformer", shapes)
    width, channels, *patch = get("patch_embedding.weight", 5)
    volume = patch[0] * patch[1] * patch[2]
    heads = heads or max(1, width // HEAD_DIM)
    image = any("image_embedder" in key or "img_emb" in key or "add_k_proj" in key for key in shapes)
    return {
        "patch_size": patch,
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": channels,
        "out_channels": get("proj_out.weight", 2)[0] // volume,
        "text_dim": get("condition_embedder.text_embedder.linear_1.weight", 2)[1],
        "freq_dim": get("condition_embedder.time_embedder.linear_1.weight", 2)[1],
        "ffn_dim": get("blocks.0.ffn.net.0.proj.weight", 2)[0],
        "num_layers": _count(r"blocks\.(\d+)\.", shapes),
        "image_dim": 1280 if image else None,
    }


def official_config(data: Mapping[str, Any]) -> dict[str, Any]:
    """diffusers' config of a transformer from Wan's own config.json."""
    heads = data.get("num_heads", 40)
    return {
        "num_attention_heads": heads,
        "attention_head_dim": data.get("dim", 5120) // heads,
        "in_channels": data.get("in_dim", 16),
        "out_channels": data.get("out_dim", 16),
        "ffn_dim": data.get("ffn_dim", 13824),
        "freq_dim": data.get("freq_dim", 256),
        "num_layers": data.get("num_layers", 40),
        "text_dim": data.get("text_dim", 4096),
        "image_dim": 1280 if data.get("model_type") == "flf2v" else None,
        "pos_embed_seq_len": 514 if data.get("model_type") == "flf2v" else None,
    }


def vae_config(name: str, shapes: Shapes) -> dict[str, Any]:
    """diffusers' config of the Wan autoencoder with these shapes (names of diffusers)."""
    get = _Sizes(name, "autoencoder", shapes)
    channels = get("post_quant_conv.weight", 5)[0]
    base = get("encoder.conv_in.weight", 5)[0]
    if any(key.startswith("encoder.down_blocks.0.resnets.") for key in shapes):
        if channels != len(WAN22_MEAN):
            raise InputError(f"{name} is an autoencoder of {channels} channels where Wan2.2's has 48; give that one.")
        return wan22_vae(base, get("decoder.conv_in.weight", 5)[0] // 4)
    if channels != 16:
        raise InputError(f"{name} is an autoencoder of {channels} channels where Wan2.1's has 16; give that one.")
    return wan21_vae(base)


def wan21_vae(base: int = 96) -> dict[str, Any]:
    """The 16-channel autoencoder of Wan2.1 and of A14B; its statistics are diffusers' defaults."""
    return {"base_dim": base, "z_dim": 16, "scale_factor_temporal": 4, "scale_factor_spatial": 8}


def wan22_vae(base: int = 160, decoder_base: int = 256) -> dict[str, Any]:
    """The 48-channel autoencoder of TI2V-5B, which makes pictures 16 times smaller."""
    return {
        "base_dim": base,
        "decoder_base_dim": decoder_base,
        "z_dim": 48,
        "latents_mean": list(WAN22_MEAN),
        "latents_std": list(WAN22_STD),
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_temporal": 4,
        "scale_factor_spatial": 16,
    }


def text_encoder_config(name: str, shapes: Shapes) -> dict[str, Any]:
    """The UMT5Config of the encoder with these shapes (names of transformers)."""
    if "token_embd.weight" in shapes:
        raise InputError(f"{name} is a text encoder as llama.cpp writes it, which is not read: give a safetensors one.")
    embedding = "shared.weight" if "shared.weight" in shapes else "encoder.embed_tokens.weight"
    get = _Sizes(name, "text encoder", shapes)
    vocabulary, width = get(embedding, 2)
    layers = _count(r"encoder\.block\.(\d+)\.", shapes)
    bias = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    if layers > 1 and bias.format(0) in shapes and bias.format(1) not in shapes:
        raise InputError(f"{name} is a T5 encoder, but Wan reads UMT5: give umt5-xxl in its place.")
    buckets, heads = get(bias.format(0), 2)
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": get("encoder.block.0.layer.0.SelfAttention.q.weight", 2)[0] // heads,
        "d_ff": get("encoder.block.0.layer.1.DenseReluDense.wi_0.weight", 2)[0],
        "num_layers": layers,
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
    }


@dataclass(frozen=True)
class _Sizes:
    """Shapes by name, with a sentence for one that is not there or of another rank."""

    name: str
    what: str
    shapes: Shapes

    def __call__(self, key: str, rank: int) -> tuple[int, ...]:
        shape = self.shapes.get(key)
        if shape is None:
            raise InputError(f"The {self.what} {self.name} is incomplete: it has no {key}; copy it again.")
        if len(shape) != rank:
            raise InputError(f"The {self.what} {self.name} is no Wan's: its {key} has the shape {list(shape)}.")
        return shape


def _count(pattern: str, names: Iterable[str]) -> int:
    return 1 + max((int(match[1]) for name in names if (match := re.match(pattern, name))), default=-1)
