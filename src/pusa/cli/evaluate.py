"""`pusa evaluate`: scores of clips of any program."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from pusa.cli.shared.options import OUTPUT, File, Many, Talk, Whole
from pusa.cli.shared.terminal import Report, Terminal, count
from pusa.errors import InputError

COMPARED = Group.create_ordered("What clips are compared with")


def evaluate(
    *clips: str,
    truth: Annotated[Path | None, File, Parameter(group=COMPARED)] = None,
    given: Annotated[tuple[str, ...], Many, Parameter(group=COMPARED, metavar="PICTURE@FRAME")] = (),
    join: Annotated[tuple[str, ...], Many, Parameter(group=COMPARED, metavar="FRAME")] = (),
    out: Annotated[Path, File, Parameter(group=OUTPUT)] = Path("outputs/evaluation"),
    workers: Annotated[int, Whole, Parameter(group=OUTPUT)] = 1,
    talk: Talk = Talk(),
) -> Report:
    """Measure clips, of any program, without a network: fidelity, joins, colour, flicker, motion, sharpness, camera.

    What a clip of ours was given, and where its joins are, is read from the .json beside it. Scores are kept, so that a
    second run measures what is new. Exit code 1 when a clip could not be measured.

    Parameters
    ----------
    clips
        Files, or folders of them.
    truth
        The clip that they should be, or a folder with one of the same name for each.
    given
        A picture that they were made from, and the frame it belongs to: photo.png@0, @-1 or @1.5s. Repeatable.
    join
        The first frame after a join, likewise. Repeatable.
    out
        Folder for the scores and report.html.
    workers
        Processes that work at the same time.
    """
    terminal = Terminal(talk.talkative)
    if workers < 1:
        raise InputError(f"--workers {workers}: give 1 or more.")
    if not clips:
        raise InputError("there is no clip to measure; give files or folders.")
    return _clips([Path(clip) for clip in clips], truth, given, join, out, workers, terminal)


def _clips(
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
        terminal.note(f"left alone: {', '.join(other.name for other in others[:4])}" + ("…" if others[4:] else ""))
    wanted = scoring.tasks(found, truth=truth, images=_images(given), joins=list(dict.fromkeys(joins)))
    evaluation = scoring.Evaluation(out, wanted)
    evaluation.begin()
    with terminal.counting() as progress:
        job = partial(scoring.make, out, wanted)
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
    """Pictures by their frames, from PICTURE@FRAME."""
    found: dict[str, Path] = {}
    for text in given:
        path, at, frame = text.rpartition("@")
        if not at:
            raise InputError(f"--given {text}: give a picture and its frame, such as photo.png@0.")
        _check_frame(frame, f"--given {text}")
        if frame in found:
            raise InputError(f"--given {text}: {found[frame]} is given for that frame too; give one picture a frame.")
        if not Path(path).is_file():
            raise InputError(f"--given {text}: there is no file {path}; check the name.")
        found[frame] = Path(path)
    return found


def _check_frame(text: str, what: str) -> None:
    """InputError unless it is a frame or a time; which a clip has is for each clip to say."""
    from pusa.generation.given import frame_index

    frame_index(text, sys.maxsize, 1.0, what)
