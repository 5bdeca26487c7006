"""`pusa reproduce`: train and score small versions of the paper's comparisons on the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from pusa.cli.shared.options import OUTPUT, File, Verbosity, Whole
from pusa.cli.shared.terminal import Report, Terminal, clock
from pusa.errors import InputError

RUN = Group.create_ordered("Run")


def reproduce(
    *tables: str,
    out: Annotated[Path, File, Parameter(group=OUTPUT)] = Path("runs/paper"),
    workers: Annotated[int, Whole, Parameter(group=RUN)] = 1,
    verbosity: Verbosity = Verbosity(),
) -> Report:
    """Train and score the paper's comparisons on the embedded model, and write each table next to the paper's table.

    Nothing is downloaded. All tables take about three hours on two CPU cores. If the command is interrupted, run it
    again; it resumes. If you start it several times with the same folder, the processes share the work.

    Parameters
    ----------
    tables
        Letters of tables; the default is all. a: ways of training, b: steps × strength, c: inference steps, d: rank, e:
        text to video, f: other tasks, g: noise, h: noise levels in training, i: training with image channels until it
        reaches the adapter, j: attention to the first frame and weight drift, k: independent levels, rows of tasks,
        and mixtures of both.
    out
        Folder for the trainings, the scores, paper.md and paper.json.
    workers
        Number of processes. They share the CPU cores equally.
    """
    from pusa.evaluation.paper import experiments

    letters = list(dict.fromkeys(letter for word in tables for letter in word)) or list(experiments.TABLES)
    if unknown := [letter for letter in letters if letter not in experiments.TABLES]:
        raise InputError(f"There is no table {unknown[0]!r}; give letters from {', '.join(experiments.TABLES)}.")
    if workers < 1:
        raise InputError(f"--workers {workers}: give 1 or more.")
    terminal = Terminal(verbosity.verbose)
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
    time_note = f"Computing time, summed over processes: {clock(record['seconds'])}."
    return Report(record, "\n".join([*map(str, files), time_note]))
