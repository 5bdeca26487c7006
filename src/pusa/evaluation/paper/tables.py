"""The tables of the paper in miniature, each beside the paper's own numbers, and which of its orderings hold here.

A cell is a mean over three trainings and all scenes with a 95 % interval over both. An ordering is judged on the same
clips: it holds when the interval of the difference lies above zero, is reversed when it lies below, and is undecided
otherwise. The paper's numbers are VBench-I2V totals of other models on other clips: only orderings can be compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pusa.evaluation.intervals import Interval, crossed
from pusa.evaluation.paper import experiments
from pusa.evaluation.paper.experiments import NOISES, PTSS, RANKS, SAVED, ZERO_SHOT, Study
from pusa.evaluation.paper.methods import METHODS, SEEDS, STRENGTH, STRENGTHS, scalable
from pusa.evaluation.paper.scoring import Job
from pusa.evaluation.paper.training import BATCH, STEPS
from pusa.evaluation.synthetic.tasks import MEASURES, TASKS, columns

Array = NDArray[Any]
SHOWN: dict[str, tuple[str, float, int, str]] = {
    "db": ("PSNR", 1.0, 2, " dB"),
    "over_baseline": ("over the baseline", 1.0, 2, " dB"),
    "motion": ("motion right", 100.0, 0, " %"),
    "colour": ("colour right", 100.0, 0, " %"),
    "shape": ("shape right", 100.0, 0, " %"),
    "held_db": ("given frame", 1.0, 1, " dB"),
}
"""How a measure is called and written: name, scale, digits, unit."""


@dataclass(frozen=True)
class Row:
    """A line of a table: the jobs of all trainings, and what the paper has for it."""

    label: str
    jobs: tuple[Job, ...]
    paper: str = ""


@dataclass(frozen=True)
class Ordering:
    """A claim of the paper about two lines: the first is better."""

    claim: str
    better: tuple[Job, ...]
    worse: tuple[Job, ...]
    measure: str = "db"


@dataclass(frozen=True)
class Table:
    """A table, before its numbers are looked up. measures: the columns. paper: what the paper's column is."""

    key: str
    title: str
    rows: tuple[Row, ...]
    measures: tuple[str, ...]
    paper: str = ""
    orderings: tuple[Ordering, ...] = ()
    notes: tuple[str, ...] = field(default=())


def over_seeds(method: str, strength: float = 1.0, trained: int = STEPS, **changes: Any) -> tuple[Job, ...]:
    """The job of each training of a method, on the same scenes."""
    strength = strength if scalable(method) else 1.0
    return tuple(Job(method, seed, trained, strength=strength, **changes) for seed in SEEDS)


BASE = (Job("base", 0, 0),)


def _ways() -> Table:
    totals = {
        "vta": ("81.78", "87.69", "86.93"),
        "first-clean": ("73.27", "72.54", "72.42"),
        "ptss-0.2": ("77.96", "81.57", "84.74"),
        "ptss-0.5": ("79.63", "86.38", "87.36"),
        "ptss-0.8": ("80.71", "85.98", "86.49"),
        "vta-full": ("84.06",),
        "i2v": ("73.21",),
    }
    rows = [Row("the untouched base", BASE)]
    for method in ("vta", "first-clean", *PTSS, "vta-full", "i2v"):
        for strength, total in zip(STRENGTHS[:3], totals[method], strict=False):
            label = METHODS[method].title + (f" × {strength:g}" if scalable(method) else "")
            rows.append(Row(label, over_seeds(method, strength), total))
    best = STRENGTH
    orderings = [
        Ordering("this method is better than the untouched base", over_seeds("vta", best), BASE),
        Ordering(
            "this method is better than a first frame that is always clean",
            over_seeds("vta", best),
            over_seeds("first-clean", best),
        ),
        Ordering("… than training with image channels", over_seeds("vta", best), over_seeds("i2v")),
        *(
            Ordering(f"… than PTSS {m.removeprefix('ptss-')}", over_seeds("vta", best), over_seeds(m, best))
            for m in PTSS
        ),
        Ordering("… than training all weights", over_seeds("vta", best), over_seeds("vta-full")),
        Ordering(
            "this method holds the given frame better than image channels",
            over_seeds("vta", best),
            over_seeds("i2v"),
            "held_db",
        ),
    ]
    return Table(
        "a",
        "Ways of training, at equal steps",
        tuple(rows),
        ("db", "over_baseline", "motion", "held_db"),
        "total after 900 steps (Tables 5a, 5b)",
        tuple(orderings),
        (
            f"{STEPS} steps of {BATCH} clips each, the same clips, noise and dropped captions for a seed; three seeds.",
            "Learning rates: 3e-3 for LoRAs, as the embedded adapter; 1e-3 for all weights and 6e-3 with image "
            "channels, each the best of four and six rates for one seed on scenes of their own.",
        ),
    )


def _steps_and_strength() -> Table:
    totals = {
        50: "150 steps: 78.23 79.33 82.79 84.31",
        100: "450 steps: 79.27 85.72 87.37 85.96",
        200: "750 steps: 80.17 86.46 87.11 85.98",
        400: "900 steps: 81.78 87.69 86.93 85.91",
    }
    rows = [Row("0", BASE)]
    for trained in SAVED:
        numbers = totals[trained].split()
        for strength, total in zip(STRENGTHS, numbers[2:], strict=True):
            paper = f"{total} ({numbers[0]})"
            rows.append(Row(f"{trained} × {strength:g}", over_seeds("vta", strength, trained), paper))
    few, many = SAVED[0], SAVED[-1]
    orderings = (
        Ordering(
            "after few steps strength 2 is better than 1", over_seeds("vta", 2.0, few), over_seeds("vta", 1.0, few)
        ),
        Ordering(
            "after all steps strength 1.4 is better than 1",
            over_seeds("vta", 1.4, many),
            over_seeds("vta", 1.0, many),
        ),
        Ordering(
            "after all steps strength 1.4 is better than 2",
            over_seeds("vta", 1.4, many),
            over_seeds("vta", 2.0, many),
        ),
        Ordering("at strength 1 more steps are better", over_seeds("vta", 1.0, many), over_seeds("vta", 1.0, few)),
    )
    return Table(
        "b",
        "Steps of training × strength",
        tuple(rows),
        ("db", "motion"),
        "total at its steps (Table 4c)",
        orderings,
    )


def _inference() -> Table:
    totals = {2: "79.92", 5: "86.03", 10: "87.69", 20: "87.84"}
    cells = {n: over_seeds("vta", STRENGTH, steps=n) for n in totals}
    rows = tuple(Row(str(n), cells[n], totals[n]) for n in totals)
    orderings = tuple(
        Ordering(f"{more} steps are better than {fewer}", cells[more], cells[fewer])
        for fewer, more in ((2, 5), (5, 10), (10, 20))
    )
    note = "PSNR is kind to few steps: what is uncertain stays blurred, nearer to every truth than a sharp mistake."
    return Table("c", "Steps of inference", rows, ("db", "motion"), "total (Table 4b)", orderings, (note,))


def _ranks() -> Table:
    totals = {"rank-16": ("79.75", "83.12", "85.86"), "vta": ("80.17", "86.46", "87.11")}
    width = {"rank-4": 4, "rank-16": 16, "vta": 32, "rank-64": 64}
    rows = []
    for method in RANKS:
        for strength, total in zip(STRENGTHS[:3], totals.get(method, ("",) * 3), strict=True):
            at = {"rank-16": " (rank 256)", "vta": " (rank 512)"}.get(method, "")
            rows.append(
                Row(f"rank {width[method]} × {strength:g}", over_seeds(method, strength), total + at if total else "")
            )
    orderings = tuple(
        Ordering(
            f"rank {width[wide]} is better than {width[narrow]}",
            over_seeds(wide, STRENGTH),
            over_seeds(narrow, STRENGTH),
        )
        for narrow, wide in itertools.pairwise(RANKS)
    )
    return Table("d", "Rank", tuple(rows), ("db", "motion"), "total after 750 steps (Table 4a)", orderings)


def _text_to_video() -> Table:
    task = "text-to-video"
    rows = (
        Row("the untouched base", (replace(BASE[0], task=task),)),
        Row("this method × 1", over_seeds("vta", 1.0, task=task)),
        Row(f"this method × {STRENGTH:g}", over_seeds("vta", STRENGTH, task=task)),
    )
    orderings = (
        Ordering("the base's motion is better than the adapted model's", rows[0].jobs, rows[2].jobs, "motion"),
    )
    return Table(
        "e",
        "Text to video before and after",
        rows,
        ("motion", "colour", "shape"),
        "",
        orderings,
        ("The paper says that text-to-video is kept, without numbers: here “undecided” means that no loss is seen.",),
    )


def _zero_shot() -> Table:
    rows, orderings = [], []
    for task in ZERO_SHOT:
        base, ours = (replace(BASE[0], task=task),), over_seeds("vta", STRENGTH, task=task)
        clean = over_seeds("first-clean", STRENGTH, task=task)
        rows += [
            Row(f"{TASKS[task].title}: base", base),
            Row("… this method", ours),
            Row("… first frame always clean", clean),
        ]
        title = TASKS[task].title.lower()
        orderings += [
            Ordering(f"{title}: this method is better than the base", ours, base),
            Ordering("… than a first frame that is always clean", ours, clean),
        ]
    return Table(
        "f",
        "Tasks that were not trained for",
        tuple(rows),
        ("db", "over_baseline", "motion"),
        "",
        tuple(orderings),
        ("The paper shows these as pictures. The baseline is a cross-fade, for extension the last frame repeated.",),
    )


def _noise() -> Table:
    cells = {m: over_seeds("vta", STRENGTH, noise=m) for m in NOISES}
    rows = tuple(Row(f"{m:g}", cells[m]) for m in NOISES)
    orderings = (
        Ordering("noise 0.2 gives more motion than 0", cells[0.2], cells[0.0], "motion"),
        Ordering("noise 0 holds the given frame better than 0.2", cells[0.0], cells[0.2], "held_db"),
        Ordering("noise 0.2 holds the given frame better than 0.6", cells[0.2], cells[0.6], "held_db"),
    )
    return Table(
        "g",
        "Noise on the given frame",
        rows,
        ("db", "motion", "held_db"),
        "",
        orderings,
        ("The authors suggest 0.2 for Wan2.2, for motion; the paper's benchmark uses 0.",),
    )


def _levels() -> Table:
    rows = [
        Row(f"{name} × {strength:g}", over_seeds(method, strength))
        for method, name in (("vta", "even, the paper"), ("vta-shifted", "shift 5, the official code"))
        for strength in STRENGTHS[:3]
    ]
    orderings = (
        Ordering(
            "the official code's levels are better",
            over_seeds("vta-shifted", STRENGTH),
            over_seeds("vta", STRENGTH),
        ),
    )
    return Table(
        "h",
        "Noise levels in training",
        tuple(rows),
        ("db", "motion"),
        "",
        orderings,
        ("The paper draws levels evenly; its code draws them from a grid with shift 5, 36 % of them above 0.9.",),
    )


def _long() -> Table:
    reached = over_seeds("vta", STRENGTH)
    rows = [Row(f"this method × {STRENGTH:g}, {STEPS:,} steps", reached)]
    rows += [Row(f"image channels, {n:,} steps", over_seeds("i2v-long", trained=n)) for n in experiments.LONG]
    return Table(
        "i",
        "What image channels need to reach the adapter",
        tuple(rows),
        ("db", "motion", "held_db"),
        "",
        (),
        (
            "All weights with image channels, at a constant rate, averaged over the last 70 steps or so.",
            "The paper: 1/200 of the cost and 1/2,500 of the clips of Wan-I2V, which it estimates.",
        ),
    )


TABLES: dict[str, Callable[[], Table]] = {
    "a": _ways,
    "b": _steps_and_strength,
    "c": _inference,
    "d": _ranks,
    "e": _text_to_video,
    "f": _zero_shot,
    "g": _noise,
    "h": _levels,
    "i": _long,
}


def values(study: Study, jobs: Sequence[Job], measure: str) -> Array | None:
    """What a measure is computed from: [trainings, scenes, columns]; None where the task does not have it."""
    each = [columns(study.rows(job), measure) for job in jobs]
    kept = [one for one in each if one is not None]
    return np.stack(kept) if kept else None


def cell(study: Study, row: Row, measure: str) -> Interval | None:
    """A number with its interval."""
    found = values(study, row.jobs, measure)
    return None if found is None else crossed(found, MEASURES[measure][1])


def difference(study: Study, ordering: Ordering) -> Interval:
    """How much better the first is, on the same scenes; one training stands beside each of several."""
    statistic = MEASURES[ordering.measure][1]
    first, second = (values(study, jobs, ordering.measure) for jobs in (ordering.better, ordering.worse))
    assert first is not None
    assert second is not None
    count = max(len(first), len(second))
    both = np.stack([np.broadcast_to(one, (count, *one.shape[1:])) for one in (first, second)], axis=-1)
    return crossed(both, lambda rows: statistic(rows[..., 0]) - statistic(rows[..., 1]))


def outcome(found: Interval) -> str:
    """`holds`, `reversed` or `undecided`."""
    return "holds" if found.low > 0 else "reversed" if found.high < 0 else "undecided"


def written(found: Interval | None, measure: str) -> str:
    """A cell as text: `20.1 dB (19.4 to 20.9)`."""
    if found is None:
        return "–"
    _, scale, digits, unit = SHOWN[measure]
    value, low, high = (f"{scale * x:.{digits}f}" for x in (found.value, found.low, found.high))
    return f"{value}{unit} ({low} to {high})"


def reached_at(study: Study, measure: str = "db") -> tuple[float | None, list[tuple[int, float]]]:
    """Steps after which training with image channels has the adapter's score, and its curve; None if it has not.

    Between two checkpoints the score is taken as a straight line over the logarithm of the steps.
    """
    statistic = MEASURES[measure][1]
    target = values(study, over_seeds("vta", STRENGTH), measure)
    assert target is not None
    goal, curve = statistic(target), []
    for n in experiments.LONG:
        found = values(study, over_seeds("i2v-long", trained=n), measure)
        assert found is not None
        curve.append((n, statistic(found)))
    if curve[0][1] >= goal:
        return float(curve[0][0]), curve
    for (n, low), (m, high) in itertools.pairwise(curve):
        if low < goal <= high:
            share = (goal - low) / (high - low)
            return float(np.exp(np.log(n) + share * (np.log(m) - np.log(n)))), curve
    return None, curve
