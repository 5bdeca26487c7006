"""What a call of the pipeline may say, and what it comes to once everything is decided and checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from pusa.core.sampler import Step
from pusa.core.timesteps import TimestepMatrix
from pusa.errors import InputError
from pusa.generation.conditions import Clip
from pusa.images import Fit

SEEDS = 2**63
"""how many seeds there are"""
MAX_STEPS = 1000
"""a step for each timestep that the model was trained on"""
Solver = Literal["euler", "dpm++2m"]
Callback = Callable[[Step], bool | None]
EDIT_STRENGTH = 0.6


@dataclass(frozen=True)
class Settings:
    """How a window is sampled, all of it decided and checked. size: (width, height) in pixels; strength: in (0, 1].

    guidance_2: the second expert's. boundary: the noise level in [0, 1] from which on the first one is asked. Both are
    None for a model that has no second expert.
    """

    frames: int
    size: tuple[int, int]
    steps: int
    guidance: float
    shift: float
    solver: Solver = "euler"
    strength: float = 1.0
    guidance_2: float | None = None
    boundary: float | None = None

    def record(self) -> dict[str, Any]:
        """The settings as a recipe keeps them."""
        return {name: value for name, value in vars(self).items() if value is not None} | {"size": list(self.size)}


class Options(TypedDict, total=False):
    """The keywords of `Pipeline.generate`, which explains them."""

    negative_prompt: str
    frames: int | None
    size: tuple[int, int] | None
    fit: Fit
    steps: int | None
    guidance: float | None
    guidance_2: float | None
    boundary: float | None
    shift: float | None
    seed: int
    init: Clip | None
    strength: float | None
    matrix: TimestepMatrix | None
    solver: Solver
    callback: Callback | None


def check_prompts(prompt: str | list[str], negative_prompt: str) -> list[str]:
    """The prompts as a list; InputError unless each is a text."""
    prompts = list(prompt) if isinstance(prompt, (list, tuple)) else [prompt]
    if not prompts:
        raise InputError("There is no prompt: give a text, which may be empty, or a list of texts.")
    for text in (*prompts, negative_prompt):
        if not isinstance(text, str):
            raise InputError(f"A prompt is a text, not {text!r}.")
    return prompts


def check_seed(seed: int, clips: int = 1) -> None:
    """InputError unless the seeds of all clips can be used."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= SEEDS - clips:
        raise InputError(f"seed is {seed!r}: give a whole number from 0 to {SEEDS - clips}.")
