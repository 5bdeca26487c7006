"""How a window of a clip is sampled, once every option has a value that the model can take."""

from __future__ import annotations

from dataclasses import KW_ONLY, fields
from typing import Any

from pusa.generation.options import strict_dataclass
from pusa.generation.request import Size
from pusa.generation.sampling import Sampling


@strict_dataclass
class Settings(Sampling):
    """`Sampling` without gaps, and the shape of the window.

    Attributes:
        frames: pixel frames. size: (width, height) in pixels.
        strength: in (0, 1], the part of the descent that is walked; below 1 for editing.
        guidance_2, boundary: None for a model without a second expert.
    """

    _: KW_ONLY
    frames: int
    size: Size
    steps: int
    guidance: float
    shift: float
    strength: float = 1.0

    @property
    def guidances(self) -> set[float]:
        """The guidance scales that are used: one, or one for each of two experts."""
        return {value for value in (self.guidance, self.guidance_2) if value is not None}

    @property
    def calls(self) -> tuple[int, ...]:
        """How often a step calls the model at most, for each of its experts: twice with guidance, else once."""
        scales = (self.guidance,) if self.boundary is None else (self.guidance, self.guidance_2)
        return tuple(1 if scale == 1 else 2 for scale in scales)

    def record(self) -> dict[str, Any]:
        """The settings as a sidecar keeps them."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if value is not None} | {"size": list(self.size)}
