"""`pusa benchmark`: score models on every task of the synthetic world."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from pusa.cli.shared.arguments import lora as read_lora
from pusa.cli.shared.options import OUTPUT, SAMPLING, File, Many, Verbosity, Whole, of_model
from pusa.cli.shared.terminal import Report, Terminal, clock
from pusa.errors import InputError

if TYPE_CHECKING:
    from pusa.evaluation.synthetic.benchmark import Candidate

MODELS = Group.create_ordered("Models and tasks")
SHOWN = {
    "db": ("PSNR", 1.0, "dB"),
    "over_baseline": ("over baseline", 1.0, "dB"),
    "motion": ("motion", 100.0, "%"),
    "colour": ("colour", 100.0, "%"),
    "shape": ("shape", 100.0, "%"),
    "direction": ("direction", 100.0, "%"),
    "held_db": ("given frames", 1.0, "dB"),
}
"""For each measure, its printed name, the factor for printing, and its unit."""


def benchmark(
    *models: str,
    lora: Annotated[tuple[str, ...], Many, Parameter(group=MODELS, metavar="PATH[:SCALE]")] = (),
    tasks: Annotated[tuple[str, ...], Many, Parameter(group=MODELS, metavar="TASK...", consume_multiple=True)] = (),
    scenes: Annotated[int, Whole, Parameter(group=MODELS)] = 64,
    steps: Annotated[int | None, Whole, Parameter(group=SAMPLING, show_default=of_model)] = None,
    guidance: Annotated[float | None, Parameter(group=SAMPLING, show_default=of_model)] = None,
    shift: Annotated[float | None, Parameter(group=SAMPLING, show_default=of_model)] = None,
    out: Annotated[Path, File, Parameter(group=OUTPUT)] = Path("outputs/evaluation"),
    workers: Annotated[int, Whole, Parameter(group=OUTPUT)] = 1,
    verbosity: Verbosity = Verbosity(),
) -> Report:
    """Score models on every task of the synthetic world and compare them on the same held-out scenes.

    Scores are kept, so a second run computes only new ones.

    Parameters
    ----------
    models
        tiny, tiny-base, a folder, a file or a hub id. Add LoRAs with +, such as tiny-base+mine.safetensors:1.4.
    lora
        A LoRA to load on every model. Repeatable.
    tasks
        Tasks, such as image-to-video extension. The default is all.
    scenes
        Number of held-out scenes for each task.
    steps
        Sampling steps.
    guidance
        Classifier-free guidance scale.
    shift
        Timestep shift.
    out
        Folder for the scores, world.json and world.png.
    workers
        Number of processes.
    """
    terminal = Terminal(verbosity.verbose)
    if not models:
        raise InputError("There is no model to score; give one or more, such as tiny tiny-base.")
    for flag, value in (("--scenes", scenes), ("--workers", workers)):
        if value < 1:
            raise InputError(f"{flag} {value}: give 1 or more.")
    with terminal.status("Starting"):
        from functools import partial

        from pusa.evaluation import results_folder
        from pusa.evaluation.synthetic.benchmark import Benchmark, Candidate, make
        from pusa.evaluation.synthetic.tasks import TASKS
        from pusa.files import write_json

    candidates = [
        Candidate(_name(text, lora), *_parts(text, lora), steps=steps, guidance=guidance, shift=shift)
        for text in models
    ]
    chosen = list(tasks) or list(TASKS)
    run = Benchmark(out, candidates, chosen, scenes)
    units = run.units()
    with terminal.counting() as progress:
        results_folder.make_in_processes(
            workers, partial(make, out, tuple(candidates), tuple(chosen), scenes), units, "Making clips", progress
        )
    record = run.results()
    record["seconds"] = results_folder.seconds(units, out)
    write_json(out / "world.json", record)
    sheet = run.sheet(out / "world.png")
    return Report(
        record | {"files": [str(out / "world.json"), str(sheet)]},
        "\n\n".join([*(_table(TASKS[task].title, record["tasks"][task], candidates) for task in chosen),
                     f"{out / 'world.json'}\n{sheet}",
                     f"Computing time, summed over processes: {clock(record['seconds'])}."]),
    )  # fmt: skip


def _parts(text: str, common_loras: Sequence[str]) -> tuple[str, tuple[tuple[str, float], ...]]:
    source, *files = text.split("+")
    loras = [read_lora(file, 1.0, text) for file in files] + [read_lora(file, 1.0) for file in common_loras]
    if not source:
        raise InputError(f"{text}: there is no model before the first +; give MODEL+LORA:SCALE.")
    return source, tuple((str(path), scale) for path, scale in loras)


def _name(text: str, common_loras: Sequence[str]) -> str:
    source, *files = text.split("+")
    return " + ".join([Path(source).name or source, *(Path(file).name for file in [*files, *common_loras])])


def _table(title: str, found: dict[str, Any], candidates: Sequence[Candidate]) -> str:
    """Return a table with a line for each model.

    Each number is followed by its interval, and by + or − if it differs significantly from that of the first model.
    """
    measures = [measure for measure in SHOWN if measure in next(iter(found.values()))]
    lines = [["", *(SHOWN[measure][0] for measure in measures)]]
    for one in candidates:
        cells = [one.name]
        for measure in measures:
            number = found[one.name][measure]
            _, scale, unit = SHOWN[measure]
            digits = 1 if unit == "dB" else 0
            ends = (number[end] for end in ("value", "low", "high"))
            value, low, high = ("–" if end is None else f"{scale * end:.{digits}f}" for end in ends)
            spread = "" if number["low"] is None else f" ({low} to {high})"
            cells.append(f"{value} {unit}{spread}{_mark(number['over_first'])}")
        lines.append(cells)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        [
            title,
            *(
                "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
                for line in lines
            ),
        ]
    )


def _mark(difference: dict[str, float | None] | None) -> str:
    if difference is None or difference["low"] is None or difference["high"] is None:
        return ""
    if difference["low"] <= 0 <= difference["high"]:
        return ""
    return " +" if difference["low"] > 0 else " −"
