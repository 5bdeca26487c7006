"""Noise levels: the grid that sampling descends, and the random levels that training uses.

A frame at the noise level σ ∈ [0, 1] is x_σ = (1 − σ) x0 + σ ε. So σ = 0 is clean, and σ = 1 is pure noise. The model's
timestep is 1000 σ, which only `models/` computes.

Training draws noise levels in two independent parts. A *law* is the distribution of one σ, written as a quantile
function. A *pattern* decides which frames of a clip share a σ: see `ptss`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pusa.errors import InputError

Law = Callable[[Tensor], Tensor]
"""law(uniform numbers in [0, 1]) -> σ in the same shape"""


def shift(u: Tensor, shift: float) -> Tensor:
    """Return s·u / (1 + (s − 1)·u), exact at u = 0 and 1. A shift s > 1 moves u ∈ [0, 1] towards noise; s > 0."""
    if not (math.isfinite(shift) and shift > 0):
        raise InputError(f"shift is {shift}; give a number above 0, such as 5 (1 leaves the grid evenly spaced)")
    return shift * u / (shift * u + (1 - u))


def grid(steps: int, shift: float = 5.0, strength: float = 1.0) -> Tensor:
    """Return the noise levels of a descent in `steps` steps: float64 [steps + 1], from shift(strength) to exactly 0.

    strength: in (0, 1]. Below 1 the descent begins at a lower noise level, to edit an existing clip.
    """
    if steps < 1:
        raise InputError(f"steps is {steps}; give at least 1")
    if not 0 < strength <= 1:
        raise InputError(f"strength is {strength}; give a number above 0 and at most 1")
    return shifted(shift)(torch.linspace(strength, 0, steps + 1, dtype=torch.float64))


def uniform(u: Tensor) -> Tensor:
    """The law σ ~ U[0, 1], as in the paper."""
    return u


def shifted(shift: float, levels: int | None = None) -> Law:
    """Return the law of a shifted grid: of `levels` equally likely σ (official code: 1000), or continuous for None."""
    if levels is None:
        return lambda u: _shift(u, shift)
    if levels < 1:
        raise InputError(f"levels is {levels}; give at least 1, or None for a continuous law")
    return lambda u: _shift((torch.floor(u * levels) + 1) / levels, shift)


def logit_normal(mean: float = 0.0, std: float = 1.0) -> Law:
    """Return the law σ = sigmoid(mean + std·n) with n ~ N(0, 1), which draws medium noise levels most often."""
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise InputError(f"logit-normal mean {mean}, std {std}; give a finite mean and a finite std above 0")
    return lambda u: torch.sigmoid(mean + std * torch.special.ndtri(u))


def ptss(batch: int, frames: int, p: float, *, law: Law = uniform, generator: torch.Generator) -> Tensor:
    """Probabilistic timestep sampling (arXiv 2507.16116, section 2.3.2), float32 [batch, frames].

    With probability p a clip gets one σ per frame, otherwise one σ for all frames. The paper trains with p = 1. With
    p = 0 every clip has one σ, as in the training of ordinary text-to-video models.
    """
    if batch < 1 or frames < 1:
        raise InputError(f"cannot draw noise levels for {batch} clips of {frames} frames; give at least 1 of each")
    if not 0 <= p <= 1:
        raise InputError(f"p is {p}; the probability of one noise level per frame lies between 0 and 1")
    u = torch.rand(batch, frames + 1, dtype=torch.float64, device=generator.device, generator=generator)
    independent, levels = u[:, :1] < p, torch.rand(u.shape, dtype=u.dtype, device=u.device, generator=generator)
    return law(torch.where(independent, levels[:, 1:], levels[:, :1])).float()


_shift = shift  # for functions that have a parameter called `shift`
