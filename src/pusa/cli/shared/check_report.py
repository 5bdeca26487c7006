"""The text report of `pusa check`: the clips, the buckets, the unused files and why, and the cost of a training."""

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
from pusa.files import lines_of

if TYPE_CHECKING:
    from pusa.models.backbone import Geometry
    from pusa.training.data.dataset import Problem
    from pusa.training.data.samples import Plan
    from pusa.training.estimate import Estimate

NAMES = {
    "unreadable": "cannot be read",
    "truncated": "truncated",
    "missing": "missing",
    "no-caption": "without a caption",
    "too-short": "fit no bucket",
    "too-small": "too small",
    "duplicate": "duplicates",
    "unused": "not clips, or not listed",
}
"""The heading of each kind of problem, in the order of the report."""
SINGULAR = {"too-short": "fits no bucket", "duplicate": "duplicate", "unused": "not a clip, or not listed"}
"""The headings that differ for a single file."""
SHOWN = 12
"""How many files of each kind a terminal shows. A pipe or a file gets all of them."""


def render(record: dict[str, Any], plan: Plan, run: Estimate | None, geometry: Geometry) -> str:
    """Return the report as text. If stdout is a terminal, the text has its width and colours."""
    terminal = sys.stdout.isatty()
    width = min(shutil.get_terminal_size((110, 40)).columns, 130) if terminal or "COLUMNS" in os.environ else 110
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, highlight=False)
    parts = [_overview(record), _buckets(record), *_problems(record, plan, geometry, SHOWN if terminal else None)]
    console.print(Group(*parts, _estimate(record, run)))
    return "\n".join(line.rstrip() for line in lines_of(out.getvalue()))


def _heading(text: str, rest: str = "") -> Text:
    return Text.assemble("\n", (text, "bold"), ("  " + rest if rest else "", "dim"))


def _overview(record: dict[str, Any]) -> Any:
    clips = record["clips"]
    table = Table.grid(padding=(0, 3, 0, 0))
    table.add_column(style="dim")
    table.add_column()
    kinds = [count(clips["videos"], "video"), *([count(clips["pictures"], "picture")] if clips["pictures"] else [])]
    table.add_row("clips", " and ".join(kinds) if clips["readable"] else "none is readable")
    if clips["videos"]:
        least, middle, most = clips["lengths"]
        spread = f"{least:.3g} s" if least == most else f"{least:.3g} to {most:.3g} s, median {middle:.3g} s"
        table.add_row("lengths", f"{spread}; total {duration(clips['seconds'])}")
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
        used, total = duration(record["sampled_seconds"]), duration(record["clips"]["seconds"])
        note = f"The samples use {used} of {total}. --data.cut uniform and --data.cut slide use more of each clip."
        parts.append(_note(note))
    for row in record["cropped"]:
        least, most = (f"{100 * row[name]:.0f}" for name in ("least", "most"))
        share, clips = (most if least == most else f"{least} to {most}"), count(row["clips"], "clip")
        worst = Path(row["worst"]).name
        examples = f"{clips}, most from {worst}" if row["clips"] > 1 else f"{clips}, {worst}"
        note = f"The bucket {row['bucket']} crops {share} % of the picture from {printable(examples)}."
        parts.append(Padding(Text(note, "yellow"), (0, 0, 0, 2)))
    if record["better_buckets"]:
        line = f"--data.buckets {','.join(record['better_buckets'])}"
        parts.append(_note("These buckets keep the pictures of more clips; --data.buckets auto chooses them itself:"))
        parts.append(Padding(Text(line, no_wrap=True, overflow="ignore"), (0, 0, 0, 2)))
    too_long = record["too_long"]
    if clips := too_long["clips"]:
        named = ", ".join(f"{printable(Path(one['path']).name)} ({one['tokens']:,})" for one in clips[:3])
        more = f" and {len(clips) - 3} more" if len(clips) > 3 else ""
        has = "has" if len(clips) == 1 else "have"
        note = (
            f"{count(len(clips), 'caption')} {has} more than {too_long['limit']} tokens, and the model does not read "
        )
        note += f"the rest: {named}{more}. Shorten {'it' if len(clips) == 1 else 'them'}."
        parts.append(Padding(Text(note, "yellow"), (0, 0, 0, 2)))
    if too_long["unknown"]:
        parts.append(_note(f"The tokens of long captions are not counted: {too_long['unknown']}"))
    if record["samples"]:
        held_out = record["held_out"]
        note = f"pusa train holds out {count(held_out, 'clip')} for validation. Set --data.held_out to change this."
        few = "pusa train holds out no clip for validation. Set --data.held_out 1 to hold one out."
        parts.append(_note(note if held_out else few))
    return Group(*parts)


def share(part: int, whole: int) -> str:
    """Return for example `1 of 3 clips is`."""
    return f"{part:,} of {count(whole, 'clip')} {'is' if part == 1 else 'are'}"


def _problems(record: dict[str, Any], plan: Plan, geometry: Geometry, shown: int | None) -> list[Any]:
    if not plan.problems:
        return [_heading("All clips are used.")]
    clips = record["clips"]
    root = Path(record["data"]).expanduser().absolute()
    order = list(NAMES)
    problems = sorted(plan.problems, key=lambda problem: order.index(problem.kind))
    unused = clips["found"] - clips["used"]
    kinds = Counter(problem.kind for problem in problems if problem.kind != "unused")
    reasons = ", ".join(f"{number:,} {_title(kind, number)}" for kind, number in kinds.items())
    heading = f"{share(unused, clips['found'])} not used" if unused else "All clips are used"
    parts: list[Any] = [_heading(heading, reasons)]
    for kind, group in groupby(problems, key=lambda problem: problem.kind):
        members = list(group)
        parts.append(Padding(_kind(kind, members, root, shown, _too_short(members, plan, geometry)), (0, 0, 0, 2)))
    return parts


def _too_short(problems: list[Problem], plan: Plan, geometry: Geometry) -> str:
    """Return how many clips are too short, and the length of the longest bucket that one of them fits."""
    paths = {problem.path for problem in problems if problem.kind == "too-short"}
    files = [file for file in plan.files if file.path in paths and file.frames > 1 and not file.is_encoded]
    if not files:
        return ""
    longest = max(geometry.whole(file.frames_at(plan.fps)) for file in files)
    fits = f" (longest bucket that fits: {count(longest, 'frame')})" if longest > 1 else ""
    return f"{len(files)} too short at {plan.fps:g} fps{fits}"


def _kind(kind: str, problems: list[Problem], root: Path, shown: int | None, summary: str) -> Any:
    style = "dim" if kind == "unused" else "yellow"
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(overflow="fold", max_width=48)
    table.add_column(style="dim", overflow="fold")
    for problem in problems[:shown]:
        table.add_row(Text(_short(problem.path, root)), Text(printable(problem.reason.replace(f"{root}/", ""))))
    title = Text.assemble(
        (f"{len(problems):,} {_title(kind, len(problems))}", style), (f"  {summary}" if summary else "", "dim")
    )
    parts: list[Any] = [title, Padding(table, (0, 0, 0, 2))]
    if shown is not None and len(problems) > shown:
        parts.append(
            Text(f"  and {len(problems) - shown} more; write the output to a file or give --json to see all", "dim")
        )
    return Group(*parts)


def _title(kind: str, number: int) -> str:
    """Return the heading of a kind of problem that `number` files have."""
    if number == 1 and kind in SINGULAR:
        return SINGULAR[kind]
    return NAMES[kind]


def _short(path: Path | str, root: Path) -> str:
    """Return the path relative to `root` if it lies inside."""
    path = Path(path)
    return printable(str(path.relative_to(root)) if path.is_relative_to(root) else str(path))


def _estimate(record: dict[str, Any], run: Estimate | None) -> Any:
    if run is None:
        return _heading("There is no sample to train on.", "give other --data.buckets, or fix the files above")
    from pusa.training.estimate import EFFICIENCY

    trained = f"LoRA of {_big(run.trained)} parameters on {_big(run.parameters)}"
    trained = f"all {_big(run.parameters)} parameters" if run.trained == run.parameters else trained
    table = Table.grid(padding=(0, 3, 0, 0))
    table.add_column(style="dim")
    table.add_column()
    table.add_column(style="dim")
    each = f"each of the {record['training_samples']:,} training samples {_plain(run.epochs)} times"
    table.add_row("samples", f"{run.samples:,}", each)
    fixed = (
        f"{_bytes(run.weights + run.optimiser)} for weights and optimiser, the rest for {run.tokens:,} tokens per "
        "sample"
    )
    if predicted := record["step_memory"]:
        table.add_row("memory", f"about {_bytes(predicted['device'])}", predicted["text"])
    elif record["checkpointing"]:
        table.add_row("memory", f"about {_bytes(run.memory_checkpointed)}", f"{fixed}, with gradient checkpointing")
    else:
        table.add_row("memory", f"about {_bytes(run.memory)}", fixed)
        with_it = "with --train.gradient_checkpointing true, which takes a third more time"
        table.add_row("", f"or {_bytes(run.memory_checkpointed)}", with_it)
    share = " to ".join(f"{100 * part:.0f}" for part in EFFICIENCY)
    table.add_row(
        "time",
        f"{duration(run.seconds[0])} to {duration(run.seconds[1])}",
        f"{_big(run.flops_per_step)}FLOP per step at {share} % of the {_big(run.rate)}FLOP/s measured on "
        f"{record['estimate']['device']}; the upper limit is with checkpointing; validation and previews are not "
        "included",
    )
    if run.cost:
        table.add_row("cost", f"{run.cost[0]:,.2f} to {run.cost[1]:,.2f}", "for that time at the given price")
    else:
        table.add_row("cost", "-", "give --price, the price of one hour of this machine")
    note = (
        "The estimate is computed from the model's config and the samples. Its error is below one third. It does not "
        "include about 1 GB for the program itself, or the time for encoding the clips (pusa prepare)."
    )
    return Group(_heading("Estimated training", trained), Padding(table, (0, 0, 0, 2)), _note(note))


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
    """Return a number with three digits and a prefix, such as `4.57 M` or `157 G`."""
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
    """Return a duration such as `41 s`, `5 min`, `3.2 h` or `12 days`."""
    for unit, size, limit in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 72)):
        if seconds < limit * size:
            value = seconds / size
            return f"{value:.0f} {unit}" if value >= 9.95 or unit == "s" else f"{value:.1f} {unit}"
    return f"{seconds / 86400:,.0f} days"
