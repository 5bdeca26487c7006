"""The report of `pusa info --schedule` and `--matrix`: a timestep matrix as a table, in colours, and as a file."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pusa.cli.shared.terminal import Report
from pusa.errors import InputError
from pusa.generation.sampling import Sampling

if TYPE_CHECKING:
    from pusa.core.timesteps import TimestepMatrix


LARGE = 320
"""pixels of the longer side of the picture of a small matrix"""


def matrix_report(
    model: str,
    schedule: str | None,
    file: Path | None,
    *,
    frames: int | None,
    steps: int | None,
    shift: float | None,
    out: Path | None,
) -> Report:
    """Return the report on the matrix of a schedule, or of a JSON file.

    frames (pixel frames), steps, shift: for the schedule; None is the model's default. out: a .png or .json file to
    write. Raises InputError if the options contradict each other, or if there is no such matrix.
    """
    if schedule is not None and file is not None:
        raise InputError("--schedule and --matrix both give a matrix; give only one of them.")
    if out is not None and out.suffix not in (".png", ".json"):
        raise InputError(f"--out {out}: a matrix is written as .png or .json; use {out.with_suffix('.png')}.")
    if file is not None:
        if (frames, steps, shift) != (None, None, None):
            raise InputError("--frames, --steps and --shift need --schedule; a --matrix file sets them itself.")
        from pusa.generation.own_matrix import own_matrix

        matrix = own_matrix(file)
    else:
        sampling = Sampling(schedule=schedule, steps=steps, shift=shift)
        matrix = _matrix_of_schedule(model, sampling, frames)
    written = [] if out is None else [str(_write(matrix, out))]
    heat_map = _heat_map(matrix) if sys.stdout.isatty() else ""
    text = "\n".join([*([heat_map] if heat_map else []), str(matrix), *written])
    return Report({"matrix": matrix.to_dict(), "steps": matrix.steps, "frames": matrix.frames, "files": written}, text)


def _matrix_of_schedule(model: str, sampling: Sampling, frames: int | None) -> TimestepMatrix:
    from pusa.core import sigmas
    from pusa.generation.limits import Limits
    from pusa.generation.schedule import DEFAULT, Schedule
    from pusa.models.loading import sources

    limits = Limits.of(*sources.find(model, ()), {})
    settings = limits.settings(frames=frames, steps=sampling.steps, shift=sampling.shift, schedule=sampling.schedule)
    grid = sigmas.grid(settings.steps, settings.shift)
    return Schedule.parse(settings.schedule or DEFAULT).matrix(grid, limits.geometry.latent_frames(settings.frames))


def _write(matrix: TimestepMatrix, out: Path) -> Path:
    if out.suffix == ".json":
        from pusa.files import write_json

        write_json(out, matrix.to_dict())
    else:
        from pusa.media.images import write_image

        cell = max(16, LARGE // max(matrix.steps, matrix.frames))
        write_image(out, matrix.image(cell).numpy())
    return out


def _heat_map(matrix: TimestepMatrix) -> str:
    """Return the matrix as coloured spaces: a line for each step, two columns for each latent frame."""
    from rich.console import Console
    from rich.text import Text

    colours = matrix.image(cell=4)[1::4, 1::4]
    console = Console(file=io.StringIO(), force_terminal=True, width=2 * matrix.frames + 1, color_system="truecolor")
    for row in colours.tolist():
        line = Text()
        for red, green, blue in row:
            line.append("  ", style=f"on rgb({red},{green},{blue})")
        console.print(line)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().rstrip("\n")
