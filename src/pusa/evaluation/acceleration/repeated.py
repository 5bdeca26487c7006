"""A clip that is sampled many times with different accelerations, to compare its latents with the plain ones.

The request is planned, and pictures and text are encoded, once. Nothing is decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pusa.acceleration.accounting import Accounting
from pusa.generation import plans
from pusa.generation.given import Clip, Image
from pusa.generation.pipeline import Pipeline
from pusa.generation.request import Generate

LEAST = 1e-8
"""the relative error of a clip that counts as no error, 80 dB"""


class Repeated:
    """A clip of a pipeline, ready to be sampled.

    Args:
        pipe: which makes it.
        prompt, conditions, options: as for `Pipeline.generate`, without `accelerate`.

    Attributes:
        matrix: the timestep matrix of the clip.
        moving: bool [F], the latent frames that the sampler changes.
        plain: float32 [1, C, F, h, w], the latents without acceleration.
    """

    def __init__(self, pipe: Pipeline, prompt: str, conditions: Sequence[Image | Clip] = (), **options: Any) -> None:
        request = Generate(prompt=prompt, conditions=tuple(conditions), **options)
        self._pipe, self._seed, self._plan = pipe, request.seed, plans.generate(pipe, request)
        self.matrix = self._plan.matrix or pipe.matrix(self._plan.settings, self._plan.known)
        self._texts = pipe.encode_text([request.prompt, request.negative_prompt])
        self.moving = self.matrix.moves.any(0)
        self.plain, _ = self.sample(None)

    def sample(self, accelerate: str | None) -> tuple[Tensor, Accounting]:
        """Return the latents, float32 [1, C, F, h, w] on the CPU, and what was computed for them.

        Raises InputError if the acceleration does not fit the clip.
        """
        with self._pipe.accelerated(accelerate, self.matrix) as accelerated:
            latents = self._pipe.sample(
                self.matrix,
                (self._texts[:1], self._texts[1:]),
                self._plan.settings,
                known=self._plan.known,
                init=self._plan.init,
                seed=self._seed,
                accelerated=accelerated,
            )
        return latents, Accounting() if accelerated is None else accelerated.accounting

    def error(self, latents: Tensor) -> float:
        """Return the mean squared error to the plain latents, relative to their variance, over the moving frames."""
        plain = self.plain[:, :, self.moving].double()
        error = (latents[:, :, self.moving].double() - plain).square().mean() / plain.var()
        return max(LEAST, float(error))


def geometric_mean(errors: Sequence[float]) -> float:
    """Return the geometric mean: one clip that goes wrong does not outweigh all others."""
    return float(torch.tensor(errors, dtype=torch.float64).log().mean().exp())
