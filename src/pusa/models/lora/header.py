"""What a LoRA file is and is for, by its place, its name and its header; its numbers are `dialects`' business."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pusa.errors import InputError
from pusa.models import hub
from pusa.models.backbone import Expert
from pusa.models.wan.recognise import expert_of

_FOLDER_FILES = (
    "adapter_model.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.safetensors",
    "lora.safetensors",
)
FOLDER_STEMS = ("adapter_model", "pytorch_lora_weights", "lora")
"""Names of files that say nothing, because the folder has the name."""
_DISTILLED = re.compile(
    r"lightx2v|lightning|(?<!\d)[1-8][ _-]?steps?(?![a-z])|distill|causvid|accvid|fastwan|turbo|self[ _-]?forcing",
    re.IGNORECASE,
)


def in_folder(path: Path) -> Path | None:
    """The LoRA in a folder, by the names that PEFT, diffusers and our runs give it; None where there is none."""
    return next((path / name for name in _FOLDER_FILES if (path / name).is_file()), None)


def file_of(path: str | Path) -> Path:
    """The file itself, the LoRA in a folder, or OWNER/REPOSITORY/FILE on the hub; InputError when there is none."""
    text, path = str(path), Path(path).expanduser()
    try:
        if path.is_dir():
            if found := in_folder(path):
                return found
            raise InputError(f"The LoRA {path} is a folder that holds no {_FOLDER_FILES[0]}: give the file in it.")
        if not path.is_file() and hub.names_a_file(text) and not path.parent.is_dir():
            try:
                return hub.file(text)
            except InputError as error:
                raise InputError(f"There is no LoRA file {path} here, and none on the hub: {error}") from error
        if not path.is_file():
            raise InputError(f"The LoRA {path} does not exist: check the path.")
        if path.stat().st_size == 0:
            raise InputError(f"The LoRA {path} is damaged, it is empty (0 bytes): copy it again.")
    except OSError as error:
        raise InputError(f"The LoRA {path} is no usable path ({error.strerror}): check it.") from error
    return path


def metadata_of(file: Path) -> dict[str, str]:
    """What a safetensors file says of itself in its header; nothing for other files and for damaged ones."""
    if file.suffix != ".safetensors":
        return {}
    try:
        with safe_open(str(file), "pt") as opened:
            return dict(opened.metadata() or {})
    except (OSError, SafetensorError):
        return {}


def configuration_file(file: Path) -> Path | None:
    """PEFT's adapter_config.json, where it lies beside an adapter and so says what its numbers mean."""
    config = file.with_name("adapter_config.json")
    return config if file.stem == "adapter_model" and config.is_file() else None


def expert_for(path: str | Path) -> Expert | None:
    """Which of two experts a LoRA was made for, as its metadata or else its name says; None where neither does."""
    file = file_of(path)
    said = metadata_of(file).get("pusa.expert")
    if said in ("high", "low"):
        return "high" if said == "high" else "low"
    return expert_of(file.parent.name if file.stem in FOLDER_STEMS else file.stem)


def is_per_frame(file: Path) -> bool:
    """Whether a LoRA was trained with a timestep per frame, by its metadata or its name."""
    pattern = metadata_of(file).get("pusa.pattern")
    return "pusa" in file.name.lower() if pattern is None else pattern != "shared"


def is_distilled(file: Path) -> bool:
    """Whether the name of a LoRA, of its folder, or of its repository on the hub is that of a few-step one."""
    names = [file.stem, file.parent.name, *(part for part in file.parts if part.startswith("models--"))]
    return any(_DISTILLED.search(name) for name in names)
