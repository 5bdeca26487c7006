"""A LoRA on the linear layers of a frozen base: W + (α / r) · B A, with A [r, in] and B [out, r] trained.

PEFT adds the factors to the layers. The file is written in the form that ComfyUI, WanVideoWrapper and diffusers
read, with α / r multiplied into B.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from pusa.adapters import lora_start
from pusa.adapters.base import Attached, Card, check_bare
from pusa.adapters.lora_start import ends_in
from pusa.errors import InputError, first_line
from pusa.models.lora import configuration, runtime

NAME = "pusa"
"""The name of the adapter that is trained, for PEFT."""
FILE = "lora.safetensors"
_LOADED = "trained"
"""The name of a LoRA that `Lora.applied` loads."""


@dataclass(frozen=True)
class Lora:
    """A LoRA. targets: endings of the names of the linear layers that get factors, such as to_q or ffn.net.2.

    rank: r, at least 1. alpha: α, None for α = r. rslora: divide α by √r instead of r (arXiv 2312.03732). init: a LoRA
    file to start from, see `lora_start`. rank, alpha and targets must then be those of the file. exclude: patterns of
    names of layers without factors. gaussian: draw A from a normal distribution of deviation 1 / r, not Kaiming's.
    """

    rank: int
    targets: tuple[str, ...]
    alpha: float | None = None
    rslora: bool = False
    init: str | None = None
    exclude: tuple[str, ...] = ()
    gaussian: bool = False

    @property
    def output(self) -> str:
        return FILE

    @property
    def keeps_base(self) -> bool:
        return True

    @property
    def standalone(self) -> bool:
        return True

    @property
    def scalable(self) -> bool:
        return True

    @property
    def card(self) -> Card:
        return Card(
            title=f"A rank-{self.rank} LoRA for",
            relation="adapter",
            diffusers_code=(
                "pipe = {pipeline}.from_pretrained({base}, torch_dtype=torch.bfloat16)\n"
                'pipe.load_lora_weights(".", weight_name={file})'
            ),
            tags=("lora", "template:diffusion-lora"),
            rows={"rank": self.rank},
            lora_file=True,
        )

    def attach(self, model: ModelMixin, seed: int) -> Attached:
        """Freeze the model and add the factors. A is drawn from `seed` and B is zero, so the output does not change.

        With `init`, the factors are those of its file. Raises InputError if the model has a LoRA already, if a target
        matches no linear layer, or if the file does not fit the model or the settings.
        """
        check_bare(model)
        model.requires_grad_(False)
        _check_targets(model, self.targets)
        start = None if self.init is None else self._start(model, self.init)
        ranks = {re.escape(name): r for name, r in start.ranks.items() if r != self.rank} if start else {}
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self._alpha,
            target_modules=list(self.targets) if not self.exclude else sorted(self._layers(runtime.linears(model))),
            init_lora_weights="gaussian" if self.gaussian else True,
            use_rslora=self.rslora,
            rank_pattern=ranks,
            alpha_pattern={name: self._strength * (math.sqrt(r) if self.rslora else r) for name, r in ranks.items()},
        )
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(seed)
            try:
                model.add_adapter(config, NAME)
            except ValueError as error:
                raise InputError(f"The LoRA cannot be made: {first_line(error)}.") from error
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                layer.lora_A[NAME].float()
                layer.lora_B[NAME].float()
        for module, pair in start.factors.items() if start else ():
            for side, value in zip("AB", pair, strict=True):
                model.get_submodule(f"{module}.lora_{side}.{NAME}").weight.data.copy_(value)

        def save(folder: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Path:
            self.write(folder / FILE, weights, metadata)
            return folder / FILE

        return Attached(model, save)

    def disabled(self, model: ModelMixin) -> AbstractContextManager[None]:
        return without_lora(model, NAME)

    def write(self, path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Write the factors as a LoRA file. weights: as `Attached.parameters` names them; atomic."""
        strength = self._strength
        factors: dict[str, tuple[Tensor, Tensor]] = {}
        for name, down in weights.items():
            module, found, _ = name.partition(f".lora_A.{NAME}.weight")
            if found:
                up = weights[f"{module}.lora_B.{NAME}.weight"]
                factors[module] = down, up if strength == 1 else up * strength
        runtime.write(path, factors, metadata)

    @contextmanager
    def applied(self, model: ModelMixin, folder: Path, strength: float = 1.0) -> Iterator[ModelMixin]:
        """Yield `model` with the LoRA on it. Afterwards the model is as before, bit for bit."""
        runtime.load(model, folder / FILE, strength, _LOADED)
        try:
            yield model
        finally:
            runtime.remove(model, _LOADED)

    def merged(self, model: ModelMixin, folder: Path, strength: float = 1.0) -> dict[str, Tensor]:
        """Return W + s · (α / r) · B A of each adapted layer and the other weights as they are; sums are float32."""
        factors, _ = runtime.read(folder / FILE, runtime.linears(model))
        weights = {
            name.replace(".base_layer.", "."): p.detach()
            for name, p in model.named_parameters()
            if ".lora_" not in name
        }
        for module, (down, up) in factors.items():
            base = weights[f"{module}.weight"]
            change = up.float() @ down.float()
            weights[f"{module}.weight"] = base.float() + strength * change.to(base.device)
        return weights

    def extra_parameters(self, layers: Mapping[str, tuple[int, int]]) -> int:
        return sum(self.rank * sum(layers[name]) for name in self._layers(layers))

    def _layers(self, layers: Collection[str]) -> set[str]:
        """Return those of `layers` that get factors. InputError for a damaged or idle pattern, or if none is left."""
        chosen = lora_start.selected(layers, self.targets)
        try:
            matched = {pattern: {name for name in chosen if re.search(pattern, name)} for pattern in self.exclude}
        except re.error as error:
            raise InputError(f"lora.exclude has a damaged pattern ({error}): give parts of names.") from error
        for pattern, names in matched.items():
            if chosen and not names:
                raise InputError(
                    f"lora.exclude has the pattern {pattern!r}, which matches no layer of lora.targets: use a part of "
                    f"a name such as {min(chosen)}."
                )
        left = chosen.difference(*matched.values())
        if chosen and not left:
            raise InputError("The LoRA would train nothing: lora.exclude matches every layer of lora.targets.")
        return left

    @property
    def _alpha(self) -> float:
        return self.rank if self.alpha is None else self.alpha

    @property
    def _strength(self) -> float:
        """The factor of B A."""
        return configuration.scaling(self._alpha, self.rank, self.rslora)

    def _start(self, model: nn.Module, path: str) -> lora_start.Start:
        """Return the LoRA to start from. InputError if its rank, scaling or layers are not those of the settings."""
        layers = runtime.linears(model)
        start = lora_start.read(path, layers)
        right = lora_start.settings_of(start, layers, self.targets, stabilised=self.rslora)
        if self.rank != right["rank"]:
            raise InputError(
                f"lora.rank is {self.rank}, and the LoRA {path} has {right['rank']}: leave lora.rank out to use its "
                "own."
            )
        if not math.isclose(self._alpha, right["alpha"], rel_tol=1e-6):
            raise InputError(
                f"lora.alpha is {self._alpha:g}, and the LoRA {path} needs {right['alpha']:g}: leave lora.alpha out to "
                "use its own."
            )
        if odd := sorted(self._layers(layers) ^ set(start.factors)):
            has = "has no factors for" if odd[0] not in start.factors else "changes"
            setting = "lora.targets and lora.exclude select" if self.exclude else "lora.targets are"
            remedy = "lora.exclude and lora.targets" if self.exclude else "lora.targets"
            raise InputError(
                f"{setting} other layers than those of the LoRA {path}, which {has} {odd[0]}: leave {remedy} out to "
                "use its own."
            )
        return start


@contextmanager
def casting_inputs(model: nn.Module, cast: bool) -> Iterator[None]:
    """Set whether LoRAs convert their inputs to their own type inside the block.

    In mixed precision this is not needed, because the arithmetic converts anyway, and every copy of an input would be
    kept for the backward pass.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    before = [layer.cast_input_dtype_enabled for layer in layers]
    for layer in layers:
        layer.cast_input_dtype_enabled = cast
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.cast_input_dtype_enabled = value


@contextmanager
def without_lora(model: nn.Module, name: str | None = None) -> Iterator[None]:
    """Compute without the LoRA `name` (default: without any) inside the block. What is trained stays the same.

    Raises InputError if the model has no LoRA.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    if not layers:
        raise InputError("The model has no LoRA to disable: measure the base before training begins.")
    active = [layer._active_adapter for layer in layers]
    try:
        # PEFT's own switch would also change which weights are trained. _active_adapter is private:
        # test_a_disabled_lora_leaves_the_base (tests/adapters/test_adapters.py) fails when it moves.
        for layer in layers:
            layer._active_adapter = [a for a in layer.active_adapters if name is not None and a != name]
        yield
    finally:
        for layer, names in zip(layers, active, strict=True):
            layer._active_adapter = names


def _check_targets(model: nn.Module, targets: Sequence[str]) -> None:
    """Raise InputError unless each target is the end of a linear layer's name, beginning at a dot."""
    if not targets:
        raise InputError("The LoRA would train nothing: lora.targets is empty; name layers such as to_q or ffn.net.2.")
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for target in targets:
        if any(ends_in(name, target) for name in layers):
            continue
        endings = {".".join(parts[i:]) for name in layers for parts in [name.split(".")] for i in range(len(parts))}
        near = difflib.get_close_matches(target, sorted(endings), n=1)
        usual = sorted({name.split(".", 2)[2] for name in layers if name.startswith("blocks.")})
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(usual)}."
        raise InputError(f"The LoRA would train nothing at {target!r}: no linear layer has a name that ends so; {hint}")
