"""Search for the shares of tokens of each step on a loaded pipeline.

The result holds for the number of steps with which it was searched. It is the text of an acceleration, so a sidecar
has it, and `pusa generate --accelerate` takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pusa.acceleration.search import Budget, Error, Found, greedy
from pusa.evaluation.acceleration.repeated import Repeated, geometric_mean

Search = Callable[..., Found]


def named(budget: Budget) -> str:
    """Return the acceleration with the shares [S, 1] or [S, F] of a budget, see `pusa.acceleration.names`."""
    return "tokens,share=" + "/".join(":".join(f"{share:g}" for share in step) for step in budget)


def error_on(clips: Sequence[Repeated]) -> Error:
    """Return the error of a budget: the geometric mean over clips of the relative error of their latents."""

    def error(budget: Budget) -> float:
        return geometric_mean([clip.error(clip.sample(named(budget))[0]) for clip in clips])

    return error


def searched(
    clips: Sequence[Repeated],
    share: float,
    *,
    search: Search = greedy,
    by_frame: bool = False,
    progress: Callable[[int, int, float], None] = lambda tried, total, least: None,
) -> Found:
    """Search for the best budget with a mean share of the tokens in all steps after the first, which is complete.

    clips: with the same number of steps; with the same number of latent frames if by_frame, where each frame of a step
    has its own share. search, progress: of `pusa.acceleration.search`. `search` may be a partial of one.
    """
    first = clips[0].matrix
    free = np.ones((first.steps, first.frames if by_frame else 1), dtype=bool)
    free[0] = False
    return search(error_on(clips), free, share, progress=progress)
