"""Hashes of all weights and settings that determine the latents of a clip and the context of a caption."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from pusa.models.backbone import Encoders

_CALL_SETTINGS = ("padding", "truncation")
"""Parts of a tokenizer's state that only record the arguments of its last call."""


@dataclass(frozen=True)
class Fingerprint:
    """The hashes of a model's encoders.

    vae: of the autoencoder. text: of the tokenizer and the text encoder. fps: the frame rate to which clips are
    resampled. tokens: L, the number of tokens to which contexts are padded.
    """

    vae: str
    text: str
    fps: float
    tokens: int


def fingerprint(encoders: Encoders, fps: float) -> Fingerprint:
    """Return the hashes of the encoders, of their weights and their settings. fps: the frame rate of the samples."""
    vae, text = encoders.vae, encoders.text_encoder
    tiles = [vae.tile_sample_min_height, vae.tile_sample_min_width, vae.tile_sample_stride_height,
             vae.tile_sample_stride_width] if vae.use_tiling else None  # fmt: skip
    vae_content = {"config": _plain(dict(vae.config)), "weights": _weights(vae), "tiles": tiles}
    text_content = {
        "config": _plain(text.config.to_dict()),
        "weights": _weights(text),
        "tokenizer": _tokenizer(encoders.tokenizer),
        "tokens": encoders.text_tokens,
    }
    return Fingerprint(_digest(vae_content), _digest(text_content), float(fps), encoders.text_tokens)


def _digest(described: Any) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration without the entries that only record its source or the version that wrote it."""
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
    """Return a hash of the tokenizer, without the padding and truncation that its last call set."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        described: Any = [type(tokenizer).__name__, tokenizer.get_vocab(), _plain(tokenizer.init_kwargs)]
    else:
        described = {name: part for name, part in json.loads(fast.to_str()).items() if name not in _CALL_SETTINGS}
    return _digest(described)
