"""`pusa extend`: continue a clip, forwards or backwards."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from pusa.cli.shared.arguments import extension_name
from pusa.cli.shared.arguments import size as read_size
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
from pusa.cli.shared.options import (
    CLIP,
    File,
    Model,
    Output,
    Sampling,
    Switch,
    Whole,
    model_default,
    values_of,
    with_preset,
)
from pusa.cli.shared.terminal import Report, Terminal
from pusa.generation.request import Extend


def extend(
    clip: Annotated[Path, File, Parameter(metavar="CLIP")],
    prompt: str = "",
    *,
    backward: Annotated[bool, Switch, Parameter(group=CLIP)] = False,
    frames: Annotated[int | None, Whole, Parameter(group=CLIP, show_default=model_default)] = None,
    overlap: Annotated[int | None, Whole, Parameter(group=CLIP, show_default=model_default)] = None,
    noise: Annotated[float | None, Parameter(group=CLIP, show_default=lambda _: "0")] = None,
    size: Annotated[
        str | None, Parameter(group=CLIP, metavar="WxH", show_default=lambda _: "the clip's, else the model's own")
    ] = None,
    fit: Annotated[Literal["crop", "pad", "stretch"], Parameter(group=CLIP)] = "crop",
    sampling: Sampling = Sampling(),
    model: Model = Model(),
    output: Output = Output(),
) -> Report:
    """Continue a clip forwards or backwards. The result contains the clip and the new frames.

    If the file with the clip's latents is in the same folder, it is used, so that colours do not shift at the join.

    Parameters
    ----------
    clip
        The clip to continue.
    prompt
        What the new frames show.
    backward
        Add frames before the clip, not after it.
    frames
        How many frames to add: a multiple of 4.
    overlap
        How many frames of the clip the model sees: 4n+1.
    noise
        Noise multiplier of the overlap: 0 keeps it exactly, more gives the new frames more freedom.
    size
        Width and height in pixels, multiples of 16.
    fit
        How a clip of another aspect ratio is fitted to the size.
    """
    terminal = Terminal(output.verbosity.verbose)
    model, sampling, noise = with_preset(model, sampling, noise)
    request = Extend(
        clip,
        prompt,
        direction="backward" if backward else "forward",
        frames=frames,
        overlap=overlap,
        noise=noise,
        size=None if size is None else read_size(size),
        fit=fit,
        **values_of(sampling),
    )
    check_output(output)
    path = output.path(*extension_name(clip, request.seed, backward=backward))
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
