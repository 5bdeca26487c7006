"""A small random Wan and samples that are already encoded: what the trainer's tests train, also in other processes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import WanTransformer3DModel

from pusa.models.backbone import Defaults
from pusa.models.wan.backbone import WanBackbone
from pusa.models.wan.transformer import VectorWanTransformer3DModel
from pusa.training.config.tree import Config

CHANNELS, TEXT = 4, 16


@cache
def pristine() -> WanTransformer3DModel:
    torch.manual_seed(0)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=TEXT,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    ).eval()


def components() -> Any:
    """A backbone with no weights in its autoencoder and no text encoder, with a fresh copy of the transformer."""
    transformer = VectorWanTransformer3DModel.upgrade(copy.deepcopy(pristine())).requires_grad_(False)
    vae: Any = SimpleNamespace(config={"scale_factor_spatial": 8})
    text_encoder: Any = None
    tokenizer: Any = None
    return WanBackbone(vae, text_encoder, tokenizer, "small", transformer, "small", Defaults())


class Samples(Sequence[Any]):
    """`count` clips of random latents in buckets by turns; `change` may alter the latents of clip i."""

    def __init__(
        self,
        count: int = 8,
        frames: Sequence[int] = (3,),
        change: Callable[[int, torch.Tensor], torch.Tensor] = lambda i, x: x,
    ) -> None:
        self.count, self.change = count, change
        self.buckets = [f"32x32x{4 * frames[i % len(frames)] - 3}" for i in range(count)]
        self.keys = [f"clip{i}" for i in range(count)]
        self.fingerprint = f"{count} clips of {frames}"
        self.empty_context = torch.zeros(4, TEXT)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: Any) -> Any:
        rng = torch.Generator().manual_seed(i)
        frames = (int(self.buckets[i].split("x")[2]) + 3) // 4
        latents = self.change(i, torch.randn(CHANNELS, frames, 4, 4, generator=rng))
        context = torch.randn(4, TEXT, generator=rng)
        key, caption = self.keys[i], f"caption {i}"
        return SimpleNamespace(key=key, origin=f"{key}.mp4", latents=latents, context=context, caption=caption)


def config(**changes: Any) -> Config:
    """Twelve steps of two clips with a small LoRA; `changes` are sections, such as train={"lr": 0.1}."""
    settings: dict[str, Any] = {
        "lora": {"rank": 2, "targets": ["to_q", "ffn.net.2"]},
        "train": {"steps": 12, "batch": 2, "lr": 1e-2, "warmup": 3, "schedule": "cosine", "ema": 0.9, "workers": 0},
        "save": {"every": 4},
    }
    for section, values in changes.items():
        settings[section] = values if values is None else {**(settings.get(section) or {}), **values}
    return Config.model_validate(settings)
