"""Read tables of clips: one row for each clip, in CSV, TSV, JSON lines or JSON, with the columns of common trainers.

A JSON file may also be one object whose keys are the clips and whose values are their captions.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pusa.errors import InputError
from pusa.files import read_text

DIALECTS = {
    "file_name": "text",
    "video": "prompt",
    "video_path": "caption",
    "media_path": "caption",
    "image": "prompt",
    "image_path": "caption",
}
"""{column of the file: column of its caption}, as in Hugging Face datasets, DiffSynth, musubi-tuner and LTX."""

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
KINDS = ".csv, .tsv, .jsonl or .json"
_DELIMITERS = (",", ";", "\t")
_CLIP = re.compile(r"\.[a-z0-9]{2,5}$", re.IGNORECASE)

Report = Callable[[str, str, str], None]
"""Called with the place in a table, the kind of problem and the reason; see `dataset.Problem`."""


@dataclass(frozen=True)
class Row:
    """One row of a table.

    name: the path of the clip as the table gives it. captions: one, several variants, or none. where: the table and
    the line, for messages. dialect: the two columns. no_caption: the reason of the problem if the caption is missing or
    empty. bad: whether the caption is not a text.
    """

    name: str
    captions: tuple[str, ...]
    where: str
    dialect: str
    no_caption: str
    bad: bool = False


def rows(table: Path, label: str, problem: Report) -> Iterator[Row]:
    """Yield the rows of a table. label: the name of the table in messages. problem: called for an unusable row.

    Raises InputError if the table cannot be read or if a column is missing.
    """
    item = "item" if table.suffix.lower() == ".json" else "line"
    columns: set[str] = set()
    for line, cells in (_csv if table.suffix.lower() in (".csv", ".tsv") else _json)(table, label, problem):
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
        captions = caption if isinstance(caption, list) else [] if caption is None else [caption]
        if bad := not all(isinstance(one, str) for one in captions):
            captions, no_caption = [], f"has {caption!r:.40} as its {text} in {where}; give a text or a list of texts"
        yield Row(name.strip(), tuple(captions), where, f"{column},{text}", no_caption, bad)


def lists_clips(table: Path) -> bool:
    """Return whether a file looks like a table of clips: by its header or by its first object."""
    if table.suffix.lower() in (".csv", ".tsv"):
        try:
            header = next((line for line in read_text(table).split("\n") if line.strip()), "")
        except InputError:
            return False
        return any(set(DIALECTS) & set(_names(header, delimiter)) for delimiter in _DELIMITERS)
    try:
        _, cells = next(_json(table, table.name, lambda *_: None), (0, {}))
    except InputError:
        return False
    name = next((cells[column] for column in DIALECTS if cells.get(column)), None)
    return isinstance(name, str) and bool(_CLIP.search(name))


def remedy(table: Path) -> str:
    """Return what makes a table of clips of a file that `lists_clips` does not accept."""
    try:
        read_text(table)
    except InputError as error:
        return f"use the table: {error}"
    return f"name the columns of {table.name} file_name and text"


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
    for delimiter in _DELIMITERS:
        names = _names(header, delimiter)
        if any(name in DIALECTS for name in names):
            break
    else:
        raise _no_column(label, "file", DIALECTS, dict.fromkeys(_names(header, ",")))
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


def _names(header: str, delimiter: str) -> list[str]:
    """Return the names of the columns in lower case."""
    return [name.strip().lower() for name in next(csv.reader([header], delimiter=delimiter), [])]


def _json(table: Path, label: str, problem: Report) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line or item, cells) of JSON lines, of one JSON list of objects, or of one JSON object of captions."""
    text = read_text(table, label)
    if table.suffix.lower() == ".json":
        try:
            items = json.loads(text)
        except ValueError as error:
            raise InputError(f"{label} is not JSON ({error}); correct the file") from error
        if isinstance(items, dict) and all(isinstance(caption, str | list) for caption in items.values()):
            items = [{"file_name": name, "text": caption} for name, caption in items.items()]
        if not isinstance(items, list):
            raise InputError(
                f"{label} is not a list; write a list of objects, one for each clip, or one object of names and "
                "captions"
            )
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
