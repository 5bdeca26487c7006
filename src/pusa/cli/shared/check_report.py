"""How `pusa check` looks: what is there, the buckets, what is not used and why, and what the run takes."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pusa.cli.shared.terminal import count, printable

if TYPE_CHECKING:
    from pusa.models.backbone import Geometry
    from pusa.training.data.dataset import Problem
    from pusa.training.data.samples import Plan
    from pusa.training.estimate import Estimate

NAMES = {
    "unreadable": "cannot be read",
    "truncated": "cut off",
    "missing": "not there",
    "no-caption": "without a caption",
    "too-short": "fit no bucket",
    "too-small": "too small",
    "duplicate": "there twice",
    "unused": "no clips, or not named",
}
"""How each kind of problem is headed, in the order in which they are shown."""
SHOWN = 12
"""On a terminal, that many files of each kind are named; into a pipe or a file, all."""


def render(record: dict[str, Any], plan: Plan, run: Estimate | None, geometry: Geometry) -> str:
    """The report as text, in colour and as wide as the terminal when stdout is one."""
    terminal = sys.stdout.isatty()
    width = min(shutil.get_terminal_size((110, 40)).columns, 130) if terminal or "COLUMNS" in os.environ else 110
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, highlight=False)
    parts = [_what(record), _buckets(record), *_problems(record, plan, geometry, SHOWN if terminal else None)]
    console.print(Group(*parts, _run(record, run)))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _heading(text: str, rest: str = "") -> Text:
    return Text.assemble("\n", (text, "bold"), ("  " + rest if rest else "", "dim"))


def _what(record: dict[str, Any]) -> Any:
    clips = record["clips"]
    table = Table.grid(padding=(0, 3, 0, 0))
    table.add_column(style="dim")
    table.add_column()
    kinds = [count(clips["videos"], "video"), *([count(clips["pictures"], "picture")] if clips["pictures"] else [])]
    table.add_row("clips", " and ".join(kinds) if clips["readable"] else "none that can be read")
    if clips["videos"]:
        least, middle, most = clips["lengths"]
        spread = (
            f"{least:.3g} s" if least == most else f"{least:.3g} to {most:.3g} s, half of them up to {middle:.3g} s"
        )
        table.add_row("lengths", f"{spread}; {duration(clips['seconds'])} in all")
        table.add_row("fps", _tally(clips["fps"]))
    if clips["sizes"]:
        table.add_row("sizes", _tally(clips["sizes"]))
    if clips["words"]:
        least, _, most = clips["words"]
        words = f"{least} to {most:,} words" if least < most else count(least, "word")
        table.add_row("captions", f"{clips['captions']:,}, of {words}")
    title = Text.assemble((record["data"], "bold"), (f"  {record['layout']}", "dim"))
    return Group(title, Padding(table, (0, 0, 0, 2)))


def _buckets(record: dict[str, Any]) -> Any:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("width x height x frames")
    table.add_column("clips", justify="right")
    table.add_column("samples", justify="right")
    table.add_column("")
    most = max((row["samples"] for row in record["buckets"]), default=0)
    for row in record["buckets"]:
        bar = "█" * max(1, round(40 * row["samples"] / most)) if row["samples"] else ""
        style = "" if row["samples"] else "yellow"
        table.add_row(row["bucket"], f"{row['clips']:,}", f"{row['samples']:,}", Text(bar, "green"), style=style)
    parts: list[Any] = [
        _heading("Buckets", f"at {record['fps']:g} fps, for {record['model']}"),
        Padding(table, (0, 0, 0, 2)),
    ]
    unused = record["clips"]["seconds"] - record["sampled_seconds"]
    if record["cut"] == "head" and record["samples"] and unused > record["sampled_seconds"]:
        note = f"The samples show {duration(record['sampled_seconds'])} of {duration(record['clips']['seconds'])}; "
        parts.append(_note(note + "--cut uniform or --cut slide takes more from each clip."))
    for row in record["cropped"]:
        least, most = (f"{100 * row[name]:.0f}" for name in ("least", "most"))
        share, of = (most if least == most else f"{least} to {most}"), count(row["clips"], "clip")
        worst = f", most of {Path(row['worst']).name}" if row["clips"] > 1 else f", {Path(row['worst']).name}"
        note = f"{row['bucket']} crops away {share} % of the picture of {of}{printable(worst)}; "
        parts.append(Padding(Text(note + "a bucket of their shape would keep it.", "yellow"), (0, 0, 0, 2)))
    if record["samples"]:
        kept = record["held_out"]
        note = f"pusa train keeps {count(kept, 'clip')} apart to validate with; --data.held_out says how many."
        few = "pusa train keeps no clip apart to validate with: these are fewer than 10; --data.held_out 1 keeps one."
        parts.append(_note(note if kept else few))
    return Group(*parts)


def share(part: int, whole: int) -> str:
    """`1 of 3 clips is`."""
    return f"{part:,} of {count(whole, 'clip')} {'is' if part == 1 else 'are'}"


def _problems(record: dict[str, Any], plan: Plan, geometry: Geometry, shown: int | None) -> list[Any]:
    if not plan.problems:
        return [_heading("All of them are used.")]
    clips = record["clips"]
    root = Path(record["data"]).expanduser().absolute()
    order = list(NAMES)
    problems = sorted(plan.problems, key=lambda problem: order.index(problem.kind))
    left_out = clips["found"] - clips["used"]
    kinds = Counter(problem.kind for problem in problems if problem.kind != "unused")
    why = ", ".join(f"{number:,} {_named(kind, number)}" for kind, number in kinds.items())
    heading = f"{share(left_out, clips['found'])} not used" if left_out else "All clips are used"
    parts: list[Any] = [_heading(heading, why)]
    for kind, several in groupby(problems, key=lambda problem: problem.kind):
        named = list(several)
        parts.append(Padding(_kind(kind, named, root, shown, _short_ones(named, plan, geometry)), (0, 0, 0, 2)))
    return parts


def _short_ones(problems: list[Problem], plan: Plan, geometry: Geometry) -> str:
    """How many clips are too short, and which length would take most of them in."""
    paths = {problem.path for problem in problems if problem.kind == "too-short"}
    files = [file for file in plan.files if file.path in paths and file.frames > 1 and not file.ready]
    if not files:
        return ""
    longest = max(geometry.whole(file.frames_at(plan.fps)) for file in files)
    return f"{len(files)} too short at {plan.fps:g} fps (longest bucket that fits: {count(longest, 'frame')})"


def _kind(kind: str, problems: list[Problem], root: Path, shown: int | None, summary: str) -> Any:
    style = "dim" if kind == "unused" else "yellow"
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(overflow="fold", max_width=48)
    table.add_column(style="dim", overflow="fold")
    for problem in problems[:shown]:
        table.add_row(Text(_short(problem.path, root)), Text(printable(problem.reason.replace(f"{root}/", ""))))
    title = Text.assemble(
        (f"{len(problems):,} {_named(kind, len(problems))}", style), (f"  {summary}" if summary else "", "dim")
    )
    parts: list[Any] = [title, Padding(table, (0, 0, 0, 2))]
    if shown is not None and len(problems) > shown:
        parts.append(
            Text(f"  and {len(problems) - shown} more: pipe this into a file or give --json to see all", "dim")
        )
    return Group(*parts)


def _named(kind: str, number: int) -> str:
    """How a kind is headed for so many files."""
    return "fits no bucket" if kind == "too-short" and number == 1 else NAMES[kind]


def _short(path: Path | str, root: Path) -> str:
    """As the person would name it."""
    path = Path(path)
    return printable(str(path.relative_to(root)) if path.is_relative_to(root) else str(path))


def _run(record: dict[str, Any], run: Estimate | None) -> Any:
    if run is None:
        return _heading("No sample, no training.", "give other --buckets, or mend what is named above")
    from pusa.training.estimate import EFFICIENCY

    what = f"LoRA of {_big(run.trained)} parameters on {_big(run.parameters)}"
    what = f"all {_big(run.parameters)} parameters" if run.trained == run.parameters else what
    table = Table.grid(padding=(0, 3, 0, 0))
    table.add_column(style="dim")
    table.add_column()
    table.add_column(style="dim")
    table.add_row("samples", f"{run.samples:,}", f"{_plain(run.epochs)} times each of {record['samples']:,}")
    fixed = (
        f"{_bytes(run.weights + run.optimiser)} for weights and optimiser, the rest for {run.tokens:,} tokens a sample"
    )
    table.add_row("memory", f"about {_bytes(run.memory)}", fixed)
    table.add_row("", f"or {_bytes(run.memory_checkpointed)}", "with gradient checkpointing, in a third more time")
    share = " to ".join(f"{100 * part:.0f}" for part in EFFICIENCY)
    table.add_row(
        "time",
        f"{duration(run.seconds[0])} to {duration(run.seconds[1])}",
        f"{_big(run.flops_per_step)}FLOP a step at {share} % of the {_big(run.rate)}FLOP/s measured on "
        f"{record['estimate']['device']}, the longer time with checkpointing; validation and previews come on top",
    )
    if run.cost:
        table.add_row("cost", f"{run.cost[0]:,.2f} to {run.cost[1]:,.2f}", "that time at the given price")
    else:
        table.add_row("cost", "-", "give --price for an hour of this machine")
    note = (
        "Computed from the model's config and the samples, right within a third. The program itself takes about 1 GB "
        "more, and encoding the clips (pusa prepare) comes before it."
    )
    return Group(_heading("The run", what), Padding(table, (0, 0, 0, 2)), _note(note))


def _note(text: str) -> Any:
    return Padding(Text(text, "dim"), (0, 0, 0, 2))


def _tally(counts: dict[str, int]) -> str:
    items = list(counts.items())
    if len(items) == 1:
        return items[0][0]
    text = ", ".join(f"{name} ({count:,})" for name, count in items[:5])
    return text + (f", and {len(items) - 5} more" if len(items) > 5 else "")


def _plain(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"


def _big(number: float) -> str:
    """Three digits and a prefix: 4.57 M, 157 G."""
    for prefix in ("", " k", " M", " G", " T", " P"):
        if number < 999.5:
            return f"{number:.3g}{prefix}" + ("" if prefix else " ")
        number /= 1000
    return f"{number:,.0f} E"


def _bytes(number: float) -> str:
    if number < 0.95e9:
        return f"{number / 1e6:,.0f} MB"
    return f"{number / 1e9:.1f} GB" if number < 99.5e9 else f"{number / 1e9:,.0f} GB"


def duration(seconds: float) -> str:
    """`41 s`, `5 min`, `3.2 h` or `12 days`."""
    for unit, size, limit in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 72)):
        if seconds < limit * size:
            value = seconds / size
            return f"{value:.0f} {unit}" if value >= 9.95 or unit == "s" else f"{value:.1f} {unit}"
    return f"{seconds / 86400:,.0f} days"
