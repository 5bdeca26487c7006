"""Operations of Wan's block in forms that need less time and memory for inference, and give the same bits.

The stock feed-forward layer has its hidden values twice, before and after GELU. In Wan 1.3B they are the largest
tensors of a block. The stock rotary embedding has its input, its output and three products in memory at once, and reads
and writes every second number, in eight operations. Here it overwrites its input. On a CPU in float32, the product of
complex numbers does the same in one operation. With gradients, and in compiled blocks, the stock forms run.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from diffusers.models.activations import GELU

# All names are those of the stock block; test_inference.py fails when one of them moves.
from diffusers.models.transformers import transformer_wan
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor


class InPlaceGELU(GELU):
    """The stock linear layer with GELU, which overwrites the output of the linear layer."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return [B, L, hidden width] for [B, L, D]."""
        if torch.is_grad_enabled():
            stock: Tensor = super().forward(hidden_states)
            return stock
        activated: Tensor = torch.ops.aten.gelu_.default(self.proj(hidden_states), approximate=self.approximate)
        return activated


class SelfAttentionProcessor(WanAttnProcessor):
    """The stock self-attention, whose rotary embedding overwrites queries and keys."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Return [B, L, D]. The arguments are those of the stock processor."""
        optimised = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if not optimised or encoder_hidden_states is not None or rotary_emb is None:
            stock: Tensor = super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
            return stock
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query = rotate_(attn.norm_q(query).unflatten(2, (attn.heads, -1)), *rotary_emb)
        key = rotate_(attn.norm_k(key).unflatten(2, (attn.heads, -1)), *rotary_emb)
        mixed = transformer_wan.dispatch_attention_fn(
            query,
            key,
            value.unflatten(2, (attn.heads, -1)),
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        out: Tensor = attn.to_out[1](attn.to_out[0](mixed.flatten(2, 3).type_as(query)))
        return out


def adopt(block: Any) -> None:
    """Replace the operations of a block, unless another program has replaced them."""
    if type(block.attn1.processor) is WanAttnProcessor:
        block.attn1.processor.__class__ = SelfAttentionProcessor
    if type(block.ffn.net[0]) is GELU:
        block.ffn.net[0].__class__ = InPlaceGELU


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [B, L, heads, d] in place, and return it. cos, sin: of `WanRotaryPosEmbed`, each [1, L, 1, d]."""
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    pairs = x.view(*x.shape[:-1], -1, 2)
    in_float32 = x.dtype == cos.dtype == torch.float32
    if in_float32 and x.device.type == "cpu" and complex_is_exact(x.shape[-1]):
        torch.view_as_complex(pairs).mul_(torch.complex(cos, sin))
        return x
    first, second = pairs.unbind(-1)
    turned = (first * cos).sub_(second * sin), (first * sin).add_(second * cos)
    for half, values in zip((first, second), turned, strict=True):
        half.copy_(values)
    return x


@lru_cache
def complex_is_exact(width: int) -> bool:
    """Return whether this processor rotates float32 heads of `width` numbers to the same bits as complex numbers.

    It does not if it fuses a product and a sum in one of the two forms. On most processors this depends on the width.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 5, 3, width // 2, 2, generator=generator)
    cos, sin = torch.randn(2, 1, 5, 1, width // 2, generator=generator)
    (a, b), turns = x.unbind(-1), torch.complex(cos, sin)
    expected = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1)
    return torch.equal(torch.view_as_real(torch.view_as_complex(x).mul_(turns)), expected)
