"""Recognise a Wan network by the names and shapes of its tensors.

The names show which network and which layout a file has, and the shapes show the sizes. All names are first converted
to those of diffusers and transformers. Nothing here reads a file or imports torch, except the conversion of an
autoencoder, which is diffusers' own. `T` is
the type of the value that belongs to a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pusa.errors import InputError
from pusa.models.backbone import Expert

T = TypeVar("T")
Shapes = Mapping[str, tuple[int, ...]]
"""{name of a tensor: its shape}"""

TRANSFORMER, TRANSFORMER_2, VAE, TEXT_ENCODER = "transformer", "transformer_2", "vae", "text_encoder"
HEAD_DIM = 128
"""The width of an attention head, in every Wan. The shapes show only the number of heads times this width."""
SCALES = (".scale_weight", ".weight_scale")
"""Endings of the names of factors for fp8 weights, in ComfyUI's older and newer files."""
MARKS = ("scaled_fp8", ".scale_input", ".input_scale", ".comfy_quant")
"""Endings of other names in a scaled file: marks, and scales of activations, which are needed in fp8 products only."""

_ANCHORS = {
    TRANSFORMER: ("patch_embedding.weight",),
    VAE: ("encoder.conv1.weight", "encoder.conv_in.weight"),
    TEXT_ENCODER: ("token_embedding.weight", "shared.weight", "encoder.embed_tokens.weight", "token_embd.weight"),
}
_VARIANTS = {
    "vace_blocks.": "VACE",
    "vace_patch_embedding.": "VACE",
    "face_adapter.": "Animate",
    "motion_encoder.": "Animate",
    "pose_patch_embedding.": "Animate",
    "dwpose_embedding.": "pose control",
    "cam_encoder.": "camera-control",
    "audio_cross_attn": "speech-to-video",
    "casual_audio_encoder.": "speech-to-video",
    "audio_injector.": "speech-to-video",
    "audio_proj.": "speech-to-video",
    "control_adapter.": "camera-control",
    "ref_conv.": "Fun-Control",
}
_EXPERT = re.compile(r"(?<![a-z])(high|low)[ _-]?noise", re.IGNORECASE)
_PERHAPS = re.compile(r"(?:2[._]?2|A14B)(?:.*[^a-z])?(high|low|HN|LN)(?![a-z])", re.IGNORECASE)

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
"""Mean and standard deviation of each latent channel of Wan2.2's autoencoder. No file of weights contains them."""


@dataclass(frozen=True)
class Family:
    """The name of a transformer, and its licence."""

    name: str
    licence: str = "Apache-2.0"


_FAMILIES = {
    (1536, 30, 16): Family("Wan2.1 T2V 1.3B"),
    (5120, 40, 16): Family("Wan2.1 T2V 14B or an expert of Wan2.2 T2V A14B (their tensors look the same)"),
    (3072, 30, 48): Family("Wan2.2 TI2V 5B"),
}
_A14B = Family("Wan2.2 T2V A14B")


def family(config: Mapping[str, Any], *, experts: bool = False) -> Family:
    """Return the family of a transformer. config: that of diffusers. experts: whether there are two transformers."""
    width = config.get("num_attention_heads", 40) * config.get("attention_head_dim", HEAD_DIM)
    layers, (channels, made) = config.get("num_layers", 40), _channels(config)
    found = _FAMILIES.get((width, layers, channels)) if channels == made else None
    if found is None:
        many = f"{channels} channels" if channels == made else f"{channels} channels in and {made} out"
        return Family(f"Wan of {layers} layers, {width} wide, {many}", "unknown")
    return _A14B if experts and width == 5120 else found


def expert_of(name: str) -> Expert | None:
    """Return the expert of Wan2.2 that the name of a file or folder states, as in "high_noise". Tensors do not show it.

    A name with "high" or "low" alone is not enough, because it may be that of a style: see `maybe_expert`.
    """
    return _which(_EXPERT.search(name))


def maybe_expert(name: str) -> Expert | None:
    """Return the expert that a name of Wan2.2 may mean by "high", "low", "HN" or "LN", if `expert_of` finds none."""
    return None if expert_of(name) else _which(_PERHAPS.search(name))


def _which(match: re.Match[str] | None) -> Expert | None:
    return None if match is None else "high" if match[1].lower().startswith("h") else "low"


def prefixes(names: Iterable[str], file: str | None = None) -> dict[str, str]:
    """Return {network: prefix of its names} for the networks that these tensors form; empty if there is none of Wan.

    A file may contain several networks. For example, ComfyUI's checkpoints have the prefixes `model.diffusion_model.`,
    `vae.` and `text_encoders.umt5xxl.transformer.`. Of several transformers, the average of a training comes first.

    file: the file, for messages. With it, InputError if the tensors form several transformers of equal rank.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        for kind, anchors in _ANCHORS.items():
            for anchor in anchors:
                start = name.removesuffix(anchor)
                if start != name and (not start or start.endswith(".")) and start not in found.setdefault(kind, []):
                    found[kind].append(start)
    several = sorted(found.get(TRANSFORMER, ()), key=_rank)
    if file is not None and len(several) > 1 and _rank(several[0]) == _rank(several[1]):
        both = " and ".join(start.rstrip(".") or "one without a prefix" for start in several)
        raise InputError(
            f"{file} contains {len(several)} transformers ({both}), which may be the two experts of Wan2.2: write each "
            "to a file of its own, and give the one for low noise with --transformer-2."
        )
    if several:
        found[TRANSFORMER] = several
    return {kind: starts[0] for kind, starts in found.items() if starts}


def _rank(prefix: str) -> int:
    """Return the place of a transformer among several of one training: the average, the trained one, its helpers."""
    parts = set(re.split(r"[._]", prefix.lower()))
    return 0 if "ema" in parts else 2 if parts & {"critic", "fake", "real", "teacher", "discriminator"} else 1


def canonical(kind: str, named: Mapping[str, T]) -> dict[str, T]:
    """Return the values under the names of diffusers (transformer, vae) or transformers (text_encoder)."""
    if kind == TRANSFORMER:
        if any(".self_attn." in name or name.startswith("head.") for name in named):
            return {_transformer_name(name): value for name, value in named.items()}
        return dict(named)
    if kind == VAE:
        if "encoder.conv1.weight" not in named:
            return dict(named)
        # Not public. test_wans_own_layout_and_a_single_file_are_the_diffusers_folder_bit_for_bit
        # (tests/models/loading/test_sources.py) fails when it moves or changes.
        from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

        if any(name.startswith("encoder.downsamples.0.downsamples.") for name in named):
            named = {_vae22_name(name): value for name, value in named.items()}
        renamed: dict[str, T] = convert_wan_vae_to_diffusers(dict(named))
        return renamed
    return (
        {_text_name(name): value for name, value in named.items()} if "token_embedding.weight" in named else {**named}
    )


_TRANSFORMER = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^time_embedding\.0\.", "condition_embedder.time_embedder.linear_1."),
        (r"^time_embedding\.2\.", "condition_embedder.time_embedder.linear_2."),
        (r"^text_embedding\.0\.", "condition_embedder.text_embedder.linear_1."),
        (r"^text_embedding\.2\.", "condition_embedder.text_embedder.linear_2."),
        (r"^time_projection\.1\.", "condition_embedder.time_proj."),
        (r"\.self_attn\.", ".attn1."),
        (r"\.cross_attn\.", ".attn2."),
        (r"(\.attn[12])\.([qkv])\.", r"\1.to_\2."),
        (r"(\.attn[12])\.o\.", r"\1.to_out.0."),
        (r"(\.attn2)\.([kv])_img\.", r"\1.add_\2_proj."),
        (r"(\.attn2)\.norm_k_img\.", r"\1.norm_added_k."),
        (r"\.ffn\.0\.", ".ffn.net.0.proj."),
        (r"\.ffn\.2\.", ".ffn.net.2."),
        (r"^(blocks\.\d+)\.norm3\.", r"\1.norm2."),  # Wan's own norm2 has no weights
        (r"^(blocks\.\d+)\.modulation$", r"\1.scale_shift_table"),
        (r"^head\.modulation$", "scale_shift_table"),
        (r"^head\.head\.", "proj_out."),
        (r"^img_emb\.proj\.0\.", "condition_embedder.image_embedder.norm1."),
        (r"^img_emb\.proj\.1\.", "condition_embedder.image_embedder.ff.net.0.proj."),
        (r"^img_emb\.proj\.3\.", "condition_embedder.image_embedder.ff.net.2."),
        (r"^img_emb\.proj\.4\.", "condition_embedder.image_embedder.norm2."),
    )
)


def _transformer_name(name: str) -> str:
    """Convert a name of Wan's own transformer to that of diffusers."""
    for pattern, replacement in _TRANSFORMER:
        name = pattern.sub(replacement, name)
    return name


_RESIDUAL = {"residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2", "residual.6": "conv2",
             "shortcut": "conv_shortcut"}  # fmt: skip
_STAGE = re.compile(r"(encoder\.down|decoder\.up)samples\.(\d+)\.(?:down|up)samples\.(\d+)\.(.*)\.(\w+)")


def _vae22_name(name: str) -> str:
    """Convert a name in the stages of Wan2.2's autoencoder, which diffusers' conversion does not support."""
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
    """Convert a name of Wan's own UMT5 to that of transformers."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(\w+)", name)
    if match and match[2] in _TEXT:
        return f"encoder.block.{match[1]}.{_TEXT[match[2]]}.{match[3]}"
    ends = {"token_embedding": "shared", "norm": "encoder.final_layer_norm"}
    stem, _, leaf = name.rpartition(".")
    return f"{ends.get(stem, stem)}.{leaf}"


def refuse_variant(name: str, names: Iterable[str]) -> None:
    """Raise InputError if these tensors, named as in the file, are those of a Wan transformer for another task."""
    names = list(names)
    embedded = [n for n in names if "img_emb." in n or "image_embedder" in n]
    if any("emb_pos" in n or "pos_embed" in n for n in embedded):
        raise refusal(name, "a first-and-last-frame checkpoint", "Wan-AI/Wan2.1-T2V-14B-Diffusers")
    for start, task in _VARIANTS.items():
        if any(n.startswith(start) or f".{start}" in n for n in names):
            raise InputError(
                f"{name} is a Wan model for another task ({task}): use a text-to-video model, for example "
                "Wan-AI/Wan2.1-T2V-1.3B-Diffusers."
            )


def refuse_config(name: str, config: Mapping[str, Any], *, wan22: bool = False) -> None:
    """Raise InputError if a transformer's config is that of a model for another task, such as image-to-video.

    wan22: whether the model has two experts, or has no image embedding, which only Wan2.1 has.
    """
    if config.get("pos_embed_seq_len"):
        raise refusal(name, "a first-and-last-frame checkpoint", "Wan-AI/Wan2.1-T2V-14B-Diffusers")
    given, made = _channels(config)
    right = "Wan-AI/Wan2.2-T2V-A14B-Diffusers" if wan22 else "Wan-AI/Wan2.1-T2V-14B-Diffusers"
    if given == 36:
        raise refusal(name, "an image-to-video checkpoint (36 input channels)", right)
    if given != made:
        right = "Wan-AI/Wan2.2-TI2V-5B-Diffusers" if made == 48 else right
        raise InputError(
            f"{name} is a Wan model for another task, such as control or image-to-video: it takes {given} channels and "
            f"makes {made}, and a text-to-video model takes what it makes; use one, for example {right}."
        )


def _channels(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return the channels that a transformer takes and makes. config: that of diffusers, with its default values."""
    given, made = config.get("in_channels", 16), config.get("out_channels", 16)
    return given, given if made is None else made


def refusal(name: str, what: str, right: str) -> InputError:
    return InputError(f"{name} is {what}; with a timestep per frame, a text-to-video model can do that: use {right}.")


# ------------------------------------------------------------------------------------------------ configs from shapes


def transformer_config(name: str, shapes: Shapes, heads: int | None = None) -> dict[str, Any]:
    """Return diffusers' config of the transformer with these shapes. heads: their number, if a config has it."""
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
    """Return diffusers' config of a transformer for Wan's own config.json."""
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
    """Return diffusers' config of the autoencoder with these shapes."""
    get = _Sizes(name, "autoencoder", shapes)
    channels = get("post_quant_conv.weight", 5)[0]
    base = get("encoder.conv_in.weight", 5)[0]
    if any(key.startswith("encoder.down_blocks.0.resnets.") for key in shapes):
        if channels != len(WAN22_MEAN):
            raise InputError(f"{name} is an autoencoder of {channels} channels, and Wan2.2's has 48: give that one.")
        return wan22_vae(base, get("decoder.conv_in.weight", 5)[0] // 4)
    if channels != 16:
        raise InputError(f"{name} is an autoencoder of {channels} channels, and Wan2.1's has 16: give that one.")
    return wan21_vae(base)


def wan21_vae(base: int = 96) -> dict[str, Any]:
    """Return the config of the 16-channel autoencoder of Wan2.1 and A14B. Its statistics are diffusers' defaults."""
    return {"base_dim": base, "z_dim": 16, "scale_factor_temporal": 4, "scale_factor_spatial": 8}


def wan22_vae(base: int = 160, decoder_base: int = 256) -> dict[str, Any]:
    """Return the config of the 48-channel autoencoder of TI2V-5B, which has 16 pixels per latent."""
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
    """Return the values of the UMT5Config of the encoder with these shapes."""
    if "token_embd.weight" in shapes:
        raise InputError(f"{name} is a text encoder of llama.cpp, which is not supported: give one as safetensors.")
    embedding = "shared.weight" if "shared.weight" in shapes else "encoder.embed_tokens.weight"
    get = _Sizes(name, "text encoder", shapes)
    vocabulary, width = get(embedding, 2)
    layers = _count(r"encoder\.block\.(\d+)\.", shapes)
    bias = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    if layers > 1 and bias.format(0) in shapes and bias.format(1) not in shapes:
        raise InputError(f"{name} is a T5 encoder, and Wan needs UMT5: give umt5-xxl.")
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
    """Shapes by name. Calling it raises InputError if a shape is missing or has another rank."""

    name: str
    what: str
    shapes: Shapes

    def __call__(self, key: str, rank: int) -> tuple[int, ...]:
        shape = self.shapes.get(key)
        if shape is None:
            raise InputError(f"The {self.what} {self.name} is incomplete: it has no {key}; copy it again.")
        if len(shape) != rank:
            raise InputError(f"The {self.what} {self.name} is not that of Wan: its {key} has shape {list(shape)}.")
        return shape


def _count(pattern: str, names: Iterable[str]) -> int:
    return 1 + max((int(match[1]) for name in names if (match := re.match(pattern, name))), default=-1)
