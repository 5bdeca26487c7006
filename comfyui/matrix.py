"""Nodes for the timestep matrix: one that builds it for a latent, and one that draws it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pusa.core import TimestepMatrix, schedules, sigmas
from pusa.errors import InputError
from pusa.generation.schedule import Schedule

from .drawing import drawn
from .latents import Latent, multipliers
from .widgets import CATEGORY, widget

MATRIX = "PUSA_MATRIX"
"""ComfyUI's name of the type. The value is a `TimestepMatrix`."""


class PusaMatrix:
    """Builds the matrix of a latent: a schedule, with the columns of given frames scaled by their multipliers."""

    TITLE = "Pusa: Timestep Matrix"
    DESCRIPTION = "The noise level of each latent frame before each step."
    CATEGORY = CATEGORY
    RETURN_TYPES = (MATRIX,)
    RETURN_NAMES = ("matrix",)
    FUNCTION = "build"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        shift = widget(
            "Moves the noise levels towards noise; 1 leaves them evenly spaced. Pusa uses 5.",
            default=5.0,
            min=0.1,
            max=100.0,
            step=0.1,
        )
        schedule = widget(
            "synchronous: all frames have the same noise level. staircase,block=3,delay=2: each block of 3 latent "
            "frames starts 2 steps after the block before it.",
            default="synchronous",
        )
        strength = widget(
            "Below 1, the clip in the latent is edited: it is mixed with less noise.",
            default=1.0,
            min=0.05,
            max=1.0,
            step=0.05,
        )
        return {
            "required": {
                "latent": ("LATENT",),
                "steps": ("INT", {"default": 20, "min": 1, "max": 200}),
                "shift": ("FLOAT", shift),
                "schedule": ("STRING", schedule),
                "strength": ("FLOAT", strength),
            }
        }

    def build(self, latent: Latent, steps: int, shift: float, schedule: str, strength: float) -> tuple[TimestepMatrix]:
        levels = multipliers(latent)
        grid = sigmas.grid(steps, shift, strength)
        free = Schedule.parse(schedule).matrix(grid, len(levels))
        if not free.visible.all() or free.renoise.any():
            raise InputError(
                f"The schedule {schedule!r} hides frames or adds new noise, which these nodes cannot do: give "
                "synchronous or staircase."
            )
        return (schedules.conditioned(free, {slot: level for slot, level in enumerate(levels) if level < 1}),)


class PusaMatrixPreview:
    """Draws a matrix as a picture."""

    TITLE = "Pusa: Draw Timestep Matrix"
    DESCRIPTION = "A heat map of the matrix: a row for each step, a column for each latent frame. Pale is clean."
    CATEGORY = CATEGORY
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "draw"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"matrix": (MATRIX,)}}

    def draw(self, matrix: TimestepMatrix) -> tuple[Tensor]:
        return (drawn(matrix),)
