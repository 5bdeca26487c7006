"""Networks on the meta device, built from configurations without weights, and the sizes of their weights.

Only configurations and the headers of files are read. Parts that a source does not have are assumed to be Wan's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from pusa.models import weight_files
from pusa.models.loading import sources
from pusa.models.loading.sources import Beside
from pusa.models.lora import header
from pusa.models.memory.profiles import Profile
from pusa.models.wan import original_layout, recognise
from pusa.models.wan.transformer import VectorWanTransformer3DModel

META = torch.device("meta")
_FACTOR, _PRODUCT = (
    re.compile(r"lora_(?:A|B|up|down)\b|lora(?:_linear_layer)?\.(?:up|down)\b"),
    re.compile("hada_|lokr_"),
)
UMT5_XXL = {"vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
            "feed_forward_proj": "gated-gelu"}  # fmt: skip
"""The text encoder of every Wan, for a source that does not have one."""


@dataclass(frozen=True)
class Network:
    """The sizes of a network's weights, in bytes.

    weights: in the types in which it computes. fp8: with its linear layers as fp8. file: on the disk. block, rest: the
    largest block, and everything outside the blocks; block_fp8, rest_fp8: the same with linear layers as fp8. widest:
    the largest tensor.
    """

    weights: int
    fp8: int
    file: int
    block: int
    block_fp8: int
    rest: int
    rest_fp8: int
    widest: int

    def stored(self, profile: Profile, kind: str) -> int:
        return self.fp8 if kind in profile.fp8 else self.weights


def configs(name: str, folder: Path, beside: Beside) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the configuration of each network, and the kinds that are missing and assumed to be Wan's own."""
    lacking = [kind for kind in sources.missing_parts(folder) if not beside.get(kind)]
    configs = {
        kind: sources.config(name, folder, kind, beside)
        for kind in ("transformer", "text_encoder", "vae")
        if kind not in lacking
    }
    if not configs.get("text_encoder", UMT5_XXL):
        lacking.append("text_encoder")
    for kind in lacking:
        large = configs["transformer"].get("in_channels") == 48
        vae = recognise.wan22_vae() if large else recognise.wan21_vae()
        configs[kind] = UMT5_XXL if kind == "text_encoder" else vae
    return configs, lacking


def build(configs: Mapping[str, Mapping[str, Any]], dtype: torch.dtype) -> tuple[Any, Any, Any]:
    """Return transformer, text encoder and autoencoder on the meta device, in the types in which they are loaded."""
    with META:
        stock = WanTransformer3DModel.from_config(configs["transformer"])
        encoder = UMT5EncoderModel(UMT5Config(**configs["text_encoder"])).to(dtype)
        encoder.encoder.embed_tokens = encoder.shared
        vae = AutoencoderKLWan.from_config(configs["vae"])
    # private; test_weights_are_those_of_the_model (tests/models/memory/test_estimate.py) fails when it moves
    exact = set(WanTransformer3DModel._keep_in_fp32_modules)
    for key, parameter in stock.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if exact & set(key.split(".")) else dtype)
    transformer = VectorWanTransformer3DModel.upgrade(stock)
    return tuple(network.eval().requires_grad_(False) for network in (transformer, encoder, vae))  # type: ignore[return-value]


def files_of(folder: Path, beside: Beside) -> dict[str, list[Path]]:
    """Return {network: its files of weights on this machine}."""
    found = {kind: sorted({one.file for one in stored}) for kind, stored in sources.contents(folder).items()}
    for kind in ("transformer_2", "vae", "text_encoder"):
        if given := beside.get(kind):
            part = sources.locate(str(given), folder, kind, beside)
            found[kind] = part.files if isinstance(part, original_layout.Part) else original_layout.shards(part, "")
    return found


def measure(network: nn.Module, kept: Sequence[str] | None, blocks: Any, files: Sequence[Path]) -> Network:
    """Return the sizes of a network. kept: patterns of modules that are not cast to fp8; None if none is ever cast."""

    def size(module: nn.Module, fp8: bool, prefix: str = "") -> int:
        sizes = {}
        for name, child in module.named_modules(prefix=prefix):
            linear = fp8 and kept is not None and isinstance(child, nn.Linear)
            cast = linear and not any(re.search(pattern, name) for pattern in kept or ())
            for tensor in (*child.parameters(recurse=False), *child.buffers(recurse=False)):
                sizes[tensor] = tensor.numel() if cast else tensor.nbytes  # a tensor with two names counts once
        return sum(sizes.values())

    quantised = [file for file in files if file.suffix.lower() in weight_files.GGUF]
    on_disk = sum(file.stat().st_size for file in files)
    whole, cast = size(network, False), size(network, True)
    share = 1.0
    if quantised and whole:
        share, whole, cast = on_disk / whole, on_disk, on_disk
    largest = max((size(block, False, "blocks.0") for block in blocks), default=0) if blocks is not None else 0
    largest_cast = max((size(block, True, "blocks.0") for block in blocks), default=0) if blocks is not None else 0
    count = len(blocks) if blocks is not None else 0
    block, block_fp8 = int(largest * share), int((largest if quantised else largest_cast) * share)
    return Network(
        weights=whole,
        fp8=cast,
        file=on_disk,
        block=block,
        block_fp8=block_fp8,
        rest=whole - count * block,
        rest_fp8=cast - count * block_fp8,
        widest=max((p.nbytes for p in network.parameters()), default=0),
    )


def add_lora(transformer: Any, path: Path, name: str) -> None:
    """Add factors of a LoRA's rank to the layers that a LoRA usually changes. Only the header of the file is read.

    The tensors of a LoHa or LoKr, which are stored as they are in the file, become one parameter.
    """
    listing = weight_files.listing(header.file_of(path)).values()
    dtype = transformer.blocks[0].ffn.net[2].weight.dtype
    if products := sum(one.count for one in listing if _PRODUCT.search(one.name)):
        stored = nn.Parameter(torch.empty(products, dtype=dtype, device=META), requires_grad=False)
        transformer.register_parameter(f"{name}_products", stored)
    rank = max((min(one.shape) for one in listing if len(one.shape) == 2 and _FACTOR.search(one.name)), default=0)
    if not rank:
        return
    targets = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
    inject_adapter_in_model(LoraConfig(r=rank, target_modules=targets), transformer, name, low_cpu_mem_usage=True)
    for key, parameter in transformer.named_parameters():
        if ".lora_" in key:
            parameter.data = parameter.data.to(dtype)
            parameter.requires_grad_(False)
