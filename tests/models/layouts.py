"""The same small random Wan in every layout that is passed around: real names, real structure, small widths.

The renamings here are written from Wan's own modules, in the other direction than the code under test.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

State = dict[str, Tensor]

TRANSFORMER = {
    "num_attention_heads": 2,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 32,
    "freq_dim": 64,
    "ffn_dim": 512,
    "num_layers": 2,
}


def build(folder: Path, tiny: Path, *, wan22: bool = False, **changes: Any) -> Path:
    """Write the diffusers folder: heads of 128, an autoencoder of four stages, and the text encoder of `tiny`."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    from pusa.models.wan.recognise import wan22_vae

    torch.manual_seed(3)
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("transformer", "vae"))
    text = folder / "text_encoder" / "config.json"
    text.write_text(json.dumps(json.loads(text.read_text()) | {"relative_attention_max_distance": 128}))
    channels = {"in_channels": 48, "out_channels": 48} if wan22 else {}
    WanTransformer3DModel(**(TRANSFORMER | channels | changes)).to(torch.bfloat16).save_pretrained(
        folder / "transformer"
    )
    small = wan22_vae(16, 16) if wan22 else {"base_dim": 16, "z_dim": 16}
    AutoencoderKLWan(**small).save_pretrained(folder / "vae")
    return folder


def state(folder: Path, part: str) -> State:
    from safetensors.torch import load_file

    return load_file(next((folder / part).glob("*.safetensors")))


_ENDS = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "proj_out": "head.head",
    "patch_embedding": "patch_embedding",
}
_BLOCK = {"attn1": "self_attn", "attn2": "cross_attn", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o",
          "norm_q": "norm_q", "norm_k": "norm_k"}  # fmt: skip


def wan_transformer(state: Mapping[str, Tensor]) -> State:
    """Wan's own names of a transformer."""

    def rename(name: str) -> str:
        if name == "scale_shift_table":
            return "head.modulation"
        stem, _, leaf = name.rpartition(".")
        if stem in _ENDS:
            return f"{_ENDS[stem]}.{leaf}"
        block = re.fullmatch(r"(blocks\.\d+)\.(.+)", name)
        assert block, name
        start, rest = block.groups()
        if rest == "scale_shift_table":
            return f"{start}.modulation"
        if rest.startswith("norm2."):
            return f"{start}.norm3.{leaf}"
        if rest.startswith("ffn."):
            return f"{start}.ffn.{'0' if 'net.0.proj' in rest else '2'}.{leaf}"
        attention, inner = rest.removesuffix(f".{leaf}").split(".", 1)
        return f"{start}.{_BLOCK[attention]}.{_BLOCK[inner]}.{leaf}"

    return {rename(name): tensor for name, tensor in state.items()}


_RESIDUAL = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6",
             "conv_shortcut": "shortcut"}  # fmt: skip
_VAE_ENDS = {
    "quant_conv": "conv1",
    "post_quant_conv": "conv2",
    **{f"{side}.{ours}": f"{side}.{wans}" for side in ("encoder", "decoder") for ours, wans in
       {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}.items()},
}  # fmt: skip


def wan_vae(state: Mapping[str, Tensor]) -> State:
    """Wan's own names of an autoencoder: one list of layers a side in Wan2.1, stages with lists in Wan2.2."""
    nested = any(".down_blocks.0.resnets." in name for name in state)

    def rename(name: str) -> str:
        stem, _, leaf = name.rpartition(".")
        if stem in _VAE_ENDS:
            return f"{_VAE_ENDS[stem]}.{leaf}"
        side, rest = stem.split(".", 1)
        if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(\w+)", rest):
            if match[1] == "attentions":
                return f"{side}.middle.1.{match[3]}.{leaf}"
            return f"{side}.middle.{2 * int(match[2])}.{_RESIDUAL[match[3]]}.{leaf}"
        way = "down" if side == "encoder" else "up"
        match = re.fullmatch(rf"{way}_blocks\.(\d+)\.(.+)", rest)
        assert match, name
        stage, inner = int(match[1]), match[2]
        if nested:
            last = 2 if side == "encoder" else 3
            if inner.startswith("resnets."):
                _, place, layer = inner.split(".")
                return f"{side}.{way}samples.{stage}.{way}samples.{place}.{_RESIDUAL[layer]}.{leaf}"
            return f"{side}.{way}samples.{stage}.{way}samples.{last}.{inner.split('.', 1)[1]}.{leaf}"
        if side == "encoder":
            return f"{side}.downsamples.{stage}.{_RESIDUAL.get(inner, inner)}.{leaf}"
        if inner.startswith("upsamplers.0."):
            return f"{side}.upsamples.{4 * stage + 3}.{inner.removeprefix('upsamplers.0.')}.{leaf}"
        _, place, layer = inner.split(".")
        return f"{side}.upsamples.{4 * stage + int(place)}.{_RESIDUAL[layer]}.{leaf}"

    return {rename(name): tensor for name, tensor in state.items()}


_T5 = {
    "SelfAttention.q": "attn.q", "SelfAttention.k": "attn.k", "SelfAttention.v": "attn.v",
    "SelfAttention.o": "attn.o", "SelfAttention.relative_attention_bias": "pos_embedding.embedding",
    "DenseReluDense.wi_0": "ffn.gate.0", "DenseReluDense.wi_1": "ffn.fc1", "DenseReluDense.wo": "ffn.fc2",
}  # fmt: skip


def wan_text_encoder(state: Mapping[str, Tensor]) -> State:
    """Wan's own names of UMT5."""

    def rename(name: str) -> str:
        if name == "shared.weight":
            return "token_embedding.weight"
        if name == "encoder.final_layer_norm.weight":
            return "norm.weight"
        match = re.fullmatch(r"encoder\.block\.(\d+)\.layer\.(\d)\.(.+)\.weight", name)
        assert match, name
        layer = f"norm{int(match[2]) + 1}" if match[3] == "layer_norm" else _T5[match[3]]
        return f"blocks.{match[1]}.{layer}.weight"

    return {rename(n): t for n, t in state.items() if n != "encoder.embed_tokens.weight"}


def write_original(
    source: Path, folder: Path, *, shards: int = 1, index: bool = True, vae: str = "Wan2.1_VAE.pth"
) -> Path:
    """Wan's own folder with the weights of the diffusers folder `source`."""
    folder.mkdir(parents=True)
    tensors = wan_transformer(state(source, "transformer"))
    write_shards(tensors, folder, shards, index)
    config = json.loads((source / "transformer" / "config.json").read_text())
    own = {
        "_class_name": "WanModel",
        "_diffusers_version": "0.30.0",
        "dim": config["num_attention_heads"] * config["attention_head_dim"],
        "eps": 1e-06,
        "ffn_dim": config["ffn_dim"],
        "freq_dim": config["freq_dim"],
        "in_dim": config["in_channels"],
        "model_type": "t2v",
        "num_heads": config["num_attention_heads"],
        "num_layers": config["num_layers"],
        "out_dim": config["out_channels"],
        "text_len": 512,
    }
    (folder / "config.json").write_text(json.dumps(own))
    torch.save(wan_text_encoder(state(source, "text_encoder")), folder / "models_t5_umt5-xxl-enc-bf16.pth")
    torch.save(wan_vae(state(source, "vae")), folder / vae)
    shutil.copytree(source / "tokenizer", folder / "google" / "umt5-xxl")
    return folder


def write_shards(tensors: State, folder: Path, count: int, index: bool = True) -> list[Path]:
    """The transformer's files as Wan-AI publishes them."""
    if count == 1:
        save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
        return [folder / "diffusion_pytorch_model.safetensors"]
    names = sorted(tensors)
    files, placed = [], {}
    for i in range(count):
        file = folder / f"diffusion_pytorch_model-{i + 1:05d}-of-{count:05d}.safetensors"
        part = {name: tensors[name] for name in names[i::count]}
        save_file(part, file)
        placed |= dict.fromkeys(part, file.name)
        files.append(file)
    if index:
        text = json.dumps({"metadata": {"total_size": 0}, "weight_map": placed})
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(text)
    return files


def write_blocks(tensors: State, folder: Path, *, index: bool = True) -> None:
    """The transformer's files as LightX2V's converter writes them: one for each block, and one for the rest."""
    files: dict[str, State] = {}
    for name, tensor in tensors.items():
        block = re.match(r"blocks\.(\d+)\.", name)
        files.setdefault(f"block_{block[1]}.safetensors" if block else "non_block.safetensors", {})[name] = tensor
    for file, part in files.items():
        save_file(part, folder / file)
    if index:
        places = {name: file for file, part in files.items() for name in part}
        text = json.dumps({"metadata": {"total_size": 0}, "weight_map": places})
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(text)


def linears(tensors: State) -> list[str]:
    """The weights that fp8 and GGUF files quantise: the linear layers of the blocks."""
    return [name for name, t in tensors.items() if name.startswith("blocks.") and t.ndim == 2 and "norm" not in name]


def fp8(tensors: State) -> State:
    quantised = set(linears(tensors))
    return {name: t.to(torch.float8_e4m3fn) if name in quantised else t for name, t in tensors.items()}


def fp8_scaled(tensors: State, *, prefix: str = "", spelling: str = "scale_weight") -> State:
    """As ComfyUI ships them: the whole range of fp8, a scale per tensor, and a mark."""
    made: State = {}
    for name, tensor in tensors.items():
        made[name] = tensor
        if name in linears(tensors):
            scale = (tensor.float().abs().max() / 448.0).float()
            made[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
            stem = name.removesuffix(".weight")
            if spelling == "scale_weight":
                made[f"{stem}.scale_weight"] = scale.reshape(1)
                made[f"{stem}.scale_input"] = torch.ones(1)
            else:
                made[f"{stem}.weight_scale"] = scale
                mark = json.dumps({"format": "float8_e4m3fn"}).encode()
                made[f"{stem}.comfy_quant"] = torch.tensor(list(mark), dtype=torch.uint8)
    if spelling == "scale_weight":
        made["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    return {prefix + name: tensor for name, tensor in made.items()}


def write_gguf(tensors: State, file: Path, kind: str = "Q8_0", others: str = "F32") -> Path:
    """As city96's converter writes them: quantised linear layers, the rest in float32, or in the type `others`.

    Tensors whose rows do not fill the blocks of `others` stay in float32. GGUF has at most four dimensions.
    """
    import gguf

    writer = gguf.GGUFWriter(file, "wan")
    quantised = set(linears(tensors))
    for name, tensor in tensors.items():
        values = tensor.float().numpy()
        quant = gguf.GGMLQuantizationType[kind if name in quantised else others]
        if values.ndim > 4:
            shape = [int(n) for n in values.shape]
            writer.add_array(f"comfy.gguf.orig_shape.{name}", shape)
            values = values.reshape(values.shape[0], -1)
        if values.shape[-1] % gguf.GGML_QUANT_SIZES[quant][0] == 0 and quant.name != "F32":
            writer.add_tensor(name, gguf.quants.quantize(values, quant), raw_dtype=quant)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
