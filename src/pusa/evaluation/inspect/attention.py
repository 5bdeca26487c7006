"""Self-attention between latent frames, computed exactly and without changing the clip.

    A[i, j] = mean over heads and over the tokens q of frame i of   Σ over the tokens k of frame j   softmax(q·k / √d)

Every row of A sums to 1. The official code computes another quantity: the softmax of the mean queries and mean keys of
each frame. The two differ, because the softmax is not linear.
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
"""the size of the attention weights that are in memory at once"""
Maps = dict[tuple[int, int], Tensor]
"""{(step, block): float32 [F, F], or [heads, F, F] if heads are kept apart}"""


@torch.no_grad()
def between_frames(query: Tensor, key: Tensor, frames: int, *, per_head: bool = False) -> Tensor:
    """Attention between frames, float32 [F, F] on the CPU, for query and key [L, heads, d] with L = F · h · w.

    per_head: no mean over heads, [heads, F, F]. The computation is in float32, for one head and one chunk of queries at
    a time. In addition to the arguments, it needs `CHUNK_BYTES` and the queries and keys of one head, for any length.
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
    """The attention of each query to each frame, float64 [n, F], for queries [n, d] and keys [d, L]."""
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
    """For the block, record attention between frames at these blocks and sampling steps, for the first clip of a batch.

    passes: the greatest number of calls of each transformer per step, 2 with guidance; the first call, with the prompt,
    is recorded. A call with other latents or other noise levels begins a step. With two experts, each step calls one of
    them. measured: what is computed from query and key [L, heads, d] and the number of frames. The queries and keys are
    those of the model. A recorded block needs, in addition, the time of one more attention and the memory of
    `between_frames`. Raises InputError if a block does not exist, if the transformer shares its tokens with other
    processes, or if blocks are compiled.
    """
    count = min(len(transformer.blocks) for transformer in passes)
    if missing := [block for block in blocks if not 0 <= block < count]:
        raise InputError(f"There is no block {missing[0]}; the model has {count} blocks, 0 to {count - 1}.")
    if any(transformer._is_context_parallel for transformer in passes):
        raise InputError("Attention can only be recorded in one process, which has all tokens; run without torchrun.")
    if any(block._compiled_call_impl is not None for transformer in passes for block in transformer.blocks):
        raise InputError("Attention cannot be recorded in compiled blocks: leave --compile out.")
    maps: Maps = {}
    step, with_prompt, frames, calls = -1, False, 0, 0
    last: tuple[Tensor, Tensor] | None = None
    current: tuple[int, int] | None = None
    original = transformer_wan.dispatch_attention_fn

    def begin(transformer: Any, args: Any, kwargs: Any) -> None:
        nonlocal step, with_prompt, frames, calls, last
        latents = kwargs.get("hidden_states", args[0] if args else None)
        now = latents, kwargs.get("timestep", args[1] if len(args) > 1 else None)
        repeats = last is not None and all(torch.equal(a, b) for a, b in zip(last, now, strict=True))
        with_prompt = not repeats or calls >= passes[transformer]
        calls = 1 if with_prompt else calls + 1
        step, last = step + with_prompt, now
        frames = latents.shape[2] // transformer.config.patch_size[0]

    def enter(block: int) -> Any:
        def hook(module: Any, args: Any) -> None:
            nonlocal current
            current = (step, block) if with_prompt and step in steps else None

        return hook

    def leave(module: Any, args: Any, output: Any) -> None:
        nonlocal current
        current = None

    def recorded(query: Tensor, key: Tensor, *args: Any, **options: Any) -> Any:
        if current is not None:
            maps[current] = measured(query[0], key[0], frames)
        return original(query, key, *args, **options)

    with ExitStack() as hooks:
        for transformer in passes:
            hooks.callback(transformer.register_forward_pre_hook(begin, with_kwargs=True).remove)
            for block in blocks:
                attention = transformer.blocks[block].attn1
                hooks.callback(attention.register_forward_pre_hook(enter(block)).remove)
                hooks.callback(attention.register_forward_hook(leave).remove)
        transformer_wan.dispatch_attention_fn = recorded
        hooks.callback(setattr, transformer_wan, "dispatch_attention_fn", original)
        yield maps


def approximated(query: Tensor, key: Tensor, frames: int) -> Tensor:
    """What the official code computes, [F, F]: the softmax of mean queries and mean keys. Only for comparison."""
    q, k = (x.float().reshape(frames, -1, *x.shape[1:]).mean(dim=1).transpose(0, 1) for x in (query, key))
    return torch.softmax(q @ k.transpose(1, 2) / query.shape[2] ** 0.5, dim=-1).mean(dim=0).cpu()


def first_frame_share(attention: Tensor) -> float:
    """The share of the later frames' attention that goes to frame 0: the mean of column 0 without row 0."""
    return float(attention[..., 1:, 0].mean())


def own_frame_share(attention: Tensor) -> float:
    """The share of the later frames' attention that stays in the frame: the mean of the diagonal without frame 0."""
    return float(attention.diagonal(dim1=-2, dim2=-1)[..., 1:].mean())
