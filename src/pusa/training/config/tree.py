"""The settings of a training: a typed tree, built from defaults, a preset, a file and the command line.

A setting has the same name everywhere: `train: {lr: 1e-4}` in YAML, `[train] lr = 1e-4` in TOML, `--train.lr 1e-4` on
the command line. The command line overrides the file, the file overrides the preset, and the preset overrides the
defaults. An unknown name, a value of a wrong type and a value out of range are errors. The message says where the value
was given and which values are allowed.
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
from pusa.training.config.presets import MEMORY, PRESETS
from pusa.training.config.sections import (
    Absent,
    DataConfig,
    Give,
    LoraSettings,
    MemorySettings,
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
ADDED = {
    "data.folders": None, "data.prefix": None, "data.captions": "one", "data.uncaptioned": False,
    "lora.init": None, "lora.exclude": None, "lora.init_weights": "kaiming", "memory.base": None, "train.rates": None,
}  # fmt: skip
"""Settings that older runs do not have, and the values that mean what these runs did. With them, a run can resume."""
SHAPE_OF_LORA = ("rank", "alpha", "targets")
"""The settings of a LoRA that a LoRA to start from (lora.init) decides."""


class Config(Section):
    """All settings of a training."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    sigma: SigmaConfig = SigmaConfig()
    lora: Annotated[LoraSettings | None, Absent] = LoraSettings()
    train: TrainSettings = TrainSettings()
    memory: MemorySettings = MemorySettings()
    save: SaveSettings = SaveSettings()
    validate_: ValidateSettings = Field(default=ValidateSettings(), alias="validate")
    preview: PreviewSettings = PreviewSettings()
    track: TrackSettings = TrackSettings()

    @model_validator(mode="after")
    def _expert(self) -> Self:
        if self.model.full_range:
            return self
        if self.model.expert is None:
            raise ValueError("model.full_range is false but model.expert is null; give the expert, high or low")
        low, high = (self.model.boundary, 1.0) if self.model.expert == "high" else (0.0, self.model.boundary)
        if (self.sigma.low, self.sigma.high) == (0.0, 1.0):
            self.__dict__["sigma"] = self.sigma.model_copy(update={"low": low, "high": high})
        elif not low <= self.sigma.low < self.sigma.high <= high:
            raise ValueError(
                f"sigma.low {self.sigma.low:g} and sigma.high {self.sigma.high:g} are outside the range of the "
                f"{self.model.expert}-noise expert, {low:g} to {high:g}; leave them out or give values in this range"
            )
        return self

    @model_validator(mode="after")
    def _frozen_base(self) -> Self:
        memory, train = self.memory, self.train
        if self.lora is None and (used := [name for name in ("base", "swap", "limit") if getattr(memory, name)]):
            raise ValueError(f"memory.{used[0]} is for the frozen base of a LoRA, but lora is null; leave it out")
        if (memory.base or memory.swap) and train.parallel == "fsdp":
            raise ValueError("memory.base and memory.swap cannot be combined with train.parallel fsdp; set it to ddp")
        if memory.offload and not train.gradient_checkpointing:
            raise ValueError("memory.offload needs gradient checkpointing; set train.gradient_checkpointing to true")
        return self

    @model_validator(mode="after")
    def _optimiser(self) -> Self:
        train = self.train
        if train.optimiser == "prodigy" and train.lr < 0.1:
            raise ValueError(f"train.lr is {train.lr:g}, and prodigy multiplies the rate that it finds by it; give 1")
        if train.optimiser == "prodigy" and train.rates:
            raise ValueError("train.rates cannot be combined with prodigy; leave it out or choose another optimiser")
        if train.optimiser == "schedule-free" and (train.schedule != "constant" or train.ema is not None):
            raise ValueError(
                "train.optimiser schedule-free has no schedule and averages by itself; set train.schedule to constant "
                "and train.ema to null"
            )
        if train.optimiser == "adamw-kahan" and train.precision != "bf16":
            raise ValueError("train.optimiser adamw-kahan trains bfloat16 weights; set train.precision to bf16")
        if train.optimiser != "adamw" and train.parallel == "fsdp":
            raise ValueError("train.parallel fsdp needs train.optimiser adamw; set it, or set train.parallel to ddp")
        return self

    @property
    def clips_per_step(self) -> int:
        """The samples of one optimiser step in each process."""
        return self.train.batch * self.train.accumulate

    def plain(self) -> dict[str, Any]:
        """Return all settings as dictionaries, lists, texts and numbers, for JSON or YAML."""
        return self.model_dump(mode="json", by_alias=True)

    def to_yaml(self) -> str:
        """Return all settings, including defaults, as YAML. `read` returns an equal object for it."""
        return text_formats.dump(self.plain())

    def write(self, path: Path) -> None:
        """Write `to_yaml` into a file, atomically."""
        write_text_atomic(path, self.to_yaml())

    def decisive(self) -> dict[str, Any]:
        """Return the settings on which the trained weights depend, as {"train.lr": 1e-4}.

        These are all settings except `ADDED` with their values, the path of the cache, the clips for validation, the
        number of reading threads, gradient checkpointing, the place of weights and checkpoints, and the sections save,
        validate, preview and track. If the learning rate is constant, the number of steps is not included either,
        because a longer run begins like a shorter one.
        """
        plain = {
            name: plain for name, plain in self.plain().items() if name not in ("save", "validate", "preview", "track")
        }
        flat = dict(_flatten(plain))
        for name, value in ADDED.items():
            if name in flat and flat[name] == value:
                del flat[name]
        where = ("memory.swap", "memory.offload", "memory.limit")
        for name in ("data.cache", "data.validation", "train.workers", "train.gradient_checkpointing", *where):
            del flat[name]
        if self.train.schedule == "constant":
            del flat["train.steps"]
        return flat

    def fingerprint(self) -> str:
        """Return the SHA-256 of `decisive`."""
        return hashlib.sha256(json.dumps(self.decisive(), sort_keys=True).encode()).hexdigest()


def differences(old: Config, new: Config) -> list[str]:
    """Return the differences of `decisive`, a line for each: "train.lr was 0.0001 and is 0.001"."""
    before, after = old.decisive(), new.decisive()
    names = [name for name in (before | after) if name != "train.steps" or (name in before and name in after)]
    return [
        f"{name} was {_as_text(before.get(name))} and is {_as_text(after.get(name))}"
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
    """Read and check the settings: the defaults, overridden by the preset, the file `path`, and `overrides`.

    overrides: {"train.lr": 1e-4} or {"train": {"lr": 1e-4}}. A text is parsed like a value on the command line.
    Raises InputError for the first error, with the name of the setting, where it was given, and the allowed values.
    """
    merged: dict[str, Any] = {}
    origin: dict[tuple[str, str], str] = {}
    if preset is not None:
        if preset not in PRESETS:
            raise InputError(f"There is no preset {preset!r}; {_nearest(preset, PRESETS)}")
        _merge(PRESETS[preset].config, f"the preset {preset}", merged, origin)
    if path is not None:
        _merge(text_formats.load(path), str(path), merged, origin)
    profile = {name: overrides[name] for name in ("memory",) if isinstance(overrides.get(name), str)}
    _merge(profile, _COMMAND_LINE, merged, origin)
    others = {name: value for name, value in overrides.items() if name not in profile}
    _merge(_override_tree(others), _COMMAND_LINE, merged, origin)
    if preset is not None and (lora := merged.get("lora") or {}).get("init") is not None:
        for key in SHAPE_OF_LORA:  # a LoRA to start from decides them, and not the preset
            if origin.get(("lora", key)) == f"the preset {preset}":
                del lora[key]
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise InputError(_error_message(error, origin)) from error


def _merge(data: Mapping[str, Any], place: str, merged: dict[str, Any], origin: dict[tuple[str, str], str]) -> None:
    """Merge settings into `merged`, which they override, and record in `origin` where each was given.

    The section memory may be the name of a memory profile, which the other settings of `data` override.

    place: where `data` was given, for messages. Raises InputError for an unknown name.
    """
    for section, values in sorted(data.items(), key=lambda item: item[0] != "memory" or not isinstance(item[1], str)):
        if section == "memory" and isinstance(values, str):
            if values not in MEMORY:
                raise InputError(
                    f"There is no memory profile {values!r} for a training ({place}); {_nearest(values, MEMORY)}"
                )
            _merge(MEMORY[values], f"the memory profile {values}", merged, origin)
            continue
        if section not in SECTIONS:
            at = next((name for name, kind in SECTIONS.items() if section in kind.model_fields), None)
            hint = f"did you mean {at}.{section}?" if at else _nearest(section, SECTIONS)
            if section == "preset":
                hint = "give the preset on the command line, as --preset NAME."
            raise InputError(f"There is no section {section!r} ({place}); {hint}")
        if values is text_formats.EMPTY:
            continue
        if section == "lora" and values in (None, "none"):
            merged[section] = None
            continue
        if not isinstance(values, Mapping):
            raise InputError(
                f"The section {section} is {_as_text(values)} ({place}); write settings in this section, such as "
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


def _override_tree(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree for dotted names, with each text converted to the type of its setting."""
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
    if kinds & {str, Path} and not kinds & {list, int}:
        return None if text == "null" and NoneType in kinds else text
    value = text_formats.value(text)
    return [value] if list in kinds and isinstance(value, str) and value != "none" else value


def _kinds(annotation: Any) -> Iterator[Any]:
    """Yield the members of a union, without their annotations."""
    if get_origin(annotation) is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif get_origin(annotation) in (list, dict, tuple, Literal) or not get_args(annotation):
        yield annotation
    else:
        for member in get_args(annotation):
            yield from _kinds(member)


def _error_message(error: ValidationError, origin: Mapping[tuple[str, str], str]) -> str:
    """Return a message about the first error, with the names of other wrong settings."""
    first, *others = error.errors()
    name, place = _name(first["loc"]), _place(first["loc"], origin)
    more = sorted({_name(other["loc"][:2]) for other in others} - {_name(first["loc"][:2])})
    rest = f" ({', '.join(more)} {'is' if len(more) == 1 else 'are'} also wrong)" if more else ""
    if first["type"] == "value_error":
        reason = first["ctx"]["error"]
        return f"{name}{place} {reason}{rest}." if name else f"{reason}{place}{rest}."
    section, key, *deeper = (str(part) for part in first["loc"])
    field = SECTIONS[section].model_fields[key]
    if deeper and deeper[-1] == "[key]":
        known = get_args(get_args(field.annotation)[0])
        return f"{section}.{key} has the unknown key {deeper[0]!r}{place}; {_nearest(deeper[0], known)}"
    found = "missing" if first["type"] == "missing" else _as_text(first["input"])
    if isinstance(first["input"], float) and first["type"].startswith("int"):
        found = repr(first["input"])  # 3.0, which is not a whole number here
    return f"{name} is {found}{place}; give {_expected(field, deep=bool(deeper))}{rest}."


def _name(loc: tuple[int | str, ...]) -> str:
    """Return a location such as ("data", "buckets", 0) as data.buckets[0], without the tags of unions."""
    if len(loc) < 2:
        return str(loc[0]) if loc else ""
    name = f"{loc[0]}.{loc[1]}"
    for part in loc[2:]:
        kind = SECTIONS[str(loc[0])].model_fields[str(loc[1])].annotation
        if isinstance(part, int):
            name += f"[{part}]"
        elif dict in {get_origin(one) for one in _kinds(kind)} and part != "[key]":
            name += f".{part}"
    return name


def _place(loc: tuple[int | str, ...], origin: Mapping[tuple[str, str], str]) -> str:
    if len(loc) >= 2:
        places = {origin.get((str(loc[0]), str(loc[1])))} - {None}
    else:
        places = {place for (section, _), place in origin.items() if not loc or section == loc[0]}
    return f" ({' and '.join(sorted(str(place) for place in places))})" if places else ""


def _expected(field: FieldInfo, *, deep: bool) -> str:
    """Return a description of the allowed values of a setting; deep: of a member of its list or mapping."""
    own = [item for item in field.metadata if isinstance(item, Give)]
    inner = [kind for kind in _kinds(field.annotation) if get_origin(kind) in (list, dict, tuple)]
    if own and not (deep and inner):
        optional = NoneType in set(_kinds(field.annotation))
        return f"{own[0]}, or null" if optional else own[0]
    return _description(get_args(inner[0])[-1] if deep and inner else field.annotation)


def _description(annotation: Any) -> str:
    origin, members = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        gives = [item for item in members[1:] if isinstance(item, Give)]
        return gives[0] if gives else _description(members[0])
    if origin is Literal:
        return _list(members)
    if origin in (list, dict, tuple):
        return f"a list of {_description(members[0])}" if origin is list else "a mapping of names to numbers"
    if members:
        parts = [_description(member) for member in members if member is not NoneType]
        return ", ".join(parts) + (", or null" if NoneType in members else "")
    return {bool: "true or false", str: "a text", Path: "a path"}.get(annotation, str(annotation))


def _nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return the end of a message about an unknown name: the closest known name, or all of them."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {prefix}{near[0]}?" if near else f"give one of {_list(names)}."


def _list(words: Iterable[Any]) -> str:
    *most, last = map(str, words)
    return f"{', '.join(most)} or {last}" if most else last


def _as_text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, ensure_ascii=False, default=str)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and name not in ("tasks", "rates"):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
