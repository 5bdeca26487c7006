"""Strict dataclasses whose fields carry their help, and whose mistakes are one sentence.

A field is declared once: its type, its range, its default and its help. pydantic checks the values and writes the JSON
schema. It is imported when the first value is checked, so that `pusa --help`, which reads the fields, does not wait for
it. Its error reports are for programmers; here the first mistake becomes an `InputError`.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache, wraps
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, dataclass_transform, get_args, get_origin, get_type_hints

from pusa.errors import InputError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")
LONGEST_VALUE = 120
"""characters; an error names the type of a longer value"""


@dataclasses.dataclass(frozen=True)
class Option:
    """What a person reads about a field, and how it is read.

    Attributes:
        help: one or two sentences, for `--help` and the JSON schema.
        advice: the end of an error message, "give a number from 0 to 1".
        default: what `--help` shows as the default where None stands for something; "" shows the value itself.
        of_model: None stands for the model's own default.
        falls_back_to: the field whose value None stands for.
        experts: only a model with two experts takes it.
        convert: other spellings of a value, such as "832x480" for a size, to the value.
        schema: the JSON schema where the type says too little.
    """

    help: str
    advice: str = ""
    default: str = ""
    of_model: bool = False
    falls_back_to: str = ""
    experts: bool = False
    convert: Callable[[Any], Any] | None = None
    schema: Mapping[str, Any] | None = None

    def __get_pydantic_json_schema__(self, core: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Called by pydantic when it writes the JSON schema of a type that has this option."""
        written = dict(handler(core) if self.schema is None else self.schema)
        return written | ({"description": self.help} if self.help else {})


def options_of(cls: type) -> dict[str, tuple[Any, Option]]:
    """(type, Option) of every field of a dataclass that has an `Option`, in the order of its fields."""
    found: dict[str, tuple[Any, Option]] = {}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        if get_origin(hint) is Annotated:
            kind, *extras = get_args(hint)
            found.update((name, (kind, extra)) for extra in extras if isinstance(extra, Option))
    return found


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def strict_dataclass(cls: type[T]) -> type[T]:
    """A frozen dataclass that raises InputError for a value of another type than its field has.

    Only numbers of NumPy are converted, to numbers of Python, so that they can be written as JSON.
    """
    made: Any = dataclasses.dataclass(frozen=True)(cls)
    build, signature = made.__init__, inspect.signature(made)

    @wraps(build)
    def checked(self: Any, *args: Any, **values: Any) -> None:
        try:
            given = signature.bind(*args, **values).arguments
        except TypeError as error:
            raise _unbound(error, made, values) from None
        build(self, **{name: _checked(made, name, value, given) for name, value in given.items()})

    made.__init__ = checked
    result: type[T] = made
    return result


def python_number(value: Any) -> Any:
    """A whole or real number of NumPy as a number of Python; every other value as it is."""
    if isinstance(value, int | float):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def json_schema(cls: type) -> dict[str, Any]:
    """The JSON schema of a strict dataclass, with the schemas of others that it contains under "$defs"."""
    from pydantic import ConfigDict, TypeAdapter

    strict = ConfigDict(strict=True, allow_inf_nan=False)
    properties: dict[str, Any] = {}
    definitions: dict[str, Any] = {}
    hints = get_type_hints(cls, include_extras=True)
    required = []
    for one in dataclasses.fields(cls):  # type: ignore[arg-type]
        written = TypeAdapter(hints[one.name], config=strict).json_schema()
        definitions |= written.pop("$defs", {})
        if one.default is dataclasses.MISSING:
            required.append(one.name)
        elif not isinstance(one.default, tuple):
            written["default"] = one.default
        properties[one.name] = written
    return {
        "type": "object",
        "description": inspect.getdoc(cls),
        "properties": properties,
        "required": required,
        "additionalProperties": False,
        "$defs": definitions,
    }


@lru_cache
def _adapters(cls: type) -> dict[str, TypeAdapter[Any]]:
    from pydantic import BeforeValidator, ConfigDict, TypeAdapter

    strict = ConfigDict(strict=True, allow_inf_nan=False)
    options = options_of(cls)
    adapters = {}
    hints = get_type_hints(cls, include_extras=True)
    for one in dataclasses.fields(cls):  # type: ignore[arg-type]
        convert = options[one.name][1].convert if one.name in options else None
        kind: Any = Annotated[hints[one.name], BeforeValidator(convert)] if convert else hints[one.name]
        adapters[one.name] = TypeAdapter(kind, config=strict)
    return adapters


def _checked(cls: type, name: str, value: Any, given: Mapping[str, Any]) -> Any:
    from pydantic import ValidationError

    try:
        return _adapters(cls)[name].validate_python(python_number(value))
    except ValidationError as error:
        mistake: Any = error.errors()[0]
        if isinstance(cause := mistake.get("ctx", {}).get("error"), InputError):
            raise cause from None
        source = given.get("src")
        where = f"{source}: " if isinstance(source, str | Path) else ""
        raise InputError(f"{where}{_sentence(cls, name, value, mistake)}") from None


def _sentence(cls: type, name: str, value: Any, mistake: Mapping[str, Any]) -> str:
    options, kind = options_of(cls), str(mistake["type"])
    if kind == "literal_error":
        return f"The {name} {value!r} is unknown: choose {mistake['ctx']['expected'].replace(chr(39), '')}."
    advice = options[name][1].advice if name in options else ""
    shown = repr(mistake.get("input"))
    if len(shown) > LONGEST_VALUE:
        shown = f"of type {type(mistake.get('input')).__name__}"
    return f"{name} is {shown}: {advice or 'give ' + _WORDS.get(kind, 'another value')}."


def _unbound(error: TypeError, cls: type, values: Mapping[str, Any]) -> InputError:
    names = [one.name for one in dataclasses.fields(cls)]  # type: ignore[arg-type]
    if unknown := [name for name in values if name not in names]:
        near = difflib.get_close_matches(unknown[0], names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}."
        return InputError(f"There is no option {unknown[0]!r}: {hint}")
    return InputError(f"{cls.__name__}: {error}.")


_WORDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "bool_type": "true or false",
    "tuple_type": "a list",
}
