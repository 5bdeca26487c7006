"""The second-order solver against the textbook, frame by frame, and its order of convergence."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from pusa.core import Call, TimestepMatrix, sample, schedules, sigmas

FRAMES = 6
TEN = sigmas.grid(10)


def latents(batch: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 3, FRAMES, 2, 2, generator=torch.Generator().manual_seed(seed)).to(dtype)


def wide(values: Tensor) -> Tensor:
    return values[:, None, :, None, None]


def alone(x: Tensor, sigma: Tensor, context: Any = None, call: Call | None = None) -> Tensor:
    """A nonlinear velocity of each frame by itself."""
    return (0.7 * x + 0.2 * x * x) * wide(0.5 + sigma * sigma).to(x.dtype)


def textbook_2m(velocity: Callable[..., Tensor], x: Tensor, levels: list[float]) -> Tensor:
    """DPM-Solver++(2M) in its usual form, with α = 1 − σ and λ = log(α/σ), first order where λ is infinite."""
    x, before, h_before = x.double(), None, None
    for now, then in pairwise(levels):
        clean = x - now * velocity(x, torch.full((len(x), x.shape[2]), now, dtype=torch.float64), None)
        if then == 0 or now == 1:
            x = clean if then == 0 else then * x + (1 - then) * clean
            before, h_before = clean, None
            continue
        h = math.log((1 - then) / then) - math.log((1 - now) / now)
        d = clean if h_before is None else clean + (h / (2 * h_before)) * (clean - before)
        x = then / now * x - (1 - then) * math.expm1(-h) * d
        before, h_before = clean, h
    return x


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 40])
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_multistep_is_the_textbook_solver(steps: int, strength: float) -> None:
    grid = sigmas.grid(steps, 5.0, strength)
    expected = textbook_2m(alone, latents(), grid.tolist())
    out = sample(alone, latents(), schedules.synchronous(grid, FRAMES), solver="dpm++2m")
    assert (out - expected).abs().max() < 2e-6
    if steps > 3:  # below, every step starts or follows at σ = 1 or ends at 0, and is first order
        euler = sample(alone, latents(), schedules.synchronous(grid, FRAMES))
        assert (euler - expected).abs().max() > 1e-4, "the control: Euler is another solver"


def test_multistep_history_belongs_to_the_frame() -> None:
    """Frames that start later, wait or have their own levels go exactly the way they would have gone alone."""
    delays = schedules.conditioned(schedules.staircase(TEN, FRAMES, block=2, delay=3), {1: 0.4, 4: 0.0})
    out = sample(alone, latents(), delays, solver="dpm++2m")
    for f in range(FRAMES):
        if f == 4:
            assert torch.equal(out[:, :, f], latents()[:, :, f])
            continue
        m = 0.4 if f == 1 else 1.0
        expected = textbook_2m(alone, latents()[:, :, f : f + 1], (TEN * m).tolist())
        assert (out[:, :, f : f + 1] - expected).abs().max() < 2e-6


def test_multistep_begins_anew_after_a_hold() -> None:
    levels = [1.0, 0.8, 0.6, 0.6, 0.4, 0.2, 0.0]
    matrix = TimestepMatrix.from_sigma(torch.tensor(levels, dtype=torch.float64)[:, None].expand(-1, FRAMES))
    out = sample(alone, latents(), matrix, solver="dpm++2m")
    expected = textbook_2m(alone, textbook_2m(alone, latents(), levels[:3]), levels[3:])
    assert (out - expected).abs().max() < 2e-6
    without_hold = textbook_2m(alone, latents(), levels[:3] + levels[4:])
    assert (out - without_hold).abs().max() > 1e-4


def test_multistep_does_not_extrapolate_from_a_tiny_step() -> None:
    """A frame let go just below its level makes a short step and then a long one; that one is first order."""
    levels = [0.9, 0.8, 0.6, 0.6 - 1e-6, 0.3, 0.2]
    matrix = TimestepMatrix.from_sigma(torch.tensor(levels, dtype=torch.float64)[:, None].expand(-1, FRAMES))
    out = sample(alone, latents(), matrix, solver="dpm++2m")
    expected = textbook_2m(alone, textbook_2m(alone, latents(), levels[:4]), levels[3:])
    assert (out - expected).abs().max() < 2e-6


def test_multistep_begins_anew_after_a_turn_and_after_fresh_noise() -> None:
    def column(levels: list[float]) -> Tensor:
        return torch.tensor(levels, dtype=torch.float64)[:, None].expand(-1, FRAMES)

    turn = [0.3, 0.5, 0.7, 0.6, 0.45]
    out = sample(alone, latents(), TimestepMatrix.from_sigma(column(turn)), solver="dpm++2m")
    expected = textbook_2m(alone, textbook_2m(alone, latents(), turn[:3]), turn[2:])
    assert (out - expected).abs().max() < 2e-6

    levels, fresh = [0.9, 0.8, 0.6, 0.45, 0.3], latents(seed=5)
    mixed = TimestepMatrix.from_sigma(column(levels), renoise=torch.tensor([False, True, False, False]))
    out = sample(alone, latents(), mixed, solver="dpm++2m", noise=lambda step: fresh)
    x = textbook_2m(alone, latents(), levels[:2])
    x = 0.4 * textbook_2m(alone, x, [0.8, 0.0]) + 0.6 * fresh
    assert (out - textbook_2m(alone, x, levels[2:])).abs().max() < 2e-6


def test_orders_of_convergence() -> None:
    """Data N(0, ½²) has the exact flow x(σ) ∝ sqrt((1 − σ)²/4 + σ²): twice the steps, half the error (2M: a 4th)."""

    def gaussian(x: Tensor, sigma: Tensor, context: None, call: Call | None = None) -> Tensor:
        s = wide(sigma).double()
        return x * (s - (1 - s) / 4) / ((1 - s) ** 2 / 4 + s**2)

    def error(solver: str, steps: int) -> float:
        out = sample(
            gaussian,
            latents(dtype=torch.float64),
            schedules.synchronous(sigmas.grid(steps, 1.0), FRAMES),
            solver=solver,
        )  # type: ignore[arg-type]
        return float((out - latents(dtype=torch.float64) / 2).abs().max())

    assert 1.8 < error("euler", 40) / error("euler", 80) < 2.2
    assert 3.3 < error("dpm++2m", 160) / error("dpm++2m", 320) < 4.2
    assert error("dpm++2m", 40) < error("euler", 40) / 5
