"""An oracle that knows data and noise must recover the data on every schedule, dtype, solver and step count.

The oracle's velocity ε − z0 does not depend on x, so it alone would only test that a column's steps add up. It
therefore also checks, in every call and for every frame it is shown, that the latents lie on the path at exactly the
level it is told. Channel 0 holds the frame's number in data and noise alike, so it stays put and tells the oracle which
frames a window shows. All step counts and all sets of conditions go through one batch, a matrix per sample.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pusa.core import Call, TimestepMatrix, Velocity, add_noise, by_noise, sample, schedules, sigmas
from pusa.errors import InputError

FRAMES = 7
Clip = tuple[Tensor, Tensor]

SCHEDULES: dict[str, Callable[[Tensor], TimestepMatrix]] = {
    "synchronous": lambda g: schedules.synchronous(g, FRAMES),
    "staircase": lambda g: schedules.staircase(g, FRAMES, block=2, delay=3),
    "in_context": lambda g: schedules.in_context(g, 1, 2, FRAMES - 3),
    "chunked": lambda g: schedules.chunked(g, FRAMES, block=4),
    "sliding_window": lambda g: schedules.sliding_window(g, FRAMES, window=6, block=3, context=1),
    "renoising": lambda g: schedules.renoising(schedules.synchronous(g, FRAMES)),
}
CONDITIONS: list[Mapping[int, float]] = [
    {},
    {0: 0.0},
    {0: 0.2, FRAMES - 1: 0.5, 3: 1.0},
    dict.fromkeys(range(FRAMES), 0.3),
    dict.fromkeys(range(FRAMES), 0.0),
]


def clips(batch: int, seed: int = 0) -> Clip:
    """Data and noise in [-1, 1], multiples of 1/16 (their difference is exact in bfloat16): [B, 2, F, 1, 2]."""
    g = torch.Generator().manual_seed(seed)
    z0, eps = (torch.randint(-16, 17, (batch, 2, FRAMES, 1, 2), generator=g) / 16 for _ in range(2))
    z0[:, 0] = eps[:, 0] = torch.arange(FRAMES)[None, :, None, None] / 8
    return z0, eps


def oracle(tolerance: float, honest: bool = True) -> Callable[[Tensor, Tensor, Clip], Tensor]:
    def velocity(x: Tensor, sigma: Tensor, context: Clip, call: Call | None = None) -> Tensor:
        number = (8 * x[:, 0, :, 0, 0]).round().long()
        z0, eps = (c[torch.arange(len(x))[:, None], :, number].transpose(1, 2) for c in context)
        if honest:
            assert (x.float() - add_noise(z0, eps, sigma)).abs().max() < tolerance, "off the path"
        return (eps - z0).to(x.dtype)

    return velocity


@functools.cache
def runs(name: str) -> list[TimestepMatrix]:
    """Every step count from 1 to 100 with every set of conditions."""
    grids = [sigmas.grid(steps) for steps in range(1, 101)]
    return [schedules.conditioned(SCHEDULES[name](g), c) for g in grids for c in CONDITIONS]


def start(matrices: list[TimestepMatrix], clip: Clip) -> Tensor:
    return add_noise(*clip, torch.stack([m.sigma[0] for m in matrices]))


@pytest.mark.parametrize("solver", ["euler", "dpm++2m"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SCHEDULES)
def test_oracle_recovers_the_data_at_every_step_count(name: str, dtype: torch.dtype, solver: str) -> None:
    matrices = runs(name)
    z0, eps = clip = clips(len(matrices))
    x = start(matrices, clip).to(dtype)
    accuracy = 1e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    out = sample(oracle(8 * accuracy), x, matrices, clip, solver=solver, noise=lambda step: eps)
    assert out.dtype == dtype
    error = (out.float() - z0).abs().amax(dim=(1, 3, 4))
    level = torch.stack([m.sigma[0] for m in matrices])
    whole = (level == 0) | (level == 1)  # starts that the latents' dtype holds exactly
    assert (error[level == 0] == 0).all(), "a clean condition moved"
    assert error[whole].max() < 1e-6
    assert error.max() < accuracy


def test_published_case_within_its_published_error() -> None:
    matrix = schedules.conditioned(schedules.synchronous(sigmas.grid(10), 21), {0: 0.2, 20: 0.5})
    g = torch.Generator().manual_seed(0)
    z0, eps = (torch.randn(1, 16, 21, 4, 4, generator=g) for _ in range(2))
    out = sample(lambda x, sigma, context, call: eps - z0, add_noise(z0, eps, matrix.sigma[:1]), matrix)
    assert (out - z0).abs().max() < 2e-6  # 1.8e-7 for the unit-scale input of the published check


def two_experts(boundary: float) -> tuple[Velocity, list[tuple[str, Tensor]]]:
    """An honest oracle as either expert, and what each call was told."""
    calls: list[tuple[str, Tensor]] = []

    def expert(name: str) -> Velocity:
        def velocity(x: Tensor, sigma: Tensor, context: Clip, call: Call | None = None) -> Tensor:
            calls.append((name, sigma))
            return oracle(1e-5)(x, sigma, context)

        return velocity

    return by_noise(expert("high"), expert("low"), boundary), calls


@pytest.mark.parametrize("name", SCHEDULES)
def test_conditions_at_low_noise_pass_through_the_expert_for_high_noise(name: str) -> None:
    """One expert is asked for all frames of a clip, by the noisiest one; the data comes out and clean frames stay."""
    grid = sigmas.grid(10)
    matrices = [schedules.conditioned(SCHEDULES[name](grid), c) for c in ({}, {0: 0.0}, {0: 0.2, FRAMES - 1: 0.5})]
    z0, eps = clip = clips(len(matrices))
    velocity, calls = two_experts(0.875)
    out = sample(velocity, start(matrices, clip), matrices, clip, noise=lambda step: eps)
    assert (out - z0).abs().max() < 1e-6
    assert torch.equal(out[1, :, 0], z0[1, :, 0])
    for expert, sigma in calls:
        masters = sigma.amax(dim=1)
        assert (masters >= 0.875).all() if expert == "high" else (masters < 0.875).all()
    assert {expert for expert, _ in calls} == {"high", "low"}
    low_in_high = [sigma for expert, sigma in calls if expert == "high" and (sigma == 0).any()]
    assert low_in_high, "no clean frame was shown to the expert for high noise"


def test_clips_of_a_batch_ask_their_own_experts_and_bad_boundaries_are_refused() -> None:
    matrices = [schedules.synchronous(sigmas.grid(n), FRAMES) for n in (4, 10)]
    z0, _ = clip = clips(2)
    velocity, calls = two_experts(0.875)
    assert (sample(velocity, start(matrices, clip), matrices, clip) - z0).abs().max() < 1e-6
    assert [(name, len(sigma)) for name, sigma in calls[:5]] == [
        ("high", 2), ("high", 2), ("high", 1), ("low", 1), ("high", 1),
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"boundary is 1\.5"):
        by_noise(oracle(1), oracle(1), 1.5)


def test_control_a_clean_start_labelled_noisy_misses_by_the_published_amount() -> None:
    """Until August 2025 the reference told the model m σ for condition frames that carried no noise at all."""
    matrix = schedules.conditioned(schedules.synchronous(sigmas.grid(10), FRAMES), {0: 0.2, FRAMES - 1: 0.5})
    z0, eps = clip = clips(1)
    x = add_noise(z0, eps, (matrix.sigma[:1] == 1).float())
    with pytest.raises(AssertionError, match="off the path"):
        sample(oracle(1e-5), x, matrix, clip)
    out = sample(oracle(0, honest=False), x, matrix, clip)
    m = torch.tensor([0.2, 0, 0, 0, 0, 0, 0.5])[None, None, :, None, None]
    assert (out - (z0 - m * (eps - z0))).abs().max() < 1e-6
    assert (out - z0).abs().max() > 0.1


def test_control_levels_looked_up_from_rounded_timesteps_leave_the_path() -> None:
    """At 60 steps the reference's lookup repeats and skips rows; told such levels, the oracle notices."""
    grid = sigmas.grid(60)
    rounded = (1000 * grid[:-1]).bfloat16().double()
    found = (1000 * grid[:-1] - rounded[:, None]).abs().argmin(dim=1)
    assert len(found.unique()) < 60
    honest = schedules.synchronous(grid, FRAMES)
    wrong = dataclasses.replace(honest, model_sigma=honest.model_sigma[found])
    clip = clips(1)
    sample(oracle(1e-5), clip[1], honest, clip)
    with pytest.raises(AssertionError, match="off the path"):
        sample(oracle(1e-5), clip[1], wrong, clip)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(1, 20), st.floats(0, 0.9), st.sampled_from(["euler", "dpm++2m"]), st.booleans()
)
def test_oracle_follows_random_matrices(seed: int, steps: int, held: float, solver: str, falling: bool) -> None:
    """Any columns, falling or jumping about, with plateaus, hidden frames and re-noising steps; a matrix per sample."""
    g = torch.Generator().manual_seed(seed)
    matrices = []
    for length in (steps, steps + 2):
        state = torch.rand(length + 1, FRAMES, generator=g, dtype=torch.float64)
        if falling:
            state = state.sort(dim=0, descending=True).values
        state[0, :2], state[-1, 1:3] = 1.0, 0.0
        for s in range(length):
            stay = torch.rand(FRAMES, generator=g) < held
            state[s + 1] = torch.where(stay, state[s], state[s + 1])
        visible = (state[1:] != state[:-1]) | (torch.rand(length, FRAMES, generator=g) < 0.7)
        visible[0] = visible[:, 0] = True
        renoise = torch.rand(length, generator=g) < 0.2
        matrices.append(TimestepMatrix.from_sigma(state, visible=visible, renoise=renoise))
    z0, eps = clip = clips(2, seed)
    out = sample(oracle(1e-4), start(matrices, clip), matrices, clip, solver=solver, noise=lambda step: eps)
    end = torch.stack([m.sigma[-1] for m in matrices])
    assert (out - add_noise(z0, eps, end)).abs().max() < 1e-4
