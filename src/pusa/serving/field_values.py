"""The values of fields, as JSON and forms write them: texts into values, and what is wrong with one in a sentence."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pusa.errors import InputError
from pusa.generation.sampling import MAX_STEPS
from pusa.serving.wire_names import NAMES

LONGEST_TEXT = 100_000
"""characters of a field; a longer prompt is no prompt"""
_LARGEST = 100_000
"""Numbers such as seconds are below this."""


class FieldError(InputError):
    """A field is wrong. param: its name."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


def matrix(value: Any) -> Any:
    """A matrix as rows of numbers, or as the dictionary of a sidecar. Raises FieldError for anything else."""
    rows = value.get("sigma") if isinstance(value, Mapping) else value
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) and row for row in rows):
        raise FieldError(
            "matrix is not a list of rows: give the noise levels σ, one row for each step and a last one.", "matrix"
        )
    if len(rows) > MAX_STEPS + 1:
        raise FieldError(f"matrix has {len(rows) - 1:,} steps: give at most {MAX_STEPS:,}.", "matrix")
    for number, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise FieldError(
                f"matrix: row {number} has {len(row)} numbers, and row 0 has {len(rows[0])}: give as many.", "matrix"
            )
        for level in row:
            if isinstance(level, bool) or not isinstance(level, int | float) or not 0 <= level <= 1:
                raise FieldError(
                    f"matrix: row {number} has {str(level)[:40]!r}: give noise levels from 0 to 1.", "matrix"
                )
    return value


def flat(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields; `a[b]` becomes {"a": {"b": …}} and `a[]` a list, as clients write nested fields in forms.

    Raises FieldError for deeper nesting, in which a form loses what belongs together.
    """
    flat: dict[str, Any] = {}
    for name, value in given.items():
        outer, bracket, rest = str(name).partition("[")
        if not bracket:
            flat[str(name)] = value
        elif not (match := re.fullmatch(r"(\w*)\]", rest)):
            raise FieldError(f"A form cannot hold {str(name)[:60]}: give {outer[:60]} as JSON.", outer)
        elif match[1]:
            inside = flat.setdefault(outer, {})
            if not isinstance(inside, dict):
                raise FieldError(f"{outer} is given twice: leave one out.", outer)
            inside[match[1]] = _number_of(value)
        else:
            flat[outer] = [_number_of(each) for each in (value if isinstance(value, list) else [value])]
    return flat


def _number_of(value: Any) -> Any:
    """The number that a text of a nested field means; any other value as it is."""
    if isinstance(value, str) and re.fullmatch(r"-?\d+(\.\d+)?", value):
        return json.loads(value) if not re.match(r"-?0\d", value) else value
    return value


def value_of(name: str, value: Any) -> Any:
    """A text of a form as the value that it means. Raises FieldError for a text that is too long."""
    if not isinstance(value, str):
        return value
    if len(value) > LONGEST_TEXT and not value.startswith("data:"):
        raise FieldError(f"{name} has {len(value):,} characters: give at most {LONGEST_TEXT:,}.", name)
    known = NAMES.get(name)
    if known is None or known.kind == "text" or (known.kind != "value" and not value.lstrip().startswith("{")):
        if name == "extra_params":
            return _json(name, value)
        return value
    return _json(name, value)


def _json(name: str, value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        if value.lstrip()[:1] in ("{", "["):
            raise FieldError(f"{name} is not valid JSON: mend it.", name) from None
    except RecursionError:
        raise FieldError(f"{name} is nested too deeply: give plain JSON.", name) from None
    return value


def is_named(part: str, given: Mapping[str, Any]) -> bool:
    """Whether some field may name this file of the form."""
    quoted = json.dumps(part)[1:-1]
    return any(quoted in (value if isinstance(value, str) else json.dumps(value)) for value in given.values())


def listed(name: str, value: Any) -> list[Mapping[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        raise FieldError(f"{name} is not a list of objects: give one object for each.", name)
    return value


def positive(name: str, value: Any) -> float | None:
    if value is None:
        return None
    with suppress(TypeError, ValueError):
        if not isinstance(value, bool) and 0 < (number := float(value)) < _LARGEST:
            return number
    raise FieldError(f"{name} is {str(value)[:40]!r}: give a number above 0 and below {_LARGEST:,}.", name)


def loras(value: Any) -> list[tuple[str, float]]:
    if value is None:
        return []
    several = value if isinstance(value, list) else [value]
    found = []
    for one in several:
        said = {"name": one} if isinstance(one, str) else one
        scale = said.get("scale", 1.0) if isinstance(said, Mapping) else None
        if not isinstance(said, Mapping) or not set(said) <= {"name", "scale"} or not isinstance(said.get("name"), str):
            raise FieldError('lora is no LoRA of this server: give {"name": "…", "scale": 1.0}.', "lora")
        if isinstance(scale, bool) or not isinstance(scale, int | float) or abs(scale) > 100:
            raise FieldError(f"lora: the scale is {scale!r}: give a number.", "lora")
        found.append((said["name"], float(scale)))
    return found


def unknown(name: str) -> str:
    near = difflib.get_close_matches(name, NAMES, n=1)
    shown = name if len(name) <= 60 else f"{name[:60]}…"
    return f"There is no field {shown!r}: " + (f"did you mean {near[0]!r}?" if near else "leave it out.")
