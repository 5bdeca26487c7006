"""Searches on errors whose best budget is known: they find it, keep to the cost, and repeat themselves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pusa.acceleration.search import LEVELS, Budget, Found, evolve, greedy, uniform

STEPS, SHARE = 12, 0.4
FREE = np.ones((STEPS, 1), dtype=bool)
FREE[0] = False
SEARCHES = pytest.mark.parametrize("search", [evolve, greedy])


def early(budget: Budget) -> float:
    """An error that is least if the early steps get more: tokens that are left out cost 1/(s+1)."""
    weights = 1 / (1 + np.arange(len(budget)))[:, None]
    return float((weights * (1 - budget) ** 2).sum())


@SEARCHES
def test_a_better_budget_at_the_same_cost(search: Callable[..., Found]) -> None:
    tried: list[Budget] = []

    def error(budget: Budget) -> float:
        tried.append(budget)
        return early(budget)

    found = search(error, FREE, SHARE)
    assert found.error == early(found.budget)
    assert found.uniform == pytest.approx(early(uniform(FREE, SHARE)))
    # Of what the best budget with real numbers gains, a search reaches most.
    weights = 1 / (1 + np.arange(1, STEPS))
    least = np.clip(1 - (1 - SHARE) * (STEPS - 1) / weights / (1 / weights).sum(), 0, 1)
    best = float((weights * (1 - least) ** 2).sum())
    assert found.error < found.uniform - 0.8 * (found.uniform - best)
    assert found.budget[FREE].mean() == pytest.approx(SHARE, abs=0.5 / LEVELS / FREE.sum())
    assert found.budget[0] == 1
    assert found.tried == len(tried) == len({budget.tobytes() for budget in tried})


@SEARCHES
def test_frames_of_their_own_and_cells_that_are_not_free(search: Callable[..., Found]) -> None:
    """One frame matters. It gets the tokens of the others, and cells that are not free keep their 1."""
    free = np.ones((4, 3), dtype=bool)
    free[0] = free[2, 1] = False

    def error(budget: Budget) -> float:
        return float((1 - budget[:, 2]).sum() + 0.01 * (1 - budget).sum())

    found = search(error, free, 0.4)
    assert (found.budget[~free] == 1).all()
    assert found.budget[1:, 2].mean() > 0.8
    assert found.budget[free].mean() == pytest.approx(0.4)


def test_evolution_is_a_function_of_its_seed() -> None:
    first, again, other = (evolve(early, FREE, SHARE, generations=2, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.budget, again.budget)
    assert not np.array_equal(first.budget, other.budget)
    assert evolve(early, FREE, SHARE, generations=12, seed=1).error < first.error


def test_a_search_never_ends_above_the_uniform_budget() -> None:
    def error(budget: Budget) -> float:
        return float(np.square(budget[FREE] - SHARE).sum())

    for found in (evolve(error, FREE, SHARE, generations=2), greedy(error, FREE, SHARE)):
        assert np.allclose(found.budget, uniform(FREE, SHARE))


@SEARCHES
def test_progress_counts_to_the_end(search: Callable[..., Found]) -> None:
    seen: list[tuple[int, int, float]] = []
    found = search(early, FREE, SHARE, progress=lambda *state: seen.append(state))
    assert [tried for tried, _, _ in seen] == list(range(1, found.tried + 1))
    assert all(tried <= total for tried, total, _ in seen)
    assert seen[-1][2] <= found.error
