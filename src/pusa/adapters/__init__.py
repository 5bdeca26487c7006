"""The ways of training a model: a LoRA that is added to the frozen base, or all weights of the base.

An `Adapter` (base.py) describes one way of training. It attaches itself to a model, writes the trained weights, and
loads them again. Training, evaluation and the command line know only this interface, so that a further kind of adapter
is one further file here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pusa.adapters.base import Adapter
from pusa.adapters.full import AllWeights
from pusa.adapters.lora import Lora


class LoraSettings(Protocol):
    """The settings of a LoRA, as in the section `lora` of a training."""

    @property
    def rank(self) -> int: ...
    @property
    def alpha(self) -> float | None: ...
    @property
    def targets(self) -> Sequence[str]: ...
    @property
    def rslora(self) -> bool: ...
    @property
    def init(self) -> str | None: ...
    @property
    def exclude(self) -> Sequence[str] | None: ...
    @property
    def init_weights(self) -> str: ...


def from_settings(lora: LoraSettings | None) -> Adapter:
    """Return the adapter that a training uses: a LoRA with these settings, or all weights if `lora` is None."""
    if lora is None:
        return AllWeights()
    return Lora(
        lora.rank,
        tuple(lora.targets),
        lora.alpha,
        lora.rslora,
        lora.init,
        exclude=tuple(lora.exclude or ()),
        gaussian=lora.init_weights == "gaussian",
    )
