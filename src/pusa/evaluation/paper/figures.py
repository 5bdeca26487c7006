"""The tables as figures, for people who look before they read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pusa.evaluation import plots
from pusa.evaluation.intervals import Interval
from pusa.evaluation.paper import experiments, inside
from pusa.evaluation.paper.experiments import NOISES, SAVED, Study
from pusa.evaluation.paper.methods import STRENGTH, STRENGTHS
from pusa.evaluation.paper.scoring import Job
from pusa.evaluation.paper.tables import TABLES, Ordering, Row, cell, difference, over_seeds
from pusa.evaluation.paper.training import STEPS

PSNR = "PSNR to the truth, dB"


def draw(study: Study, letter: str, path: Path) -> Path | None:
    """Draw the figure of a table; None for a table that has none."""
    return FIGURES[letter](study, path) if letter in FIGURES else None


def _number(study: Study, measure: str, jobs: tuple[Job, ...]) -> Interval:
    found = cell(study, Row("", jobs), measure)
    assert found is not None
    return found


def _ways(study: Study, path: Path) -> Path:
    base, *rows = TABLES["a"]().rows
    more = {row.label: difference(study, Ordering("", row.jobs, base.jobs)) for row in rows}
    return plots.bars(path, more, xlabel="PSNR over the untouched base on the same scenes, dB", zero=False)


def _steps(study: Study, path: Path) -> Path:
    def curve(strength: float) -> list[float]:
        return [_number(study, "db", over_seeds("vta", strength, trained)).value for trained in SAVED]

    series = {f"strength {strength:g}": curve(strength) for strength in STRENGTHS}
    return plots.lines(path, SAVED, series, xlabel="steps of training", ylabel=PSNR, log=True)


def _inference(study: Study, path: Path) -> Path:
    steps = (2, 5, 10, 20)
    found = [_number(study, "db", over_seeds("vta", STRENGTH, steps=n)) for n in steps]
    return plots.lines(path, steps, {"": found}, xlabel="steps of inference", ylabel=PSNR, log=True)


def _noise(study: Study, path: Path) -> Path:
    series = {
        title: [_number(study, measure, over_seeds("vta", STRENGTH, noise=m)) for m in NOISES]
        for title, measure in (("frames that are made", "db"), ("the given frame", "held_db"))
    }
    return plots.lines(path, NOISES, series, xlabel="noise multiplier of the given frame", ylabel="PSNR, dB")


def _long(study: Study, path: Path) -> Path:
    ours = _number(study, "db", over_seeds("vta", STRENGTH))
    series = {
        "image channels, all weights": [
            _number(study, "db", over_seeds("i2v-long", trained=n)) for n in experiments.LONG
        ],
        f"this method after {STEPS} steps": [ours] * len(experiments.LONG),
    }
    return plots.lines(path, experiments.LONG, series, xlabel="steps of training", ylabel=PSNR, log=True)


def _inside(study: Study, path: Path) -> Path:
    maps = {
        (inside.COMPARED[method], f"step {step}"): inside.seen(study, method)[0]["last_block"][str(step)]
        for method in ("base", "i2v", "vta")
        for step in inside.AT_STEPS
    }
    return plots.heat(path, maps, label="share of attention", xlabel="to latent frame", ylabel="from")


FIGURES: dict[str, Callable[[Study, Path], Path]] = {
    "a": _ways,
    "b": _steps,
    "c": _inference,
    "g": _noise,
    "i": _long,
    "j": _inside,
}
