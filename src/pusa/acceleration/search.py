"""Budgets for token-wise reuse, found by search: which share of the tokens each step, or each frame in it, computes.

A budget is an array [S, G] of shares in [0, 1]: S steps, and G = 1 for a whole step or G = F for its latent frames. A
search gets a function `error(budget)` and looks for the budget with the least error among those with a given mean
share. It knows neither the network nor the clips. All shares are multiples of 1 / `LEVELS`, and the budgets among which
it chooses have exactly the wanted mean. So they are compared at equal cost.

    evolve      an evolutionary search, as in Astraea (arXiv 2506.05096): crossover, mutation, repair to the cost
    greedy      a cheap alternative: takes from the steps whose loss matters least
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Budget = NDArray[np.float64]
"""[S, G], in [0, 1]"""
Counts = NDArray[np.int64]
"""[n], the free cells of a budget in units of 1 / LEVELS"""
Error = Callable[[Budget], float]
Progress = Callable[[int, int, float], None]
"""progress(budgets tried, budgets in all, least error)"""
LEVELS = 20


@dataclass(frozen=True)
class Found:
    """The best budget of a search, its error, the error of the uniform budget, and the number of budgets tried."""

    budget: Budget
    error: float
    uniform: float
    tried: int


class _Trials:
    """Measures budgets, given by their free cells, each of them once."""

    def __init__(self, error: Error, free: NDArray[np.bool_], total: int, progress: Progress) -> None:
        self.error, self.free, self.total, self.progress = error, free, total, progress
        self.errors: dict[bytes, float] = {}

    def budget(self, cells: Counts) -> Budget:
        budget = np.ones(self.free.shape)
        budget[self.free] = cells / LEVELS
        return budget

    def __call__(self, cells: Counts) -> float:
        key = cells.tobytes()
        if key not in self.errors:
            self.errors[key] = float(self.error(self.budget(cells)))
            self.progress(len(self.errors), max(self.total, len(self.errors)), min(self.errors.values()))
        return self.errors[key]

    def found(self, cells: Counts, uniform: Counts) -> Found:
        return Found(self.budget(cells), self(cells), self(uniform), len(self.errors))


def _silent(tried: int, total: int, least: float) -> None:
    pass


def uniform(free: NDArray[np.bool_], share: float) -> Budget:
    """Return the budget with the share in all free cells, and 1 in the others."""
    return np.where(free, share, 1.0)


def evolve(
    error: Error,
    free: NDArray[np.bool_],
    share: float,
    *,
    population: int = 16,
    born: int = 10,
    generations: int = 12,
    mutation: tuple[float, float] = (0.1, 0.02),
    seed: int = 0,
    progress: Progress = _silent,
) -> Found:
    """Find a budget by evolution.

    The first population is the uniform budget and random ones. In each generation, two parents give a child: every
    cell comes from one of them at random (uniform crossover), or one stretch of steps comes from the second (block
    crossover). Some cells of a child change at random. Then cells are raised or lowered until the mean is right. The
    best of the old and the new ones live on. Astraea has a population of 50, 30 children and 30 generations.

    Args:
        error: of a budget, such as the mean squared error of clips; the same budget must always give the same number.
        free: bool [S, G], the cells that the search decides. All others are 1.
        share: the mean of the free cells, rounded to what `LEVELS` allow.
        population, born, generations: at most population + born · generations budgets are tried.
        mutation: the probability that a cell of a child changes, in the first generation and in the last.
        seed: the result is a function of it.
    """
    rng = np.random.default_rng(seed)
    try_ = _Trials(error, free, population + born * generations, progress)
    rows = np.nonzero(free)[0]
    even = _repaired(np.full(len(rows), round(share * LEVELS)), share, rng)
    alive = [even]
    for _ in range(population - 1):
        alive.append(_repaired(rng.integers(0, LEVELS + 1, len(rows)), share, rng))
    alive.sort(key=try_)
    for generation in range(generations):
        rate = np.interp(generation, (0, max(1, generations - 1)), mutation)
        children = []
        for _ in range(born):
            mother, father = (_parent(alive, rng) for _ in range(2))
            child = np.where(_from_second(rows, rng), father, mother)
            changes = rng.random(len(rows)) < rate
            child = np.where(changes, rng.integers(0, LEVELS + 1, len(rows)), child)
            children.append(_repaired(child, share, rng))
        different = {cells.tobytes(): cells for cells in (*alive, *children)}
        alive = sorted(different.values(), key=try_)[:population]
    return try_.found(alive[0], even)


def greedy(
    error: Error,
    free: NDArray[np.bool_],
    share: float,
    *,
    changes: tuple[float, ...] = (0.3, 0.15),
    progress: Progress = _silent,
) -> Found:
    """Find a budget by moving tokens from the cells that need them least to those that need them most.

    It begins with the uniform budget. A round lowers each free cell alone and measures the error. Then it moves the
    same amount from the half of the cells whose loss matters least to the other half: for 1, 2, 4 … pairs, of which the
    best number counts. The pairs begin with the two extremes.

    Args:
        error, free, share: as for `evolve`.
        changes: the change of a cell in each round. With n free cells, a round tries about n + log₂ n budgets.
    """
    n = int(free.sum())
    pairs = [2**i for i in range(n.bit_length()) if 2**i <= n // 2]
    try_ = _Trials(error, free, 1 + len(changes) * (n + len(pairs)), progress)
    even = _repaired(np.full(n, round(share * LEVELS)), share, np.random.default_rng(0))
    best = even
    for change in changes:
        amount = max(1, round(change * LEVELS))
        losses = []
        for cell in range(n):
            lowered = best.copy()
            lowered[cell] = max(0, lowered[cell] - amount)
            losses.append(try_(lowered))
        order = np.argsort(losses, kind="stable")
        tried = [best]
        for count in pairs:
            moved = best.copy()
            for giver, taker in zip(order[:count], order[::-1][:count], strict=True):
                much = min(amount, moved[giver], LEVELS - moved[taker])
                moved[giver] -= much
                moved[taker] += much
            tried.append(moved)
        best = min(tried, key=try_)
    return try_.found(best, even)


def _parent(alive: list[Counts], rng: np.random.Generator) -> Counts:
    """Return the better of two members, which are sorted by their errors."""
    return alive[int(rng.integers(len(alive), size=2).min())]


def _from_second(rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return the free cells that a child has from its second parent. rows: [n], the step of each cell."""
    chosen: NDArray[np.bool_]
    if rng.random() < 0.5:
        chosen = rng.random(len(rows)) < 0.5
    else:
        first, last = np.sort(rng.choice(rows, 2))
        chosen = (rows >= first) & (rows <= last)
    return chosen


def _repaired(cells: Counts, share: float, rng: np.random.Generator) -> Counts:
    """Return cells whose mean is the share: random cells change by one level until it is."""
    cells = cells.astype(np.int64)
    missing = round(share * LEVELS * len(cells)) - int(cells.sum())
    step = 1 if missing > 0 else -1
    while missing:
        able = np.nonzero(cells < LEVELS if step > 0 else cells > 0)[0]
        some = rng.permutation(able)[: abs(missing)]
        cells[some] += step
        missing -= step * len(some)
    return cells
