"""The tables of the paper in miniature without their numbers: rows, columns, the paper's numbers, and its orderings.

`verdicts.py` computes the numbers. The paper's are VBench-I2V totals of other models on other clips, so only the
orderings can be compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from pusa.evaluation.paper.experiments import (
    CHECKPOINTS,
    LONG_CHECKPOINTS,
    MIXED,
    MIXED_TASKS,
    NOISES,
    PTSS,
    RANKS,
    ZERO_SHOT,
    Experiment,
    over_seeds,
    scalable,
)
from pusa.evaluation.paper.training_methods import BATCH, METHODS, MIXTURES, STEPS, STRENGTH, STRENGTHS, TASK_SHARES
from pusa.evaluation.synthetic.tasks import TASKS


@dataclass(frozen=True)
class Row:
    """A row of a table: the experiments of all trainings, and the paper's number."""

    label: str
    experiments: tuple[Experiment, ...]
    paper: str = ""


@dataclass(frozen=True)
class Ordering:
    """A claim about two rows: one is better than the other by a measure."""

    claim: str
    better: tuple[Experiment, ...]
    worse: tuple[Experiment, ...]
    measure: str = "db"


@dataclass(frozen=True)
class Table:
    """A table without its numbers. measures: the columns. paper: the head of the column with the paper's numbers."""

    key: str
    title: str
    rows: tuple[Row, ...]
    measures: tuple[str, ...]
    paper: str = ""
    orderings: tuple[Ordering, ...] = ()
    notes: tuple[str, ...] = field(default=())


BASE = (Experiment("base", 0, 0),)


def _training_methods() -> Table:
    totals = {
        "vta": ("81.78", "87.69", "86.93"),
        "first-clean": ("73.27", "72.54", "72.42"),
        "ptss-0.2": ("77.96", "81.57", "84.74"),
        "ptss-0.5": ("79.63", "86.38", "87.36"),
        "ptss-0.8": ("80.71", "85.98", "86.49"),
        "vta-full": ("84.06",),
        "i2v": ("73.21",),
    }
    rows = [Row("the untrained base", BASE)]
    for method in ("vta", "first-clean", *PTSS, "vta-full", "i2v"):
        for strength, total in zip(STRENGTHS[:3], totals[method], strict=False):
            label = METHODS[method].title + (f" × {strength:g}" if scalable(method) else "")
            rows.append(Row(label, over_seeds(method, strength), total))
    best = STRENGTH
    orderings = [
        Ordering("this method is better than the untrained base", over_seeds("vta", best), BASE),
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
            "this method keeps the given frame better than image channels",
            over_seeds("vta", best),
            over_seeds("i2v"),
            "held_db",
        ),
    ]
    return Table(
        "a",
        "Training methods, at equal steps",
        tuple(rows),
        ("db", "over_baseline", "motion", "held_db"),
        "total after 900 steps (Tables 5a, 5b)",
        tuple(orderings),
        (
            f"Each method was trained with {STEPS} steps of {BATCH} clips and three seeds. For the same seed, all "
            "methods get the same clips, the same noise and the same dropped captions.",
            "Learning rates: 3e-3 for LoRAs, as for the embedded adapter; 1e-3 for all weights (the best of four "
            "rates); 6e-3 with image channels (the best of six). They were chosen for one seed, on other scenes.",
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
    for steps in CHECKPOINTS:
        numbers = totals[steps].split()
        for strength, total in zip(STRENGTHS, numbers[2:], strict=True):
            paper = f"{total} ({numbers[0]})"
            rows.append(Row(f"{steps} × {strength:g}", over_seeds("vta", strength, steps), paper))
    few, many = CHECKPOINTS[0], CHECKPOINTS[-1]
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
        "Training steps × LoRA strength",
        tuple(rows),
        ("db", "motion"),
        "total after the given steps (Table 4c)",
        orderings,
    )


def _sampling_steps() -> Table:
    totals = {2: "79.92", 5: "86.03", 10: "87.69", 20: "87.84"}
    cells = {n: over_seeds("vta", STRENGTH, sampling_steps=n) for n in totals}
    rows = tuple(Row(str(n), cells[n], totals[n]) for n in totals)
    orderings = tuple(
        Ordering(f"{more} steps are better than {fewer}", cells[more], cells[fewer])
        for fewer, more in ((2, 5), (5, 10), (10, 20))
    )
    note = (
        "PSNR favours few steps: with few steps, uncertain content stays blurred, and a blurred picture has a smaller "
        "error than a sharp one at the wrong place."
    )
    return Table("c", "Sampling steps", rows, ("db", "motion"), "total (Table 4b)", orderings, (note,))


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
        Row("the untrained base", (replace(BASE[0], task=task),)),
        Row("this method × 1", over_seeds("vta", 1.0, task=task)),
        Row(f"this method × {STRENGTH:g}", over_seeds("vta", STRENGTH, task=task)),
    )
    orderings = (
        Ordering(
            "the base's motion is better than the adapted model's", rows[0].experiments, rows[2].experiments, "motion"
        ),
    )
    return Table(
        "e",
        "Text-to-video before and after training",
        rows,
        ("motion", "colour", "shape"),
        "",
        orderings,
        (
            "The paper says, without numbers, that text-to-video stays as good. Here, “undecided” means that no loss "
            "was found.",
        ),
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
        "Tasks that no method is trained for",
        tuple(rows),
        ("db", "over_baseline", "motion"),
        "",
        tuple(orderings),
        (
            "The paper shows only pictures of these tasks. The baseline is a cross-fade. For extension, it is the last "
            "frame, repeated.",
        ),
    )


def _noise() -> Table:
    cells = {m: over_seeds("vta", STRENGTH, noise=m) for m in NOISES}
    rows = tuple(Row(f"{m:g}", cells[m]) for m in NOISES)
    orderings = (
        Ordering("noise 0.2 gives more motion than 0", cells[0.2], cells[0.0], "motion"),
        Ordering("noise 0 keeps the given frame better than 0.2", cells[0.0], cells[0.2], "held_db"),
        Ordering("noise 0.2 keeps the given frame better than 0.6", cells[0.2], cells[0.6], "held_db"),
    )
    return Table(
        "g",
        "Noise on the given frame",
        rows,
        ("db", "motion", "held_db"),
        "",
        orderings,
        ("The authors recommend noise 0.2 for Wan2.2, for more motion. The paper's benchmark uses noise 0.",),
    )


def _noise_levels() -> Table:
    rows = [
        Row(f"{name} × {strength:g}", over_seeds(method, strength))
        for method, name in (("vta", "uniform, the paper"), ("vta-shifted", "shift 5, the official code"))
        for strength in STRENGTHS[:3]
    ]
    orderings = (
        Ordering(
            "the official code's noise levels are better",
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
        ("The paper draws noise levels uniformly. Its code draws them from a grid with shift 5: 36 % are above 0.9.",),
    )


def _long() -> Table:
    reached = over_seeds("vta", STRENGTH)
    rows = [Row(f"this method × {STRENGTH:g}, {STEPS:,} steps", reached)]
    rows += [Row(f"image channels, {n:,} steps", over_seeds("i2v-long", training_steps=n)) for n in LONG_CHECKPOINTS]
    return Table(
        "i",
        "Training with image channels until it reaches the adapter",
        tuple(rows),
        ("db", "motion", "held_db"),
        "",
        (),
        (
            "Image channels: all weights are trained at a constant rate and averaged over about the last 70 steps.",
            "The paper estimates that its method needs 1/200 of the cost and 1/2,500 of the clips of Wan-I2V.",
        ),
    )


def _mixtures() -> Table:
    names = {"vta": "independent levels (this method)", "tasks": "tasks only"}
    names |= {f"mixed-{share:g}": f"{share:.0%} independent, the rest tasks" for share in MIXTURES}
    rows, orderings = [], []
    for task in MIXED_TASKS:
        cells = {method: over_seeds(method, STRENGTH, task=task) for method in MIXED}
        title = TASKS[task].title
        rows += [
            Row(f"{title}: {names[method]}" if method == MIXED[0] else f"… {names[method]}", cells[method])
            for method in MIXED
        ]
        measure = "motion" if task == "text-to-video" else "db"
        orderings += [
            Ordering(
                f"{title.lower()}: half tasks are better than independent levels only",
                cells["mixed-0.5"],
                cells["vta"],
                measure,
            ),
            Ordering(
                f"{title.lower()}: half tasks are better than tasks only", cells["mixed-0.5"], cells["tasks"], measure
            ),
        ]
    shares = ", ".join(f"{task} {share:.0%}" for task, share in TASK_SHARES.items())
    return Table(
        "k",
        "Independent levels, rows of tasks, and mixtures of both",
        tuple(rows),
        ("db", "over_baseline", "motion"),
        "",
        tuple(orderings),
        (
            f"The samples that are not independent have the noise levels of a task: {shares}. No training has the "
            "rows of completion and transition. The paper trains with independent levels only.",
        ),
    )


TABLES: dict[str, Callable[[], Table]] = {
    "a": _training_methods,
    "b": _steps_and_strength,
    "c": _sampling_steps,
    "d": _ranks,
    "e": _text_to_video,
    "f": _zero_shot,
    "g": _noise,
    "h": _noise_levels,
    "i": _long,
    "k": _mixtures,
}
