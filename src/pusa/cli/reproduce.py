"""`pusa reproduce`: the paper's comparisons in miniature, on the embedded base, trained and scored here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from pusa.cli.shared.options import OUTPUT, File, Talk, Whole
from pusa.cli.shared.terminal import Report, Terminal, clock
from pusa.errors import InputError

RUN = Group.create_ordered("Run")


def reproduce(
    *tables: str,
    out: Annotated[Path, File, Parameter(group=OUTPUT)] = Path("runs/paper"),
    workers: Annotated[int, Whole, Parameter(group=RUN)] = 1,
    talk: Talk = Talk(),
) -> Report:
    """Train and score the paper's comparisons on the embedded model, and write each table beside the paper's own.

    Nothing is downloaded. All tables take about three hours of two CPU cores; a run that was interrupted goes on when
    the same command is given again, and further processes on the same folder share the work.

    Parameters
    ----------
    tables
        Letters of tables, all by default: a ways of training, b steps × strength, c inference steps, d rank, e text to
        video, f other tasks, g noise, h noise levels in training, i what image channels need to reach the adapter, j
        inside the models.
    out
        Folder of trainings, scores and tables; paper.md and paper.json are written there.
    workers
        Processes that work at the same time, each with its share of the cores.
    """
    from pusa.evaluation.paper import experiments

    letters = list(dict.fromkeys(letter for word in tables for letter in word)) or list(experiments.TABLES)
    if odd := [letter for letter in letters if letter not in experiments.TABLES]:
        raise InputError(f"There is no table {odd[0]!r}: give letters from {', '.join(experiments.TABLES)}.")
    if workers < 1:
        raise InputError(f"--workers {workers}: give 1 or more.")
    terminal = Terminal(talk.talkative)
    with terminal.status("Starting"):
        from functools import partial

        from pusa.errors import needing
        from pusa.evaluation import results_folder

        with needing("eval"):
            from pusa.evaluation.paper import report, study
            from pusa.evaluation.paper.study_folder import StudyFolder

    folder = StudyFolder(out)
    units = study.units(folder, letters)
    with terminal.counting() as progress:
        job = partial(study.make, out, tuple(letters))
        results_folder.make_in_processes(workers, job, units, "Training and scoring", progress)
    with terminal.status("Writing the tables", line=True):
        files, record = report.write(folder, letters, results_folder.seconds(units, out))
    took = f"All of it took {clock(record['seconds'])} of one thread."
    return Report(record, "\n".join([*map(str, files), took]))
