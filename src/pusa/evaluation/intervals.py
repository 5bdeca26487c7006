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
FEWEST = 5
"""groups below which nothing is said of a spread"""


@dataclass(frozen=True)
class Interval:
    """A score, and the ends of its interval."""

    value: float
    low: float
    high: float

    def record(self) -> dict[str, float | None]:
        """As JSON, which has no NaN: ends that are not known are None."""
        ends = {"value": self.value, "low": self.low, "high": self.high}
        return {name: None if np.isnan(number) else number for name, number in ends.items()}

    def text(self, digits: int = 2, scale: float = 1.0) -> str:
        """`0.93 (0.41 to 1.44)`, or without the ends where they are not known."""
        value, low, high = (f"{scale * x:.{digits}f}" for x in (self.value, self.low, self.high))
        return value if np.isnan(self.low) else f"{value} ({low} to {high})"


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
    scores on the same clips may be compared draw by draw. Fewer than `FEWEST` groups have no interval, and where a
    statistic is NaN it has none: the ends are NaN.
    """
    rows = np.asarray(values, dtype=np.float64)
    if not len(rows):
        return Interval(np.nan, np.nan, np.nan)
    value = statistic(rows)
    labels = range(len(rows)) if groups is None else groups
    members: dict[Hashable, list[int]] = {}
    for i, label in enumerate(labels):
        members.setdefault(label, []).append(i)
    if len(members) < FEWEST or np.isnan(value):
        return Interval(value, np.nan, np.nan)
    each = [np.array(indices) for indices in members.values()]
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(each), size=(resamples, len(each)))
    scores = [statistic(rows[np.concatenate([each[i] for i in picks])]) for picks in drawn]
    low, high = np.nanquantile(scores, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))


def crossed(
    values: Array,
    statistic: Callable[[Array], float] = lambda rows: float(np.mean(rows)),
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The interval of `statistic(values)` for values [trainings, clips, ...]: both trainings and clips are drawn.

    Every training made the same clips. With one training only clips are drawn. With few trainings the interval is too
    narrow rather than too wide: three can be drawn in ten ways. The same seed draws the same, so that
    `statistic` may be of a difference between two arrays laid side by side.
    """
    rows = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    trainings, clips = rows.shape[:2]
    scores = []
    for _ in range(resamples):
        some, which = rng.integers(trainings, size=trainings), rng.integers(clips, size=clips)
        scores.append(statistic(rows[some][:, which]))
    low, high = np.quantile(scores, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(statistic(rows), float(low), float(high))
