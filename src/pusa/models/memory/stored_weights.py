"""Weights of linear layers in 8 or 4 bits, for a base that does not learn.

| storage | bytes per weight | a weight is |
| --- | ---: | --- |
| `fp8` | 1 | float8_e4m3fn times a power of two for each row, which is exact in bfloat16 |
| `int8` | 1 | a whole number of −127 to 127 times a bfloat16 for each row |
| `nf4` | 0.53 | one of 16 levels of a normal distribution times a float32 for 64 weights (bitsandbytes) |
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from pusa.errors import InputError
from pusa.models.memory.profiles import FP8

Storage = Literal["fp8", "int8", "nf4"]
BLOCK = 64
"""So many weights share a scale in nf4."""


@dataclass(frozen=True, eq=False)
class Stored:
    """A weight [out, in].

    codes, scales: what is stored. dtype: the type in which the layer computes. storage: None for a weight as it is,
    whose `codes` are the weight.
    """

    codes: Tensor
    scales: Tensor | None
    shape: tuple[int, int]
    dtype: torch.dtype
    storage: Storage | None = None

    @classmethod
    def of(cls, weight: Tensor, storage: Storage | None) -> Stored:
        """Store a floating-point weight, on its device. InputError for nf4 if bitsandbytes is missing."""
        outputs, inputs = weight.shape
        shape = outputs, inputs
        if storage is None:
            return cls(weight, None, shape, weight.dtype)
        if storage == "nf4":
            codes, scales = _nf4(weight)
            return cls(codes, scales, shape, weight.dtype, storage)
        most = weight.abs().amax(dim=1, keepdim=True).float().clamp(min=torch.finfo(torch.float32).tiny)
        if storage == "fp8":
            scales = torch.exp2(torch.ceil(torch.log2(most / torch.finfo(FP8).max)))
            codes = (weight.float() / scales).to(FP8)
        else:
            scales = (most / 127).bfloat16().float()
            codes = (weight.float() / scales).round().clamp(-127, 127).to(torch.int8)
        return cls(codes, scales.to(weight.dtype), shape, weight.dtype, storage)

    def weight(self) -> Tensor:
        """Return the weight in `dtype`, on the device of the codes."""
        if self.storage is None:
            return self.codes
        if self.storage == "nf4":
            return self._from_nf4()
        assert self.scales is not None
        return self.codes.to(self.dtype) * self.scales

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def to(self, device: torch.device, *, copy: bool = False) -> Stored:
        """Return the weight on a device, by a copy that does not wait for a page-locked source."""
        return self._moved(lambda t: t.to(device, non_blocking=True, copy=copy))

    def pinned(self) -> Stored:
        """Return the weight in page-locked memory of the machine, from which a GPU copies fast."""
        return self._moved(lambda t: t.to("cpu").pin_memory())

    def tensors(self) -> list[Tensor]:
        return [t for t in (self.codes, self.scales) if t is not None]

    def _moved(self, move: Any) -> Stored:
        return replace(self, codes=move(self.codes), scales=None if self.scales is None else move(self.scales))

    def _from_nf4(self) -> Tensor:
        if self.codes.is_meta:
            return torch.empty(self.shape, dtype=self.dtype, device=self.codes.device)
        functional = _bitsandbytes()
        assert self.scales is not None
        state = functional.QuantState(
            self.scales,
            shape=torch.Size(self.shape),
            code=functional.get_4bit_type("nf4", device=self.codes.device),
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=self.dtype,
        )
        weight: Tensor = functional.dequantize_4bit(self.codes, state)
        return weight


def check(storage: Storage | None) -> None:
    """Raise InputError if the library of a storage is not installed."""
    if storage == "nf4":
        _bitsandbytes()


def _nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    if weight.is_meta:
        count = weight.numel()
        return weight.new_empty(count // 2, 1, dtype=torch.uint8), weight.new_empty(count // BLOCK, dtype=torch.float32)
    codes, state = _bitsandbytes().quantize_4bit(weight.contiguous(), blocksize=BLOCK, quant_type="nf4")
    return codes, state.absmax


def _bitsandbytes() -> Any:
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise InputError(
            "A base stored as nf4 needs bitsandbytes: run pip install 'pusa[lowmemory]', or set memory.base to fp8."
        ) from error
    return functional
