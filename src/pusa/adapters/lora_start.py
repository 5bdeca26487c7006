"""A LoRA file from which a training starts, in any dialect, and the settings that continue its training.

A file means W + s · B A, with one s for all layers: alpha / rank of the program that trained it, or 1 if the file has
no alpha, as the published Pusa LoRAs. The training keeps s, so that a learning rate means the same as before.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pusa.errors import InputError
from pusa.models.lora import header, runtime


@dataclass(frozen=True)
class Start:
    """The factors of a LoRA file.

    factors: {module: (A [r, in], B [out, r])}, float32; the file means W + `scaling` · B A. If the layers of the file
    have different scalings, they are multiplied into B, and `scaling` is 1.
    """

    path: Path
    factors: Mapping[str, tuple[Tensor, Tensor]]
    scaling: float

    @property
    def ranks(self) -> dict[str, int]:
        """{module: r}. A file may have other ranks in some of its layers."""
        return {module: len(down) for module, (down, _) in self.factors.items()}


def read(path: str | Path, layers: Mapping[str, tuple[int, int]]) -> Start:
    """Return the factors of a LoRA file. path: as for `header.file_of`. layers: {name: (inputs, outputs)} of the model.

    Raises InputError where `runtime.read` does, also for a file that changes more than linear layers.
    """
    file = header.file_of(path)
    changes = runtime.changes_of(file, layers)
    if changes.kinds != "LoRA":
        raise InputError(f"lora.init {path} is a {changes.kinds}, and the training is of a LoRA: start from a LoRA.")
    if changes.differences:
        raise InputError(
            f"lora.init {path} changes {len(changes.differences)} parameters as a whole (such as "
            f"{min(changes.differences)}), and a LoRA for training has only factors of linear layers: start from "
            "another LoRA."
        )
    scalings = {changes.scalings.get(module, 1.0) for module in changes.factors}
    scaling = scalings.pop() if len(scalings) == 1 else 1.0
    scaling = scaling or 1.0  # with alpha 0 the file changes nothing, and B is zero
    factors = {module: (down.float(), up.float() / scaling) for module, (down, up) in changes.factors.items()}
    return Start(file, factors, scaling)


def settings_of(
    start: Start, layers: Collection[str], defaults: Collection[str], *, stabilised: bool = False
) -> dict[str, Any]:
    """Return rank, alpha and targets that continue the training of a LoRA, for the settings `lora`.

    layers: the names of the model's linear layers. defaults: the usual targets. stabilised: whether the training
    divides alpha by √rank. targets: `defaults` if they select the layers of the file, or else the shortest endings of
    names that do, or else whole names.
    """
    rank = max(start.ranks.values())
    alpha = start.scaling * (math.sqrt(rank) if stabilised else rank)
    wanted, known = set(start.factors), {*layers, *start.factors}
    in_blocks = {name.split(".", 2)[2] for name in wanted if name.startswith("blocks.")}
    outside = {name for name in wanted if not name.startswith("blocks.")}
    for targets in (list(defaults), sorted(in_blocks | outside), sorted(wanted)):
        if selected(known, targets) == wanted:
            break
    return {"rank": rank, "alpha": float(alpha), "targets": targets}


def selected(layers: Collection[str], targets: Collection[str]) -> set[str]:
    """Return the layers whose names are one of `targets`, or end in one after a dot."""
    return {name for name in layers if any(ends_in(name, target) for target in targets)}


def ends_in(layer: str, target: str) -> bool:
    """Return whether a layer's name is `target`, or ends in it after a dot."""
    return f".{layer}".endswith(f".{target}")
