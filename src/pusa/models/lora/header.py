"""Find a LoRA file, and learn from its name and header what it is for. `dialects` reads its numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError, safe_open

from pusa.errors import InputError
from pusa.models import hub, weight_files
from pusa.models.backbone import Expert
from pusa.models.wan.prefixes import expert_in
from pusa.models.wan.recognise import expert_of, maybe_expert

T = TypeVar("T")

_FOLDER_FILES = (
    "adapter_model.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.safetensors",
    "lora.safetensors",
)
FOLDER_STEMS = ("adapter_model", "pytorch_lora_weights", "lora")
"""Generic names of files. For these, the name of the folder identifies the LoRA."""
_DISTILLED = re.compile(
    r"lightx2v|lightning|(?<!\d)[1-8][ _-]?steps?(?![a-z])|distill|causvid|accvid|fastwan|turbo|self[ _-]?forcing",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class LoraFile:
    """A LoRA to load. path: its file or folder. scale: its strength. expert: the expert it is for; None for all."""

    path: str | Path
    scale: float = 1.0
    expert: Expert | None = None


def in_folder(path: Path) -> Path | None:
    """Return the LoRA file that PEFT, diffusers or `pusa train` wrote into a folder, or None."""
    return next((path / name for name in _FOLDER_FILES if (path / name).is_file()), None)


def file_of(path: str | Path) -> Path:
    """Return the file of a LoRA: `path`, the file in it, or OWNER/REPOSITORY/FILE of the hub. InputError if none."""
    text, path = str(path), Path(path).expanduser()
    try:
        if path.is_dir():
            if found := in_folder(path):
                return found
            raise InputError(f"The LoRA {path} is a folder without {_FOLDER_FILES[0]}: give the file in it.")
        if not path.is_file() and hub.names_a_file(text) and not path.parent.is_dir():
            try:
                return hub.file(text)
            except InputError as error:
                raise InputError(f"There is no LoRA file {path} here, and none on the hub: {error}") from error
        if not path.is_file():
            raise InputError(f"The LoRA {path} does not exist: check the path.")
        if path.stat().st_size == 0:
            raise InputError(f"The LoRA {path} is damaged: it is empty (0 bytes); copy it again.")
    except OSError as error:
        raise InputError(f"The path of the LoRA {path} cannot be used ({error.strerror}): check it.") from error
    return path


def metadata_of(file: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file; an empty dictionary for other and damaged files."""
    if file.suffix != ".safetensors":
        return {}
    try:
        with safe_open(str(file), "pt") as opened:
            return dict(opened.metadata() or {})
    except (OSError, SafetensorError):
        return {}


def configuration_file(file: Path) -> Path | None:
    """Return the adapter_config.json next to a file of PEFT, or None. It gives alpha and other settings."""
    config = file.with_name("adapter_config.json")
    return config if file.stem == "adapter_model" and config.is_file() else None


def experts_of(keys: Iterable[str]) -> tuple[Expert, ...]:
    """Return the experts of Wan2.2 that the keys of a file name: both, one, or none."""
    named = {expert_in(key) for key in keys}
    if len(named) > 1:
        return "high", "low"
    return tuple(expert for expert in named if expert is not None)


def of_expert(tensors: Mapping[str, T], expert: Expert) -> dict[str, T]:
    """Return the tensors for one expert, of a file for both. Those that name none are for the one that none names."""
    named = {key: expert_in(key) for key in tensors}
    other: Expert = "low" if "low" not in named.values() else "high"
    return {key: value for key, value in tensors.items() if (named[key] or other) == expert}


def expert_for(path: str | Path) -> Expert | None:
    """Return the expert that a LoRA is for, by metadata, keys, or "noise" in the name; None if they do not state it."""
    return _stated(file_of(path))


def is_for_both(path: str | Path) -> bool:
    """Return whether a file contains a LoRA for each expert of Wan2.2."""
    return len(experts_of(_keys(file_of(path)))) > 1


def _keys(file: Path) -> Iterable[str]:
    try:
        return weight_files.listing(file)
    except InputError:  # the reader of the tensors says what is wrong
        return ()


def maybe_for(file: Path) -> Expert | None:
    """Return the expert that the name of a LoRA may mean, if nothing states one. It is no evidence."""
    return None if _stated(file) else maybe_expert(_name(file))


def _stated(file: Path) -> Expert | None:
    recorded = metadata_of(file).get("pusa.expert")
    if recorded in ("high", "low"):
        return "high" if recorded == "high" else "low"
    named = experts_of(_keys(file))
    return (named[0] if len(named) == 1 else None) if named else expert_of(_name(file))


def _name(file: Path) -> str:
    return file.parent.name if file.stem in FOLDER_STEMS else file.stem


def is_per_frame(file: Path) -> bool:
    """Return whether a LoRA was trained with a timestep per frame, by its metadata or its name."""
    pattern = metadata_of(file).get("pusa.pattern")
    return "pusa" in file.name.lower() if pattern is None else pattern != "shared"


def is_distilled(file: Path) -> bool:
    """Return whether a LoRA is distilled to few steps, by the name of its file, folder or hub repository."""
    names = [file.stem, file.parent.name, *(part for part in file.parts if part.startswith("models--"))]
    return any(_DISTILLED.search(name) for name in names)
