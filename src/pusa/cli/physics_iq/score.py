"""`pusa physics-iq score`: score videos by comparing them with the real takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from pusa.cli.shared.options import OUTPUT, File, Verbosity, Whole
from pusa.cli.shared.terminal import Report, Terminal, count
from pusa.errors import InputError, needing
from pusa.files import write_json

if TYPE_CHECKING:
    from pusa.evaluation.physics_iq.scores import Summary, View

SHOWN = 8
VIDEOS = "videos"
"""The name of the folder that `generate` fills."""
SCORES = ("verified", "original")
STILL = "the real takes show no motion, so a still video gets the best score"


def score(
    videos: Annotated[Path, File],
    *runs: str,
    descriptions: Annotated[Path, File],
    data: Annotated[Path, File],
    out: Annotated[
        Path | None,
        File,
        Parameter(
            group=OUTPUT, show_default=lambda _: "next to VIDEOS: scores if VIDEOS is called videos, else VIDEOS-scores"
        ),
    ] = None,
    workers: Annotated[int, Whole, Parameter(group=OUTPUT)] = 1,
    verbosity: Verbosity = Verbosity(),
) -> Report:
    """Score a folder of videos: the verified and the original Physics-IQ score, by part and by category.

    If a video or a real take is missing or has another length, the benchmark has no score. The scores of the other
    videos are then marked as partial, and the exit code is 1.

    Parameters
    ----------
    videos
        A folder of videos with the official names, five seconds each.
    runs
        Folders of videos of the same model with other seeds. The mean and the standard deviation over all runs are
        printed, too.
    descriptions
        The official descriptions CSV.
    data
        The folder of the Physics-IQ dataset.
    out
        Folder of the scores; it keeps the score of each video. Give it only for one folder of videos.
    workers
        Number of processes.
    """
    folders = [videos, *map(Path, runs)]
    if workers < 1:
        raise InputError(f"--workers {workers}: give 1 or more.")
    if out is not None and runs:
        raise InputError(
            "--out is only for one folder of videos; leave it out, and the scores of each run go next to its folder."
        )
    if missing := [folder for folder in folders if not folder.is_dir()]:
        raise InputError(f"There is no folder {missing[0]}; give the folder of the videos.")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("A folder is given twice; give the folder of each run once.")
    terminal = Terminal(verbosity.verbose)
    with terminal.status("Starting"), needing("eval"):
        from pusa.evaluation.physics_iq import comparison, scores

    found: list[Summary] = []
    texts: list[str] = []
    records: list[dict[str, Any]] = []
    for folder in folders:
        place = out or folder.parent / ("scores" if folder.name == VIDEOS else f"{folder.name}-scores")
        views, problems = _compared(terminal, folder, descriptions, data, place, workers)
        record: dict[str, Any] = {"compared": len(views), "missing": problems, "complete": not problems}
        if views:
            found.append(scores.summarise(views))
            record |= comparison.summary_record(found[-1])
        write_json(place / "scores.json", record)
        records.append({"videos": str(folder), **record} if runs else record)
        texts.append("\n".join([*_lines(views, problems, found[-1] if views else None), str(place / "scores.json")]))
    code = int(any(record["missing"] for record in records))
    if not runs:
        return Report(records[0], texts[0], exit_code=code)
    values = {} if code else {name: [getattr(one, name).value for one in found] for name in SCORES}
    over_runs = {name: {"mean": mean(run), "std": stdev(run)} for name, run in values.items()}
    if over_runs:
        spread = (f"{name + ' score':28}{100 * x['mean']:.1f} ± {100 * x['std']:.1f}" for name, x in over_runs.items())
        texts.append("\n".join([f"{count(len(folders), 'run')}, mean ± standard deviation", *spread]))
    return Report({"runs": records, **over_runs}, "\n\n".join(texts), exit_code=code)


def _compared(
    terminal: Terminal, videos: Path, descriptions: Path, data: Path, place: Path, workers: int
) -> tuple[list[View], dict[str, str]]:
    """Compare the videos of a folder; return the comparisons, and the problems of other videos by file name."""
    from functools import partial

    from pusa.evaluation import results_folder
    from pusa.evaluation.physics_iq import comparison

    units = comparison.units(videos, descriptions, data, place)
    with terminal.counting() as progress:
        job = partial(comparison.make, videos, descriptions, data, place)
        results_folder.make_in_processes(workers, job, units, "Comparing", progress)
    return comparison.results(videos, descriptions, data, place)


def _lines(views: Sequence[View], problems: Mapping[str, str], found: Summary | None) -> list[str]:
    lines = [f"{file}: {why}" for file, why in list(problems.items())[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"… and {len(problems) - SHOWN} more; --json lists all")
    if found is not None:
        lines += [
            f"{'partial, ' if problems else ''}{count(len(views), 'video')} of {len(views) + len(problems)}",
            *(f"{view.scene}, {view.view}: {STILL}" for view in views if view.still),
            f"{'verified score':28}{found.verified.text(1, 100)}",
            f"{'original score':28}{found.original.text(1, 100)}",
            *(f"  {name:26}{part.text(1, 100)}" for name, part in found.parts.items()),
            *(f"{name:28}{part.text(1, 100)}" for name, part in found.categories.items()),
        ]
    return lines
