"""Some tokens of each step: those that attention looks at and that change (Astraea, arXiv 2506.05096).

The score of a token is the log-sum-exp of its attention logits when it was last computed, times the change of its input
since then, plus a penalty that grows with the steps in which it was left out. The tokens with the highest scores are
computed. Attention of these tokens sees the keys and values of all tokens.

The first block decides for all blocks. Then all that is kept of a token is from one step, and there is one selection in
each step. Its input does not depend on the text, so the first guidance branch decides for the other one. If the
branches kept values of different steps, guidance would multiply the difference.

A frame that is held does not change, so its score is small, and the budget goes to the frames that move.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pusa.acceleration.names import Shares
from pusa.acceleration.policy import Keeps, Place, Policy, Tokens

PENALTY = 0.05
LONGEST = 6
"""e to the power of the number of steps that a token waited; above this number it grows no more"""


@dataclass
class _Seen:
    """What is known of the tokens of a network, which stand in the order of the frames.

    inputs: [B, n, D], of the first block, when each token was last computed. attention: float32 [n], of that time.
    waited: float32 [n], the steps since then. new: bool [n], tokens that were never computed.
    """

    frames: tuple[int, ...]
    inputs: Tensor
    attention: Tensor
    waited: Tensor
    new: Tensor

    @classmethod
    def nothing(cls, frames: tuple[int, ...], hidden: Tensor) -> _Seen:
        zeros = torch.zeros(hidden.shape[1], device=hidden.device)
        return cls(frames, torch.zeros_like(hidden), zeros, zeros.clone(), torch.ones_like(zeros, dtype=torch.bool))

    def at(self, frames: tuple[int, ...], hidden: Tensor) -> _Seen:
        """Return the same for other visible frames, and for hidden states [B, n, D] of them."""
        if frames == self.frames and hidden.shape == self.inputs.shape:
            return self
        moved = _Seen.nothing(frames, hidden)
        each = hidden.shape[1] // len(frames)
        if hidden.shape[0] != len(self.inputs) or each * len(self.frames) != len(self.new):
            return moved
        both = [frame for frame in frames if frame in self.frames]
        to, source = (_tokens_of([all_.index(frame) for frame in both], each) for all_ in (frames, self.frames))
        moved.inputs[:, to] = self.inputs[:, source]
        for name in ("attention", "waited", "new"):
            getattr(moved, name)[to] = getattr(self, name)[source]
        return moved


Ranking = Callable[[Tensor, Tensor, Tensor], Tensor]
"""ranking(change [n], attention [n], waited [n]) -> scores [n]"""


def astraea(change: Tensor, attention: Tensor, waited: Tensor) -> Tensor:
    """Return the score of each token. Change and attention count relative to their means."""
    signal = _relative(attention.clamp(min=0)) * _relative(change)
    return signal + PENALTY * waited.clamp(max=LONGEST).exp()


class TokenReuse(Policy):
    """Compute the share of the tokens that has the highest scores.

    Tokens of frames that were not visible before come first, and all of them are computed.

    Args:
        shares: in [0, 1]; one for all steps, or one for each step. The share of a step counts all its tokens. A tuple
            in its place has a share for each latent frame of the clip, which counts the tokens of this frame.
        ranking: gives the scores. Controls of the benchmark have others.
    """

    def __init__(self, shares: Shares, ranking: Ranking = astraea) -> None:
        self.shares, self.ranking = shares, ranking
        everything = all(share == 1 or (isinstance(share, tuple) and set(share) == {1}) for share in shares)
        self.keeps = Keeps.NOTHING if everything else Keeps.BLOCKS
        self._seen: dict[int, _Seen] = {}
        self._chosen: tuple[tuple[int, int], Tensor] | None = None
        self._decides = ""

    def choose(self, place: Place, index: int, hidden: Tensor, tokens: Tokens) -> Tensor | None:
        if self.keeps is Keeps.NOTHING:
            return None
        here = (place.network, place.step)
        if self._chosen is None or self._chosen[0] != here:
            self._chosen, self._decides = (here, self._best(place, hidden)), place.branch
        return self._chosen[1]

    def wants_attention(self, place: Place, index: int) -> bool:
        return index == 0 and place.branch == self._decides

    def computed(self, place: Place, index: int, chosen: Tensor, attention: Tensor) -> None:
        self._seen[place.network].attention[chosen] = attention

    def _best(self, place: Place, hidden: Tensor) -> Tensor:
        """Return the tokens that the step computes, int64 [m], and note them."""
        seen = self._seen.get(place.network) or _Seen.nothing(place.frames, hidden)
        self._seen[place.network] = seen = seen.at(place.frames, hidden)
        change = (hidden - seen.inputs).abs().mean((0, 2)).float()
        scores = self.ranking(change, seen.attention, seen.waited).masked_fill(seen.new, torch.inf)
        share = self.shares[place.step if len(self.shares) > 1 else 0]
        chosen: Tensor
        if isinstance(share, tuple):
            each = len(scores) // len(place.frames)
            wanted = torch.tensor([round(share[frame] * each) for frame in place.frames], device=scores.device)
            order = scores.view(-1, each).argsort(1, descending=True).argsort(1)
            chosen = ((order < wanted[:, None]).flatten() | seen.new).nonzero()[:, 0]
        else:
            count = max(round(share * len(scores)), int(seen.new.sum()))
            chosen = scores.topk(count).indices.sort().values
        seen.waited += 1.0
        seen.waited[chosen] = 0.0
        seen.new[chosen] = False
        seen.inputs[:, chosen] = hidden[:, chosen]
        return chosen


def _relative(values: Tensor) -> Tensor:
    return values / values.mean().clamp(min=1e-12)


def _tokens_of(places: list[int], each: int) -> Tensor:
    """Return the tokens of the frames at some places, int64 [m], if each frame has `each` tokens."""
    return (torch.tensor(places, dtype=torch.int64)[:, None] * each + torch.arange(each)).flatten()
