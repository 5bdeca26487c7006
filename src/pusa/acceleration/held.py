"""Given frames, which need not be computed in every step.

A frame that a step holds has the same latents and the same noise level as in the step before. Only the frames around it
differ. Its own velocity is not used. So its tokens are computed in every n-th step, and in the steps between only its
keys and values are: they come from what the blocks added to it last.
"""

from __future__ import annotations

from torch import Tensor

from pusa.acceleration.policy import Keeps, Place, Policy, Tokens


class Held(Policy):
    """Compute the frames that are held only in every n-th step.

    every: 1 computes them in all steps. A frame is computed in the first step that holds it.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.keeps = Keeps.NOTHING if every == 1 else Keeps.BLOCKS
        self._waited: dict[tuple[int, str], dict[int, int]] = {}
        self._chosen: Tensor | None = None

    def choose(self, place: Place, index: int, hidden: Tensor, tokens: Tokens) -> Tensor | None:
        if self.every == 1:
            return None
        if index == 0:
            waited = self._waited.setdefault((place.network, place.branch), {})
            chosen = ~place.held
            for at, frame in enumerate(place.frames):
                if place.held[at]:
                    waited[frame] = (waited.get(frame, -1) + 1) % self.every
                    chosen[at] = waited[frame] == 0
                else:
                    waited.pop(frame, None)
            self._chosen = None if chosen.all() else chosen
        return self._chosen

    def refused(self, place: Place, frames: Tensor) -> None:
        """Let the frames be computed in the next step instead."""
        waited = self._waited.get((place.network, place.branch), {})
        for at, frame in enumerate(place.frames):
            if frames[at] and frame in waited:
                waited[frame] = self.every - 1
