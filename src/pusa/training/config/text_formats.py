"""Settings as text: YAML without the surprises of YAML 1.1, TOML, and single values typed on a command line.

YAML 1.1, which PyYAML speaks, reads `1e-4` as a text, `no` and `off` as false and `1:30` as ninety, and lets a key that
occurs twice silently win. Here numbers are numbers, only true and false are truth values, and a repeated key is an
error. What `dump` writes is read back identically, and by other YAML readers as well.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

from pusa.errors import InputError

_RESOLVERS = (
    ("null", r"~|null|", "~n\0"),
    ("bool", r"true|false", "tf"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", "-+.0123456789"),
)


class Empty:
    """The value of a key after which nothing is written; it depends on the key what that means."""


EMPTY = Empty()


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str):
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} is no text", key.start_mark)
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
    """Quotes whatever either version of YAML would not read as a text."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Line ends of Unicode and other invisible signs survive only as escapes, between double quotes."""
        style = None if text.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)
for _tag, _pattern, _first in _RESOLVERS:
    for _cls in (_Loader, _Dumper):
        letters = ["" if letter == "\0" else letter for letter in _first]
        _cls.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), letters)


def load(path: Path) -> dict[str, Any]:
    """The settings in a .yaml, .yml or .toml file. InputError, naming file and line, when it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"There is no settings file {path}; check the name.") from error
    except IsADirectoryError as error:
        raise InputError(f"{path} is a folder where a settings file is needed; give a .yaml or .toml file.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text in UTF-8; give a .yaml or .toml file.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check its permissions.") from error
    if path.suffix.lower() not in (".yaml", ".yml", ".toml"):
        raise InputError(f"{path} is neither .yaml nor .toml; rename it to what it is.")
    try:
        data = tomllib.loads(text) if path.suffix.lower() == ".toml" else parse(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is no TOML: {_lower(str(error))}; correct it there.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path} is no YAML: {_reason(error)}; correct it there.") from error
    if data is EMPTY or data is None:
        return {}
    if not isinstance(data, dict):
        raise InputError(f"{path} holds {_kind(data)} where sections are needed; write for example 'train:'.")
    return data


def parse(text: str) -> Any:
    """A YAML document as plain Python values; a key without a value holds `EMPTY`."""
    return yaml.load(text, Loader=_Loader)


def value(text: str) -> Any:
    """What was typed for one setting: a YAML value, else `a,b` as a list and `a=1,b=2` as a mapping."""
    try:
        read = parse(text)
    except (yaml.YAMLError, ValueError):
        return text
    if read is EMPTY or not isinstance(read, str) or read != text:
        return text if read is EMPTY else read
    words = text.split(",")
    if all(re.fullmatch(r"[^=\s]+=[^=]+", word) for word in words):
        return {key: value(inner) for key, _, inner in (word.partition("=") for word in words)}
    return [value(word) for word in words] if len(words) > 1 else text


def dump(data: dict[str, Any]) -> str:
    """YAML that `parse` reads back identically, keys in their order."""
    return str(
        yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100, default_flow_style=False)
    )


def _reason(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{what} in line {mark.line + 1}" if mark else what


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _kind(data: Any) -> str:
    return "a list" if isinstance(data, list) else f"only {data!r}"
