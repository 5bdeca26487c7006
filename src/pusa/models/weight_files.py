"""List the tensors in a file of weights from its header, and read them one after another.

The formats are safetensors, PyTorch's pickles (`.pth`) and GGUF. Listing a file reads names, types and shapes, but no
weights. So a model can be described and checked before 30 GB are read. If a file is cut off, the error names a missing
tensor. Only pickles need torch for it. Pickles are opened with `weights_only`, so that code in them does not run.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from pusa.errors import InputError, first_line
from pusa.files import existing_file

if TYPE_CHECKING:
    from torch import Tensor

SAFETENSORS, PICKLE, GGUF = (".safetensors",), (".pth", ".pt", ".ckpt", ".bin"), (".gguf",)
SUFFIXES = (*SAFETENSORS, *PICKLE, *GGUF)
_LONGEST_HEADER = 100_000_000
_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
          "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1}  # fmt: skip
_NAMES = {
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.float64": "F64",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e5m2": "F8_E5M2",
}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file. name, dtype: as in the file (BF16, F8_E4M3, Q8_0 ...). shape: of its values."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """The number of values."""
        return prod(self.shape)

    @property
    def quantised(self) -> bool:
        """Whether the tensor is in blocks of GGUF, so that its bytes are no numbers."""
        return self.file.suffix.lower() in GGUF and self.dtype not in _NAMES.values()


def listing(file: Path) -> dict[str, Stored]:
    """Return the tensors of a file by name, without reading them.

    Raises InputError if the file is missing, empty, cut off, damaged, of another format, or a pickle with code.
    """
    file, suffix = existing_file(file), file.suffix.lower()
    for suffixes, reader in _LISTINGS:
        if suffix in suffixes:
            return reader(file)
    raise InputError(f"{file} is not a file of weights: give one that ends in {', '.join(SUFFIXES[:2])} or {GGUF[0]}.")


def read(stored: Iterable[Stored]) -> Iterator[tuple[Stored, Tensor]]:
    """Yield the tensors on the CPU, file by file. Those of safetensors and pickles are memory-mapped, not copied."""
    by_file: dict[Path, list[Stored]] = {}
    for one in stored:
        by_file.setdefault(one.file, []).append(one)
    for file, ones in by_file.items():
        with _opened(file) as get:
            for one in ones:
                try:
                    yield one, get(one)
                except (OSError, RuntimeError, ValueError) as error:
                    raise InputError(f"{file} is damaged: its {one.name} cannot be read; copy it again.") from error


def dequantised(tensor: Tensor, one: Stored) -> Tensor:
    """Return the numbers of a quantised tensor of a GGUF file in its original shape, in float32 or float16."""
    from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

    values: Tensor = dequantize_gguf_tensor(tensor)
    return values.reshape(one.shape)


def aligned(tensor: Tensor) -> Tensor:
    """Return the tensor, copied if its memory does not begin at a multiple of 64 bytes, as can happen in a mapped file.

    Without this, matrix products on some CPUs are rounded differently, and equal weights from two files could give
    different clips.
    """
    return tensor.clone() if tensor.device.type == "cpu" and tensor.data_ptr() % 64 else tensor


class _opened:  # noqa: N801
    """A file opened for reading tensors from it."""

    def __init__(self, file: Path) -> None:
        self.file, self.handle = file, ExitStack()

    def __enter__(self) -> Callable[[Stored], Tensor]:
        if self.file.suffix.lower() in SAFETENSORS:
            try:
                handle = self.handle.enter_context(safe_open(str(self.file), "pt"))
            except Exception as error:
                raise InputError(f"{self.file} is damaged ({error}); copy it again.") from error
            return lambda one: handle.get_tensor(one.name)
        if self.file.suffix.lower() in GGUF:
            # not public; test_gguf_runs_as_diffusers_runs_it (tests/models/loading/test_sources.py) fails when it moves
            from diffusers.models.model_loading_utils import load_gguf_checkpoint

            try:
                quantised = load_gguf_checkpoint(str(self.file))
            except ValueError as error:
                raise InputError(f"{self.file} cannot be read ({first_line(error)}).") from error
            return lambda one: _plain(quantised[one.name], one)
        tensors = _unpickled(self.file)
        return lambda one: tensors[one.name]

    def __exit__(self, *error: Any) -> None:
        self.handle.close()


def _plain(tensor: Tensor, one: Stored) -> Tensor:
    """Return unquantised numbers of a GGUF file in their type and original shape. Quantised ones are unchanged.

    The format has at most four dimensions. diffusers keeps bfloat16 as bytes.
    """
    import torch

    if one.dtype == "BF16":
        tensor = tensor.as_subclass(torch.Tensor).view(torch.bfloat16)
    return tensor if one.quantised else tensor.reshape(one.shape)


def _safetensors(file: Path) -> dict[str, Stored]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= _LONGEST_HEADER:
            raise InputError(f"{file} is damaged or not a safetensors file (its header is too long); copy it again.")
        if length > size - 8:
            raise InputError(f"{file} is cut off in its header ({size} bytes); copy or download it again.")
        header = stream.read(length)
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        found = [(name, e["dtype"], tuple(e["shape"]), *e["data_offsets"]) for name, e in entries.items()]
        for name, dtype, shape, begin, end in found:
            if dtype in _BYTES and end - begin != prod(shape) * _BYTES[dtype]:
                raise InputError(f"{file} is damaged: {name} has the wrong length in its header; copy it again.")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file} is damaged: its header cannot be read; copy or download it again.") from error
    available = size - 8 - length
    lost = [(begin, name) for name, _, _, begin, end in found if end > available]
    if lost:
        more = f" and {len(lost) - 1} more tensors are" if len(lost) > 1 else " is"
        raise InputError(f"{file} is cut off: {min(lost)[1]}{more} incomplete; copy or download it again.")
    return {name: Stored(file, name, dtype, shape) for name, dtype, shape, _, _ in found}


def _gguf(file: Path) -> dict[str, Stored]:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise InputError(f"Reading {file} needs the package gguf: pip install 'pusa[gguf]'.") from error
    try:
        reader = GGUFReader(file)
        shapes = {tensor.name: tuple(int(n) for n in reversed(tensor.shape)) for tensor in reader.tensors}
        for name in shapes:
            if field := reader.get_field(f"comfy.gguf.orig_shape.{name}"):
                shapes[name] = tuple(int(n) for n in field.contents())
    except Exception as error:
        raise InputError(f"{file} is cut off, damaged or not GGUF ({error}); copy or download it again.") from error
    return {t.name: Stored(file, t.name, t.tensor_type.name, shapes[t.name]) for t in reader.tensors}


def _pickle(file: Path) -> dict[str, Stored]:
    return {
        name: Stored(file, name, _NAMES.get(str(tensor.dtype), str(tensor.dtype)), tuple(tensor.shape))
        for name, tensor in _unpickled(file).items()
    }


def _unpickled(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a pickle, memory-mapped if possible."""
    import torch

    try:
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or "nsupported global" in str(error):
            raise InputError(
                f"{file} is not opened: it contains code that would run; get the weights as safetensors."
            ) from error
        raise InputError(
            f"{file} is not opened: it is damaged or contains code; copy it again, or get the weights as safetensors."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise InputError(f"{file} is cut off, damaged or not a file of weights; copy or download it again.") from error
    tensors = flattened(loaded)
    if not tensors:
        raise InputError(f"{file} does not contain a dictionary of tensors; give a file of weights.")
    return tensors


def flattened(loaded: Any) -> dict[str, Tensor]:
    """Return the tensors in nested dictionaries by their joined keys, such as `generator_ema.blocks.0.ffn.0.weight`.

    Trainers put the weights beside an optimiser and counters. Values that are no tensors are left out.
    """
    import torch

    if not isinstance(loaded, dict):
        return {}
    tensors: dict[str, Tensor] = {}
    for key, value in loaded.items():
        if isinstance(value, torch.Tensor):
            tensors[str(key)] = value
        else:
            tensors |= {f"{key}.{inner}": tensor for inner, tensor in flattened(value).items()}
    return tensors


_LISTINGS: tuple[tuple[tuple[str, ...], Callable[[Path], dict[str, Stored]]], ...] = (
    (SAFETENSORS, _safetensors),
    (PICKLE, _pickle),
    (GGUF, _gguf),
)
