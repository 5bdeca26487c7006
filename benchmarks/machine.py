"""The machine of a measurement: what it is, how fast it multiplies and copies, and fair turns on it.

Other programs may run at the same time. So two things that are compared take turns in one process, and the result is
the ratio of each pair of neighbours: what slows one of them slows the other.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pusa.training.costs import device_name

BUSY = 0.1
"""cores in use by others, beyond which a page says that the machine was busy"""

CERTAIN = 1.10
"""the change of a time that `verdict` asks about"""


def facts(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return what a page says about the machine. Call it first: it looks whether the cores are idle."""
    return {
        "device": device_name(device),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "python": platform.python_version(),
        "busy": cores_in_use() > BUSY,
    }


def cores_in_use(seconds: float = 0.5) -> float:
    """Return how many cores work while this process waits; 0 where /proc/stat does not say it."""
    stat = Path("/proc/stat")
    if not stat.is_file():
        return 0.0

    def idle() -> int:
        return sum(map(int, stat.read_text().splitlines()[0].split()[4:6]))  # idle, and waiting for a disk

    before, started = idle(), time.perf_counter()
    time.sleep(seconds)
    waited = (idle() - before) / os.sysconf("SC_CLK_TCK") / (time.perf_counter() - started)
    return max(0.0, (os.cpu_count() or 1) - waited)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
             ] if cpuinfo.is_file() else []  # fmt: skip
    return names[0] if names else platform.processor() or platform.machine()


def finish(device: torch.device | str) -> None:
    """Wait until the device has done everything that it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], Any], device: torch.device | str = "cpu") -> float:
    """Return the wall time of one run."""
    finish(device)
    started = time.perf_counter()
    run()
    finish(device)
    return time.perf_counter() - started


def in_turns(
    runs: Mapping[str, Callable[[], Any]], turns: int, device: torch.device | str = "cpu", warm_up: bool = True
) -> dict[str, list[float]]:
    """Return {name: seconds of each turn}. Every other turn has the reverse order. warm_up: one run of each before."""
    if warm_up:
        for run in runs.values():
            run()
    found: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns):
        for name in list(runs) if turn % 2 == 0 else reversed(list(runs)):
            found[name].append(seconds(runs[name], device))
    return found


def matrix_rate(device: torch.device | str, dtype: torch.dtype, size: int) -> float:
    """Return operations per second of one product of two matrices [size, size], of which the fastest of three counts.

    It takes a tenth of a second, so that it can be measured beside every run of what it is compared with.
    `pusa.training.costs.matmul_rate` is the best that is seen in half a second.
    """
    rng = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, generator=rng, device=device).to(dtype) for _ in range(2))
    torch.mm(a, b)
    return 2 * size**3 / min(seconds(lambda: torch.mm(a, b), device) for _ in range(3))


def copy_rate(device: torch.device | str, size: int) -> float:
    """Return bytes per second that copying `size` bytes reads and writes; the fastest of three counts."""
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    target.copy_(source)
    return 2 * size / min(seconds(lambda: target.copy_(source), device) for _ in range(3))


def ratio(of: Sequence[float], to: Sequence[float]) -> dict[str, float]:
    """Return the median and the range of the ratios of pairs."""
    ratios = [a / b for a, b in zip(of, to, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios), "pairs": len(ratios)}


def verdict(ratio: Mapping[str, float]) -> str:
    """Say what the range of the ratios of two times, new over old, means beyond a change of `CERTAIN`."""
    if ratio["least"] > CERTAIN:
        return "slower"
    return "faster" if ratio["most"] < 1 / CERTAIN else f"no certain difference above {CERTAIN - 1:.0%}"


def ratio_text(found: Mapping[str, float]) -> str:
    """Return such as `1.32 (1.29 to 1.40)`."""
    return f"{found['median']:.2f} ({found['least']:.2f} to {found['most']:.2f})"


def span_text(values: Sequence[float], unit: str, scale: float = 1.0) -> str:
    """Return the median and the range, such as `1.32 s (1.29 to 1.40)`."""
    middle, least, most = (scale * x for x in (statistics.median(values), min(values), max(values)))
    digits = 0 if middle >= 100 else 1 if middle >= 10 else 2
    return f"{middle:.{digits}f} {unit} ({least:.{digits}f} to {most:.{digits}f})"


def duration(seconds: float) -> str:
    """A time as text: s, ms or µs."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        value = seconds * scale
        if abs(value) >= 1 or unit == "µs":
            break
    return f"{value:.0f} {unit}" if abs(value) >= 100 else f"{value:.3g} {unit}"


def durations(seconds: Sequence[float]) -> str:
    """The median of times and their range, such as `1.32 s (1.29 s to 1.4 s)`."""
    middle, least, most = (duration(x) for x in (statistics.median(seconds), min(seconds), max(seconds)))
    return f"{middle} ({least} to {most})"
