"""Read the tensors and the metadata of a LoRA file, before anything is known about their names."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from pusa.errors import InputError, first_line
from pusa.files import refuse_pointer
from pusa.models import weight_files
from pusa.models.lora import header

_PICKLES = (b"PK", *(bytes([0x80, protocol]) for protocol in range(2, 6)))
"""The first two bytes of PyTorch's pickles, new and old."""


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a file, with the PEFT configuration next to it as "adapter_config".

    8-bit numbers are converted to bfloat16, which is exact. Raises InputError if the file is damaged, contains code, or
    has a number that is not finite or no floating-point number.
    """
    try:
        refuse_pointer(path)
    except InputError as error:
        raise InputError(f"{error}.") from error
    tensors, metadata = _opened(path)
    for key, value in tensors.items():
        if not value.is_floating_point() and not key.endswith(".alpha"):
            raise InputError(f"The LoRA {path} has {key} as {value.dtype}: give a LoRA in a floating-point type.")
        if value.is_floating_point() and value.element_size() == 1:
            tensors[key] = value = value.to(torch.bfloat16)
        if not value.isfinite().all():
            raise InputError(f"The LoRA {path} is damaged: {key} has values that are not finite; copy it again.")
    if config := header.configuration_file(path):
        metadata = {**metadata, "adapter_config": config.read_text(encoding="utf-8")}
    return tensors, metadata


def _opened(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        if path.suffix == ".safetensors":
            with safe_open(str(path), "pt") as file:
                keys = file.keys()
                return {key: file.get_tensor(key) for key in keys}, file.metadata() or {}
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if path.suffix == ".safetensors":
            reason = first_line(error)
            raise InputError(f"The LoRA {path} is damaged or not a LoRA ({reason}); copy it again.") from error
        if isinstance(error, UnpicklingError) and path.open("rb").read(2) in _PICKLES:
            raise InputError(
                f"{path} is a pickle that contains more than tensors and could run code, so it is not opened: get it "
                "as a .safetensors file."
            ) from error
        raise InputError(
            f"{path} is not a LoRA; give a .safetensors file, or a .pt, .pth or .bin file of tensors."
        ) from error
    if isinstance(loaded, dict):
        numbers = {key: value for key, value in loaded.items() if isinstance(value, int | float)}
        loaded |= {key: torch.tensor(float(value)) for key, value in numbers.items() if str(key).endswith(".alpha")}
    tensors = weight_files.flattened(loaded)
    if not isinstance(loaded, dict) or not all(value.layout == torch.strided for value in tensors.values()):
        raise InputError(f"The LoRA {path} is not a dictionary of tensors: give a LoRA.")
    return tensors, {}
