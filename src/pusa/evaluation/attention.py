"""Which frames look at which: self-attention between latent frames, exactly, without changing a bit of the clip.

    A[i, j] = mean over heads and over the tokens q of frame i of   Σ over the tokens k of frame j   softmax(q·k / √d)

so every row adds up to 1. The official code takes the softmax of the frames' mean queries and keys instead, which is
another quantity: the softmax is not linear.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.models.transformers import transformer_wan
from torch import Tensor

from pusa.errors import InputError
from pusa.models.wan import VectorWanTransformer3DModel

CHUNK_BYTES = 256 * 2**20
"""of attention weights that are held at once"""
Maps = dict[tuple[int, int], Tensor]
"""{(step, block): float32 [F, F]}"""


@contextmanager
def recording(
    transformer: VectorWanTransformer3DModel, blocks: Sequence[int], steps: Sequence[int], passes: int
) -> Iterator[Maps]:
    """For the block, note attention between frames at these blocks and sampling steps, for the first clip of a batch.

    passes: of the model per step, 2 with guidance, of which the first, with the prompt, is noted. Queries and keys are
    those that the model itself computes; in addition to its own work a noted block takes that of one more attention,
    a quarter of a gigabyte at a time. Raises InputError for blocks that are not there.
    """
    count = len(transformer.blocks)
    if odd := [block for block in blocks if not 0 <= block < count]:
        raise InputError(f"there is no block {odd[0]}; the model has {count}, 0 to {count - 1}")
    maps: Maps = {}
    calls, frames, here = -1, 0, None
    original = transformer_wan.dispatch_attention_fn

    def begin(module: Any, args: Any, kwargs: Any) -> None:
        nonlocal calls, frames
        calls += 1
        latents = kwargs.get("hidden_states", args[0] if args else None)
        frames = latents.shape[2] // transformer.config.patch_size[0]

    def enter(block: int) -> Any:
        def hook(module: Any, args: Any) -> None:
            nonlocal here
            step, turn = divmod(calls, passes)
            here = (step, block) if turn == 0 and step in steps else None

        return hook

    def leave(module: Any, args: Any, output: Any) -> None:
        nonlocal here
        here = None

    def noting(query: Tensor, key: Tensor, *args: Any, **options: Any) -> Any:
        if here is not None:
            maps[here] = between_frames(query[0], key[0], frames)
        return original(query, key, *args, **options)

    with ExitStack() as hooks:
        hooks.callback(transformer.register_forward_pre_hook(begin, with_kwargs=True).remove)
        for block in blocks:
            attention = transformer.blocks[block].attn1
            hooks.callback(attention.register_forward_pre_hook(enter(block)).remove)
            hooks.callback(attention.register_forward_hook(leave).remove)
        transformer_wan.dispatch_attention_fn = noting
        hooks.callback(setattr, transformer_wan, "dispatch_attention_fn", original)
        yield maps


@torch.no_grad()
def between_frames(query: Tensor, key: Tensor, frames: int) -> Tensor:
    """Attention from frame to frame, float32 [F, F] on the CPU, for query and key [L, heads, d], L = F · h · w."""
    length, heads, width = query.shape
    rows = max(1, CHUNK_BYTES // (4 * heads * length))
    keys = key.float().permute(1, 2, 0)
    sums = torch.zeros(frames, frames, dtype=torch.float64)
    frame_of = torch.arange(length) // (length // frames)
    for first in range(0, length, rows):
        part = query[first : first + rows].float().transpose(0, 1)
        weights = torch.softmax(part @ keys / width**0.5, dim=-1)
        towards = weights.reshape(heads, -1, frames, length // frames).sum(dim=3).mean(dim=0)
        sums.index_add_(0, frame_of[first : first + rows], towards.double().cpu())
    return (sums / (length // frames)).float()


def approximated(query: Tensor, key: Tensor, frames: int) -> Tensor:
    """The official code's picture, [F, F]: the softmax of mean queries and keys. Only to show how it differs."""
    q, k = (x.float().reshape(frames, -1, *x.shape[1:]).mean(dim=1).transpose(0, 1) for x in (query, key))
    return torch.softmax(q @ k.transpose(1, 2) / query.shape[2] ** 0.5, dim=-1).mean(dim=0).cpu()


def first_frame_share(attention: Tensor) -> float:
    """How much of the later frames' attention goes to frame 0: the mean of the first column without its first row."""
    return float(attention[1:, 0].mean())
