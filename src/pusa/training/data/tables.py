"""Tables of clips: one row per clip, in CSV, JSON lines or JSON, with the columns of the usual trainers."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pusa.errors import InputError

DIALECTS = {
    "file_name": "text",
    "video": "prompt",
    "video_path": "caption",
    "media_path": "caption",
    "image": "prompt",
    "image_path": "caption",
}
"""Column of the file: the column of its caption that goes with it in Hugging Face, DiffSynth, musubi-tuner and LTX."""

Report = Callable[[str, str, str], None]
"""Called with the place in a table, the kind of problem and what is wrong."""


@dataclass(frozen=True)
class Row:
    """One row of a table. dialect: its two columns. lack: what to say when there is no caption."""

    name: str
    caption: str | None
    where: str
    dialect: str
    lack: str


def rows(table: Path, label: str, problem: Report) -> Iterator[Row]:
    """The rows of a table that is called `label`; a row that is not usable goes to `problem`.

    Raises InputError when the table as a whole cannot be read or lacks a column.
    """
    item = "item" if table.suffix.lower() == ".json" else "line"
    columns: set[str] = set()
    for line, cells in (_csv if table.suffix.lower() == ".csv" else _json)(table, label, problem):
        where = f"{label}, {item} {line}"
        columns |= cells.keys()
        column = next((name for name in DIALECTS if cells.get(name)), None)
        if column is None:
            if not columns & DIALECTS.keys():
                raise _no_column(label, "file", DIALECTS, cells)
            problem(where, "missing", "names no clip; fill in or remove the row")
            continue
        text = _caption_column(label, column, cells)
        name, caption = cells[column], cells.get(text)
        if not isinstance(name, str):
            problem(where, "missing", f"names a clip with {name!r:.40}, which is no text")
            continue
        lack = f"has {'an empty' if text in cells else 'no'} {text} in {where}; write what it shows"
        if caption is not None and not isinstance(caption, str):
            caption, lack = None, f"has {caption!r:.40} as its {text} in {where}, which is no text"
        yield Row(name.strip(), caption, where, f"{column},{text}", lack)


def _caption_column(label: str, column: str, row: dict[str, Any]) -> str:
    """The column of the captions: the one that goes with `column`, else the only other that can be meant."""
    if DIALECTS[column] in row:
        return DIALECTS[column]
    others = sorted(name for name in set(DIALECTS.values()) if name in row)
    if len(others) == 1:
        return others[0]
    if not others and label.lower().endswith(".csv"):
        raise _no_column(label, "caption", set(DIALECTS.values()), row)
    if not others:
        return DIALECTS[column]
    raise InputError(f"{label} has several columns of captions ({', '.join(others)}); keep the one that is meant")


def _no_column(label: str, what: str, known: Iterable[str], row: dict[str, Any]) -> InputError:
    have = ", ".join(map(str, list(row)[:8])) or "none"
    return InputError(f"{label} has no {what} column (it has {have}); name it one of {', '.join(sorted(known))}")


def _csv(table: Path, label: str, problem: Report) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, cells) of a CSV; quoted cells may hold commas and newlines; commas, semicolons or tabs divide."""
    lines = iter([line + "\n" for line in read_text(table, label).split("\n")])
    header = next((line for line in lines if line.strip()), "")
    if not header:
        raise InputError(f"{label} is empty; write a header such as file_name,text and a row for each clip")
    for delimiter in (",", ";", "\t"):
        names = [name.strip().lower() for name in next(csv.reader([header], delimiter=delimiter), [])]
        if any(name in DIALECTS for name in names):
            break
    else:
        names = [name.strip().lower() for name in header.split(",")]
        raise _no_column(label, "file", DIALECTS, dict.fromkeys(names))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    line = 2
    try:
        for cells in reader:
            here, line = line, reader.line_num + 2
            if len(cells) > len(names):
                where = f"{label}, line {here}"
                problem(where, "unreadable", f"has {len(cells)} cells and the header {len(names)}; quote the caption")
            elif cells:
                yield here, dict(zip(names, cells + [""] * (len(names) - len(cells)), strict=True))
    except csv.Error as error:
        raise InputError(f"{label} cannot be read from line {line} on ({error}); check its quotes") from error


def _json(table: Path, label: str, problem: Report) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line or item, cells) of JSON lines, or of one JSON list of objects."""
    text = read_text(table, label)
    if table.suffix.lower() == ".json":
        try:
            items = json.loads(text)
        except ValueError as error:
            raise InputError(f"{label} is no JSON ({error}); mend or write it again") from error
        if not isinstance(items, list):
            raise InputError(f"{label} holds a {type(items).__name__}; it must be a list of objects, one per clip")
        numbered = list(enumerate(items, 1))
    else:
        numbered = []
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    numbered.append((number, json.loads(line)))
                except ValueError as error:
                    problem(f"{label}, line {number}", "unreadable", f"is no JSON ({error}); mend the line")
    for number, item in numbered:
        if isinstance(item, dict):
            yield number, {str(key).strip().lower(): value for key, value in item.items()}
        else:
            problem(f"{label}, line {number}", "unreadable", f"holds a {type(item).__name__} where an object is needed")


def read_text(path: Path, name: str | None = None) -> str:
    """A text file in UTF-8, or UTF-16 with its mark; line ends of any system become newlines.

    name: what it is called in errors, its file name by default.
    """
    name = name or path.name
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror}); check it") from error
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return raw.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(f"{name} is not UTF-8 text (line {line}); save it as UTF-8") from error
