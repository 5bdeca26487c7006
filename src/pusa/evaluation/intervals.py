"""Confidence intervals of scores by the percentile bootstrap (Efron 1979), over groups of clips.

Clips of one prompt are not independent, and neither are clips of one trained model. So the bootstrap resamples whole
groups.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
RESAMPLES = 2000
"""draws of one bootstrap"""
FEWEST = 5
"""the number of groups below which no interval is given"""


@dataclass(frozen=True)
class Interval:
    """A score and its interval; low and high are NaN if there is no interval."""

    value: float
    low: float
    high: float

    def record(self) -> dict[str, float | None]:
        """As JSON, where None stands for NaN."""
        ends = {"value": self.value, "low": self.low, "high": self.high}
        return {name: None if np.isnan(number) else number for name, number in ends.items()}

    def text(self, digits: int = 2, scale: float = 1.0) -> str:
        """`0.93 (0.41 to 1.44)`, or only the value if there is no interval."""
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
    """The interval of `statistic(values)` for values [n] or [n, ...], one row for each clip.

    groups: the group of each row, [n]; whole groups are drawn, with replacement. By default each row is a group. The
    same seed draws the same groups, so that scores of the same clips can be compared draw by draw. There is no interval
    if there are fewer than `FEWEST` groups, or if the statistic is NaN.
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


def bootstrap_crossed(
    values: Array,
    statistic: Callable[[Array], float] = lambda rows: float(np.mean(rows)),
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The interval of `statistic(values)` for values [trainings, clips, ...]; trainings and clips are both drawn.

    Every training must have made the same clips. With one training, only the clips are drawn. With few trainings, the
    interval is too narrow, not too wide: three trainings can be drawn in ten ways. The same seed gives the same draws,
    so that the statistic can be the difference of two arrays that are stacked.
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
