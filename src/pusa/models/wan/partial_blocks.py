"""Computes a block of Wan for some of its tokens, and lets other code decide for each block what is computed.

The chosen tokens attend to all tokens: their queries meet the keys and values of the whole clip. Cross-attention and
feed-forward are computed for the chosen tokens alone. Nothing is masked: the products have fewer rows, so the time
falls with the operations.

Both forward loops, that of diffusers and the one per frame, call their blocks, and each block asks its `interceptor`
first. A block that computes some tokens does it inside its own `forward`, so hooks for offloading, sharding and
compilation act as they always do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn
from torch.nn import functional

from pusa.models.wan.inference import rotate_

Run = Callable[["BlockCall"], Tensor]


@dataclass(frozen=True)
class BlockCall:
    """A block that is about to run, see `pusa.models.backbone.BlockCall`."""

    index: int
    count: int
    hidden: Tensor
    _block: Any
    _whole: Callable[..., Tensor]
    _arguments: tuple[Any, ...]

    def whole(self) -> Tensor:
        return self._whole(self.hidden, *self._arguments)

    def some(self, tokens: Tensor) -> Tensor:
        return self._some(tokens)[0]

    def some_with_attention(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self._some(tokens, attention_mass=True)

    def _some(self, tokens: Tensor, **options: bool) -> tuple[Tensor, Tensor]:
        # A compiled block would be compiled anew for every number of tokens. _call_impl, private, has all hooks of the
        # block and does not compile; test_a_compiled_block_is_not_compiled_again fails when it moves.
        out: tuple[Tensor, Tensor] = self._block._call_impl(self.hidden, *self._arguments, tokens=tokens, **options)
        return out


@contextmanager
def blocks_run_by(network: nn.Module, run: Run) -> Iterator[None]:
    """Call `run` instead of each block of a Wan transformer inside the context, see `pusa.models.backbone.Backbone`."""
    wan: Any = getattr(network, "module", network)
    blocks = list(wan.blocks)

    def interceptor(index: int) -> Callable[..., Tensor]:
        def intercept(forward: Callable[..., Any], hidden: Tensor, *arguments: Any) -> Tensor:
            return run(BlockCall(index, len(blocks), hidden, blocks[index], forward, arguments))

        return intercept

    try:
        for index, block in enumerate(blocks):
            block.interceptor = interceptor(index)
        yield
    finally:
        for block in blocks:
            block.interceptor = None


def forward_some(
    block: Any,
    hidden: Tensor,
    text: Tensor,
    temb: Tensor,
    rotary: tuple[Tensor, Tensor],
    tokens: Tensor,
    *,
    attention_mass: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return the output of a `VectorWanTransformerBlock` for some tokens, [B, n, D]. It is for inference only.

    The second result is the logarithm of the sum of the exponentiated attention logits of these tokens, float32 [n], a
    mean over clips and heads; None unless `attention_mass`.

    hidden: [B, L, D]. temb: [B, 6, D], [B, L, 6, D] or [B, F, 6, D], as in the block's forward. tokens: int64 [n].
    """
    rows = block.scale_shift_table + temb.float() if temb.ndim == 3 else block.scale_shift_table[None] + temb.float()
    rows = rows[:, None] if temb.ndim == 3 else rows
    shift, scale, *others = rows.unbind(2)
    each = hidden.shape[1] // rows.shape[1]
    gate, ffn_shift, ffn_scale, ffn_gate = (row[:, tokens // each] for row in others)

    x = block.norm1(hidden.float()).unflatten(1, (-1, each))
    x = (x * (1 + scale.unsqueeze(2)) + shift.unsqueeze(2)).flatten(1, 2).type_as(hidden)
    attended, mass = _self_attention(block.attn1, x, rotary, tokens, attention_mass)
    chosen = hidden[:, tokens]
    chosen = (chosen.float() + attended * gate).type_as(hidden)
    chosen = chosen + block.attn2(block.norm2(chosen.float()).type_as(chosen), text, None, None)
    x = (block.norm3(chosen.float()) * (1 + ffn_scale) + ffn_shift).type_as(chosen)
    return (chosen.float() + block.ffn(x).float() * ffn_gate).type_as(hidden), mass


def _self_attention(
    attn: Any, x: Tensor, rotary: tuple[Tensor, Tensor], tokens: Tensor, attention_mass: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the self-attention of some tokens over all tokens, [B, n, D], and its mass as in `forward_some`."""
    if attn.fused_projections:
        weight, bias = attn.to_qkv.weight, attn.to_qkv.bias
        width = attn.inner_dim
        q = functional.linear(x[:, tokens], weight[:width], bias[:width])
        k, v = functional.linear(x, weight[width:], bias[width:]).chunk(2, dim=-1)
    else:
        q, k, v = attn.to_q(x[:, tokens]), attn.to_k(x), attn.to_v(x)
    q, k = attn.norm_q(q), attn.norm_k(k)
    q, k, v = (each.unflatten(2, (attn.heads, -1)) for each in (q, k, v))
    cos, sin = rotary
    q, k = rotate_(q, cos[:, tokens], sin[:, tokens]), rotate_(k, cos, sin)
    mass = None
    if attention_mass:
        out, mass = _attention_with_mass(q, k, v)
    else:
        out = dispatch_attention_fn(q, k, v, backend=attn.processor._attention_backend)
    out = out.flatten(2, 3).type_as(q)
    return attn.to_out[1](attn.to_out[0](out)), mass


def _attention_with_mass(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return softmax attention of [B, n, heads, d], and the mean over clips and heads of its log-sum-exp, [n].

    Fused kernels compute the log-sum-exp anyway, and these operators of PyTorch return it.
    """
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    if q.device.type == "cpu":
        out, mass = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        mass = mass if mass.shape[1] == q.shape[1] else mass.transpose(1, 2)
    elif q.device.type == "cuda":
        out, mass = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[:2]
        mass = mass[:, :, : q.shape[2]]
    else:
        logits = q.float() @ k.float().transpose(2, 3) / q.shape[3] ** 0.5
        mass = logits.logsumexp(3)
        out = (logits - mass[..., None]).exp().type_as(v) @ v
    return out.transpose(1, 2), mass.float().mean((0, 1))
