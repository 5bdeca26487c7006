"""Training of all weights: no parameters are added, and the base itself changes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor

from pusa.adapters.base import Attached, Card, check_bare
from pusa.errors import InputError

FOLDER = "transformer"
_TRAINABLE = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class AllWeights:
    """All weights of the model are trained. They are written as a folder that stock diffusers loads."""

    @property
    def output(self) -> str:
        return FOLDER

    @property
    def keeps_base(self) -> bool:
        return False

    @property
    def standalone(self) -> bool:
        return False

    @property
    def scalable(self) -> bool:
        return False

    @property
    def card(self) -> Card:
        return Card(
            title="A transformer trained from",
            relation="finetune",
            diffusers_code=(
                "transformer = {transformer}.from_pretrained({file}, torch_dtype=torch.bfloat16)\n"
                "pipe = {pipeline}.from_pretrained({base}, transformer=transformer, torch_dtype=torch.bfloat16)"
            ),
        )

    def attach(self, model: ModelMixin, seed: int) -> Attached:
        """Make all weights trainable, as float32. `save` writes each weight in the type that it had before.

        Raises InputError for a model with a LoRA, and for a quantised model.
        """
        check_bare(model)
        if odd := [name for name, p in model.named_parameters() if p.dtype not in _TRAINABLE]:
            raise InputError(
                f"All weights of a quantised model cannot be trained ({odd[0]} is not stored in 16 or 32 bits): load "
                "the model without quantisation, or train a LoRA."
            )
        blank, config = type(model), dict(model.config)  # sharding changes the class of the model later
        dtypes = {name: p.dtype for name, p in model.named_parameters()}
        model.requires_grad_(True)
        for p in model.parameters():
            p.data = p.data.float()

        def save(folder: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Path:
            with torch.device("meta"):
                plain = blank.from_config(config)
            plain.load_state_dict({k: v.to(dtypes[k]) for k, v in weights.items()}, strict=True, assign=True)
            place, part = folder / FOLDER, folder / f".{FOLDER}.part"
            shutil.rmtree(part, ignore_errors=True)
            plain.save_pretrained(part)
            shutil.rmtree(place, ignore_errors=True)
            return part.rename(place)

        return Attached(model, save)

    def disabled(self, model: ModelMixin) -> AbstractContextManager[None]:
        """Raise InputError: the base has been overwritten."""
        raise InputError("Training of all weights has changed the base: measure the base before training begins.")

    def write(self, path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Raise InputError: a transformer folder needs the configuration of a model."""
        raise InputError(f"{path} cannot be written: one file holds a LoRA, and all weights of a model were trained.")

    @contextmanager
    def applied(self, model: ModelMixin, folder: Path, strength: float = 1.0) -> Iterator[ModelMixin]:
        """Yield the trained model, which is loaded from `folder` and has the class of `model`."""
        yield type(model).from_pretrained(folder / FOLDER).eval()

    def merged(self, model: ModelMixin, folder: Path, strength: float = 1.0) -> dict[str, Tensor]:
        """Return the trained weights as they are in `folder`."""
        with self.applied(model, folder) as trained:
            return {name: p.detach() for name, p in trained.named_parameters()}

    def extra_parameters(self, layers: Mapping[str, tuple[int, int]]) -> int:
        return 0
