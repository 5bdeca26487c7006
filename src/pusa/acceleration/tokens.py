"""Some tokens of each block: those that attention looks at and that change (Astraea, arXiv 2506.05096).

The score of a token is the log-sum-exp of its attention logits when it was last computed, times the change of its input
since then, plus a penalty that grows with the steps in which it was left out. The tokens with the highest scores are
computed. Attention of these tokens sees the keys and values of all tokens.

A frame that is held does not change, so its score is small, and the budget goes to the frames that move.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pusa.acceleration.policy import Keeps, Place, Policy, Tokens

PENALTY = 0.05
LONGEST = 6
"""e to the power of the number of steps that a token waited; above this number it grows no more"""


@dataclass
class _Seen:
    """What is known of the tokens of a block. inputs: [B, n, D] and attention [n], of the last time; waited: [n]."""

    frames: tuple[int, ...]
    inputs: Tensor
    attention: Tensor
    waited: Tensor


Ranking = Callable[[Tensor, Tensor, Tensor], Tensor]
"""ranking(change [n], attention [n], waited [n]) -> scores [n]"""


def astraea(change: Tensor, attention: Tensor, waited: Tensor) -> Tensor:
    """Return the score of each token. Change and attention count relative to their means."""
    attention = attention - attention.min()
    scaled = (attention / attention.mean().clamp(min=1e-12)) * (change / change.mean().clamp(min=1e-12))
    return scaled + PENALTY * waited.clamp(max=LONGEST).exp()


class TokenReuse(Policy):
    """Compute the share of the tokens that has the highest scores.

    Args:
        shares: in [0, 1]; one for all steps, or one for each step.
        ranking: gives the scores. Controls of the benchmark have others.
    """

    wants_attention = True

    def __init__(self, shares: tuple[float, ...], ranking: Ranking = astraea) -> None:
        self.shares, self.ranking = shares, ranking
        self.keeps = Keeps.NOTHING if set(shares) == {1.0} else Keeps.BLOCKS
        self._seen: dict[tuple[int, str, int], _Seen] = {}

    def choose(self, place: Place, index: int, hidden: Tensor, tokens: Tokens) -> Tensor | None:
        if self.keeps is Keeps.NOTHING:
            return None
        key = (place.network, place.branch, index)
        seen = self._seen.get(key)
        if seen is None or seen.frames != place.frames or seen.inputs.shape != hidden.shape:
            nothing = torch.zeros(hidden.shape[1], device=hidden.device)
            self._seen[key] = _Seen(place.frames, hidden.clone(), nothing, nothing.clone())
            return torch.arange(hidden.shape[1], device=hidden.device)
        share = self.shares[min(place.step, len(self.shares) - 1)]
        count = round(share * hidden.shape[1])
        change = (hidden - seen.inputs).abs().mean((0, 2)).float()
        chosen = self.ranking(change, seen.attention, seen.waited).topk(count).indices.sort().values
        seen.waited += 1
        seen.waited[chosen] = 0
        seen.inputs[:, chosen] = hidden[:, chosen]
        return chosen

    def computed(self, place: Place, index: int, chosen: Tensor, attention: Tensor) -> None:
        self._seen[place.network, place.branch, index].attention[chosen] = attention
