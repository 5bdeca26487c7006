"""`pusa evaluate --world`: models on every task of the synthetic world, beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pusa.cli.shared.arguments import lora
from pusa.cli.shared.terminal import Report, Terminal, clock
from pusa.errors import InputError

if TYPE_CHECKING:
    from pusa.evaluation.synthetic.benchmark import Candidate

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


def compare(
    models: Sequence[str],
    loras: Sequence[str],
    *,
    tasks: Sequence[str],
    scenes: int,
    steps: int | None,
    guidance: float | None,
    shift: float | None,
    out: Path,
    jobs: int,
    terminal: Terminal,
) -> Report:
    """Score the models and write world.json and world.png beside the scores.

    models: each MODEL or MODEL+LORA[:STRENGTH]+…; loras: more for all of them.
    """
    if scenes < 1 or jobs < 1:
        raise InputError(f"--scenes {scenes} and --jobs {jobs}: give 1 or more.")
    with terminal.status("Starting"):
        from functools import partial

        from pusa.evaluation import results_folder
        from pusa.evaluation.synthetic.benchmark import Benchmark, Candidate, make
        from pusa.evaluation.synthetic.tasks import TASKS
        from pusa.files import write_json

    candidates = [
        Candidate(_name(text, loras), *_parts(text, loras), steps=steps, guidance=guidance, shift=shift)
        for text in models
    ]
    chosen = list(tasks) or list(TASKS)
    benchmark = Benchmark(out, candidates, chosen, scenes)
    wanted = benchmark.units()
    with terminal.counting() as progress:
        results_folder.make_in_processes(
            jobs, partial(make, out, tuple(candidates), tuple(chosen), scenes), wanted, "Making clips", progress
        )
    record = benchmark.results()
    record["seconds"] = results_folder.seconds(wanted, out)
    write_json(out / "world.json", record)
    sheet = benchmark.sheet(out / "world.png")
    return Report(
        record | {"files": [str(out / "world.json"), str(sheet)]},
        "\n\n".join([*(_table(TASKS[task].title, record["tasks"][task], candidates) for task in chosen),
                     f"{out / 'world.json'}\n{sheet}\n{clock(record['seconds'])} of one process."]),
    )  # fmt: skip


def _parts(text: str, more: Sequence[str]) -> tuple[str, tuple[tuple[str, float], ...]]:
    source, *files = text.split("+")
    each = [lora(file, 1.0, "--world") for file in files] + [lora(file, 1.0) for file in more]
    if not source:
        raise InputError(f"--world {text}: no model stands before the first +; give MODEL+LORA:STRENGTH.")
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
