"""A small random Wan and its inputs, shared by the tests of the per-frame transformer."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

FRAMES, HEIGHT, WIDTH, TOKENS_PER_FRAME, DIM = 5, 8, 8, 16, 32
ROWS = torch.tensor([[0.0, 200.0, 937.0, 978.26086, 1000.0], [625.0, 3.5, 0.0, 1000.0, 500.0]])


def build(**changes: Any) -> WanTransformer3DModel:
    """A small Wan whose output moves with the timestep: random tables, and a time projection ten times the usual."""
    torch.manual_seed(0)
    config = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": DIM // 2,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 16,
        "freq_dim": 256,
        "ffn_dim": 64,
        "num_layers": 3,
        "rope_max_seq_len": 32,
    }
    model = WanTransformer3DModel(**(config | changes)).eval()
    with torch.no_grad():
        model.condition_embedder.time_proj.weight.mul_(10)
    return model


def inputs(batch: int = 2, *, dtype: torch.dtype = torch.float32, channels: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, channels, FRAMES, HEIGHT, WIDTH, generator=generator)
    return latents.to(dtype), torch.randn(batch, 7, 16, generator=generator).to(dtype)


def per_token(rows: Tensor) -> Tensor:
    return rows.repeat_interleave(TOKENS_PER_FRAME, dim=1)


@torch.no_grad()
def run(model: WanTransformer3DModel, timestep: Tensor, **kwargs: Any) -> Tensor:
    latents, text = inputs(len(timestep), dtype=model.dtype)
    return model(latents, timestep, text, **kwargs).sample


def agree(a: Tensor, b: Tensor, tolerance: float = 2e-6) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def gradients(model: WanTransformer3DModel, timestep: Tensor) -> dict[str, Tensor]:
    model.train().zero_grad()
    latents, text = inputs()
    model(latents.requires_grad_(), timestep, text).sample.square().mean().backward()
    return {"latents": latents.grad} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
