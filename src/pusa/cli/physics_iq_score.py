"""`pusa physics-iq score`: videos against the real takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from pusa.cli.options import OUTPUT, File, Talk, Whole
from pusa.cli.terminal import Report, Terminal, count
from pusa.errors import InputError

SHOWN = 8


def score(
    videos: Annotated[Path, File],
    *,
    descriptions: Annotated[Path, File],
    data: Annotated[Path, File],
    out: Annotated[
        Path | None, File, Parameter(group=OUTPUT, show_default=lambda _: "beside VIDEOS, in scores")
    ] = None,
    jobs: Annotated[int, Whole, Parameter(group=OUTPUT)] = 1,
    talk: Talk = Talk(),
) -> Report:
    """Score a folder of videos: the verified and the original Physics-IQ score, by part and by category.

    Exit code 1 when a video or a real take is missing or of another length: there is no score of the benchmark then,
    and the rest is called partial.

    Parameters
    ----------
    videos
        A folder of videos by the official names, five seconds each.
    descriptions
        The official descriptions CSV.
    data
        The folder of the Physics-IQ dataset.
    out
        Folder of the scores, which are kept for each video.
    jobs
        Processes that work at the same time.
    """
    if jobs < 1:
        raise InputError(f"--jobs {jobs}: give 1 or more.")
    if not videos.is_dir():
        raise InputError(f"There is no folder {videos}; give that of the videos.")
    terminal = Terminal(talk.talkative)
    with terminal.status("Starting"):
        from functools import partial

        from pusa.errors import needing
        from pusa.files import write_json

        with needing("eval"):
            from pusa.evaluation import pieces
            from pusa.evaluation.physics_iq import comparing, scores

    place = out or videos.parent / "scores"
    work = comparing.pieces(videos, descriptions, data, place)
    with terminal.counting() as progress:
        pieces.make_with(jobs, partial(comparing.make, videos, descriptions, data, place), work, "Comparing", progress)
    views, problems = comparing.results(videos, descriptions, data, place)
    record: dict[str, Any] = {"compared": len(views), "missing": problems, "complete": not problems}
    lines = [f"{file}: {why}" for file, why in list(problems.items())[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"… and {len(problems) - SHOWN} more; --json names all")
    if views:
        found = scores.summarise(views)
        kind = "" if not problems else "partial, "
        record |= comparing.plain(found)
        lines += [
            f"{kind}{count(len(views), 'video')} of {len(views) + len(problems)}",
            f"{'verified score':28}{found.verified.text(1, 100)}",
            f"{'original score':28}{found.original.text(1, 100)}",
            *(f"  {name:26}{part.text(1, 100)}" for name, part in found.parts.items()),
            *(f"{name:28}{part.text(1, 100)}" for name, part in found.categories.items()),
        ]
    write_json(place / "scores.json", record)
    return Report(record, "\n".join([*lines, str(place / "scores.json")]), exit_code=int(bool(problems)))
