"""What a training costs: operations of a step, the machine's own rate for them, memory, and money.

Operations are counted as everyone counts them, two for a multiplication with its addition, matrix products and
attention only. A linear layer of i inputs and o outputs takes 2·i·o per row in the forward pass, as much again for the
gradient with respect to its input where something before it is trained, and as much again for the gradient of its
weight where that is trained. Attention of L queries over K keys of width D takes 4·L·K·D, and 10·L·K·D backwards, which
contains working out the scores again. The rows are tokens, text tokens, or latent frames: the per-frame modulation that
vectorized timesteps need is F rows through the time embedding (arXiv 2507.16116, section 2.3.1), next to nothing.

The share of the machine's rate that training reaches (MFU) is measured against what the same machine does with one
large matrix product in the same precision. Recomputation under gradient checkpointing does not count towards it.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from peft.tuners.lora import LoraLayer
from torch import nn

from pusa.files import write_json
from pusa.models.wan.latents import TEXT_TOKENS

PAPER: Mapping[str, Any] = {"clips": 3860, "samples": 7200, "steps": 900, "money": 500.0, "currency": "USD"}
"""arXiv 2507.16116: 900 steps of 8 clips on a set of 3,860, for about $500."""


@dataclass(frozen=True)
class Flops:
    """Operations of forward and backward pass, and of the forward passes that gradient checkpointing repeats."""

    forward: int
    backward: int
    recomputed: int = 0

    @property
    def model(self) -> int:
        """What the model needs: forward and backward."""
        return self.forward + self.backward

    @property
    def executed(self) -> int:
        """What the machine does for it."""
        return self.model + self.recomputed


@dataclass(frozen=True)
class _Product:
    """A linear layer, or the patch embedding as one. rank: of its adapters together; frozen: whether its weight is."""

    name: str
    rows: str  # "tokens" | "text" | "frames"
    inputs: int
    outputs: int
    rank: int
    frozen: bool

    @property
    def trains(self) -> bool:
        return bool(self.rank) or not self.frozen

    def forward(self, rows: int) -> int:
        return 2 * rows * (self.inputs * self.outputs + self.rank * (self.inputs + self.outputs))

    def backward(self, rows: int, input_learns: bool) -> int:
        own = self.inputs * self.outputs * (input_learns + (not self.frozen))
        adapter = self.rank * (self.inputs + self.outputs + self.outputs + self.inputs * input_learns)
        return 2 * rows * (own + adapter)


class StepCounter:
    """Counts the operations of a training step of a transformer as it is: which weights are trained, which adapters.

    The transformer may lie on the meta device, so that a step can be counted before any weight is read.
    """

    def __init__(self, transformer: WanTransformer3DModel) -> None:
        self.transformer = transformer
        config = transformer.config
        self.width = int(config.num_attention_heads * config.attention_head_dim)
        self.blocks = int(config.num_layers)

    @cached_property
    def _products(self) -> list[_Product]:
        found = []
        for name, module in self.transformer.named_modules():
            if isinstance(module, LoraLayer):
                base, rank = module.get_base_layer(), sum(module.r[a] for a in module.active_adapters if a in module.r)
            else:
                base, rank = module, 0
            if ".base_layer" in name or ".lora_" in name or not isinstance(base, (nn.Linear, nn.Conv3d)):
                continue
            inputs = base.in_features if isinstance(base, nn.Linear) else base.in_channels * prod(base.kernel_size)
            outputs = base.out_features if isinstance(base, nn.Linear) else base.out_channels
            found.append(_Product(name, _rows_of(name), inputs, outputs, rank, not base.weight.requires_grad))
        return found

    def _trains(self, prefix: str) -> bool:
        return any(p.requires_grad for name, p in self.transformer.named_parameters() if name.startswith(prefix))

    def __call__(self, clips: int, tokens: int, frames: int, *, text: int = TEXT_TOKENS) -> Flops:
        """Operations of forward and backward for `clips` clips, taken as equally long.

        tokens, frames: latent tokens and latent frames of all clips together. text: text tokens of each.
        """
        rows = {"tokens": tokens, "text": clips * text, "frames": frames}
        learns = self._learners
        forward = backward = again = 0
        for product in self._products:
            count = product.forward(rows[product.rows])
            forward += count
            backward += product.backward(rows[product.rows], learns[product.name])
            again += count * learns.get(_block_of(product.name), False)
        for block in range(self.blocks):
            for layer, keys in (("attn1", tokens // clips), ("attn2", text)):
                count = 4 * tokens * keys * self.width
                forward += count
                backward += count * 5 // 2 * learns[f"blocks.{block}.{layer}"]
                again += count * learns[f"blocks.{block}"]
        return Flops(forward, backward, again if self.transformer.is_gradient_checkpointing else 0)

    @cached_property
    def _learners(self) -> dict[str, bool]:
        """Whether something trained comes into each linear layer and each attention, and whether it leaves each block.

        Follows the data: text and time embeddings, patches, then block after block.
        """
        by_name = {product.name: product for product in self._products}
        text = modulation = stream = False
        learns: dict[str, bool] = {}
        for name in by_name:
            if name.startswith("condition_embedder.text_embedder"):
                learns[name] = text
                text |= by_name[name].trains
            elif name.startswith("condition_embedder.time"):
                learns[name] = modulation
                modulation |= by_name[name].trains
            elif name == "patch_embedding":
                learns[name] = False
                stream = self._trains(name)
        for block in range(self.blocks):
            at = f"blocks.{block}."
            modulated = stream or modulation or self._trains(f"{at}scale_shift_table")
            for name in (n for n in by_name if n.startswith(f"{at}attn1.to_") and not n.endswith("to_out.0")):
                learns[name] = modulated
            mixed = modulated or self._trains(f"{at}attn1.to_q") or self._trains(f"{at}attn1.to_k")
            mixed = mixed or self._trains(f"{at}attn1.to_v") or self._trains(f"{at}attn1.norm")
            learns[f"{at}attn1"] = learns[f"{at}attn1.to_out.0"] = mixed
            stream = mixed or self._trains(f"{at}attn1.to_out")
            learns[f"{at}attn2.to_q"] = stream or self._trains(f"{at}norm2")
            learns[f"{at}attn2.to_k"] = learns[f"{at}attn2.to_v"] = text
            crossed = (
                learns[f"{at}attn2.to_q"]
                or text
                or any(self._trains(f"{at}attn2.{part}") for part in ("to_q", "to_k", "to_v", "norm"))
            )
            learns[f"{at}attn2"] = learns[f"{at}attn2.to_out.0"] = crossed
            stream = crossed or self._trains(f"{at}attn2.to_out")
            learns[f"{at}ffn.net.0.proj"] = stream or modulated
            learns[f"{at}ffn.net.2"] = stream or modulated or by_name[f"{at}ffn.net.0.proj"].trains
            stream = learns[f"blocks.{block}"] = learns[f"{at}ffn.net.2"] or by_name[f"{at}ffn.net.2"].trains
        learns["proj_out"] = stream or modulation or self._trains("scale_shift_table")
        return learns


def _block_of(name: str) -> str:
    """`blocks.3` of `blocks.3.attn1.to_q`."""
    return ".".join(name.split(".")[:2])


def _rows_of(name: str) -> str:
    """What a linear layer of Wan runs over."""
    if name.startswith("condition_embedder.time"):
        return "frames"
    if name.startswith("condition_embedder.text") or name.endswith(("attn2.to_k", "attn2.to_v")):
        return "text"
    return "tokens"


def matmul_rate(device: torch.device | str, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Operations per second of one large matrix product on `device`, the best of what fits into `seconds`."""
    device = torch.device(device)
    size = 8192 if device.type == "cuda" else 1024
    rng = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, generator=rng, device=device).to(dtype) for _ in range(2))

    def once() -> float:
        started = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    once()
    best, until = once(), time.perf_counter() + seconds
    while time.perf_counter() < until:
        best = min(best, once())
    return 2 * size**3 / best


def peak_memory(device: torch.device | str) -> int:
    """Bytes: the most that torch held on a GPU since this process began, or that this process held of the machine's."""
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_name(device: torch.device | str) -> str:
    """What the device is called: `NVIDIA H100 80GB HBM3`, or `CPU, 4 threads`."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    count = torch.get_num_threads()
    return f"CPU, {count} thread{'' if count == 1 else 's'}"


@dataclass(frozen=True)
class Costs:
    """What a run took, all of its starts together; steps that were lost to a kill and done again count once.

    clips: distinct ones in the training set, None where not known. samples: clips seen, with repetition. flops: done,
    with recomputation. seconds: of training; aside: of validation, previews and checkpoints, of which `validation` and
    `previews` are their parts. rate: of one device.
    """

    steps: int
    samples: int
    tokens: int
    flops: int
    model_flops: int
    seconds: float
    aside: float
    devices: int
    device: str
    clips: int | None = None
    rate: float | None = None
    peak_memory: int | None = None
    price: float | None = None
    currency: str = "USD"
    validation: float = 0.0
    previews: float = 0.0

    @property
    def device_hours(self) -> float:
        """Hours of all devices together, everything counted."""
        return (self.seconds + self.aside) * self.devices / 3600

    @property
    def money(self) -> float | None:
        """At the price of an hour of one device; None without one."""
        return None if self.price is None else self.price * self.device_hours

    @property
    def mfu(self) -> float | None:
        """The share of the measured rate that training reached, without recomputation and what was aside."""
        if not self.rate or not self.seconds:
            return None
        return self.model_flops / (self.seconds * self.rate * self.devices)

    def record(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        sums = {"device_hours": self.device_hours, "money": self.money, "mfu": self.mfu}
        return {**asdict(self), **sums, "paper": dict(PAPER)}

    def write(self, path: Path) -> None:
        """cost.json, atomic."""
        write_json(path, self.record())

    @classmethod
    def read(cls, path: Path) -> Costs:
        """What `write` wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{name: data[name] for name in cls.__dataclass_fields__ if name in data})

    def _share(self, seconds: float) -> str:
        """`27.1 s (34%)`: device-hours and their share of all; a dash for none."""
        if seconds <= 0:
            return "–"
        return f"{hours(seconds * self.devices / 3600)} ({seconds / max(self.seconds + self.aside, 1e-9):.0%})"

    def rows(self) -> list[tuple[str, str, str]]:
        """(what, this run, the paper), as text."""
        sign, paper = {"USD": "$", "EUR": "€", "GBP": "£"}.get(self.currency, f"{self.currency} "), PAPER
        price = "no price given" if self.price is None else f"{sign}{self.price:g} an hour"
        money = "–" if self.money is None else f"{sign}{self.money:,.2f}"
        memory = "–" if self.peak_memory is None else f"{self.peak_memory / 2**30:.2f} GiB"
        return [
            ("clips in the set", "–" if self.clips is None else f"{self.clips:,}", f"{paper['clips']:,}"),
            ("clips seen", f"{self.samples:,}", f"{paper['samples']:,}"),
            ("steps", f"{self.steps:,}", f"{paper['steps']:,}"),
            ("operations", scaled(self.flops, "FLOP"), ""),
            ("device", self.device if self.devices == 1 else f"{self.devices} × {self.device}", "8 GPUs of 80 GB"),
            ("device-hours", hours(self.device_hours), ""),
            ("of that training", self._share(self.seconds), ""),
            ("validation", self._share(self.validation), ""),
            ("previews", self._share(self.previews), ""),
            ("checkpoints and the rest", self._share(self.aside - self.validation - self.previews), ""),
            ("share of matrix rate (MFU)", "–" if self.mfu is None else f"{self.mfu:.1%}", ""),
            ("peak memory", memory, ""),
            (f"money ({price})", money, f"about ${paper['money']:.0f}"),
        ]

    def __str__(self) -> str:
        """A table."""
        rows = [("", "this run", "paper"), *self.rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [f"{a:{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}".rstrip() for a, b, c in rows]
        return "\n".join(lines)


def scaled(number: float, unit: str) -> str:
    """`1.24 PFLOP`."""
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if number < 1000 or prefix == "E":
            break
        number /= 1000
    return f"{number:.3g} {prefix}{unit}"


def hours(value: float) -> str:
    """`12.3 h`, or minutes and seconds below an hour."""
    if value >= 1:
        return f"{value:,.1f} h"
    return f"{value * 60:.1f} min" if value * 3600 >= 60 else f"{value * 3600:.1f} s"
