"""Strict dataclasses whose fields carry their help, and whose mistakes are one sentence.

pydantic checks the types and ranges and writes the JSON schema. Its error reports are for programmers; here the first
one becomes an `InputError` that says what is wrong and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from dataclasses import field, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, GetJsonSchemaHandler, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import CoreSchema

from pusa.errors import InputError

T = TypeVar("T")


@plain_dataclass(frozen=True)
class Option:
    """What a person reads about a field.

    Attributes:
        help: one or two sentences, for `--help` and the JSON schema.
        advice: the end of an error message, "give a number from 0 to 1".
        default: what `--help` shows as the default where None stands for something; "" shows the value itself.
        of_model: None stands for the model's own default.
        falls_back_to: the field whose value None stands for.
        experts: only a model with two experts takes it.
    """

    help: str
    advice: str = ""
    default: str = ""
    of_model: bool = False
    falls_back_to: str = ""
    experts: bool = False

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return handler(schema) | {"description": self.help}


def options_of(cls: type) -> dict[str, tuple[Any, Option]]:
    """(type, Option) of every field of a dataclass that has an `Option`, in the order of its fields."""
    hints = get_type_hints(cls, include_extras=True)
    found = {}
    for name, hint in hints.items():
        if get_origin(hint) is Annotated:
            kind, *extras = get_args(hint)
            for extra in extras:
                if isinstance(extra, Option):
                    found[name] = kind, extra
    return found


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def strict_dataclass(cls: type[T]) -> type[T]:
    """A frozen pydantic dataclass that converts nothing, and raises InputError instead of ValidationError."""
    config = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True)
    checked: Any = dataclass(frozen=True, config=config)(cls)
    build = checked.__init__

    @wraps(build)
    def init(self: Any, *args: Any, **values: Any) -> None:
        try:
            build(self, *args, **values)
        except ValidationError as error:
            source = values.get("src", args[0] if args else None)
            label = f"{source}: " if isinstance(source, str | Path) and "src" in checked.__annotations__ else ""
            raise InputError(f"{label}{explained(error, checked)}") from None

    checked.__init__ = init
    result: type[T] = checked
    return result


def explained(error: ValidationError, cls: type) -> InputError:
    """The first mistake as one sentence."""
    mistake: Mapping[str, Any] = error.errors()[0]
    if isinstance(cause := mistake.get("ctx", {}).get("error"), InputError):
        return cause
    place, value, kind = mistake["loc"], mistake.get("input"), str(mistake["type"])
    names = [one.name for one in fields(cls) if not one.kw_only]  # type: ignore[arg-type]
    first = place[0] if place else "it"
    name = names[first] if isinstance(first, int) and first < len(names) else str(first)
    options = options_of(cls)
    if kind == "unexpected_keyword_argument":
        near = difflib.get_close_matches(name, options, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(options)}."
        return InputError(f"There is no option {name!r}: {hint}")
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return InputError(f"{cls.__name__} needs {name}: give it.")
    if kind == "literal_error":
        return InputError(f"The {name} {value!r} is unknown: choose {mistake['ctx']['expected'].replace(chr(39), '')}.")
    advice = options[name][1].advice if name in options else ""
    return InputError(f"{name} is {value!r}: {advice or 'give ' + _WORDS.get(kind, 'another value')}.")


_WORDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "bool_type": "true or false",
    "tuple_type": "a list",
}
