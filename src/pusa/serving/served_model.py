"""Which model the server has, as plain values that a worker process receives, and how a worker loads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pusa.generation.limits import Limits
from pusa.models.loading import sources

if TYPE_CHECKING:
    from pusa.generation.pipeline import Pipeline


@dataclass(frozen=True)
class ServedModel:
    """The one resident model.

    Attributes:
        name: its id in the API.
        source: as of `pusa.load`; beside: parts that are in other places.
        loras: (file, strength, expert) of the LoRAs that it always has.
        offered: LoRAs that a request may name.
        dtype, memory, attention, compiled: as of `pusa.load`.
    """

    name: str
    source: str
    beside: Mapping[str, str | None] = field(default_factory=dict)
    loras: tuple[tuple[Path, float, Literal["high", "low"] | None], ...] = ()
    offered: Mapping[str, Path] = field(default_factory=dict)
    dtype: str = "auto"
    memory: str | None = None
    attention: str = "native"
    compiled: bool = False

    def limits(self) -> Limits:
        """What it can make, from its configuration. Raises InputError if there is no such model."""
        return Limits.of(*sources.find(self.source, ()), dict(self.beside))

    def load(self, device: str | None) -> Pipeline:
        """Load it. device: such as "cuda:1"; None is the GPU if there is one. Raises InputError if that fails."""
        import torch

        from pusa.generation.pipeline import load
        from pusa.models.lora.header import LoraFile

        return load(
            self.source,
            vae=self.beside.get("vae"),
            text_encoder=self.beside.get("text_encoder"),
            transformer_2=self.beside.get("transformer_2"),
            lora=[LoraFile(*one) for one in self.loras],
            dtype=None if self.dtype == "auto" else getattr(torch, self.dtype),
            device=device,
            memory=self.memory,
            attention=self.attention,  # type: ignore[arg-type]  # a name that the command line has checked
            compiled=self.compiled,
        )
