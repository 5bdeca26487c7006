"""How much of a clip was computed."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from pusa.core.sampler import Call


@dataclass
class Accounting:
    """What was computed for a clip, in all guidance branches.

    Attributes:
        computed, total: tokens times blocks.
        operations, all_operations: of the blocks, counted as in `Backbone.block_operations`; 0 if not counted.
        kept_bytes: the most memory that kept values took; 0 if not counted.
    """

    computed: int = 0
    total: int = 0
    operations: int = 0
    all_operations: int = 0
    kept_bytes: int = 0

    @property
    def fraction(self) -> float:
        """The share of the tokens times blocks that was computed, 0 to 1."""
        return self.computed / self.total if self.total else 1.0

    @property
    def operations_fraction(self) -> float:
        """The share of the operations of the blocks, 0 to 1."""
        return self.operations / self.all_operations if self.all_operations else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return what a sidecar says."""
        said = {"computed": round(self.fraction, 4)}
        return said | ({"operations": round(self.operations_fraction, 4)} if self.all_operations else {})


class Accelerated(Protocol):
    """An acceleration that runs, for one clip."""

    @property
    def accounting(self) -> Accounting: ...

    def call(self, network: Any, branch: str, call: Call) -> AbstractContextManager[None]:
        """Return a context that surrounds a call of a network. branch: the name of the guidance branch."""
