"""Wrong usage of the command line as one sentence, in the form of all other messages."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin

from cyclopts import CycloptsError
from cyclopts.exceptions import (
    CoercionError,
    MissingArgumentError,
    RepeatArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

_KINDS: dict[Any, str] = {float: "give a number", bool: "give true or false"}


def usage(error: CycloptsError) -> str:
    """Return what is wrong and what to write instead."""
    command = " ".join(["pusa", *(error.command_chain or ())])
    match error:
        case UnusedCliTokensError(unused_tokens=[_, *_] as extra):
            return f"{' '.join(extra)!r} is an unexpected argument; put a prompt of several words in quotes."
        case RepeatArgumentError():
            return f"{error.token.keyword} is given more than once; give it once."
        case UnknownCommandError(unused_tokens=[name, *_]):
            known = [name for name in (error.app or {}) if not name.startswith("-")]
            return f"There is no command {name!r}; {_nearest(name, known) or f'choose {_listed(known)}.'}"
        case UnknownOptionError():
            name = (error.token.keyword or error.token.value or "").partition("=")[0]
            known = [each for argument in error.argument_collection if argument.parse for each in argument.names]
            return f"{command} has no option {name}; {_nearest(name, known) or f'{command} --help lists all.'}"
        case MissingArgumentError() if error.argument is not None:
            return _missing(error, command)
        case CoercionError() if error.token is not None:
            return _wrong_value(error)
    return str(error)


def _missing(error: MissingArgumentError, command: str) -> str:
    argument = error.argument
    assert argument is not None
    given = error.keyword or next((token.keyword for token in argument.tokens if token.keyword), None)
    if given is not None:
        next_one = dict(pairwise(error.root_input_tokens or ())).get(given, "")
        if re.fullmatch("-[^-].+", next_one):  # flags have two dashes or one letter
            return f"{given} has no value, because {next_one} begins with a dash; write {given}={next_one}."
        return f"{given} has no value; write one after it, or leave {given} out."
    name = argument.name if argument.field_info.is_keyword_only else argument.name.lstrip("-").upper()
    return f"{command} needs {name}; {command} --help shows how to give it."


def _wrong_value(error: CoercionError) -> str:
    assert error.token is not None
    name = error.token.keyword or (error.argument.name.lstrip("-").upper() if error.argument else "A value")
    if error.msg is not None:
        return f"{name}: {error.msg}"
    if get_origin(error.target_type) is Literal:
        choices = [str(choice) for choice in get_args(error.target_type)]
        return f"{name} is {error.token.value!r}: choose {_listed(choices)}."
    if error.target_type in _KINDS:
        return f"{name} is {error.token.value!r}: {_KINDS[error.target_type]}."
    return str(error)


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else ""


def _listed(words: list[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last
