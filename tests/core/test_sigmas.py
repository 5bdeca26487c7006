"""Grids against the published numbers, draws against their laws and patterns."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pusa.core import sigmas
from pusa.errors import InputError

GRIDS = {
    (4, 5.0, 1.0): "1 .9375 .833333 .625",
    (5, 5.0, 1.0): "1 .952381 .882353 .769231 .555556",
    (10, 5.0, 1.0): "1 .978261 .952381 .921053 .882353 .833333 .769231 .681818 .555556 .357143",
    (20, 5.0, 1.0): "1 .989583 .978261 .965909 .952381 .9375 .921053 .902778 .882353 .859375 .833333 .803571 .769231 "
    ".729167 .681818 .625 .555556 .46875 .357143 .208333",
    (30, 5.0, 1.0): "1 .993151 .985915 .978261 .970149 .961538 .952381 .942623 .932203 .921053 .909091 .896226 .882353 "
    ".867347 .851064 .833333 .813954 .792683 .769231 .743243 .714286 .681818 .645161 .603448 .555556 .5 .434783 "
    ".357143 .263158 .147059",
    (10, 12.0, 1.0): "1 .990826 .979592 .965517 .947368 .923077 .888889 .837209 .75 .571429",
    (10, 5.0, 0.6): ".882353 .854430 .821918 .783582 .737705 .681818 .612245 .523256 .405405 .241935",
}


@pytest.mark.parametrize(("arguments", "printed"), GRIDS.items(), ids=str)
def test_grid_is_the_published_one(arguments: tuple[int, float, float], printed: str) -> None:
    published = torch.tensor([float(x) for x in printed.split()] + [0.0], dtype=torch.float64)
    grid = sigmas.grid(*arguments)
    assert grid.dtype == torch.float64
    assert (grid - published).abs().max() < 1e-6


@given(st.integers(1, 300), st.floats(0.05, 50), st.floats(0.01, 1))
def test_grid_falls_strictly_and_ends_exactly(steps: int, shift: float, strength: float) -> None:
    grid = sigmas.grid(steps, shift, strength)
    assert len(grid) == steps + 1
    assert grid[-1] == 0
    assert 0 < grid[0] <= 1
    assert (grid[1:] < grid[:-1]).all()
    if strength == 1:
        assert grid[0] == 1


def test_shift_is_the_published_formula() -> None:
    u = torch.linspace(0, 1, 101, dtype=torch.float64)
    for s in (0.3, 1.0, 3.0, 5.0, 12.0):
        assert (sigmas.shift(u, s) - s * u / (1 + (s - 1) * u)).abs().max() < 1e-12
    assert torch.equal(sigmas.shift(u, 1.0), u)


def test_steps_stay_apart_whatever_the_dtype_of_the_latents() -> None:
    """The reference finds its step by comparing timesteps rounded to bfloat16: from 60 steps on (28 at shift 12) two
    steps become one. The levels the model is told here are all different, also after the rounding to float32."""
    for shift, first_collision in ((3.0, 95), (5.0, 60), (12.0, 28)):
        for steps in range(1, 101):
            told = sigmas.grid(steps, shift)[:-1].float()
            assert len(told.unique()) == steps
            by_lookup = (1000 * told).bfloat16().float()
            found = {int((1000 * told - t).abs().argmin()) for t in by_lookup}
            if steps < first_collision:
                assert len(found) == steps
            if steps == first_collision:
                assert len(found) < steps, "the control lost its teeth"


def draw(pattern, *arguments, batch: int = 4000, frames: int = 5, seed: int = 0, **options) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return pattern(batch, frames, *arguments, generator=generator, **options)


def test_uniform_draws_have_the_papers_statistics_and_shifted_draws_the_codes() -> None:
    uniform = draw(sigmas.ptss, 1.0)
    assert abs(uniform.mean() - 0.5) < 0.01
    for law in (sigmas.shifted(5.0), sigmas.shifted(5.0, levels=1000)):
        sigma = draw(sigmas.ptss, 1.0, law=law)
        assert abs(sigma.mean() - 0.748) < 0.01
        assert abs(sigma.median() - 0.833) < 0.01
        assert abs((sigma > 0.9).float().mean() - 0.358) < 0.015
        assert abs((sigma < 0.5).float().mean() - 0.166) < 0.015
        assert abs((sigma < 0.1).float().mean() - 0.021) < 0.005
        assert abs(uniform.mean() - 0.748) > 0.2, "the control: the two laws must be told apart"


def test_shifted_levels_are_the_points_of_the_grid() -> None:
    grid = sigmas.grid(1000, 5.0)[:-1].float()
    sigma = draw(sigmas.ptss, 1.0, law=sigmas.shifted(5.0, levels=1000))
    assert (sigma.flatten()[:, None] - grid).abs().min(dim=1).values.max() < 1e-6
    continuous = draw(sigmas.ptss, 1.0, law=sigmas.shifted(5.0))
    assert (continuous.flatten()[:, None] - grid).abs().min(dim=1).values.max() > 1e-4


def test_logit_normal_quantiles() -> None:
    sigma = draw(sigmas.ptss, 1.0, law=sigmas.logit_normal(0.5, 2.0))
    logits = torch.logit(sigma.double())
    assert abs(logits.mean() - 0.5) < 0.05
    assert abs(logits.std() - 2.0) < 0.05


def correlation(sigma: torch.Tensor) -> float:
    return float(torch.corrcoef(sigma[:, :2].T)[0, 1])


def test_patterns_share_what_they_say() -> None:
    assert abs(correlation(draw(sigmas.ptss, 1.0))) < 0.05
    together = draw(sigmas.ptss, 0.0)
    assert torch.equal(together, together[:, :1].expand_as(together))


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_ptss_mixes_with_probability_p(p: float) -> None:
    sigma = draw(sigmas.ptss, p)
    apart = (sigma != sigma[:, :1]).any(dim=1).float().mean()
    assert abs(apart - p) < (0.03 if 0 < p < 1 else 1e-9)
    assert abs(sigma.mean() - 0.5) < 0.015


def test_draws_are_a_function_of_the_generator() -> None:
    assert torch.equal(draw(sigmas.ptss, 1.0, seed=3), draw(sigmas.ptss, 1.0, seed=3))
    assert not torch.equal(draw(sigmas.ptss, 1.0, seed=3), draw(sigmas.ptss, 1.0, seed=4))
    state = torch.get_rng_state()
    draw(sigmas.ptss, 0.5)
    assert torch.equal(state, torch.get_rng_state()), "the global generator was touched"


@given(st.integers(1, 6), st.integers(1, 9), st.floats(0, 1), st.integers(0, 2**31))
def test_draws_are_float32_within_range(batch: int, frames: int, p: float, seed: int) -> None:
    for law in (sigmas.uniform, sigmas.shifted(5.0), sigmas.shifted(12.0, 4), sigmas.logit_normal()):
        sigma = draw(sigmas.ptss, p, batch=batch, frames=frames, seed=seed, law=law)
        assert sigma.shape == (batch, frames)
        assert sigma.dtype == torch.float32
        assert ((sigma >= 0) & (sigma <= 1)).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sigmas.grid(0), "at least 1"),
        (lambda: sigmas.grid(10, float("nan")), "shift"),
        (lambda: sigmas.grid(10, 0.0), "shift"),
        (lambda: sigmas.grid(10, 5.0, 0.0), "strength"),
        (lambda: sigmas.grid(10, 5.0, 1.5), "strength"),
        (lambda: sigmas.shifted(5.0, 0), "levels"),
        (lambda: sigmas.logit_normal(0.0, 0.0), "std"),
        (lambda: draw(sigmas.ptss, 1.5), "between 0 and 1"),
        (lambda: draw(sigmas.ptss, 0.0, frames=0), "at least 1"),
    ],
)
def test_bad_arguments_are_named(call, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()
