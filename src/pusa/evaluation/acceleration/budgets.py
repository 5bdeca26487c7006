"""Search for the shares of tokens of each step on a loaded pipeline.

The result holds for the number of steps with which it was searched. It is the text of an acceleration, so a sidecar
has it, and `pusa generate --accelerate` takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pusa.acceleration.search import Budget, Error, Found, greedy
from pusa.evaluation.acceleration.repeated import Repeated, geometric_mean
from pusa.evaluation.acceleration.tasks import tasks_from
from pusa.generation.pipeline import Pipeline

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


def searched_on(
    pipe: Pipeline,
    prompts: Sequence[str],
    share: float,
    progress: Callable[[str, int, int], None] = lambda activity, done, total: None,
    **options: Any,
) -> str:
    """Search on text to video, image to video and extension, and return the acceleration with the best budget.

    prompts: one clip of each task for each, from seeds that `calibrate` does not use. share, options: as for
    `searched` and `Pipeline.generate`. progress: called with the activity, the budgets tried and the budgets in all.
    """
    geometry = pipe.backbone.geometry
    chosen: dict[str, Any] = {key: options.get(key) for key in ("steps", "frames", "size", "guidance")}
    slots = geometry.latent_frames(pipe.limits.settings(**chosen).frames)
    clips = []
    for seed, prompt in enumerate(prompts, len(prompts)):
        own = {**options, "seed": seed}
        tasks = tasks_from(pipe.generate(prompt, **own), own, slots, geometry.frames_per_slot)
        clips += [Repeated(pipe, task.prompt, **task.options) for task in tasks]
    found = searched(clips, share, progress=lambda tried, total, _: progress("Searching a budget", tried, total))
    return named(found.budget)
