"""The cost of a training: the rate of the machine, memory, and money. The backbone counts the operations.

MFU is the share of the machine's rate that training reaches. The rate is measured with one large matrix product in the
same precision. Recomputation by gradient checkpointing does not count as useful work.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pusa.files import write_json

PAPER: Mapping[str, Any] = {"clips": 3860, "samples": 7200, "steps": 900, "money": 500.0, "currency": "USD"}
"""arXiv 2507.16116: 900 steps of 8 clips on a set of 3,860, for about $500."""


def matmul_rate(device: torch.device | str, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Measure the operations per second of a large matrix product on `device`: the best of `seconds` seconds."""
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
    """Return bytes: the peak of torch on a GPU, or the peak of this process in the memory of the machine."""
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_name(device: torch.device | str) -> str:
    """Return the name of the device, such as `NVIDIA H100 80GB HBM3` or `CPU, 4 threads`."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    count = torch.get_num_threads()
    return f"CPU, {count} thread{'' if count == 1 else 's'}"


@dataclass(frozen=True)
class Costs:
    """The costs of a run, over all its starts. A step that was lost by a kill and repeated counts once.

    steps: finished steps. samples: clips seen, with repetition. tokens: latent tokens seen. flops: executed operations,
    with recomputation; model_flops: without. seconds: of training steps. aside: seconds of everything else, including
    `validation` and `previews`. devices: how many train together. clips: clips in the training set, None if unknown.
    rate: operations per second of one device. peak_memory: bytes. price: money for one hour of one device.
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
        """Hours of all devices together, including validation and previews."""
        return (self.seconds + self.aside) * self.devices / 3600

    @property
    def money(self) -> float | None:
        """The money for all device-hours; None without a price."""
        return None if self.price is None else self.price * self.device_hours

    @property
    def mfu(self) -> float | None:
        """The share of the measured rate that training steps reached, without recomputation; 0 to 1."""
        if not self.rate or not self.seconds:
            return None
        return self.model_flops / (self.seconds * self.rate * self.devices)

    def record(self) -> dict[str, Any]:
        """Return everything for JSON."""
        sums = {"device_hours": self.device_hours, "money": self.money, "mfu": self.mfu}
        return {**asdict(self), **sums, "paper": dict(PAPER)}

    def write(self, path: Path) -> None:
        """Write cost.json, atomically."""
        write_json(path, self.record())

    @classmethod
    def read(cls, path: Path) -> Costs:
        """Return the costs that `write` wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{name: data[name] for name in cls.__dataclass_fields__ if name in data})

    def _share(self, seconds: float) -> str:
        """Return device-hours and their share of all, such as `27.1 s (34%)`; a dash for 0."""
        if seconds <= 0:
            return "–"
        return f"{hours(seconds * self.devices / 3600)} ({seconds / max(self.seconds + self.aside, 1e-9):.0%})"

    def rows(self) -> list[tuple[str, str, str]]:
        """Return the rows of the cost sheet: (name, this run, the paper)."""
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
        """Return the cost sheet as a table."""
        rows = [("", "this run", "paper"), *self.rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [f"{a:{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}".rstrip() for a, b, c in rows]
        return "\n".join(lines)


def scaled(number: float, unit: str) -> str:
    """Return a number with a prefix and a unit, such as `1.24 PFLOP`."""
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if number < 1000 or prefix == "E":
            break
        number /= 1000
    return f"{number:.3g} {prefix}{unit}"


def hours(value: float) -> str:
    """Return hours as text, such as `12.3 h`; below one hour, minutes or seconds."""
    if value >= 1:
        return f"{value:,.1f} h"
    return f"{value * 60:.1f} min" if value * 3600 >= 60 else f"{value * 3600:.1f} s"
