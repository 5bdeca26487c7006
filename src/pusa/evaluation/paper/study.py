"""The work of a study: encode the training clips, train each method, score each experiment, inspect the models."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

from pusa.evaluation.paper import inspection
from pusa.evaluation.paper.experiments import Experiment, checkpoint_steps, experiments_of
from pusa.evaluation.paper.scoring import ClipMaker
from pusa.evaluation.paper.study_folder import StudyFolder
from pusa.evaluation.paper.training import load, parts, prepare, prepare_captions, train
from pusa.evaluation.paper.training_methods import METHODS
from pusa.evaluation.results_folder import make_missing
from pusa.work.units import Unit
from pusa.work.workers import Worker


def units(folder: StudyFolder, tables: Sequence[str]) -> list[Unit]:
    """All the work that these tables need, each unit once, before the units that need it."""
    scored = list(dict.fromkeys(experiment for table in tables for experiment in experiments_of(table)))
    inspected = inspection.experiments() if "j" in tables else []
    trained = dict.fromkeys((one.method, one.seed) for one in [*scored, *inspected] if one.method != "base")
    clips = parts(folder.captions.parent)
    return [
        *(Unit(f"clips {part.stem}", part, partial(prepare, part)) for part in clips),
        Unit("captions", folder.captions, partial(prepare_captions, folder.captions)),
        *(_training(folder, method, seed, clips) for method, seed in trained),
        *(_scoring(folder, experiment) for experiment in scored),
        *(_inspection(folder, experiment) for experiment in inspected),
    ]


def make(path: Path, tables: Sequence[str], worker: Worker) -> None:
    """Do the missing work of these tables, together with the other processes that fill the folder."""
    make_missing(units(StudyFolder(path), tables), path, progress=worker.progress)


def _training(folder: StudyFolder, method: str, seed: int, clips: Sequence[Path]) -> Unit:
    run = folder.run(method, seed)

    def make() -> None:
        train(METHODS[method], seed, load(folder.captions), run, checkpoints_at=checkpoint_steps(method))

    return Unit(f"training {run.name}", folder.finished(method, seed), make, (folder.captions, *clips))


def _scoring(folder: StudyFolder, experiment: Experiment) -> Unit:
    def make() -> None:
        _clip_maker(folder.runs).score(experiment, folder.scores(experiment))

    return Unit(experiment.name, folder.scores(experiment), make, folder.needs(experiment))


def _inspection(folder: StudyFolder, experiment: Experiment) -> Unit:
    make = partial(inspection.inspect, folder, experiment)
    return Unit(f"inside {experiment.name}", folder.inspection(experiment), make, folder.needs(experiment))


@lru_cache(maxsize=1)
def _clip_maker(runs: Path) -> ClipMaker:
    """One for all experiments of a process, so that the base model is loaded once."""
    return ClipMaker(runs)
