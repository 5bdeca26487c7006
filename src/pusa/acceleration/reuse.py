"""Leave out steps, or frames of a step, in which the prediction of the network changes little.

The first block is always computed. What it adds to the hidden state is the sign of change: if it differs from the last
computed step by less than a threshold, the other blocks are left out, and what they added then is added again.
docs/performance.md compares this sign with others, and the policy with uniform skipping.

With guidance, the branch that is called first decides for both (GalaxyDiT, arXiv 2512.03451). Guidance computes
v₋ + scale·(v₊ − v₋). If the branches came from different steps, the change between these steps would be in their
difference, and the scale would multiply it. The embedded model gains less than 1 dB by this, because its branches
hardly ever disagree.

An ordinary sampler has one noise level in each step. Here, each frame has its own, so some frames change while others
do not. `scope="frames"` decides for each frame. The frames that are computed see the keys and values of all frames.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from pusa.acceleration.policy import Keeps, Place, Policy, Tokens


class Reuse(Policy):
    """Leave out steps (scope "clip") or frames (scope "frames") that change by less than a threshold.

    Args:
        threshold: of the relative change of the first block, Σ|r − r₋| / Σ|r₋|; 0 computes everything.
        moves: bool [S, F], the frames that each step changes.
        first: the share of the changes of each frame, at their beginning, that is always computed.
        scope: what is left out, a step of the whole clip or frames of it. Frames that a step holds count only in
            the second case.
        together: whether the guidance branch that is called first decides for all.
    """

    def __init__(
        self,
        threshold: float,
        moves: Tensor,
        first: float = 0.2,
        scope: Literal["clip", "frames"] = "clip",
        *,
        together: bool = True,
    ) -> None:
        self.threshold, self.scope, self.together = threshold, scope, together
        self.keeps = Keeps.NOTHING if threshold == 0 else Keeps.STACK if scope == "clip" else Keeps.BLOCKS
        self._always = moves & (moves.cumsum(0) <= (first * moves.sum(0)).ceil())
        self._input: Tensor | None = None
        self._references: dict[tuple[int, str, tuple[int, ...]], Tensor] = {}
        self._decided: tuple[tuple[int, int], Tensor | None] | None = None

    def choose(self, place: Place, index: int, hidden: Tensor, tokens: Tokens) -> Tensor | None:
        if self.threshold == 0:
            return None
        here = (place.network, place.step)
        if index == 0:
            self._input = hidden
            if not self.together or (self._decided is not None and self._decided[0] != here):
                self._decided = None
            return None
        if self._decided is None:
            assert self._input is not None
            self._decided = here, self._decide(place, hidden - self._input, tokens)
        self._input = None
        return self._decided[1]

    def _decide(self, place: Place, residual: Tensor, tokens: Tokens) -> Tensor | None:
        """Return the frames that are computed, bool [V]; None for all. residual: [B, n, D], of the first block."""
        key = (place.network, "" if self.together else place.branch, place.frames)
        reference = self._references.get(key)
        moving = ~place.held
        if reference is None or reference.shape != residual.shape:
            self._references[key] = residual
            return None
        change = tokens.sums((residual - reference).abs().sum((0, 2)))
        size = tokens.sums(reference.abs().sum((0, 2)))
        always = self._always[place.step, list(place.frames)]
        if self.scope == "clip":
            value = float(change[moving].sum() / size[moving].sum()) if moving.any() else 0.0
            chosen = torch.full_like(moving, bool(always.any()) or value > self.threshold)
        else:
            chosen = always | (change / size > self.threshold)
        if chosen.all():
            self._references[key] = residual
            return None
        if chosen.any():
            self._references[key] = torch.where(chosen.to(residual.device)[tokens.frame_of, None], residual, reference)
        return chosen


class Uniform(Policy):
    """Compute every n-th step: the control for policies that look at the clip.

    Args:
        every: 1 computes all steps.
        moves, first: as for `Reuse`.
    """

    def __init__(self, every: int, moves: Tensor, first: float = 0.2) -> None:
        self.every = every
        self.keeps = Keeps.NOTHING if every == 1 else Keeps.STACK
        self._start = math.ceil(first * len(moves))

    def choose(self, place: Place, index: int, hidden: Tensor, tokens: Tokens) -> Tensor | None:
        after = place.step - self._start
        if index == 0 or after < 0 or after % self.every == self.every - 1:
            return None
        return torch.zeros(tokens.count, dtype=torch.bool)
