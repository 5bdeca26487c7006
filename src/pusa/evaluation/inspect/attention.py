"""Which frames look at which: self-attention between latent frames, exactly, without changing a bit of the clip.

    A[i, j] = mean over heads and over the tokens q of frame i of   Σ over the tokens k of frame j   softmax(q·k / √d)

so every row adds up to 1. The official code takes the softmax of the frames' mean queries and keys instead, which is
another quantity: the softmax is not linear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.models.transformers import transformer_wan
from torch import Tensor

from pusa.errors import InputError
from pusa.models.wan.transformer import VectorWanTransformer3DModel

CHUNK_BYTES = 256 * 2**20
"""of attention weights that are held at once"""
Maps = dict[tuple[int, int], Tensor]
"""{(step, block): float32 [F, F], or [heads, F, F] where heads are kept apart}"""


@torch.no_grad()
def between_frames(query: Tensor, key: Tensor, frames: int, *, per_head: bool = False) -> Tensor:
    """Attention from frame to frame, float32 [F, F] on the CPU, for query and key [L, heads, d], L = F · h · w.

    per_head: without the mean over heads, [heads, F, F]. Computed in float32 a head and a chunk of queries at a time:
    in addition to the arguments it holds `CHUNK_BYTES` and one head's queries and keys, whatever the length.
    """
    length, heads, width = query.shape
    tokens = length // frames
    rows = max(1, CHUNK_BYTES // (4 * length))
    frame_of = torch.arange(length) // tokens
    sums = torch.zeros(heads, frames, frames, dtype=torch.float64)
    for head in range(heads):
        queries, keys = query[:, head].float() / width**0.5, key[:, head].float().T
        for first in range(0, length, rows):
            towards = _towards(queries[first : first + rows], keys, frames)
            sums[head].index_add_(0, frame_of[first : first + rows], towards.cpu())
    means = sums / tokens
    return (means if per_head else means.mean(dim=0)).float()


def _towards(queries: Tensor, keys: Tensor, frames: int) -> Tensor:
    """Attention of each query to each frame, float64 [n, F], for queries [n, d] and keys [d, L]."""
    weights = queries @ keys
    weights.sub_(weights.amax(dim=1, keepdim=True)).exp_()
    towards = weights.reshape(len(weights), frames, -1).sum(dim=2).double()
    return towards / towards.sum(dim=1, keepdim=True)


@contextmanager
def recording(
    passes: Mapping[VectorWanTransformer3DModel, int],
    blocks: Sequence[int],
    steps: Sequence[int],
    measured: Callable[[Tensor, Tensor, int], Tensor] = between_frames,
) -> Iterator[Maps]:
    """For the block, note attention between frames at these blocks and sampling steps, for the first clip of a batch.

    passes: how often each transformer is asked per step, 2 with guidance; the first pass, with the prompt, is noted. Of
    two experts each step asks one. Queries and keys are those that the model itself computes; in addition to its own
    work a noted block takes that of one more attention, in the memory that `between_frames` names. measured: what is
    noted of query and key [L, heads, d] and the number of frames. Raises InputError for blocks that are not there, and
    where the transformers share their tokens with other processes.
    """
    count = min(len(transformer.blocks) for transformer in passes)
    if odd := [block for block in blocks if not 0 <= block < count]:
        raise InputError(f"There is no block {odd[0]}; the model has {count}, 0 to {count - 1}.")
    if any(transformer._is_context_parallel for transformer in passes):
        raise InputError("Attention is looked at in one process, which has all tokens; leave torchrun out.")
    maps: Maps = {}
    asked = dict.fromkeys(passes, 0)
    step, prompted, frames = -1, False, 0
    here: tuple[int, int] | None = None
    original = transformer_wan.dispatch_attention_fn

    def begin(transformer: Any, args: Any, kwargs: Any) -> None:
        nonlocal step, prompted, frames
        prompted = asked[transformer] % passes[transformer] == 0
        asked[transformer] += 1
        step += prompted
        latents = kwargs.get("hidden_states", args[0] if args else None)
        frames = latents.shape[2] // transformer.config.patch_size[0]

    def enter(block: int) -> Any:
        def hook(module: Any, args: Any) -> None:
            nonlocal here
            here = (step, block) if prompted and step in steps else None

        return hook

    def leave(module: Any, args: Any, output: Any) -> None:
        nonlocal here
        here = None

    def noting(query: Tensor, key: Tensor, *args: Any, **options: Any) -> Any:
        if here is not None:
            maps[here] = measured(query[0], key[0], frames)
        return original(query, key, *args, **options)

    with ExitStack() as hooks:
        for transformer in passes:
            hooks.callback(transformer.register_forward_pre_hook(begin, with_kwargs=True).remove)
            for block in blocks:
                attention = transformer.blocks[block].attn1
                hooks.callback(attention.register_forward_pre_hook(enter(block)).remove)
                hooks.callback(attention.register_forward_hook(leave).remove)
        transformer_wan.dispatch_attention_fn = noting
        hooks.callback(setattr, transformer_wan, "dispatch_attention_fn", original)
        yield maps


def approximated(query: Tensor, key: Tensor, frames: int) -> Tensor:
    """The official code's picture, [F, F]: the softmax of mean queries and keys. Only to show how it differs."""
    q, k = (x.float().reshape(frames, -1, *x.shape[1:]).mean(dim=1).transpose(0, 1) for x in (query, key))
    return torch.softmax(q @ k.transpose(1, 2) / query.shape[2] ** 0.5, dim=-1).mean(dim=0).cpu()


def first_frame_share(attention: Tensor) -> float:
    """How much of the later frames' attention goes to frame 0: the mean of the first column without its first row."""
    return float(attention[..., 1:, 0].mean())


def own_frame_share(attention: Tensor) -> float:
    """How much of the later frames' attention stays in the frame itself: the mean of the diagonal without frame 0."""
    return float(attention.diagonal(dim1=-2, dim2=-1)[..., 1:].mean())
