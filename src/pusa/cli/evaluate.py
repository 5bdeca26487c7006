"""`pusa evaluate`: measure the quality of clips, from this or any other program."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from pusa.cli.shared.options import OUTPUT, File, Many, Verbosity, Whole
from pusa.cli.shared.terminal import Report, Terminal, count
from pusa.errors import InputError

COMPARED = Group.create_ordered("Comparison")


def evaluate(
    *clips: str,
    truth: Annotated[Path | None, File, Parameter(group=COMPARED)] = None,
    given: Annotated[tuple[str, ...], Many, Parameter(group=COMPARED, metavar="PICTURE@FRAME")] = (),
    join: Annotated[tuple[str, ...], Many, Parameter(group=COMPARED, metavar="FRAME")] = (),
    out: Annotated[Path, File, Parameter(group=OUTPUT)] = Path("outputs/evaluation"),
    workers: Annotated[int, Whole, Parameter(group=OUTPUT)] = 1,
    verbosity: Verbosity = Verbosity(),
) -> Report:
    """Measure clips of any program: fidelity, joins, colour, flicker, motion, sharpness and camera. No network is used.

    If a clip has a sidecar of pusa, its conditions and its joins are read from there. Scores are kept, so a second run
    measures only new clips. The exit code is 1 if a clip could not be measured.

    Parameters
    ----------
    clips
        Files, or folders of files.
    truth
        The expected clip, or a folder with an expected clip of the same name for each clip.
    given
        A picture that the clips were made from, and its frame: photo.png@0, photo.png@-1 or photo.png@1.5s. Repeatable.
    join
        The first frame after a join, such as 12, -5 or 1.5s. Repeatable.
    out
        Folder for the scores and report.html.
    workers
        Number of processes.
    """
    terminal = Terminal(verbosity.verbose)
    if workers < 1:
        raise InputError(f"--workers {workers}: give 1 or more.")
    if not clips:
        raise InputError("There is no clip to measure; give files or folders.")
    return _measure([Path(clip) for clip in clips], truth, given, join, out, workers, terminal)


def _measure(
    paths: list[Path],
    truth: Path | None,
    given: tuple[str, ...],
    joins: tuple[str, ...],
    out: Path,
    workers: int,
    terminal: Terminal,
) -> Report:
    with terminal.status("Starting"):
        from functools import partial

        from pusa.errors import needing
        from pusa.files import write_json

        with needing("eval"):
            from pusa.evaluation import results_folder
            from pusa.evaluation.clips import report, scoring

    for text in joins:
        _check_frame(text, "--join")
    found, others = scoring.find(paths)
    if others:
        terminal.note(f"ignored: {', '.join(other.name for other in others[:4])}" + ("…" if others[4:] else ""))
    tasks = scoring.tasks(found, truth=truth, images=_images(given), joins=list(dict.fromkeys(joins)))
    evaluation = scoring.Evaluation(out, tasks)
    evaluation.begin()
    with terminal.counting() as progress:
        job = partial(scoring.make, out, tasks)
        results_folder.make_in_processes(workers, job, evaluation.units(), "Measuring clips", progress)
    records = evaluation.records()
    page = report.write(evaluation, records, out / "report.html")
    scores = out / "scores.json"
    write_json(scores, records)
    failed = [record for record in records if "error" in record]
    text = "\n".join([*report.lines(records), "", str(scores), str(page)])
    if failed:
        terminal.note(f"{count(len(failed), 'clip')} could not be measured")
    return Report({"clips": records, "files": [str(scores), str(page)]}, text, exit_code=int(bool(failed)))


def _images(given: tuple[str, ...]) -> dict[str, Path]:
    """Return the pictures of --given by their frames."""
    found: dict[str, Path] = {}
    for text in given:
        path, at, frame = text.rpartition("@")
        if not at:
            raise InputError(
                f"--given {text}: the frame is missing; give a picture and its frame, such as photo.png@0."
            )
        _check_frame(frame, f"--given {text}")
        if frame in found:
            raise InputError(
                f"--given {text}: {found[frame]} is given for this frame, too; give one picture for each frame."
            )
        if not Path(path).is_file():
            raise InputError(f"--given {text}: there is no file {path}; check the name.")
        found[frame] = Path(path)
    return found


def _check_frame(text: str, what: str) -> None:
    """Raise InputError if the text is not a frame or a time. Whether a clip has this frame is checked later."""
    from pusa.generation.given import frame_index

    frame_index(text, sys.maxsize, 1.0, what)
