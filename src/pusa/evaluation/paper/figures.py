"""Figures of the tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pusa.evaluation import plots
from pusa.evaluation.intervals import Interval
from pusa.evaluation.paper import inspection
from pusa.evaluation.paper.experiments import CHECKPOINTS, LONG_CHECKPOINTS, NOISES, Experiment, over_seeds
from pusa.evaluation.paper.study_folder import StudyFolder
from pusa.evaluation.paper.tables import TABLES, Ordering, Row
from pusa.evaluation.paper.training_methods import STEPS, STRENGTH, STRENGTHS
from pusa.evaluation.paper.verdicts import cell, difference

PSNR = "PSNR against the truth, dB"


def draw(folder: StudyFolder, letter: str, path: Path) -> Path | None:
    """Draw the figure of a table; None if the table has no figure."""
    return FIGURES[letter](folder, path) if letter in FIGURES else None


def _number(folder: StudyFolder, measure: str, experiments: tuple[Experiment, ...]) -> Interval:
    found = cell(folder, Row("", experiments), measure)
    assert found is not None
    return found


def _methods(folder: StudyFolder, path: Path) -> Path:
    base, *rows = TABLES["a"]().rows
    more = {row.label: difference(folder, Ordering("", row.experiments, base.experiments)) for row in rows}
    return plots.bars(path, more, xlabel="PSNR above the untrained base on the same scenes, dB", zero=False)


def _steps(folder: StudyFolder, path: Path) -> Path:
    def curve(strength: float) -> list[float]:
        return [_number(folder, "db", over_seeds("vta", strength, n)).value for n in CHECKPOINTS]

    series = {f"strength {strength:g}": curve(strength) for strength in STRENGTHS}
    return plots.lines(path, CHECKPOINTS, series, xlabel="training steps", ylabel=PSNR, log=True)


def _sampling_steps(folder: StudyFolder, path: Path) -> Path:
    steps = (2, 5, 10, 20)
    found = [_number(folder, "db", over_seeds("vta", STRENGTH, sampling_steps=n)) for n in steps]
    return plots.lines(path, steps, {"": found}, xlabel="sampling steps", ylabel=PSNR, log=True)


def _noise(folder: StudyFolder, path: Path) -> Path:
    series = {
        title: [_number(folder, measure, over_seeds("vta", STRENGTH, noise=m)) for m in NOISES]
        for title, measure in (("generated frames", "db"), ("the given frame", "held_db"))
    }
    return plots.lines(path, NOISES, series, xlabel="noise multiplier of the given frame", ylabel="PSNR, dB")


def _long(folder: StudyFolder, path: Path) -> Path:
    ours = _number(folder, "db", over_seeds("vta", STRENGTH))
    series = {
        "image channels, all weights": [
            _number(folder, "db", over_seeds("i2v-long", training_steps=n)) for n in LONG_CHECKPOINTS
        ],
        f"this method after {STEPS} steps": [ours] * len(LONG_CHECKPOINTS),
    }
    return plots.lines(path, LONG_CHECKPOINTS, series, xlabel="training steps", ylabel=PSNR, log=True)


def _attention(folder: StudyFolder, path: Path) -> Path:
    maps = {
        (inspection.TITLES[method], f"step {step}"): inspection.read(folder, method)[0]["last_block"][str(step)]
        for method in ("base", "i2v", "vta")
        for step in inspection.AT_STEPS
    }
    return plots.heat(path, maps, label="share of attention", xlabel="to latent frame", ylabel="from latent frame")


FIGURES: dict[str, Callable[[StudyFolder, Path], Path]] = {
    "a": _methods,
    "b": _steps,
    "c": _sampling_steps,
    "g": _noise,
    "i": _long,
    "j": _attention,
}
