"""Hashes of everything in Wan that decides a clip's latents and a caption's context: every weight and setting."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

_CALL_SETTINGS = ("padding", "truncation")
"""The parts of a tokenizer's state that its last call has set."""


def of_latents(vae: AutoencoderKLWan) -> str:
    """Return the hash, 64 hexadecimal digits, of the autoencoder's configuration, weights and tiles."""
    tiles = [vae.tile_sample_min_height, vae.tile_sample_min_width, vae.tile_sample_stride_height,
             vae.tile_sample_stride_width] if vae.use_tiling else None  # fmt: skip
    return _digest({"config": _plain(dict(vae.config)), "weights": _weights(vae), "tiles": tiles})


def of_text(encoder: UMT5EncoderModel, tokenizer: PreTrainedTokenizerBase, tokens: int) -> str:
    """Return the hash, 64 hexadecimal digits, of the text encoder, the tokenizer and the length of a context."""
    return _digest({
        "config": _plain(encoder.config.to_dict()),
        "weights": _weights(encoder),
        "tokenizer": _tokenizer(tokenizer),
        "tokens": tokens,
    })  # fmt: skip


def _digest(described: Any) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration without the entries that name its origin or the version that wrote it."""
    names = sorted(name for name in config if not name.startswith("_") and name != "transformers_version")
    plain: dict[str, Any] = json.loads(json.dumps({name: config[name] for name in names}, default=str))
    return plain


def _weights(module: nn.Module) -> str:
    def digest(item: tuple[str, Tensor]) -> bytes:
        name, tensor = item
        content = hashlib.sha256(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        content.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return content.digest()

    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        return hashlib.sha256(b"".join(pool.map(digest, sorted(module.state_dict().items())))).hexdigest()


def _tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of how text becomes ids. The padding and truncation of the last call do not change it."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        described: Any = [type(tokenizer).__name__, tokenizer.get_vocab(), _plain(tokenizer.init_kwargs)]
    else:
        described = {name: part for name, part in json.loads(fast.to_str()).items() if name not in _CALL_SETTINGS}
    return _digest(described)
