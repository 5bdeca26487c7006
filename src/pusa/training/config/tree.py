"""The settings of a training: one strict tree, from defaults, a preset, a file and the command line.

Every section is a part of the file and of the dotted options: `train: {lr: 1e-4}` in YAML, `[train] lr = 1e-4` in TOML,
`--train.lr 1e-4` on the command line. Later places win: defaults < preset < file < command line. A name that does not
exist, a value of the wrong kind and a value out of range are errors that say where they stand and what would do.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from pusa.errors import InputError
from pusa.files import write_text_atomic
from pusa.training.config import text_formats
from pusa.training.config.presets import PRESETS
from pusa.training.config.sections import (
    Absent,
    DataConfig,
    Give,
    LoraSettings,
    ModelConfig,
    PreviewSettings,
    SaveSettings,
    Section,
    SigmaConfig,
    TrackSettings,
    TrainSettings,
    ValidateSettings,
)

_COMMAND_LINE = "the command line"


class Config(Section):
    """Everything that is decided about a training."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    sigma: SigmaConfig = SigmaConfig()
    lora: Annotated[LoraSettings | None, Absent] = LoraSettings()
    train: TrainSettings = TrainSettings()
    save: SaveSettings = SaveSettings()
    validate_: ValidateSettings = Field(default=ValidateSettings(), alias="validate")
    preview: PreviewSettings = PreviewSettings()
    track: TrackSettings = TrackSettings()

    @model_validator(mode="after")
    def _expert(self) -> Self:
        if self.model.full_range:
            return self
        if self.model.expert is None:
            raise ValueError("model.full_range false restricts an expert and model.expert is null; give high or low")
        low, high = (self.model.boundary, 1.0) if self.model.expert == "high" else (0.0, self.model.boundary)
        if (self.sigma.low, self.sigma.high) == (0.0, 1.0):
            self.__dict__["sigma"] = self.sigma.model_copy(update={"low": low, "high": high})
        elif not low <= self.sigma.low < self.sigma.high <= high:
            raise ValueError(
                f"sigma.low {self.sigma.low:g} and sigma.high {self.sigma.high:g} leave the side of the "
                f"{self.model.expert}-noise expert, {low:g} to {high:g}; leave them out or narrow them"
            )
        return self

    @property
    def clips_per_step(self) -> int:
        """Clips of one optimiser step in each process."""
        return self.train.batch * self.train.accumulate

    def plain(self) -> dict[str, Any]:
        """Every setting as text, numbers, lists and dictionaries, ready for JSON and YAML."""
        return self.model_dump(mode="json", by_alias=True)

    def to_yaml(self) -> str:
        """All settings, also those left at their defaults; `read` returns the same from it."""
        return text_formats.dump(self.plain())

    def write(self, path: Path) -> None:
        """`to_yaml` into a file, atomic."""
        write_text_atomic(path, self.to_yaml())

    def decisive(self) -> dict[str, Any]:
        """The settings that decide the weights, as {"train.lr": 1e-4}; `fingerprint` hashes them.

        Not among them: where the cache lies, how many threads read, checkpointing of activations, everything about
        saving, validating, previews and tracking. With a constant learning rate the number of steps is not either: the
        longer run begins with the shorter one.
        """
        plain = {
            name: plain for name, plain in self.plain().items() if name not in ("save", "validate", "preview", "track")
        }
        flat = dict(_flatten(plain))
        for name in ("data.cache", "train.workers", "train.gradient_checkpointing"):
            del flat[name]
        if self.train.schedule == "constant":
            del flat["train.steps"]
        return flat

    def fingerprint(self) -> str:
        """SHA-256 over `decisive`."""
        return hashlib.sha256(json.dumps(self.decisive(), sort_keys=True).encode()).hexdigest()


def differences(old: Config, new: Config) -> list[str]:
    """What decides the weights and is not the same, one line each: "train.lr was 0.0001 and is 0.001"."""
    before, after = old.decisive(), new.decisive()
    names = [name for name in (before | after) if name != "train.steps" or (name in before and name in after)]
    return [
        f"{name} was {_show(before.get(name))} and is {_show(after.get(name))}"
        for name in names
        if before.get(name) != after.get(name)
    ]


SECTIONS: dict[str, type[Section]] = {
    field.alias or name: next(
        t for t in (field.annotation, *get_args(field.annotation)) if isinstance(t, type) and issubclass(t, Section)
    )
    for name, field in Config.model_fields.items()
}


def read(path: Path | None, preset: str | None, overrides: Mapping[str, Any]) -> Config:
    """The settings from defaults < preset < file < overrides, checked.

    overrides: {"train.lr": 1e-4} or {"train": {"lr": 1e-4}}; a value that is text is read as on the command line.
    Raises InputError with the first thing that is wrong: its name, the place it came from and what would do.
    """
    merged: dict[str, Any] = {}
    origin: dict[tuple[str, str], str] = {}
    if preset is not None:
        if preset not in PRESETS:
            raise InputError(f"There is no preset {preset!r}; {_nearest(preset, PRESETS)}")
        _lay(PRESETS[preset].config, f"the preset {preset}", merged, origin)
    if path is not None:
        _lay(text_formats.load(path), str(path), merged, origin)
    _lay(_typed(overrides), _COMMAND_LINE, merged, origin)
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise InputError(_sentence(error, origin)) from error


def _lay(data: Mapping[str, Any], place: str, merged: dict[str, Any], origin: dict[tuple[str, str], str]) -> None:
    """Put one place's settings over those of the places before it; InputError for a name that does not exist."""
    for section, values in data.items():
        if section not in SECTIONS:
            at = next((name for name, kind in SECTIONS.items() if section in kind.model_fields), None)
            hint = f"did you mean {at}.{section}?" if at else _nearest(section, SECTIONS)
            raise InputError(f"There is no section {section!r} ({place}); {hint}")
        if values is text_formats.EMPTY:
            continue
        if section == "lora" and values in (None, "none"):
            merged[section] = None
            continue
        if not isinstance(values, Mapping):
            raise InputError(
                f"The section {section} is {_show(values)} ({place}); write its settings under it, such as "
                f"{section}.{next(iter(SECTIONS[section].model_fields))}."
            )
        merged[section] = dict(merged.get(section) or {})
        for key, value in values.items():
            if key not in SECTIONS[section].model_fields:
                raise InputError(
                    f"There is no setting {key!r} in the section {section} ({place}); "
                    f"{_nearest(key, SECTIONS[section].model_fields, f'{section}.')}"
                )
            merged[section][key] = None if value is text_formats.EMPTY else value
            origin[section, key] = place


def _typed(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names as a tree, and text as the kind of value that its setting takes."""
    tree: dict[str, Any] = {}
    for name, value in overrides.items():
        section, dot, key = name.partition(".")
        inner = {key: value} if dot else value
        if isinstance(inner, Mapping) and section in SECTIONS:
            fields = SECTIONS[section].model_fields
            inner = {k: _from_text(v, fields[k]) if isinstance(v, str) and k in fields else v for k, v in inner.items()}
            tree[section] = {**(tree.get(section) or {}), **inner}
        else:
            tree[section] = text_formats.value(inner) if isinstance(inner, str) else inner
    return tree


def _from_text(text: str, field: FieldInfo) -> Any:
    kinds = {get_origin(kind) or kind for kind in _kinds(field.annotation)}
    if kinds & {str, Path} and not kinds & {list}:
        return None if text == "null" and NoneType in kinds else text
    value = text_formats.value(text)
    return [value] if list in kinds and isinstance(value, str) and value != "none" else value


def _kinds(annotation: Any) -> Iterator[Any]:
    """The members of a union, without what is annotated to them."""
    if get_origin(annotation) is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif get_origin(annotation) in (list, dict, tuple, Literal) or not get_args(annotation):
        yield annotation
    else:
        for member in get_args(annotation):
            yield from _kinds(member)


def _sentence(error: ValidationError, origin: Mapping[tuple[str, str], str]) -> str:
    """The first thing that is wrong, and the names of the others."""
    first, *others = error.errors()
    name, place = _name(first["loc"]), _place(first["loc"], origin)
    more = sorted({_name(other["loc"][:2]) for other in others} - {_name(first["loc"][:2])})
    rest = f" (and {', '.join(more)} {'is' if len(more) == 1 else 'are'} wrong too)" if more else ""
    if first["type"] == "value_error":
        what = first["ctx"]["error"]
        return f"{name}{place} {what}{rest}." if name else f"{what}{place}{rest}."
    section, key, *deeper = (str(part) for part in first["loc"])
    field = SECTIONS[section].model_fields[key]
    if deeper and deeper[-1] == "[key]":
        known = get_args(get_args(field.annotation)[0])
        return f"{section}.{key} names {deeper[0]!r}{place}, which does not exist; {_nearest(deeper[0], known)}"
    found = "missing" if first["type"] == "missing" else _show(first["input"])
    if isinstance(first["input"], float) and first["type"].startswith("int"):
        found = repr(first["input"])  # 3.0, which is not a whole number here
    return f"{name} is {found}{place}; give {_expected(field, deep=bool(deeper))}{rest}."


def _name(loc: tuple[int | str, ...]) -> str:
    """("data", "buckets", 0) as data.buckets[0]; the tags of a union's members are left out."""
    if len(loc) < 2:
        return str(loc[0]) if loc else ""
    name = f"{loc[0]}.{loc[1]}"
    for part in loc[2:]:
        kind = SECTIONS[str(loc[0])].model_fields[str(loc[1])].annotation
        if isinstance(part, int):
            name += f"[{part}]"
        elif get_origin(kind) is dict and part != "[key]":
            name += f".{part}"
    return name


def _place(loc: tuple[int | str, ...], origin: Mapping[tuple[str, str], str]) -> str:
    if len(loc) >= 2:
        places = {origin.get((str(loc[0]), str(loc[1])))} - {None}
    else:
        places = {place for (section, _), place in origin.items() if not loc or section == loc[0]}
    return f" ({' and '.join(sorted(str(place) for place in places))})" if places else ""


def _expected(field: FieldInfo, *, deep: bool) -> str:
    """What the setting takes, in words; `deep`: what one of its members takes."""
    own = [item for item in field.metadata if isinstance(item, Give)]
    inner = [kind for kind in _kinds(field.annotation) if get_origin(kind) in (list, dict, tuple)]
    if own and not (deep and inner):
        optional = NoneType in set(_kinds(field.annotation))
        return f"{own[0]}, or null" if optional else own[0]
    return _words(get_args(inner[0])[-1] if deep and inner else field.annotation)


def _words(annotation: Any) -> str:
    origin, members = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        gives = [item for item in members[1:] if isinstance(item, Give)]
        return gives[0] if gives else _words(members[0])
    if origin is Literal:
        return _list(members)
    if origin in (list, dict, tuple):
        return f"a list of {_words(members[0])}" if origin is list else "a mapping of names to numbers"
    if members:
        parts = [_words(member) for member in members if member is not NoneType]
        return ", ".join(parts) + (", or null" if NoneType in members else "")
    return {bool: "true or false", str: "a text", Path: "a path"}.get(annotation, str(annotation))


def _nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a sentence about a name that does not exist."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {prefix}{near[0]}?" if near else f"there is {_list(names, 'and')}."


def _list(words: Iterable[Any], joint: str = "or") -> str:
    *most, last = map(str, words)
    return f"{', '.join(most)} {joint} {last}" if most else last


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, ensure_ascii=False, default=str)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and name != "tasks":
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
