"""How far weights moved, by component and by block: ‖ΔW‖ / ‖W‖ over all numbers of a group (Frobenius).

The paper (section 3.4) finds Wan-I2V over ten times farther from Wan-T2V than its own adapter, mostly in text embedding
and cross-attention, and its own almost only in self-attention. Its formula is not given; this one is stated here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from pusa.errors import InputError
from pusa.models import dialects
from pusa.models.names import parameter_shapes

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
_BLOCK = re.compile(r"^blocks\.(\d+)\.")


@dataclass
class Drift:
    """Squared sums by component and by block; `of` makes the numbers of them. notes: what could not be compared."""

    components: dict[str, list[float]] = field(default_factory=dict)
    blocks: dict[int, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, before: Tensor, change: Tensor | None) -> None:
        """Count a parameter and its change; None is none."""
        size = float(before.double().square().sum())
        moved = 0.0 if change is None else float(change.double().square().sum())
        groups: list[list[float]] = [self.components.setdefault(component_of(name), [0.0, 0.0])]
        if block := _BLOCK.match(name):
            groups.append(self.blocks.setdefault(int(block[1]), [0.0, 0.0]))
        for group in groups:
            group[0] += moved
            group[1] += size

    def of(self) -> tuple[dict[str, float], dict[int, float]]:
        """Relative change of each component, and of each block."""
        return (
            {name: _ratio(*self.components[name]) for name in COMPONENTS if name in self.components},
            {block: _ratio(*self.blocks[block]) for block in sorted(self.blocks)},
        )


def _ratio(moved: float, size: float) -> float:
    return (moved / size) ** 0.5 if size else 0.0


def component_of(name: str) -> str:
    """The component of a parameter of Wan; attention before norms, so that the norms inside belong to it."""
    for component, pattern in COMPONENTS.items():
        if re.search(pattern, name):
            return component
    return "other"


def of_models(before: nn.Module, after: nn.Module) -> Drift:
    """The change from one transformer to another, without LoRAs. Further input channels are left out, and noted.

    Raises InputError for models of different sizes.
    """
    drift, changed = Drift(), dict(_weights(after))
    for name, old in _weights(before):
        new = changed.pop(name, None)
        if new is None:
            raise InputError(f"The second model has no {name}; compare models of one architecture.")
        if new.shape != old.shape:
            if name != "patch_embedding.weight" or new.shape[2:] != old.shape[2:] or new.shape[0] != old.shape[0]:
                sizes = " and ".join("x".join(map(str, tensor.shape)) for tensor in (old, new))
                raise InputError(f"{name} is {sizes}; compare models of one size.")
            shared = min(new.shape[1], old.shape[1])
            drift.notes.append(f"{abs(new.shape[1] - old.shape[1])} input channels are only in one model, left out")
            old, new = old[:, :shared], new[:, :shared]
        drift.add(name, old, new.double() - old.double())
    if changed:
        drift.notes.append(
            f"{len(changed)} parameters are only in the second model, left out: {next(iter(changed))}, …"
        )
    return drift


def of_lora(base: nn.Module, file: Path, strength: float) -> Drift:
    """The change that a LoRA file makes at a strength, s · (α / r) · B A and whole differences, a layer at a time."""
    changes = dialects.read(dialects.file_of(file), parameter_shapes(base))
    drift = Drift()
    for name, old in _weights(base):
        change: Tensor | None = None
        if name.endswith(".weight") and (factors := changes.factors.get(name.removesuffix(".weight"))):
            down, up = factors
            change = strength * (up.double() @ down.double())
        if name in changes.differences:
            whole = strength * changes.differences[name].double()
            change = whole if change is None else change + whole
        drift.add(name, old, change)
    return drift


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters by their stock names, those of LoRAs left out."""
    for name, value in model.named_parameters():
        if ".lora_" not in name:
            yield name.replace(".base_layer.", "."), value.detach()


def over(drifts: Mapping[str, Drift]) -> dict[str, dict[str, float]]:
    """Relative change by component, side by side, with zeros for none."""
    found = {name: drift.of()[0] for name, drift in drifts.items()}
    order = [name for name in COMPONENTS if any(name in each for each in found.values())]
    return {component: {name: each.get(component, 0.0) for name, each in found.items()} for component in order}
