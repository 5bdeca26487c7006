"""What a policy sees before each block of a network, and what it answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor


@dataclass(frozen=True)
class Place:
    """Which call of which network this is.

    Attributes:
        network: 0, or 1 for the second of two experts.
        branch: the name of the guidance branch.
        step, steps: of the walk.
        frames: the absolute latent frames that are visible, V of them.
        held: bool [V] on the CPU, the frames that this step does not change.
    """

    network: int
    branch: str
    step: int
    steps: int
    frames: tuple[int, ...]
    held: Tensor


class Keeps(IntEnum):
    """What has to be kept between the steps, for each guidance branch. N·D is the size of the hidden state."""

    NOTHING = 0
    STACK = 1
    """What the blocks after the first one added, N·D numbers. Then a step computes all frames or none."""
    BLOCKS = 2
    """What each block added, N·D numbers for each block."""


class Tokens:
    """The tokens in the sequence of a call: which frame each belongs to.

    Attributes:
        count: the number of frames, V.
        frame_of: int64 [n], the visible frame of each token, on the device of the tokens. If several processes share
            the clip, n counts the tokens of this process.
    """

    def __init__(self, count: int, frame_of: Tensor, shared: bool = False) -> None:
        self.count, self.frame_of, self._shared = count, frame_of, shared

    def sums(self, values: Tensor) -> Tensor:
        """Return the sum over the tokens of each frame, float32 [V] on the CPU, of values [n].

        Processes that share a clip all get the sums over all its tokens.
        """
        total = torch.zeros(self.count, device=values.device).index_add_(0, self.frame_of, values.float())
        if self._shared:
            torch.distributed.all_reduce(total)
        return total.cpu()


class Policy(ABC):
    """Decides what is computed. There is one object for each clip, so that nothing passes from one clip to the next."""

    keeps = Keeps.BLOCKS

    @abstractmethod
    def choose(self, place: Place, index: int, hidden: Tensor, tokens: Tokens) -> Tensor | None:
        """Decide what block `index` computes.

        hidden: [B, n, D], the input of the block.

        Returns None for all, bool [V] on the CPU for some of the frames, or int64 [m] for some of the tokens. Frames
        that were not computed yet are computed in any case.
        """

    def wants_attention(self, place: Place, index: int) -> bool:
        """Return whether `computed` is called for block `index`, which computes some tokens."""
        return False

    def computed(self, place: Place, index: int, chosen: Tensor, attention: Tensor) -> None:
        """Is told what `BlockCall.some_with_attention` found for the tokens `chosen`, int64 [m]; attention: [m]."""
        raise NotImplementedError

    def refused(self, place: Place, frames: Tensor) -> None:
        """Is told which frames that it chose, bool [V], another policy leaves out in this call."""
        return


class Together(Policy):
    """Several policies that decide for frames. A frame is computed if all of them choose it."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        self.policies = policies
        self.keeps = max(policy.keeps for policy in policies)

    def choose(self, place: Place, index: int, hidden: Tensor, tokens: Tokens) -> Tensor | None:
        answers = [policy.choose(place, index, hidden, tokens) for policy in self.policies]
        masks = [torch.ones(tokens.count, dtype=torch.bool) if answer is None else answer for answer in answers]
        chosen = torch.stack(masks).all(0)
        for policy, mask in zip(self.policies, masks, strict=True):
            policy.refused(place, mask & ~chosen)
        return None if chosen.all() else chosen
