"""What a benchmark says: one section of docs/performance.md, as JSON.

    {
      "title": "Scaling",
      "command": "python benchmarks/scaling.py --json docs/results/performance/scaling.json",
      "machine": {"device": "CPU, 1 thread", "torch": "2.13.0", "threads": 1, "busy": false, ...},
      "text": ["A paragraph before the tables.", "Another one."],
      "tables": [{"head": ["", "time"], "rows": [["a step", "1.2 s"]], "title": "optional", "text": ["optional"]}],
      "plots": ["scaling.png"],
      "numbers": {...}
    }

`title` and `command` are required; the other keys may be absent. Texts are Markdown. A table may have a title, and
paragraphs before it. Plots are files beside the JSON file. `numbers` are for programs, and the page does not show them.
"""

from __future__ import annotations

import functools
import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pusa.files import write_json


@dataclass
class Table:
    """head: the names of the columns. rows: the cells, as text. title, text: what stands above the table."""

    head: list[str]
    rows: list[list[str]]
    title: str = ""
    text: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [self.head, ["---"] + ["---:"] * (len(self.head) - 1), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


@dataclass
class Section:
    """See the docstring of the module."""

    title: str
    command: str
    machine: dict[str, Any] = field(default_factory=dict)
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    plots: list[str] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Section:
        data = json.loads(path.read_text(encoding="utf-8"))
        data["tables"] = [Table(**table) for table in data.get("tables", [])]
        return cls(**data)

    def write(self, path: Path | None) -> None:
        """Print the tables, and write the file if there is a path."""
        for table in self.tables:
            print(f"\n{table.title}" if table.title else "")
            print(aligned([table.head, *table.rows]))
        print("", *self.text, sep="\n")
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, asdict(self))

    def page(self, folder: str) -> str:
        """Return the section in Markdown. folder: the place of the plots, from the page."""
        parts = [f"## {self.title}", *map(wrapped, self.text)]
        for table in self.tables:
            parts += [f"### {table.title}"] if table.title else []
            parts += [*map(wrapped, table.text), str(table)]
        parts += [f"![{self.title}]({folder}/{plot})" for plot in self.plots]
        if self.machine:
            parts.append(wrapped(about(self.machine)))
        return "\n\n".join([*parts, f"```shell\n{self.command}\n```"])


def wrapped(text: str) -> str:
    """Return a paragraph or a list in lines of at most 120 characters."""
    fill = functools.partial(textwrap.fill, width=120, break_long_words=False, break_on_hyphens=False)
    return "\n".join(fill(line, subsequent_indent="  " if line.startswith("* ") else "") for line in text.splitlines())


def about(machine: dict[str, Any]) -> str:
    """Return one sentence on the machine, and a second one if it had other work."""
    names = {"device": "", "processor": "", "cores": " cores", "torch": "torch ", "diffusers": "diffusers "}
    known = [(name, machine[name]) for name in names if machine.get(name)]
    words = [f"{value}{names[name]}" if name == "cores" else f"{names[name]}{value}" for name, value in known]
    busy = (
        " Other programs ran at the same time, so trust the ratios and not the seconds." if machine.get("busy") else ""
    )
    return f"Measured on: {', '.join(words)}.{busy}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as text in columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *line[1:]]) for row, line in zip(rows, lines, strict=True))
