"""A folder of results that any number of processes fill together, one file for each unit of work.

If a run is killed, run the same command again: it makes the files that are missing. A second process, started on the
same folder at the same time, shares the work.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pusa.errors import InputError, PusaError, sentence
from pusa.files import lines_of, make_folder, write_json
from pusa.work.units import Progress, Unit, make_units, no_progress
from pusa.work.workers import Job, in_processes, watch_files

TIMES = ".times.jsonl"
"""in the folder: the seconds that each unit took"""
SETTINGS = "run.json"
"""in the folder: the settings that its results were made with"""


def make_missing(units: Sequence[Unit], folder: Path, label: str = "Working", progress: Progress = no_progress) -> None:
    """Make what is missing, and note in the folder how long it took; return when every unit is done, by any process.

    If a unit fails, the others are still made. Then PusaError names all that failed. If there is only one unit, its
    error is raised as it is.
    """
    timed = [replace(unit, make=partial(_timed, unit, folder / TIMES)) for unit in units]
    outcome = make_units(timed, folder / ".claims", "the results", progress, label=label, collect=(BaseException,))
    if outcome.failed and len(units) == 1:
        raise next(iter(outcome.failed.values()))
    if outcome.failed:
        raise PusaError(
            f"{len(outcome.failed)} of {len(units)} could not be made in {folder}, and the others are there: run the "
            "same command again to try these once more.",
            [f"{name}: {sentence(error)}" for name, error in outcome.failed.items()],
        )


def _timed(unit: Unit, times: Path) -> None:
    started = time.monotonic()
    unit.make()
    line = json.dumps({"unit": unit.name, "seconds": round(time.monotonic() - started, 1)})
    with times.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def make_in_processes(
    processes: int, job: Job[None], units: Sequence[Unit], label: str, progress: Progress = no_progress
) -> None:
    """Call `job`, which calls `make_missing` for the same units, in that many processes (`workers.in_processes`).

    If every unit is done, no process is started.
    """
    if not all(unit.done() for unit in units):
        in_processes(processes, job, watch_files([unit.file for unit in units], label, progress))


def keep_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings into a new folder, or compare them with those of the folder.

    settings: JSON-able. Raises InputError if the folder's results were made with other settings.
    """
    file = folder / SETTINGS
    if not file.exists():
        make_folder(folder, "the results")
        write_json(file, settings)
        return
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        different = [key for key in dict.fromkeys([*known, *settings]) if known.get(key) != settings.get(key)]
    except (ValueError, TypeError) as error:
        raise InputError(f"{file} is damaged: restore it, or choose an empty folder.") from error
    if different:
        key = different[0]
        raise InputError(
            f"The results in {folder} were made with {key} {known.get(key)!r}, not {settings.get(key)!r}: choose "
            "another folder, or the same settings."
        )


def seconds(units: Sequence[Unit], folder: Path) -> float:
    """The time that the units took when they were made, in seconds, summed over processes."""
    file = folder / TIMES
    lines = lines_of(file.read_text(encoding="utf-8")) if file.exists() else []
    took = {row.get("unit", row.get("piece")): row["seconds"] for row in map(json.loads, lines)}
    return float(sum(took.get(unit.name, 0.0) for unit in units))
