"""What a model can be asked for, from its configurations alone: wishes become settings, or are refused.

No weight is needed, so that a command can refuse a clip before it loads 30 GB for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pusa.core import sigmas
from pusa.core.timesteps import TimestepMatrix
from pusa.errors import InputError
from pusa.generation.settings import MAX_STEPS, Settings, Solver
from pusa.models.loading import checkpoints, sources
from pusa.models.wan import latents, recognise
from pusa.models.wan.defaults import Defaults

if TYPE_CHECKING:
    from pusa.models.loading.checkpoints import Components
    from pusa.models.loading.sources import Beside


@dataclass(frozen=True)
class Limits:
    """What decides which clips a model can make.

    defaults: what it is asked for when nothing is said. multiple: of which width and height are multiples, in pixels;
    a token is as large. positions: how many it knows along time, height and width (of its rotary embedding). experts:
    whether it has two.
    """

    source: str
    defaults: Defaults
    multiple: int
    positions: int
    experts: bool

    @classmethod
    def of(cls, name: str, folder: Path, beside: Beside) -> Self:
        """Of the model at `folder`, called `name` in errors, with the parts that are given beside it.

        An autoencoder that is neither there nor given is taken to be Wan's own.
        """
        transformer = sources.config(name, folder, "transformer")
        if "vae" in sources.lacking(folder) and not beside.get("vae"):
            large = transformer.get("in_channels") == 48
            autoencoder = recognise.wan22_vae() if large else recognise.wan21_vae()
        else:
            autoencoder = sources.config(name, folder, "vae", beside)
        return cls(
            name,
            checkpoints.defaults_of(folder, transformer_2=beside.get("transformer_2")),
            int(autoencoder.get("scale_factor_spatial") or 8) * int(transformer.get("patch_size", (1, 2, 2))[1]),
            int(transformer.get("rope_max_seq_len", 1024)),
            len(sources.transformers_of(name, folder, beside)) > 1,
        )

    @classmethod
    def loaded(cls, components: Components) -> Self:
        """Of a model that is loaded."""
        return cls(
            components.source,
            components.defaults,
            components.multiple,
            int(components.transformer.config.rope_max_seq_len),
            components.transformer_2 is not None,
        )

    def settings(
        self,
        *,
        frames: int | None = None,
        size: tuple[int, int] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        guidance_2: float | None = None,
        boundary: float | None = None,
        shift: float | None = None,
        solver: Solver = "euler",
        strength: float = 1.0,
        matrix: TimestepMatrix | None = None,
    ) -> Settings:
        """Fill what is None with the model's defaults (or the matrix's shape) and check everything."""
        wishes = self.defaults
        if frames is None:
            frames = wishes.frames if matrix is None else latents.pixel_frames(matrix.frames)
        slots = latents.latent_frames(_whole("frames", frames))
        if slots > self.positions:
            raise InputError(
                f"{frames:,} frames are too many: {self.source} knows {self.positions:,} latent frames, so make at "
                f"most {latents.pixel_frames(self.positions):,} at once, and extend the clip."
            )
        if matrix is not None and matrix.frames != slots:
            raise InputError(
                f"The matrix has {matrix.frames} latent frames but {frames} frames have {slots}: make it for {slots}, "
                f"or ask for {latents.pixel_frames(matrix.frames)} frames."
            )
        if matrix is not None and steps not in (None, matrix.steps):
            raise InputError(f"The matrix has {matrix.steps} steps but steps={steps}: leave steps out.")
        steps = _whole("steps", (wishes.steps if matrix is None else matrix.steps) if steps is None else steps)
        guidance = wishes.guidance if guidance is None else guidance
        shift = wishes.shift if shift is None else shift
        if self.experts:
            guidance_2 = guidance if guidance_2 is None else guidance_2
            boundary = wishes.boundary if boundary is None else boundary
        elif (guidance_2, boundary) != (None, None):
            raise InputError(
                f"{self.source} has one transformer, and guidance_2 and boundary are for two experts: leave them out, "
                "and a preset that sets them."
            )
        for name, value in (("guidance", guidance), ("guidance_2", guidance_2)):
            if value is not None and not (_is_number(value) and math.isfinite(value)):
                raise InputError(f"{name} is {value}: give a finite number, 1 for none.")
        if boundary is not None and not (_is_number(boundary) and 0 <= boundary <= 1):
            raise InputError(f"boundary is {boundary}: give a noise level from 0 to 1, such as 0.875.")
        if solver not in ("euler", "dpm++2m"):
            raise InputError(f"The solver {solver!r} is unknown: choose euler or dpm++2m.")
        if matrix is None and steps > MAX_STEPS:
            raise InputError(f"steps is {steps}: give at most {MAX_STEPS}, as many as the model has timesteps.")
        for name, value in (("shift", shift), ("strength", strength)):
            if not _is_number(value):
                raise InputError(f"{name} is {value!r}: give a number.")
        sigmas.grid(steps, shift, strength)
        return Settings(
            frames,
            self.check_size(size),
            steps,
            float(guidance),
            float(shift),
            solver,
            float(strength),
            None if guidance_2 is None else float(guidance_2),
            boundary,
        )

    def check_size(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """(width, height) in pixels, the model's default for None; InputError unless the model can make it."""
        pair = size or self.defaults.size
        if isinstance(pair, str) or len(pair) != 2:
            raise InputError(f"size is {size!r}: give (width, height).")
        width, height = (_whole("size", side) for side in pair)
        if width < 1 or height < 1 or width % self.multiple or height % self.multiple:
            better = "x".join(str(max(1, round(side / self.multiple)) * self.multiple) for side in (width, height))
            raise InputError(
                f"The size {width}x{height} cannot be made: both sides must be multiples of {self.multiple}, as in "
                f"{better}."
            )
        if max(width, height) > (most := self.positions * self.multiple):
            raise InputError(f"The size {width}x{height} is too large: {self.source} knows sides of at most {most:,}.")
        return width, height


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{name} is {value!r}: give a whole number.")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
