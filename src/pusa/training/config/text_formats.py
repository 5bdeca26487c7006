"""Read and write settings as text: a strict form of YAML, TOML, and single values from a command line.

PyYAML implements YAML 1.1, which reads `1e-4` as a text, `no` and `off` as false and `1:30` as ninety. If a key occurs
twice, it uses the second one. In this module, numbers are numbers, only true and false are booleans, and a repeated key
is an error. `parse` and other YAML readers read exactly the values that `dump` wrote.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

from pusa.errors import InputError, first_line
from pusa.files import read_text

_RESOLVERS = (
    ("null", r"~|null|", "~n\0"),
    ("bool", r"true|false", "tf"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", "-+.0123456789"),
)


_WINDOWS_PATH = re.compile(r'"(?P<path>(?:[A-Za-z]:\\(?!\\)|\\\\[\w.$-]+\\(?!\\))[^"]*)"')
"""A path with a drive or a server in double quotes, with single backslashes."""


class Empty:
    """The value of a key without a value. Its meaning depends on the key."""


EMPTY = Empty()


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str):
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} is not a text", key.start_mark)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} occurs twice", key.start_mark)
            seen.add(name)
        return dict(super().construct_mapping(node, deep=deep))

    def construct_null(self, node: yaml.ScalarNode) -> Any:
        return EMPTY if node.value == "" else None

    def construct_int(self, node: yaml.ScalarNode) -> int:
        return int(node.value)


_Loader.add_constructor("tag:yaml.org,2002:null", _Loader.construct_null)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)


class _Dumper(yaml.SafeDumper):
    """A writer that quotes every text that YAML 1.1 or YAML 1.2 would not read as a text."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Write a text. Unicode line ends and other invisible characters need escapes, and so double quotes."""
        style = None if text.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)
for _tag, _pattern, _first in _RESOLVERS:
    for _cls in (_Loader, _Dumper):
        letters = ["" if letter == "\0" else letter for letter in _first]
        _cls.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), letters)


def load(path: Path) -> dict[str, Any]:
    """Read the settings in a .yaml, .yml or .toml file. Raises InputError, with file and line, if it cannot be read.

    In both formats, a backslash in double quotes begins an escape: "C:\\new" would be a path with a line break. A path
    of Windows in double quotes is therefore an error, unless its backslashes are doubled.
    """
    if path.is_dir():
        raise InputError(
            f"{path} is a folder, not a settings file; give a folder of clips as --data {path}, or a .yaml or .toml "
            "file."
        )
    if not path.exists():
        raise InputError(f"There is no settings file {path}; check the name.")
    if path.suffix.lower() not in (".yaml", ".yml", ".toml"):
        raise InputError(f"{path} is neither .yaml nor .toml; give a file with one of these suffixes.")
    text = read_text(path, str(path))
    for number, line in enumerate(text.split("\n"), 1):
        if (found := _WINDOWS_PATH.search(line)) and not line.lstrip().startswith("#"):
            raise InputError(_escaped(path, number, found["path"]))
    try:
        data = tomllib.loads(text) if path.suffix.lower() == ".toml" else parse(text)
    except tomllib.TOMLDecodeError as error:
        raise _invalid(path, "TOML", _lower(str(error)), text) from error
    except (yaml.YAMLError, ValueError) as error:
        raise _invalid(path, "YAML", _reason(error), text) from error
    if data is EMPTY or data is None:
        return {}
    if not isinstance(data, dict):
        raise InputError(f"{path} contains {_kind(data)} instead of sections; write a section such as 'train:'.")
    return data


def _invalid(path: Path, kind: str, reason: str, text: str) -> InputError:
    """Return the error for a file that cannot be parsed. If a line has a wrong escape, it says how to write a path."""
    number = re.search(r"line (\d+)", reason)
    if number and ("escape" in reason or "\\" in reason or "hex" in reason):
        line = text.split("\n")[int(number[1]) - 1]
        if quoted := re.search(r'"(?P<path>[^"]*\\[^"]*)"', line):
            return InputError(_escaped(path, int(number[1]), quoted["path"]))
    return InputError(f"{path} is not valid {kind}: {reason}; correct the file.")


def _escaped(path: Path, number: int, text: str) -> str:
    return (
        f'{path} has "{text}" in line {number}, and a backslash in double quotes begins an escape; write the path in '
        f"single quotes ('{text}') or with slashes (\"{text.replace(chr(92), '/')}\")."
    )


def parse(text: str) -> Any:
    """Parse a YAML document into plain Python values. A key without a value gets `EMPTY`.

    Raises yaml.YAMLError or ValueError if the text is not valid.
    """
    return yaml.load(text, Loader=_Loader)


def value(text: str) -> Any:
    """Parse the value of one setting on the command line: a YAML value, a list `a,b`, or a mapping `a=1,b=2`.

    Raises InputError for a mapping with a key twice.
    """
    try:
        parsed = parse(text)
    except (yaml.YAMLError, ValueError):
        return text
    if parsed is EMPTY or not isinstance(parsed, str) or parsed != text:
        return text if parsed is EMPTY else parsed
    words = text.split(",")
    if all(re.fullmatch(r"[^=\s]+=[^=]+", word) for word in words):
        keys = [word.partition("=")[0] for word in words]
        if repeated := next((key for key in keys if keys.count(key) > 1), None):
            raise InputError(f"{text} (the command line) has {repeated} twice; give it once.")
        return {key: value(word.partition("=")[2]) for key, word in zip(keys, words, strict=True)}
    return [value(word) for word in words] if len(words) > 1 else text


def dump(data: dict[str, Any]) -> str:
    """Write YAML from which `parse` returns the same data. The keys keep their order."""
    return str(
        yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100, default_flow_style=False)
    )


def _reason(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or first_line(error)
    return f"{what} in line {mark.line + 1}" if mark else what


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _kind(data: Any) -> str:
    return "a list" if isinstance(data, list) else f"only {data!r}"
