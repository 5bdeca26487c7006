"""What a clip will take in memory and time: `pusa info MODEL --memory`, and the choice behind `--memory auto`."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pusa.cli.shared.options import Model
from pusa.cli.shared.terminal import Report
from pusa.errors import InputError

if TYPE_CHECKING:
    import torch

    from pusa.models.memory.estimate import Needs, Rehearsal

BUS = 12e9
"""Bytes per second from the machine's memory to a GPU, as a PCIe 4.0 slot of 16 lanes reaches at least."""
MANY = 16
"""times as many pixels as the model's own clips have"""
DISK = 1.5e9
"""Bytes per second from a solid-state disk."""


def profile_for(model: Model, size: tuple[int, int] | None, frames: int | None, guidance: float | None) -> str | None:
    """The memory profile that `--memory` comes to; None for none. size, frames, guidance: None for the model's own.

    Raises InputError, before anything is loaded, when the clip will not fit under the profile, or under any for auto.
    A model of less than 100 MB is not weighed, unless the clip is many times as large as its own.
    """
    if model.memory == "none":
        return None
    from pusa.models.memory import estimate, profiles

    chosen = None if model.memory == "auto" else profiles.named(model.memory)
    device = _device()
    _, folder = _found(model.source)
    on_disk = estimate.bytes_on_disk(folder, model.beside())
    if 0 < on_disk < estimate.SMALL and _times_its_own(folder, size, frames) <= MANY:
        return None if chosen is None else chosen.name
    rehearsal = _rehearse(model, size, frames, guidance, device.type == "cpu")
    on_device, on_host = estimate.free_memory(device)
    free = on_device, on_host / int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's processes each hold the model
    if chosen is None:
        return estimate.choose(rehearsal, *free).name
    needs = rehearsal.needs(chosen)
    if not needs.fits(*free):
        raise estimate.too_large(needs, rehearsal, *free)
    return chosen.name


def _times_its_own(folder: Path, size: tuple[int, int] | None, frames: int | None) -> float:
    """How many times as many pixels a clip has as the model makes when nothing is said."""
    from pusa.models.loading import checkpoints

    own = checkpoints.defaults_of(folder)
    return math.prod(size or own.size) * (frames or own.frames) / (math.prod(own.size) * own.frames)


def outlook(
    model: Model,
    *,
    size: tuple[int, int] | None,
    frames: int | None,
    guidance: float | None,
    profile: str | None,
    rate: float | None,
) -> Report:
    """What a clip takes under one profile or each. rate: matrix products of the device in TFLOPS, else measured."""
    import torch

    from pusa.models.memory import estimate, profiles
    from pusa.training.costs import device_name, matmul_rate
    from pusa.training.estimate import EFFICIENCY

    if rate is not None and not 0 < rate < math.inf:
        raise InputError(f"--rate {rate}: give the TFLOPS of the device, such as 150.")
    wanted = list(profiles.PROFILES.values()) if profile is None else [profiles.named(profile)]
    device = _device()
    free = estimate.free_memory(device)
    rehearsals: dict[bool, Rehearsal] = {}
    rows: list[dict[str, Any]] = []
    for each in wanted:
        on_cpu = each.gigabytes is None
        if on_cpu not in rehearsals:
            rehearsals[on_cpu] = _rehearse(model, size, frames, guidance, on_cpu)
        needs = rehearsals[on_cpu].needs(each)
        here = on_cpu or device.type != "cpu"
        speed = rate * 1e12 if rate else None
        if speed is None and here:
            kind = ("float32" if on_cpu else "bfloat16") if model.dtype == "auto" else model.dtype
            speed = _rate_of(matmul_rate, "cpu" if on_cpu else str(device), getattr(torch, kind))
        rows.append(
            needs.record()
            | {
                "within": None if each.gigabytes is None else needs.device_peak <= each.gigabytes * 1e9,
                "fits_here": needs.fits(None if on_cpu else free[0], free[1]) if here else False,
                "seconds_per_step": None if speed is None else _seconds(needs, each.transformer, speed, EFFICIENCY),
            }
        )
    any_one = next(iter(rehearsals.values()))
    record = {
        "model": model.source,
        "size": list(any_one.size),
        "frames": any_one.frames,
        "passes_per_step": any_one.passes,
        "device": device_name(device),
        "free": {"device": free[0], "host": free[1]},
        "assumed": list(any_one.assumed),
        "profiles": rows,
    }
    return Report(record, _table(record))


_RATES: dict[tuple[str, Any], float] = {}


def _rate_of(measure: Any, device: str, dtype: torch.dtype) -> float:
    if (device, dtype) not in _RATES:
        _RATES[device, dtype] = measure(device, dtype)
    return _RATES[device, dtype]


def _seconds(needs: Needs, place: str, rate: float, efficiency: tuple[float, float]) -> list[float]:
    """At best and at worst: computing, or where that is longer bringing the weights."""
    bringing = needs.moved / (DISK if place == "disk" else BUS)
    worst, best = efficiency
    return [float(f"{max(needs.flops / rate / share, bringing):.3g}") for share in (best, worst)]


def _device() -> torch.device:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _found(source: str) -> tuple[str, Path]:
    from pusa.models.loading import sources

    return sources.find(source, ())


def _rehearse(
    model: Model, size: tuple[int, int] | None, frames: int | None, guidance: float | None, on_cpu: bool
) -> Rehearsal:
    import torch

    from pusa.generation.limits import Limits
    from pusa.models.loading import checkpoints, sources
    from pusa.models.memory import estimate

    name, folder = _found(model.source)
    sources.check_transformer(name, folder)
    settings = Limits.of(name, folder, model.beside()).settings(frames=frames, size=size, guidance=guidance)
    return estimate.Rehearsal.of(
        name,
        folder,
        size=settings.size,
        frames=settings.frames,
        guidance=settings.guidance,
        dtype=None if model.dtype == "auto" else getattr(torch, model.dtype),
        on_cpu=on_cpu,
        beside=model.beside(),
        loras=[*(Path(one.path) for one in checkpoints.own_loras(name)), *(path for path, *_ in model.loras())],
    )


def _table(record: dict[str, Any]) -> str:
    width, height = record["size"]
    free = record["free"]
    have = f"{free['host'] / 1e9:.1f} GB of memory"
    if free["device"] is not None:
        have = f"{free['device'] / 1e9:.1f} GB of device memory and {have}"
    lines = [
        f"{record['frames']} frames of {width}x{height} with {record['model']}, "
        f"{record['passes_per_step']} pass{'es' if record['passes_per_step'] > 1 else ''} a step",
        f"Free on {record['device']}: {have}",
        *(f"Taken as Wan's own, for the source has none: {kind}" for kind in record["assumed"]),
        "",
        f"{'profile':8}  {'device':>9}  {'memory':>9}  {'a step':>14}  fits",
    ]
    for row in record["profiles"]:
        device = f"{row['device'] / 1e9:.1f} GB" if row["within"] is not None else "–"
        seconds = row["seconds_per_step"]
        step = "–" if seconds is None else f"{seconds[0]:.3g}–{seconds[1]:.3g} s"
        fits = "yes" if row["fits_here"] else "in theory" if row["within"] and free["device"] is None else "no"
        lines.append(f"{row['profile']:8}  {device:>9}  {row['host'] / 1e9:>6.1f} GB  {step:>14}  {fits}")
    if free["device"] is None and any(row["within"] is not None for row in record["profiles"]):
        lines += ["", "There is no GPU here; 'in theory' is what a GPU of the profile's size would hold."]
    return "\n".join(lines)
