"""`pusa benchmark`: models on every task of the synthetic world, beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from pusa.cli.shared.arguments import lora as read_lora
from pusa.cli.shared.options import OUTPUT, SAMPLING, File, Many, Talk, Whole, of_model
from pusa.cli.shared.terminal import Report, Terminal, clock
from pusa.errors import InputError

if TYPE_CHECKING:
    from pusa.evaluation.synthetic.benchmark import Candidate

MODELS = Group.create_ordered("What is scored")
SHOWN = {
    "db": ("PSNR", 1.0, "dB"),
    "over_baseline": ("over baseline", 1.0, "dB"),
    "motion": ("motion", 100.0, "%"),
    "colour": ("colour", 100.0, "%"),
    "shape": ("shape", 100.0, "%"),
    "direction": ("direction", 100.0, "%"),
    "held_db": ("given frames", 1.0, "dB"),
}
"""Measures as they are printed: name, scale, unit."""


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
    talk: Talk = Talk(),
) -> Report:
    """Score models on every task of the synthetic world, on the same held-out scenes, beside each other.

    Scores are kept, so that a second run measures only what is new.

    Parameters
    ----------
    models
        Models: tiny, tiny-base, a folder, a file or a hub id, each with LoRAs after a +, such as
        tiny-base+mine.safetensors:1.4.
    lora
        A LoRA that all of these models get. Repeatable.
    tasks
        Some of the tasks, such as image-to-video extension; by default all.
    scenes
        Held-out scenes of each task.
    steps
        Sampling steps.
    guidance
        Classifier-free guidance scale.
    shift
        Timestep shift.
    out
        Folder for the scores, world.json and world.png.
    workers
        Processes that work at the same time.
    """
    terminal = Terminal(talk.talkative)
    if not models:
        raise InputError("there is no model to score; give one or more, such as tiny tiny-base.")
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
    wanted = run.units()
    with terminal.counting() as progress:
        results_folder.make_in_processes(
            workers, partial(make, out, tuple(candidates), tuple(chosen), scenes), wanted, "Making clips", progress
        )
    record = run.results()
    record["seconds"] = results_folder.seconds(wanted, out)
    write_json(out / "world.json", record)
    sheet = run.sheet(out / "world.png")
    return Report(
        record | {"files": [str(out / "world.json"), str(sheet)]},
        "\n\n".join([*(_table(TASKS[task].title, record["tasks"][task], candidates) for task in chosen),
                     f"{out / 'world.json'}\n{sheet}\n{clock(record['seconds'])} of one process."]),
    )  # fmt: skip


def _parts(text: str, more: Sequence[str]) -> tuple[str, tuple[tuple[str, float], ...]]:
    source, *files = text.split("+")
    each = [read_lora(file, 1.0, text) for file in files] + [read_lora(file, 1.0) for file in more]
    if not source:
        raise InputError(f"{text}: no model stands before the first +; give MODEL+LORA:STRENGTH.")
    return source, tuple((str(path), scale) for path, scale in each)


def _name(text: str, more: Sequence[str]) -> str:
    source, *files = text.split("+")
    return " + ".join([Path(source).name or source, *(Path(file).name for file in [*files, *more])])


def _table(title: str, found: dict[str, Any], candidates: Sequence[Candidate]) -> str:
    """A line for each model; behind each number its interval, and whether it differs from the first model's."""
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
