"""What Wan computes once per clip: the keys and values of the text, and the rotary tables.

They depend on the text and on the shape of the clip, but not on the noise level. So they are the same in every step.
`walk` keeps them from their first use until its block ends. A call of the network outside `walk`, as in training,
computes them anew. `TextKVCacheConfig` of diffusers has the same aim, but it acts on the blocks of NucleusMoE only.

Wan attends to 512 text positions, and those after the prompt are zeros. The text embedder has no positions, so equal
rows stay equal, and all the zero rows have the same key and the same value. One row therefore stands for all of them:
only the rows of the prompt and one zero row are computed and kept. n equal keys with the logit s weigh as one key with
the logit s + log n. On a CPU in float32, attention gets log n as a bias and reads 20 keys instead of 512. Elsewhere the
row is repeated for attention, because not every kernel takes a bias, and bfloat16 would round log n.

In bfloat16, a network of width D keeps 4 (n + 1) D bytes per block for each text of n tokens. For Wan 14B with two
texts of 100 tokens this is 165 MB, and 840 MB if both texts fill all 512 positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

# The private registry names the backend in use. All names are those of the stock processor; test_per_clip.py fails
# when one of them moves.
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.transformers import transformer_wan
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor, nn

if TYPE_CHECKING:
    from pusa.models.wan.transformer import VectorWanTransformer3DModel

MOST_TEXTS = 8
"""texts that a walk keeps at once; a walk over more of them computes the oldest ones again"""


@dataclass
class BlockText:
    """What the cross-attention of one block keeps of a text.

    pair: keys and values, each [B, n + 1, heads, D / heads]; None before the first use. rows: int64 [L], the row that
    stands for each text position; None: the rows themselves. bias: [1, 1, 1, n + 1], added to the logits, or None.
    """

    rows: Tensor | None
    bias: Tensor | None
    pair: tuple[Tensor, Tensor] | None = None


class TextProcessor(WanAttnProcessor):
    """The stock cross-attention. During a walk, it takes keys and values from `text`, which it fills at first."""

    text: BlockText | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Return [B, L, D]. The arguments are those of the stock processor."""
        if self.text is None:
            stock: Tensor = super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
            return stock
        if self.text.pair is None:
            self.text.pair = _keys_and_values(attn, encoder_hidden_states)
        key, value = self.text.pair
        if self.text.rows is not None:
            key, value = key.index_select(1, self.text.rows), value.index_select(1, self.text.rows)
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        mixed = transformer_wan.dispatch_attention_fn(
            query, key, value, attn_mask=self.text.bias, backend=self._attention_backend
        )
        out: Tensor = attn.to_out[1](attn.to_out[0](mixed.flatten(2, 3).type_as(query)))
        return out


def _keys_and_values(attn: Any, text: Tensor | None) -> tuple[Tensor, Tensor]:
    if attn.fused_projections:
        key, value = attn.to_kv(text).chunk(2, dim=-1)
    else:
        key, value = attn.to_k(text), attn.to_v(text)
    key = attn.norm_k(key)
    return key.unflatten(2, (attn.heads, -1)), value.unflatten(2, (attn.heads, -1))


@dataclass
class _Kept:
    """A text of a walk. tokens: it is held, so that another tensor cannot take its place in memory."""

    tokens: Tensor
    used: Tensor
    blocks: list[BlockText]


class TextMemory:
    """The texts of a walk, for one network.

    dtype: that of the network. diffusers finds it by a search through all modules, which takes milliseconds.
    """

    def __init__(self, processors: list[TextProcessor], dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._processors = processors
        self._texts: list[_Kept] = []

    @contextmanager
    def reading(self, tokens: Tensor) -> Iterator[Tensor]:
        """During the block, the network reads this text; the value is the text to call it with, [B, n + 1, D].

        tokens: [B, L, D]; the same tensor is the same text.
        """
        if torch.is_grad_enabled() or not self._processors:
            yield tokens.to(self.dtype)
            return
        kept = next((text for text in self._texts if text.tokens is tokens), None)
        if kept is None:
            kept = self._added(tokens)
        for processor, text in zip(self._processors, kept.blocks, strict=True):
            processor.text = text
        try:
            yield kept.used
        finally:
            for processor in self._processors:
                processor.text = None

    def _added(self, tokens: Tensor) -> _Kept:
        length, words = tokens.shape[1], _words(tokens)
        rows = bias = None
        used = tokens
        if length - words > 1:
            used = tokens[:, : words + 1]
            on_cpu = tokens.device.type == "cpu"
            if on_cpu and self.dtype == torch.float32 and all(map(_takes_bias, self._processors)):
                bias = torch.zeros(1, 1, 1, words + 1)
                bias[..., -1] = math.log(length - words)
            else:
                rows = torch.arange(length, device=tokens.device).clamp(max=words)
        kept = _Kept(tokens, used.to(self.dtype), [BlockText(rows, bias) for _ in self._processors])
        self._texts = [*self._texts[1 - MOST_TEXTS :], kept]
        return kept

    def forget(self) -> None:
        """Drop the texts, because weights have changed."""
        self._texts = []


@contextmanager
def walk(network: VectorWanTransformer3DModel) -> Iterator[None]:
    """During the block, keep what `network` computes from the text and from the shape of the clip.

    Walks may be nested; the inner one keeps its own. Texts are not kept while gradients are enabled, nor for a network
    with image embeddings, with attention processors of other programs, or with compiled blocks. Such blocks would be
    compiled anew for each length of a prompt.
    """
    before = network.text_memory, network.rope.kept
    network.text_memory, network.rope.kept = TextMemory(_processors(network), network.dtype), {}
    try:
        yield
    finally:
        network.text_memory, network.rope.kept = before


def _processors(network: VectorWanTransformer3DModel) -> list[TextProcessor]:
    """Return the processor of each block's cross-attention, or nothing if texts cannot be kept."""
    processors = [block.attn2.processor for block in network.blocks]
    # _compiled_call_impl is private, set by nn.Module.compile; test_walks_of_changed_models fails when it moves.
    compiled = any(module._compiled_call_impl is not None for module in (network, *network.blocks))
    keeps = network.config.added_kv_proj_dim is None and all(type(one) is TextProcessor for one in processors)
    return processors if keeps and not compiled else []


def adopt(attention: nn.Module) -> None:
    """Let the cross-attention of a block keep its text in walks, unless it has a processor of another program."""
    if type(attention.processor) is WanAttnProcessor:
        attention.processor.__class__ = TextProcessor


def kept_bytes(config: Any, words: int, texts: int, item: int) -> int:
    """Return the bytes that a network keeps for `texts` texts of `words` tokens, with numbers of `item` bytes."""
    width = config.num_attention_heads * config.attention_head_dim
    return int(2 * (words + 1) * width * config.num_layers * texts * item)


def _words(tokens: Tensor) -> int:
    """Return the number of positions before the zeros at the end of the longest text."""
    filled = tokens.ne(0).any(dim=2).any(dim=0).nonzero()
    return int(filled[-1]) + 1 if len(filled) else 0


def _takes_bias(processor: TextProcessor) -> bool:
    backend = processor._attention_backend
    if backend is None:
        backend, _ = attention_dispatch._AttentionBackendRegistry.get_active_backend()
    return backend in (AttentionBackendName.NATIVE, AttentionBackendName._NATIVE_MATH)
