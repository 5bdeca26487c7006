"""The interface of an adapter, and a model with an adapter attached for training.

Trained parameters are float32, whatever the type of the base model; one optimiser converts them to bfloat16. Each
parameter has one name. Optimisers, averages, checkpoints and the exchange between processes refer to a parameter by
this name.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from diffusers import ModelMixin
from torch import Tensor, nn

from pusa.errors import InputError


class Save(Protocol):
    """Writes the trained weights of a model."""

    def __call__(self, folder: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Path:
        """Write whole `weights`, by parameter name, and return the path, which is `folder` / `Adapter.output`.

        metadata: strings, or values that are written as JSON.
        """


@dataclass(frozen=True)
class Attached:
    """A model with an adapter attached for training.

    model: the model; exactly the parameters of the adapter have `requires_grad`. save: writes the weights.
    """

    model: ModelMixin
    save: Save

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name. Sharding replaces parameters, so read this again after sharding."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}


@dataclass(frozen=True)
class Card:
    """What a model card says about weights of this kind.

    title: the first words of the card, before the name of the base model. relation: the hub's term for it.
    tags: further tags for the hub. rows: rows of the training table.
    diffusers_code: Python lines that make `pipe`. `{pipeline}` and `{transformer}` in it stand for the model's classes
    in diffusers, and `{base}` and `{file}` for quoted strings.
    lora_file: whether `pusa generate --lora` and the LoRA nodes of ComfyUI load the file.
    """

    title: str
    relation: Literal["adapter", "finetune"]
    diffusers_code: str
    tags: tuple[str, ...] = ()
    rows: Mapping[str, Any] = field(default_factory=dict)
    lora_file: bool = False


class Adapter(Protocol):
    """One way of training a model: which parameters are trained, and how they are written and loaded."""

    @property
    def output(self) -> str:
        """The name of the written file or folder, inside the folder of a run."""

    @property
    def keeps_base(self) -> bool:
        """Whether the weights of the base stay unchanged in the model, so that `disabled` works during training."""

    @property
    def standalone(self) -> bool:
        """Whether `write` can write the trained weights as one file, without a model."""

    @property
    def scalable(self) -> bool:
        """Whether the trained change has a strength that can be chosen when it is loaded."""

    @property
    def card(self) -> Card:
        """The part of a model card that depends on the adapter."""

    def attach(self, model: ModelMixin, seed: int) -> Attached:
        """Make `model` trainable, in place. New parameters are drawn from `seed` and do not change the output yet.

        Raises InputError if the model already has an adapter, or if this adapter cannot train it.
        """

    def disabled(self, model: ModelMixin) -> AbstractContextManager[None]:
        """Compute with the base model alone inside the `with` block. What is trained stays the same.

        Raises InputError if there is no attached adapter, or if the base is not kept (see `keeps_base`).
        """

    def write(self, path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Write whole weights, by parameter name, as one file; InputError if the adapter is not `standalone`."""

    def applied(self, model: ModelMixin, folder: Path, strength: float = 1.0) -> AbstractContextManager[ModelMixin]:
        """Yield the base `model` with the weights that `save` wrote into `folder`.

        The yielded model may be `model` itself, changed for the `with` block, or another one. strength: multiplies the
        trained change, if the adapter is `scalable`.
        """

    def merged(self, model: ModelMixin, folder: Path, strength: float = 1.0) -> dict[str, Tensor]:
        """Return all weights of the base `model`, with the change that `save` wrote into `folder` added to them."""

    def extra_parameters(self, layers: Mapping[str, tuple[int, int]]) -> int:
        """Return how many parameters the adapter adds to a model.

        layers: {name: (inputs, outputs)} of the model's linear layers.
        """


def check_bare(model: ModelMixin) -> None:
    """Raise InputError if the model has a LoRA."""
    if present := getattr(model, "peft_config", {}):
        raise InputError(f"The model has the LoRA {', '.join(present)} already: train on a model without a LoRA.")
