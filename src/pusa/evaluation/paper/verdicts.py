"""What the scores say of a table: each number with its interval, and which of the orderings hold here.

A cell is the mean over three trainings and all scenes, with a 95 % interval over both. An ordering is tested on the
same scenes: it holds if the interval of the difference is above zero, it is reversed if the interval is below zero, and
otherwise it is undecided.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pusa.evaluation.intervals import Interval, bootstrap_crossed
from pusa.evaluation.paper.experiments import LONG_CHECKPOINTS, Experiment, over_seeds
from pusa.evaluation.paper.study_folder import StudyFolder
from pusa.evaluation.paper.tables import Ordering, Row
from pusa.evaluation.paper.training_methods import STRENGTH
from pusa.evaluation.synthetic.tasks import MEASURES, columns

Array = NDArray[Any]
SHOWN: dict[str, tuple[str, float, int, str]] = {
    "db": ("PSNR", 1.0, 2, " dB"),
    "over_baseline": ("over the baseline", 1.0, 2, " dB"),
    "motion": ("motion right", 100.0, 0, " %"),
    "colour": ("colour right", 100.0, 0, " %"),
    "shape": ("shape right", 100.0, 0, " %"),
    "held_db": ("given frame", 1.0, 1, " dB"),
}
"""How a measure is printed: name, scale, digits, unit."""


def values(folder: StudyFolder, experiments: Sequence[Experiment], measure: str) -> Array | None:
    """What a measure is computed from, [trainings, scenes, columns]; None if the task does not have the measure."""
    each = [columns(folder.rows(one), measure) for one in experiments]
    kept = [one for one in each if one is not None]
    return np.stack(kept) if kept else None


def cell(folder: StudyFolder, row: Row, measure: str) -> Interval | None:
    """The number of a cell with its interval; None if the task does not have the measure."""
    found = values(folder, row.experiments, measure)
    return None if found is None else bootstrap_crossed(found, MEASURES[measure][1])


def difference(folder: StudyFolder, ordering: Ordering) -> Interval:
    """How much better the first row is, on the same scenes. One training is compared with each of several."""
    statistic = MEASURES[ordering.measure][1]
    first, second = (values(folder, experiments, ordering.measure) for experiments in (ordering.better, ordering.worse))
    assert first is not None
    assert second is not None
    count = max(len(first), len(second))
    both = np.stack([np.broadcast_to(one, (count, *one.shape[1:])) for one in (first, second)], axis=-1)
    return bootstrap_crossed(both, lambda rows: statistic(rows[..., 0]) - statistic(rows[..., 1]))


def outcome(found: Interval) -> str:
    """The outcome of an ordering by the interval of its difference: "holds", "reversed" or "undecided"."""
    return "holds" if found.low > 0 else "reversed" if found.high < 0 else "undecided"


def cell_text(found: Interval | None, measure: str) -> str:
    """A cell as text: `20.1 dB (19.4 to 20.9)`."""
    if found is None:
        return "–"
    _, scale, digits, unit = SHOWN[measure]
    value, low, high = (f"{scale * x:.{digits}f}" for x in (found.value, found.low, found.high))
    return f"{value}{unit} ({low} to {high})"


def reached_at(folder: StudyFolder, measure: str = "db") -> tuple[float | None, list[tuple[int, float]]]:
    """The steps after which training with image channels reaches the adapter's score, and its score by steps.

    Between two checkpoints, the score is interpolated linearly over the logarithm of the steps. The steps are None if
    the score is not reached.
    """
    statistic = MEASURES[measure][1]
    target = values(folder, over_seeds("vta", STRENGTH), measure)
    assert target is not None
    goal, curve = statistic(target), []
    for n in LONG_CHECKPOINTS:
        found = values(folder, over_seeds("i2v-long", training_steps=n), measure)
        assert found is not None
        curve.append((n, statistic(found)))
    if curve[0][1] >= goal:
        return float(curve[0][0]), curve
    for (n, low), (m, high) in itertools.pairwise(curve):
        if low < goal <= high:
            share = (goal - low) / (high - low)
            return float(np.exp(np.log(n) + share * (np.log(m) - np.log(n)))), curve
    return None, curve
