"""Read tables of clips: one row for each clip, in CSV, JSON lines or JSON, with the columns of common trainers."""

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
"""{column of the file: column of its caption}, as in Hugging Face datasets, DiffSynth, musubi-tuner and LTX."""

Report = Callable[[str, str, str], None]
"""Called with the place in a table, the kind of problem and the reason; see `dataset.Problem`."""


@dataclass(frozen=True)
class Row:
    """One row of a table.

    name: the path of the clip as the table gives it. where: the table and the line, for messages. dialect: the two
    columns. no_caption: the reason of the problem if the caption is missing or empty.
    """

    name: str
    caption: str | None
    where: str
    dialect: str
    no_caption: str


def rows(table: Path, label: str, problem: Report) -> Iterator[Row]:
    """Yield the rows of a table. label: the name of the table in messages. problem: called for an unusable row.

    Raises InputError if the table cannot be read or if a column is missing.
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
            problem(where, "missing", "gives no clip; fill in the row or remove it")
            continue
        text = _caption_column(label, column, cells)
        name, caption = cells[column], cells.get(text)
        if not isinstance(name, str):
            problem(where, "missing", f"has {name!r:.40} as its {column}; give a path as text")
            continue
        no_caption = f"has {'an empty' if text in cells else 'no'} {text} in {where}; write what the clip shows"
        if caption is not None and not isinstance(caption, str):
            caption, no_caption = None, f"has {caption!r:.40} as its {text} in {where}; give a text"
        yield Row(name.strip(), caption, where, f"{column},{text}", no_caption)


def _caption_column(label: str, column: str, row: dict[str, Any]) -> str:
    """Return the column of the captions: the one that belongs to `column`, or else the only one that exists."""
    if DIALECTS[column] in row:
        return DIALECTS[column]
    others = sorted(name for name in set(DIALECTS.values()) if name in row)
    if len(others) == 1:
        return others[0]
    if not others and label.lower().endswith(".csv"):
        raise _no_column(label, "caption", set(DIALECTS.values()), row)
    if not others:
        return DIALECTS[column]
    raise InputError(f"{label} has several columns of captions ({', '.join(others)}); keep only one of them")


def _no_column(label: str, what: str, known: Iterable[str], row: dict[str, Any]) -> InputError:
    existing = ", ".join(map(str, list(row)[:8])) or "none"
    names = ", ".join(sorted(known))
    return InputError(f"{label} has no {what} column (its columns: {existing}); name the column one of {names}")


def _csv(table: Path, label: str, problem: Report) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, cells) of a CSV. The delimiter is a comma, a semicolon or a tab.

    Quoted cells may contain delimiters and newlines.
    """
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
                reason = f"has {len(cells)} cells but the header has {len(names)}; put the caption in quotes"
                problem(where, "unreadable", reason)
            elif cells:
                yield here, dict(zip(names, cells + [""] * (len(names) - len(cells)), strict=True))
    except csv.Error as error:
        raise InputError(f"{label} cannot be read from line {line} on ({error}); check the quotes there") from error


def _json(table: Path, label: str, problem: Report) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line or item, cells) of JSON lines, or of one JSON list of objects."""
    text = read_text(table, label)
    if table.suffix.lower() == ".json":
        try:
            items = json.loads(text)
        except ValueError as error:
            raise InputError(f"{label} is not JSON ({error}); correct the file") from error
        if not isinstance(items, list):
            raise InputError(f"{label} is not a list; write a list of objects, one for each clip")
        numbered = list(enumerate(items, 1))
    else:
        numbered = []
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    numbered.append((number, json.loads(line)))
                except ValueError as error:
                    problem(f"{label}, line {number}", "unreadable", f"is not JSON ({error}); correct the line")
    for number, item in numbered:
        if isinstance(item, dict):
            yield number, {str(key).strip().lower(): value for key, value in item.items()}
        else:
            problem(f"{label}, line {number}", "unreadable", f"is {item!r:.40}, not an object; write an object")


def read_text(path: Path, name: str | None = None) -> str:
    """Read a text file in UTF-8, or in UTF-16 with a byte-order mark. All line ends become newlines.

    name: the name of the file in error messages; the default is its file name. Raises InputError if it cannot be read.
    """
    name = name or path.name
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror}); check its permissions") from error
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return raw.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(f"{name} is not UTF-8 text (line {line}); save it as UTF-8") from error
