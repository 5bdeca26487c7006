"""How far training moved the weights, by component, layer and block.

The measure of a group is ‖ΔW‖ / ‖W‖, with Frobenius norms over all its weights. Section 3.4 of the paper finds Wan-I2V
more than ten times farther from Wan-T2V than its own adapter: mostly in the text embedding and in cross-attention,
while its adapter is almost only in self-attention. The paper does not state its formula.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from pusa.errors import InputError
from pusa.evaluation.inspect.stored_transformer import StoredTransformer, side_by_side
from pusa.models.lora import dialects, header, magnitudes

Key = TypeVar("Key")
Model = nn.Module | StoredTransformer | Mapping[str, Tensor]

COMPONENTS = {
    "patch embedding": r"^patch_embedding\.",
    "time embedding": r"^condition_embedder\.(time_embedder|time_proj)\.",
    "text embedding": r"^condition_embedder\.text_embedder\.",
    "self-attention": r"\.attn1\.",
    "cross-attention": r"\.attn2\.",
    "feed-forward": r"\.ffn\.",
    "norms and modulation": r"(norm|scale_shift_table)",
    "head": r"^proj_out\.",
}
LAYERS = {
    "q": r"\.to_q\.",
    "k": r"\.to_k\.",
    "v": r"\.to_v\.",
    "output": r"\.to_out\.",
    "norms": r"\.attn\d\.norm_",
    "in": r"\.ffn\.net\.0\.",
    "out": r"\.ffn\.net\.2\.",
}
"""within attention and feed-forward"""
PIECE = 2**22
"""the number of values that are squared at once"""
_BLOCK = re.compile(r"^blocks\.(\d+)\.")


class Group(NamedTuple):
    """The group of a parameter. layer: "" if there is none; block: None if there is none."""

    component: str
    layer: str
    block: int | None

    @classmethod
    def of(cls, name: str) -> Group:
        """The group of a parameter, by its diffusers name. Norms inside attention belong to attention."""
        block = _BLOCK.match(name)
        return cls(_first(COMPONENTS, name, "other"), _first(LAYERS, name, ""), int(block[1]) if block else None)


def _first(patterns: dict[str, str], name: str, otherwise: str) -> str:
    return next((found for found, pattern in patterns.items() if re.search(pattern, name)), otherwise)


@dataclass
class Drift:
    """For each group, the squared sums of the changes and of the weights. notes: what could not be compared."""

    sums: dict[Group, tuple[float, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, before: Tensor, moved: float) -> None:
        """Add a parameter and the squared sum of its change."""
        group = Group.of(name)
        change, size = self.sums.get(group, (0.0, 0.0))
        self.sums[group] = change + moved, size + _squared(before)

    def by(self, key: Callable[[Group], Key | None]) -> dict[Key, float]:
        """The relative change of the groups with the same key, in order; groups whose key is None are left out."""
        return {name: _ratio(change, size) for name, (change, size) in self._by(key).items()}

    def shares(self) -> dict[str, float]:
        """The share of each component in ‖ΔW‖²; empty if nothing changed."""
        whole = sum(change for change, _ in self.sums.values())
        found = self._by(lambda group: group.component)
        return {name: change / whole for name, (change, _) in found.items()} if whole else {}

    def of(self) -> tuple[dict[str, float], dict[int, float]]:
        """The relative change of each component, and of each block."""
        return self.by(lambda group: group.component), self.by(lambda group: group.block)

    def _by(self, key: Callable[[Group], Key | None]) -> dict[Key, tuple[float, float]]:
        sums: dict[Key, tuple[float, float]] = {}
        order = [*COMPONENTS, "other"], [*LAYERS, ""]
        for group in sorted(
            self.sums, key=lambda g: (order[0].index(g.component), order[1].index(g.layer), g.block or 0)
        ):
            if (name := key(group)) is not None:
                change, size = sums.get(name, (0.0, 0.0))
                sums[name] = change + self.sums[group][0], size + self.sums[group][1]
        return sums


def _ratio(moved: float, size: float) -> float:
    return math.sqrt(moved / size) if size else math.inf if moved else 0.0


def _squared(values: Tensor, without: Tensor | None = None) -> float:
    """The squared sum of the values, or of their difference from others, in float64, one piece at a time."""
    parts = torch.split(values.flatten(), PIECE)
    others = parts if without is None else torch.split(without.flatten(), PIECE)
    pairs = zip(parts, others, strict=True)
    wide = (part.double() if without is None else part.double() - other.double() for part, other in pairs)
    return sum(float(part.square().sum()) for part in wide)


def of_models(before: Model, after: Model) -> Drift:
    """The change from one transformer to another, without LoRAs. Stored models are read one tensor at a time.

    Parameters and input channels that only one of them has, such as those of an image-to-video model, are left out and
    noted. Raises InputError if the models have different sizes.
    """
    drift = Drift()
    for name, old, new in _pairs(before, after, _shared(before, after, drift.notes)):
        if new.shape != old.shape:
            channels = min(new.shape[1], old.shape[1])
            old, new = old[:, :channels], new[:, :channels]
        drift.add(name, old, _squared(new, old))
    return drift


def of_lora(base: Model, file: Path, strength: float) -> Drift:
    """The change that a LoRA file makes at a strength s, layer by layer: s · (α / r) · B A, or another kind of change.

    ‖B A‖² is computed as the sum of (Bᵀ B) ∘ (A Aᵀ), so that no matrix of the layer's size is made.
    """
    changes = dialects.read(header.file_of(file), _shapes(base))
    drift = Drift()
    for name, old in _weights(base):
        moved = 0.0
        module = name.removesuffix(".weight")
        if module in changes.magnitudes or module in changes.products:
            change = magnitudes.change_of(changes, name, old)
            moved = 0.0 if change is None else _squared(change)
        elif name.endswith(".weight") and (factors := changes.factors.get(module)):
            down, up = (factor.double() for factor in factors)
            moved = max(0.0, float(((up.T @ up) * (down @ down.T)).sum()))
        elif name in changes.differences:
            moved = _squared(changes.differences[name])
        drift.add(name, old, strength**2 * moved)
    return drift


def _shared(before: Model, after: Model, notes: list[str]) -> list[str]:
    """The parameters that are compared; what is left out is added to `notes`."""
    old, new = _shapes(before), _shapes(after)
    first, second = _called(before, "the first model"), _called(after, "the second model")
    names = [name for name in old if name in new]
    if not names:
        raise InputError(f"{first} and {second} have no parameter in common; compare models of the same architecture.")
    counts = [1 + max((g.block for g in map(Group.of, each) if g.block is not None), default=-1) for each in (old, new)]
    if counts[0] != counts[1]:
        raise InputError(f"{first} has {counts[0]} blocks and {second} {counts[1]}; compare models of the same size.")
    for name in names:
        a, b = old[name], new[name]
        if a != b and (name != "patch_embedding.weight" or (a[0], *a[2:]) != (b[0], *b[2:])):
            sizes = " and ".join("x".join(map(str, shape)) for shape in (a, b))
            raise InputError(f"{name} is {sizes} in {first} and {second}; compare models of the same size.")
        if a != b:
            extra, which = abs(b[1] - a[1]), first if a[1] > b[1] else second
            notes.append(f"{extra} input channels are only in {which}; the first {min(a[1], b[1])} are compared")
    for mine, others, which in ((old, new, first), (new, old, second)):
        if alone := [name for name in mine if name not in others]:
            notes.append(f"{len(alone)} parameters are only in {which}, left out (such as {alone[0]})")
    return names


def _shapes(model: Model) -> dict[str, tuple[int, ...]]:
    if isinstance(model, StoredTransformer):
        return model.shapes
    return {name: tuple(value.shape) for name, value in _weights(model)}


def _called(model: Model, otherwise: str) -> str:
    return model.source if isinstance(model, StoredTransformer) else otherwise


def _weights(model: Model) -> Iterator[tuple[str, Tensor]]:
    """Parameters by their stock names, without those of LoRAs."""
    if isinstance(model, StoredTransformer):
        yield from model.read(model.tensors)
        return
    if isinstance(model, Mapping):
        yield from model.items()
        return
    for name, value in model.named_parameters():
        if ".lora_" not in name:
            yield name.replace(".base_layer.", "."), value.detach()


def _pairs(before: Model, after: Model, names: Iterable[str]) -> Iterator[tuple[str, Tensor, Tensor]]:
    if isinstance(before, StoredTransformer) and isinstance(after, StoredTransformer):
        yield from side_by_side(before, after, names)
        return
    old, new = dict(_weights(before)), dict(_weights(after))
    for name in names:
        yield name, old[name], new[name]
