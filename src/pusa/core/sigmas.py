"""Noise levels: the grid a clip descends when it is sampled, and the levels drawn when a model is trained.

σ ∈ [0, 1] is how much noise a frame carries: x_σ = (1 − σ) x0 + σ ε. Zero is clean, one is pure noise. The model's
timestep is 1000 σ; only `models/` computes that product.

A training draw has two independent parts, so that each can be read alone:

* a *law*, the distribution of one σ, written as its quantile function (uniform numbers in, σ out);
* a *pattern*, how the frames of a clip share their draws. PTSS of arXiv 2507.16116 §2.3.2 mixes the two extremes, one
  σ per frame (p = 1, the paper's own choice) and one σ per clip (p = 0).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pusa.errors import InputError

Law = Callable[[Tensor], Tensor]


def shift(u: Tensor, shift: float) -> Tensor:
    """Move time towards the noisy end: s·u / (1 + (s − 1)·u), exact at u = 0 and u = 1. s = 1 changes nothing."""
    if not (math.isfinite(shift) and shift > 0):
        raise InputError(f"shift is {shift}; give a number above 0, such as 5 (1 leaves the grid evenly spaced)")
    return shift * u / (shift * u + (1 - u))


def grid(steps: int, shift: float = 5.0, strength: float = 1.0) -> Tensor:
    """The noise levels of a descent in `steps` steps: float64 [steps + 1], from shift(strength) down to exactly 0.

    `strength` in (0, 1] starts part of the way down, for editing a clip that is already there.
    """
    if steps < 1:
        raise InputError(f"steps is {steps}; give at least 1")
    if not 0 < strength <= 1:
        raise InputError(f"strength is {strength}; give a number above 0 and at most 1")
    return shifted(shift)(torch.linspace(strength, 0, steps + 1, dtype=torch.float64))


def uniform(u: Tensor) -> Tensor:
    """σ ~ U[0, 1], the law the paper states."""
    return u


def shifted(shift: float, levels: int | None = None) -> Law:
    """σ of a shifted grid: continuous, or one of `levels` equally likely points (the official code: 5 and 1000)."""
    if levels is None:
        return lambda u: _shift(u, shift)
    if levels < 1:
        raise InputError(f"levels is {levels}; give at least 1, or None for a continuous law")
    return lambda u: _shift((torch.floor(u * levels) + 1) / levels, shift)


def logit_normal(mean: float = 0.0, std: float = 1.0) -> Law:
    """σ = sigmoid(mean + std·n) with n ~ N(0, 1): most draws in the middle, none at the ends."""
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise InputError(f"logit-normal mean {mean}, std {std}; give a finite mean and a finite std above 0")
    return lambda u: torch.sigmoid(mean + std * torch.special.ndtri(u))


def ptss(batch: int, frames: int, p: float, *, law: Law = uniform, generator: torch.Generator) -> Tensor:
    """Probabilistic timestep sampling: with probability p a clip draws one σ per frame, otherwise one for all.

    Returns float32 [batch, frames] on the generator's device. p = 1 draws the frames of a clip
    independently, as the paper trains; p = 0 gives a clip one σ, as text-to-video models are trained.
    """
    if batch < 1 or frames < 1:
        raise InputError(f"cannot draw noise levels for {batch} clips of {frames} frames; give at least 1 of each")
    if not 0 <= p <= 1:
        raise InputError(f"p is {p}; the probability of one noise level per frame lies between 0 and 1")
    u = torch.rand(batch, frames + 1, dtype=torch.float64, device=generator.device, generator=generator)
    apart, own = u[:, :1] < p, torch.rand(u.shape, dtype=u.dtype, device=u.device, generator=generator)
    return law(torch.where(apart, own[:, 1:], own[:, :1])).float()


_shift = shift  # for the functions above that take a number called `shift`
