"""Tasks for measuring accelerations, from a model alone: what they need of pictures is made by the model itself."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from pusa.generation.clip import GeneratedClip
from pusa.generation.given import Clip, Image
from pusa.generation.pipeline import Pipeline
from pusa.media.images import Frames

IDENTICAL = 80.0
"""dB that stand for clips without a difference, and the most that is counted"""


def psnr(made: Frames, plain: Frames, frames: slice) -> float:
    """The PSNR of uint8 frames [N, H, W, 3] to others, in dB, over some of the frames; at most `IDENTICAL`."""
    error = float(np.square(made[frames].astype(float) - plain[frames]).mean())
    return IDENTICAL if error == 0 else min(IDENTICAL, float(10 * np.log10(255**2 / error)))


@dataclass(frozen=True)
class Task:
    """A task for one clip. options: of `Pipeline.generate`. made: the pixel frames that are not given."""

    name: str
    prompt: str
    options: dict[str, Any]
    made: slice


def tasks_from(plain: GeneratedClip, options: dict[str, Any], slots: int, group: int) -> list[Task]:
    """The tasks from a clip that was made from its prompt alone: that one, its first frame, and its first half.

    options: with which the clip was made. slots: its latent frames. group: pixel frames per latent frame.
    """
    half = slots // 2 * group + 1
    given = {
        "text to video": ([], 0),
        "image to video": ([Image(plain.frames[0])], 1),
        "extension": ([Clip(plain.frames[:half])], half),
    }
    if slots < 3:
        del given["extension"]
    return [
        Task(name, plain.prompt, {**options, "conditions": conditions}, slice(first, None))
        for name, (conditions, first) in given.items()
    ]


def timed(pipe: Pipeline, task: Task, accelerate: str | None = None) -> tuple[GeneratedClip, float]:
    """Make a task's clip; return it and the seconds of its sampling from the end of the first step on.

    The first step has the work that is done once for a clip.
    """
    times: list[float] = []
    clip = pipe.generate(
        task.prompt, **task.options, accelerate=accelerate, callback=lambda step: times.append(time.perf_counter())
    )
    return clip, times[-1] - times[0]


def computed(clip: GeneratedClip) -> float:
    """The share of the blocks that was computed for a clip, 0 to 1."""
    return float(clip.recipe.get("acceleration", {}).get("computed", 1.0))
