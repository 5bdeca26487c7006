"""Carries the decisions of a policy out on the blocks of a network, and counts what was computed.

An executor lives for one clip. It keeps what blocks added to the hidden state when they last ran, adds it again where
the policy leaves something out, and forgets it at the end, also after an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from pusa.acceleration.accounting import Accounting
from pusa.acceleration.policy import Keeps, Place, Policy, Tokens
from pusa.core.sampler import Call
from pusa.models.backbone import Backbone, BlockCall
from pusa.processes import ProcessGroup


@dataclass
class _Memory:
    """What the blocks added to the hidden state of the frames `frames`, in one network and guidance branch.

    stack: [B, n, D], the sum of all blocks after the first. blocks: [B, n, D] for each block.
    """

    frames: tuple[int, ...]
    clips: int
    stack: Tensor | None = None
    blocks: dict[int, Tensor] = field(default_factory=dict)
    known: set[int] = field(default_factory=set)

    def tensors(self) -> list[Tensor]:
        return [*self.blocks.values(), *([] if self.stack is None else [self.stack])]


@dataclass
class _Call:
    """A call of a network. entered: the hidden state before the second block, while all blocks run."""

    place: Place
    memory: _Memory
    tokens: Tokens | None = None
    entered: Tensor | None = None
    skips: bool = False


class Executor:
    """Runs the blocks of a backbone's networks as a policy decides, inside its context.

    Args:
        policy: of this clip.
        backbone: whose `blocks_run_by` is used.
        networks: the transformers, in the order of `Place.network`.
        group: the processes that share the tokens of the clip.
    """

    def __init__(
        self, policy: Policy, backbone: Backbone, networks: Sequence[Any], group: ProcessGroup | None = None
    ) -> None:
        self.policy, self.backbone, self.networks = policy, backbone, list(networks)
        self.group = group or ProcessGroup()
        self.accounting = Accounting()
        self._memories: dict[tuple[int, str], _Memory] = {}
        self._call: _Call | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for network in self.networks:
            self._stack.enter_context(self.backbone.blocks_run_by(network, partial(self._run, network)))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        self._memories.clear()
        self._call = None

    @contextmanager
    def call(self, network: Any, branch: str, call: Call) -> Iterator[None]:
        """See `Accelerated`."""
        number = next(i for i, one in enumerate(self.networks) if one is network)
        clips = len(call.held)
        place = Place(number, branch, call.step, call.steps, tuple(call.frames.tolist()), call.held.all(0))
        key = (number, branch)
        known = self._memories.get(key)
        memory = _Memory(place.frames, clips) if known is None else _aligned(known, place.frames, clips)
        self._memories[key] = memory
        self._call = _Call(place, memory)
        try:
            yield
        finally:
            self._call = None

    def _run(self, network: Any, block: BlockCall) -> Tensor:
        call = self._call
        if call is None:
            return block.whole()
        hidden = self._own(block)
        if call.tokens is None:
            call.tokens = self._tokens(call.place, hidden)
        chosen = self._chosen(call, block, hidden)
        out = self._output(call, block, chosen)
        self._count(network, hidden, chosen)
        if block.index == block.count - 1:
            self._finish(call, out)
        return out

    def _own(self, block: BlockCall) -> Tensor:
        """Return the input of a block for the tokens of this process. The first block itself splits its input."""
        return block.hidden.chunk(self.group.size, 1)[self.group.rank] if block.index == 0 else block.hidden

    def _tokens(self, place: Place, hidden: Tensor) -> Tokens:
        count, own, processes = len(place.frames), hidden.shape[1], self.group.size
        frame_of = torch.arange(count, device=hidden.device).repeat_interleave(own * processes // count)
        return Tokens(count, frame_of.chunk(processes)[self.group.rank], shared=processes > 1)

    def _chosen(self, call: _Call, block: BlockCall, hidden: Tensor) -> Tensor | None:
        """Return the tokens that the block computes, int64 [m]; None for all."""
        tokens, memory = call.tokens, call.memory
        assert tokens is not None
        answer = self.policy.choose(call.place, block.index, hidden, tokens)
        if answer is None:
            return None
        known = torch.tensor([frame in memory.known for frame in memory.frames])
        if answer.dtype != torch.bool:
            return answer if known.all() else _with_all_of(~known, answer, tokens.frame_of)
        if self.policy.keeps is Keeps.STACK:
            answer = answer if known.all() and not answer.any() else torch.ones_like(answer)
        answer = answer | ~known
        return None if answer.all() else answer.to(tokens.frame_of.device)[tokens.frame_of].nonzero()[:, 0]

    def _output(self, call: _Call, block: BlockCall, chosen: Tensor | None) -> Tensor:
        if self.policy.keeps is Keeps.STACK:
            return self._all_or_nothing(call, block, chosen)
        if self.policy.keeps is Keeps.NOTHING:
            return block.whole()
        hidden, kept = block.hidden, call.memory.blocks
        if chosen is None:
            out = block.whole()
            kept[block.index] = out - hidden
            return out
        if block.index not in kept:
            kept[block.index] = torch.zeros_like(hidden)
        if len(chosen):
            if self.policy.wants_attention(call.place, block.index):
                some, attention = block.some_with_attention(chosen)
                self.policy.computed(call.place, block.index, chosen, attention)
            else:
                some = block.some(chosen)
            kept[block.index][:, chosen] = some - hidden[:, chosen]
        return hidden + kept[block.index]

    def _all_or_nothing(self, call: _Call, block: BlockCall, chosen: Tensor | None) -> Tensor:
        if chosen is None:
            if block.index == 1:
                call.entered = block.hidden
            return block.whole()
        if call.skips:
            return block.hidden
        call.skips = True
        assert call.memory.stack is not None
        return block.hidden + call.memory.stack

    def _finish(self, call: _Call, out: Tensor) -> None:
        memory = call.memory
        if call.entered is not None:
            memory.stack = out - call.entered
        memory.known.update(memory.frames)
        kept = sum(x.numel() * x.element_size() for each in self._memories.values() for x in each.tensors())
        self.accounting.kept_bytes = max(self.accounting.kept_bytes, kept)

    def _count(self, network: Any, hidden: Tensor, chosen: Tensor | None) -> None:
        tokens = hidden.shape[1]
        computed = tokens if chosen is None else len(chosen)
        counts, operations = self.accounting, self.backbone.block_operations
        counts.total += tokens * len(hidden)
        counts.computed += computed * len(hidden)
        counts.all_operations += operations(network, tokens, tokens) * len(hidden)
        counts.operations += operations(network, tokens, computed) * len(hidden)


def _with_all_of(frames: Tensor, chosen: Tensor, frame_of: Tensor) -> Tensor:
    """Return the chosen tokens, int64, and those of some frames, bool [V]. frame_of: int64 [n], see `Tokens`."""
    mask = frames.to(frame_of.device)[frame_of]
    mask[chosen] = True
    return mask.nonzero()[:, 0]


def _aligned(memory: _Memory, frames: tuple[int, ...], clips: int) -> _Memory:
    """Return a memory for other visible frames: the values of frames that stay visible are kept."""
    if memory.frames == frames and memory.clips == clips:
        return memory
    if memory.clips != clips:
        return _Memory(frames, clips)
    at = torch.tensor([memory.frames.index(frame) if frame in memory.frames else 0 for frame in frames])

    def moved(x: Tensor) -> Tensor:
        each = x.reshape(len(x), len(memory.frames), -1, x.shape[2])
        return each[:, at.to(x.device)].flatten(1, 2)

    stack = None if memory.stack is None else moved(memory.stack)
    blocks = {index: moved(x) for index, x in memory.blocks.items()}
    return _Memory(frames, clips, stack, blocks, memory.known & set(frames))
