"""`pusa transition`: join two clips with new frames."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from pusa.cli.shared.arguments import size as read_size
from pusa.cli.shared.arguments import transition_name
from pusa.cli.shared.clip_jobs import (
    bytes_of,
    check_output,
    check_paths,
    check_rate,
    limits_of,
    make,
    open_pipeline,
    opened,
    say_notes,
)
from pusa.cli.shared.options import CLIP, File, Model, Output, Sampling, Whole, model_default, values_of, with_preset
from pusa.cli.shared.terminal import Report, Terminal
from pusa.generation.request import Transition


def transition(
    a: Annotated[Path, File, Parameter(metavar="A")],
    b: Annotated[Path, File, Parameter(metavar="B")],
    prompt: str = "",
    *,
    frames: Annotated[int | None, Whole, Parameter(group=CLIP, show_default=model_default)] = None,
    overlap: Annotated[int | None, Whole, Parameter(group=CLIP, show_default=model_default)] = None,
    noise: Annotated[float | None, Parameter(group=CLIP, show_default=lambda _: "0")] = None,
    size: Annotated[
        str | None, Parameter(group=CLIP, metavar="WxH", show_default=lambda _: "A's, else the model's own")
    ] = None,
    fit: Annotated[Literal["crop", "pad", "stretch"], Parameter(group=CLIP)] = "crop",
    sampling: Sampling = Sampling(),
    model: Model = Model(),
    output: Output = Output(),
) -> Report:
    """Join two clips with new frames between them. The result contains A, the new frames and B.

    Parameters
    ----------
    a
        The first clip.
    b
        The second clip.
    prompt
        What the new frames show.
    frames
        How many frames to add: a multiple of 4.
    overlap
        How many frames of each clip the model sees: 4n+1.
    noise
        Noise multiplier of both overlaps: 0 keeps them exactly, more gives the new frames more freedom.
    size
        Width and height in pixels, multiples of 16.
    fit
        How clips of another aspect ratio are fitted to the size.
    """
    terminal = Terminal(output.verbosity.verbose)
    model, sampling, noise = with_preset(model, sampling, noise)
    request = Transition(
        a,
        b,
        prompt,
        frames=frames,
        overlap=overlap,
        noise=noise,
        size=None if size is None else read_size(size),
        fit=fit,
        **values_of(sampling),
    )
    check_output(output)
    path = output.path(*transition_name(a, b, request.seed))
    check_paths([path], output, request.files())
    request = opened(request, terminal)
    limits = limits_of(model, terminal)
    check_rate(output, limits)
    settings = request.check(limits)
    check_paths([path], output, bytes_needed=bytes_of(limits, settings))
    notes = say_notes(request, limits, model, terminal)
    pipe = open_pipeline(
        model,
        terminal,
        size=settings.size,
        frames=settings.frames,
        sampling=settings,
    )
    return make({path: partial(request.run, pipe)}, output, terminal, notes=notes)
