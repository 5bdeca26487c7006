"""`pusa calibrate`: measure the accelerations on a model and this machine, for --speed and --min-psnr."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from pusa.cli.shared.arguments import size as read_size
from pusa.cli.shared.clip_jobs import limits_of, open_pipeline
from pusa.cli.shared.options import (
    CLIP,
    SAMPLING,
    File,
    Many,
    Model,
    SeedlessSampling,
    Verbosity,
    Whole,
    model_default,
    with_preset,
)
from pusa.cli.shared.terminal import Report, Terminal
from pusa.errors import InputError
from pusa.generation.calibration import place

if TYPE_CHECKING:
    from pusa.generation.calibration import Calibration

GAIN = 1.3
"""the speed below which an acceleration hardly pays"""


def calibrate(
    source: str | None = None,
    *,
    steps: Annotated[int | None, Whole, Parameter(group=SAMPLING, show_default=model_default)] = None,
    guidance: Annotated[float | None, Parameter(group=SAMPLING, show_default=model_default)] = None,
    frames: Annotated[int | None, Whole, Parameter(group=CLIP, show_default=model_default)] = None,
    size: Annotated[str | None, Parameter(group=CLIP, metavar="WxH", show_default=model_default)] = None,
    prompt: Annotated[tuple[str, ...], Many, Parameter(group=CLIP)] = (),
    search: Annotated[float | None, Parameter(metavar="SHARE")] = None,
    plot: Annotated[Path | None, File, Parameter(metavar="FILE.png")] = None,
    model: Model = Model(),
    verbosity: Verbosity = Verbosity(),
) -> Report:
    """Measure how fast and how close to the plain clip each acceleration is, and keep the result.

    Afterwards pusa generate --speed 2 chooses the acceleration that stays closest among those that are twice as fast,
    and --min-psnr 30 the fastest one with at least 30 dB. The pictures that image to video and extension need come
    from the model's own clips. With smaller clips or fewer steps it takes less time; --speed then applies to clips of
    as many steps.

    Parameters
    ----------
    source
        The model, as for --model.
    steps
        Sampling steps.
    guidance
        Classifier-free guidance scale.
    frames
        Length of the clips in frames.
    size
        Width and height of the clips in pixels.
    prompt
        What the clips show; each prompt is one more clip of every task. Repeatable.
    search
        Search for the shares of tokens of each step whose mean is this one, such as 0.5, and measure the best ones too.
        With 30 steps and three prompts it samples about 600 more clips.
    plot
        Draw speed against closeness into this file.
    """
    from dataclasses import replace

    terminal = Terminal(verbosity.verbose)
    if source is not None:
        if model.model is not None:
            raise InputError(f"The model is given twice, as {source} and with --model {model.model}: leave one out.")
        if model.preset is not None:
            raise InputError(f"--preset {model.preset} names a model, too: leave {source} out.")
        model = replace(model, model=source)
    if plot is not None and plot.suffix not in (".png", ".svg"):
        raise InputError(f"--plot {plot}: plots are written as .png or .svg; use {plot.with_suffix('.png')}.")
    if search is not None and not 0 < search < 1:
        raise InputError(f"--search {search:g}: give a mean share of the tokens between 0 and 1, such as 0.5.")
    model, sampling, _ = with_preset(model, SeedlessSampling(steps=steps, guidance=guidance), None)
    options: dict[str, Any] = {
        "steps": sampling.steps,
        "guidance": sampling.guidance,
        "shift": sampling.shift,
        "frames": frames,
        "size": None if size is None else read_size(size),
    }
    settings = limits_of(model, terminal).settings(**options)
    if settings.steps < 4:
        raise InputError(f"--steps {settings.steps}: with fewer than 4 steps there is nothing to leave out; give more.")
    place(model.source, settings.steps)
    pipe = open_pipeline(
        model, terminal, size=settings.size, frames=settings.frames, sampling=replace(settings, accelerate="tokens")
    )  # of the accelerations that are measured, it needs the most memory
    from pusa.evaluation.acceleration.budgets import searched_on
    from pusa.evaluation.acceleration.calibrate import CANDIDATES, PROMPTS
    from pusa.evaluation.acceleration.calibrate import calibrate as measure

    prompts = prompt or PROMPTS
    with terminal.counting() as progress:
        best = [] if search is None else [searched_on(pipe, prompts, search, progress, **options)]
        found = measure(pipe, prompts, [*CANDIDATES, *best], progress, **options)
    path = found.save()
    record: dict[str, Any] = {"calibration": str(path), "settings": [vars(one) for one in found.settings()]}
    record["proxies"] = dict(found.proxies)
    if plot is not None:
        record["plot"] = str(_draw(found, plot))
    return Report(record, f"{_table(found)}\n{path}" + (f"\n{plot}" if plot is not None else ""))


def _draw(found: Calibration, path: Path) -> Path:
    """Draw a line for each kind of acceleration."""
    from pusa.evaluation.plots import curves

    kinds: dict[str, list[tuple[float, float]]] = {}
    for one in found.settings():
        kind = "+".join(part.split(",")[0] for part in one.accelerate.split("+"))
        kinds.setdefault(kind, []).append((one.speed, one.psnr))
    title = f"{Path(found.source).name}, {found.steps} steps, in the worst of the tasks"
    return curves(
        path, kinds, xlabel="times as fast as the plain clip", ylabel="PSNR to the plain clip (dB)", title=title
    )


def _table(found: Calibration) -> str:
    """Return a line for each acceleration that no other one beats in both speed and closeness."""
    settings, shown = found.settings(), []
    for one in settings:
        if not any(other.speed > one.speed and other.psnr >= one.psnr for other in settings):
            shown.append(one)
    lines = [["", "speed", "closeness", "computed"]]
    lines += [[one.accelerate, f"{one.speed:.2f}x", f"{one.psnr:.1f} dB", f"{one.computed:.0%}"] for one in shown]
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    table = [
        " ".join(
            text.ljust(w) if i == 0 else text.rjust(w + 1) for i, (text, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    table.append(f"The table has the {len(shown)} of {len(settings)} settings that no other one beats.")
    if shown[0].speed < GAIN:
        table.append(
            "None is much faster than the plain clip: with few steps, steps differ too much, and with small clips, a "
            "block takes little of the time."
        )
    return "\n".join(table)
