"""How far a score may be from what more clips would give: percentile bootstrap (Efron 1979), by groups of clips.

Samples of one prompt are no independent clips, and neither are clips made by one trained model; what is drawn again and
again with replacement is therefore the group.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A score, and the ends of its interval."""

    value: float
    low: float
    high: float

    def text(self, digits: int = 2, scale: float = 1.0) -> str:
        """`0.93 (0.41 to 1.44)`."""
        value, low, high = (f"{scale * x:.{digits}f}" for x in (self.value, self.low, self.high))
        return f"{value} ({low} to {high})"


def bootstrap(
    values: Array | Sequence[float],
    statistic: Callable[[Array], float] = lambda rows: float(np.mean(rows)),
    *,
    groups: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The interval of `statistic(values)`, where values are [n] or [n, ...], one row for each clip.

    groups: what row i belongs to; whole groups are drawn. The same seed draws the same groups, so that
    scores on the same clips may be compared draw by draw. One group alone has no interval: its ends are NaN.
    """
    rows = np.asarray(values, dtype=np.float64)
    if not len(rows):
        return Interval(np.nan, np.nan, np.nan)
    value = statistic(rows)
    labels = range(len(rows)) if groups is None else groups
    members: dict[Hashable, list[int]] = {}
    for i, label in enumerate(labels):
        members.setdefault(label, []).append(i)
    if len(members) < 2:
        return Interval(value, np.nan, np.nan)
    each = [np.array(indices) for indices in members.values()]
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(each), size=(resamples, len(each)))
    scores = [statistic(rows[np.concatenate([each[i] for i in picks])]) for picks in drawn]
    low, high = np.quantile(scores, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))
